//! The CSI node service: the half of the driver that touches people's disks. It never speaks to a NAS (design.md#the-node-never-calls-dsm).
//!
//! | module | tells the story of |
//! |---|---|
//! | [`stage`], [`unstage`] | a LUN that becomes a mounted file system, and back |
//! | [`attach`], [`login`] | sessions, disks, identity; portals |
//! | [`join`] | portals that were down at first |
//! | [`database`] | open-iscsi's, and a lock that nobody holds any more |
//! | [`record`], [`scan`] | what a login works from; the one logical unit that it is made for, and asking its disk anew |
//! | [`ended`] | what an ended publication has left, and how it goes without writing anything |
//! | [`dead`] | file systems that the kernel has given up, and how they come back |
//! | [`held`], [`paths`] | what this node holds of a volume; several paths and the map over them |
//! | [`holders`] | who else on this node has its device |
//! | [`format`], [`check`] | what may be formatted, and how a format survives a crash; what is checked before it is mounted |
//! | [`grow`], [`expand`] | a file system that follows its device |
//! | [`publish`], [`stats`] | one path for one pod; how full it is |
//! | [`place`] | what is mounted where, and whose it is |
//! | [`request`] | PURE: CSI messages to our types |
//!
//! **Invariants.** Every mutating call holds its volume's lock until its last effect has ended, and may be repeated after a
//! crash at any point: nothing is remembered but what the kernel, the disk and open-iscsi's records say.

mod attach;
mod attachment;
mod dead_fs;
mod ended_publication;
mod expand;
mod format;
mod fsck;
mod grow;
mod holders;
mod login;
mod missing_paths;
mod mounts;
mod paths;
mod publish;
mod record;
mod record_lock;
mod request;
mod scan;
mod stage;
mod stats;
mod sweep;
mod unstage;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use missing_paths::Backoff;

use proto::csi;
use proto::csi::node_server::Node as Service;
use proto::csi::node_service_capability::{self, Rpc, rpc};
use tokio::sync::{RwLock, Semaphore};
use tonic::{Request, Response, Status};

use crate::error::{Context as _, Error};
use crate::host::kernel_names::Names;
use crate::host::{Cmd, Exit, Host, dm_multipath, if_present, session};
use crate::in_flight::InFlight;
use crate::publication::{Iqn, NodeId};
use crate::telemetry;
use crate::volume::LunUuid;
use request::{Expand, Publish, Stage, Stats, Unpublish, Unstage};

/// The node service.
#[derive(Clone, Debug)]
pub struct Node<H> {
    machine: Arc<Machine<H>>,
    in_flight: InFlight,
    max_volumes: u32,
}

/// This node: its machine and its name.
#[derive(Debug)]
struct Machine<H> {
    host: H,
    node_name: String,
    driver_name: String,
    replacement_timeout: Duration,
    /// Held by each command that works on open-iscsi's records.
    database: RwLock<()>,
    /// All paths of volumes lie below it. `None`: anywhere.
    kubelet_dir: Option<String>,
    /// Readers of blank disks beside the first of each.
    shared_reads: Arc<Semaphore>,
    /// Of the targets of sessions.
    targets: Names,
    /// Of the devices of device-mapper: their uuids.
    maps: Names,
}

/// Publications to this node, by the names of their targets: those of one LUN, or all.
#[derive(Clone, Debug)]
struct Publications {
    node_name: String,
    /// And what the names of its targets begin with.
    lun: Option<(LunUuid, [String; 2])>,
}

impl Publications {
    /// The initiator's part of the node's id is left out of the comparison: a session that was made under an earlier initiator
    /// name is still this node's to end.
    fn include(&self, target: &str) -> bool {
        // There may be hundreds of others.
        if let Some((_, beginnings)) = &self.lun
            && !beginnings.iter().any(|begin| target.starts_with(begin))
        {
            return false;
        }
        let Some((lun, node)) = target.parse::<Iqn>().ok().and_then(|iqn| iqn.publication()) else {
            return false;
        };
        let id = NodeId::derive(&self.node_name, "");
        node.is_same_node(&id) && self.lun.as_ref().is_none_or(|(uuid, _)| *uuid == lun)
    }
}

impl<H: Host> Node<H> {
    /// The service of the node `node_name`, for the driver `driver_name`. I/O waits `replacement_timeout` for a NAS that does
    /// not answer, then it fails.
    pub fn new(
        host: H,
        node_name: String,
        driver_name: String,
        replacement_timeout: Duration,
        in_flight: InFlight,
    ) -> Self {
        Self {
            machine: Arc::new(Machine::new(
                host,
                node_name,
                driver_name,
                replacement_timeout,
            )),
            in_flight,
            max_volumes: 0,
        }
    }

    /// The same, with a bound on how many volumes the CO may attach to this node; 0 leaves it to the CO.
    #[must_use]
    pub fn with_max_volumes(self, max_volumes: u32) -> Self {
        Self {
            max_volumes,
            ..self
        }
    }

    /// The same, for a CO that keeps all its paths below this directory. To be called before the service is shared.
    #[must_use]
    pub fn below(mut self, kubelet_dir: Option<String>) -> Self {
        if let Some(machine) = Arc::get_mut(&mut self.machine) {
            machine.kubelet_dir = kubelet_dir;
        }
        self
    }

    /// Runs `operation` with the lock of the LUN held. The lock is the LUN's, not the handle's, because a NAS may have
    /// aliases (design.md#volume-handle).
    async fn locked<T, F>(
        &self,
        key: &str,
        operation: impl FnOnce(Arc<Machine<H>>) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.in_flight
            .run(key, operation(self.machine.clone()))
            .await
    }

    /// What keeps a volume busy that the CO wants to be let go may wait for a NAS that is away.
    fn stop_queueing_later(&self, uuid: LunUuid) {
        let (machine, in_flight) = (self.machine.clone(), self.in_flight.clone());
        tokio::spawn(async move {
            let key = format!("unblocking of {uuid}");
            let watch = async move {
                machine.stop_queueing(&uuid).await;
                Ok(())
            };
            // Busy: one is at it already.
            let _: Result<(), Error> = in_flight.run(&key, watch).await;
        });
    }
}

#[tonic::async_trait]
impl<H: Host> Service for Node<H> {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("NodeStageVolume", &message.volume_id, async {
            let ask = Stage::read(&message)?;
            let key = ask.volume.uuid.to_string();
            self.locked(&key, |machine| async move { machine.stage(&ask).await })
                .await?;
            Ok(csi::NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("NodeUnstageVolume", &message.volume_id, async {
            let ask = Unstage::read(&message)?;
            let key = ask.volume.uuid.to_string();
            let uuid = ask.volume.uuid.clone();
            let work = self.locked(&key, |machine| async move { machine.unstage(&ask).await });
            let done = work.await;
            if matches!(done, Err(Error::Busy { .. })) {
                self.stop_queueing_later(uuid);
            }
            done?;
            Ok(csi::NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("NodePublishVolume", &message.volume_id, async {
            let ask = Publish::read(&message)?;
            let key = ask.volume.uuid.to_string();
            self.locked(&key, |machine| async move { machine.publish(&ask).await })
                .await?;
            Ok(csi::NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("NodeUnpublishVolume", &message.volume_id, async {
            let ask = Unpublish::read(&message)?;
            if let Some(volume) = ask.volume {
                let key = volume.uuid.to_string();
                self.locked(&key, |machine| async move {
                    machine.unpublish(&volume, &ask.target).await
                })
                .await?;
            }
            Ok(csi::NodeUnpublishVolumeResponse {})
        })
        .await
    }

    /// Has a lock of its own: a hung file system holds up one call, not one thread per call, and an expansion none.
    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("NodeGetVolumeStats", &message.volume_id, async {
            let ask = Stats::read(&message)?;
            let key = format!("stats of {}", ask.volume.uuid);
            let (usage, condition) = self
                .locked(&key, |machine| async move { machine.stats(&ask).await })
                .await?;
            Ok(csi::NodeGetVolumeStatsResponse {
                usage,
                volume_condition: Some(condition),
            })
        })
        .await
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("NodeExpandVolume", &message.volume_id, async {
            let ask = Expand::read(&message)?;
            let key = ask.volume.uuid.to_string();
            let size = self
                .locked(&key, |machine| async move { machine.expand(&ask).await })
                .await?;
            Ok(csi::NodeExpandVolumeResponse {
                capacity_bytes: size.as_i64(),
            })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        use rpc::Type::{
            ExpandVolume, GetVolumeStats, SingleNodeMultiWriter, StageUnstageVolume,
            VolumeCondition,
        };
        let capability = |kind: rpc::Type| csi::NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        };
        let capabilities = [
            StageUnstageVolume,
            GetVolumeStats,
            ExpandVolume,
            VolumeCondition,
            SingleNodeMultiWriter,
        ]
        .map(capability)
        .to_vec();
        Ok(Response::new(csi::NodeGetCapabilitiesResponse {
            capabilities,
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        telemetry::rpc("NodeGetInfo", "", async {
            let node_id = self.machine.node_id().await?.as_str().to_owned();
            Ok(csi::NodeGetInfoResponse {
                node_id,
                max_volumes_per_node: self.max_volumes.into(),
                accessible_topology: None,
            })
        })
        .await
    }
}

const INITIATOR_NAME: &str = "/etc/iscsi/initiatorname.iscsi";
/// How long iscsid may take to start and to make the initiator's name.
const NAMED: Duration = Duration::from_secs(10);
/// Between two looks for it.
const HOST_CHECK_INTERVAL: Duration = Duration::from_millis(200);

impl<H> Machine<H> {
    fn new(host: H, node_name: String, driver_name: String, replacement_timeout: Duration) -> Self {
        Self {
            host,
            node_name,
            driver_name,
            replacement_timeout,
            database: RwLock::default(),
            kubelet_dir: None,
            shared_reads: Arc::new(Semaphore::new(format::SHARED_READS)),
            targets: session::target_names(),
            maps: dm_multipath::uuids(),
        }
    }
}

impl<H: Host> Machine<H> {
    /// This node's id, from its name and its initiator's (design.md#node-id).
    async fn node_id(&self) -> Result<NodeId, Error> {
        if let Some(name) = self.initiator_name().await? {
            return Ok(NodeId::derive(&self.node_name, &name));
        }
        // Some distributions make the name when iscsid starts for the first time, and start it when somebody calls.
        let called = self.host.wake_iscsid().await;
        tracing::info!(?called, "there is no initiator name yet: calling iscsid");
        let looks = if matches!(called, Ok(true)) {
            NAMED.as_millis() / HOST_CHECK_INTERVAL.as_millis()
        } else {
            1
        };
        for _ in 0..looks {
            self.host.pause(HOST_CHECK_INTERVAL).await;
            if let Some(name) = self.initiator_name().await? {
                return Ok(NodeId::derive(&self.node_name, &name));
            }
        }
        let iscsid = match called {
            Ok(true) => "iscsid was called and has made none".to_owned(),
            Ok(false) => "nobody listens on iscsid's socket".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(Error::Refused {
            what: "telling this node's id".to_owned(),
            seen: format!("{INITIATOR_NAME} holds no InitiatorName, and {iscsid}"),
            remedy: "on the node: systemctl start iscsid (where open-iscsi is not installed, install it; iscsi-iname makes a name)".to_owned(),
        })
    }

    /// `None` while none was made.
    async fn initiator_name(&self) -> Result<Option<String>, Error> {
        let file = if_present(self.host.read(INITIATOR_NAME).await)
            .context("reading the initiator name")?
            .unwrap_or_default();
        Ok(initiator_name(&String::from_utf8_lossy(&file)).map(str::to_owned))
    }

    /// The publications to this node: of one LUN, or of all.
    fn publications(&self, uuid: Option<&LunUuid>) -> Publications {
        Publications {
            node_name: self.node_name.clone(),
            lun: uuid.map(|uuid| (uuid.clone(), Iqn::beginnings(uuid))),
        }
    }

    /// Runs a command that has to succeed.
    async fn run(&self, doing: &str, cmd: Cmd) -> Result<Exit, Error> {
        let program = cmd.program;
        self.host
            .run(cmd)
            .await
            .and_then(|exit| exit.ok(program))
            .context(doing)
    }
}

/// The name in a line `InitiatorName=iqn.…`.
fn initiator_name(file: &str) -> Option<&str> {
    let name = file
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("InitiatorName")?
                .trim_start()
                .strip_prefix('=')
        })?
        .trim();
    let well_formed = ["iqn.", "eui.", "naa."]
        .iter()
        .any(|kind| name.starts_with(kind))
        && !name.contains(char::is_whitespace);
    well_formed.then_some(name)
}
