//! The CSI node service: attaches, formats, mounts and grows disks on this node. It never calls a NAS
//! (design.md#the-node-never-calls-dsm).
//!
//! One method per RPC. The implementations are in the submodules:
//!
//! | module | contents |
//! |---|---|
//! | [`stage`], [`unstage`] | NodeStageVolume, NodeUnstageVolume |
//! | [`publish`] | NodePublishVolume, NodeUnpublishVolume |
//! | [`expand`], [`stats`] | NodeExpandVolume, NodeGetVolumeStats |
//! | [`attach`], [`login`] | sessions, disks, identity; logins at portals |
//! | [`attachment`], [`paths`] | a volume's sessions, disks and map as the kernel shows them; multipath maps |
//! | [`missing_paths`] | adds paths through portals that were down at stage time |
//! | [`record`], [`record_lock`], [`sweep`] | open-iscsi's node records; the stale lock of their database; leftovers of a crash |
//! | [`scan`] | attaching one logical unit of a session; rescans |
//! | [`ended_publication`] | teardown of an ended publication, without writing anything |
//! | [`dead_fs`] | file systems that the kernel has shut down |
//! | [`holders`] | who else on this node uses the device |
//! | [`format`], [`fsck`] | what may be formatted, and how a format survives a crash; the check before a mount |
//! | [`grow`] | growing a file system to the size of its device |
//! | [`mounts`] | what is mounted where, and whether it is the volume's |
//! | [`request`] | pure: CSI messages to our types |
//!
//! **Invariants.** Every mutating call holds its volume's lock until its last effect has ended, and may be repeated after a
//! crash at any point: there is no state but what the kernel, the disk and open-iscsi's records show.

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

/// What the implementations of the RPCs share: the host, this node's name, settings and caches.
#[derive(Debug)]
struct Machine<H> {
    host: H,
    node_name: String,
    driver_name: String,
    replacement_timeout: Duration,
    /// Read-locked by each command on open-iscsi's records; write-locked to remove a stale lock of their database.
    record_db: RwLock<()>,
    /// All paths of volumes must be below this directory. `None`: no restriction.
    kubelet_dir: Option<String>,
    /// Limits the additional reader threads of all blank-disk checks together; the first reader of each disk needs no permit.
    shared_reads: Arc<Semaphore>,
    /// Cached target names of sessions.
    target_names: Names,
    /// Cached uuids of device-mapper devices.
    map_names: Names,
}

/// Matches target names of publications to this node: of one LUN, or of all.
#[derive(Clone, Debug)]
struct Publications {
    node_name: String,
    /// The LUN, and the prefixes of its target names.
    lun: Option<(LunUuid, [String; 2])>,
}

impl Publications {
    /// Ignores the initiator part of the node id: a session made under an earlier initiator name is still this node's to end.
    fn include(&self, target: &str) -> bool {
        // Cheap prefix check first: there may be hundreds of other targets.
        if let Some((_, prefixes)) = &self.lun
            && !prefixes.iter().any(|prefix| target.starts_with(prefix))
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
    /// The service of the node `node_name`, for the driver `driver_name`. I/O to a NAS that does not answer fails after
    /// `replacement_timeout`.
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

    /// Sets `max_volumes_per_node` of NodeGetInfo; 0 leaves the limit to the CO.
    #[must_use]
    pub fn with_max_volumes(self, max_volumes: u32) -> Self {
        Self {
            max_volumes,
            ..self
        }
    }

    /// Accepts only paths below this directory. Call it before the service is cloned: it has no effect on a shared one.
    #[must_use]
    pub fn with_kubelet_dir(mut self, kubelet_dir: Option<String>) -> Self {
        if let Some(machine) = Arc::get_mut(&mut self.machine) {
            machine.kubelet_dir = kubelet_dir;
        }
        self
    }

    /// Runs `operation` while holding the lock `key`: the LUN's uuid, not the volume handle, because a NAS may have aliases
    /// (design.md#volume-handle).
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

    /// Called when an unstage finds the volume busy: the operation that holds the lock may be waiting for I/O to an unreachable
    /// NAS, which [`Machine::stop_queueing`] makes fail.
    fn stop_queueing_later(&self, uuid: LunUuid) {
        let (machine, in_flight) = (self.machine.clone(), self.in_flight.clone());
        tokio::spawn(async move {
            let key = format!("disabling the queueing of {uuid}");
            let watch = async move {
                machine.stop_queueing(&uuid).await;
                Ok(())
            };
            // Busy: another task is already doing this.
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
            let request = Stage::read(&message)?;
            let key = request.volume.uuid.to_string();
            self.locked(&key, |machine| async move { machine.stage(&request).await })
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
            let request = Unstage::read(&message)?;
            let key = request.volume.uuid.to_string();
            let uuid = request.volume.uuid.clone();
            let work = self.locked(
                &key,
                |machine| async move { machine.unstage(&request).await },
            );
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
            let request = Publish::read(&message)?;
            let key = request.volume.uuid.to_string();
            self.locked(
                &key,
                |machine| async move { machine.publish(&request).await },
            )
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
            let request = Unpublish::read(&message)?;
            if let Some(volume) = request.volume {
                let key = volume.uuid.to_string();
                self.locked(&key, |machine| async move {
                    machine.unpublish(&volume, &request.target).await
                })
                .await?;
            }
            Ok(csi::NodeUnpublishVolumeResponse {})
        })
        .await
    }

    /// Has its own lock: a hung file system blocks one thread instead of one per call, and an expansion does not block it.
    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("NodeGetVolumeStats", &message.volume_id, async {
            let request = Stats::read(&message)?;
            let key = format!("stats of {}", request.volume.uuid);
            let (usage, condition) = self
                .locked(&key, |machine| async move { machine.stats(&request).await })
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
            let request = Expand::read(&message)?;
            let key = request.volume.uuid.to_string();
            let size = self
                .locked(
                    &key,
                    |machine| async move { machine.expand(&request).await },
                )
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
/// How long iscsid may take to start and to generate the initiator name.
const INITIATOR_NAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Poll interval while waiting for it.
const INITIATOR_NAME_POLL_INTERVAL: Duration = Duration::from_millis(200);

impl<H> Machine<H> {
    fn new(host: H, node_name: String, driver_name: String, replacement_timeout: Duration) -> Self {
        Self {
            host,
            node_name,
            driver_name,
            replacement_timeout,
            record_db: RwLock::default(),
            kubelet_dir: None,
            shared_reads: Arc::new(Semaphore::new(format::SHARED_READS)),
            target_names: session::target_names(),
            map_names: dm_multipath::uuids(),
        }
    }
}

impl<H: Host> Machine<H> {
    /// This node's id, derived from its name and its initiator name (design.md#node-id).
    async fn node_id(&self) -> Result<NodeId, Error> {
        if let Some(name) = self.initiator_name().await? {
            return Ok(NodeId::derive(&self.node_name, &name));
        }
        // Some distributions generate the name at iscsid's first start, and start iscsid by socket activation.
        let woken = self.host.wake_iscsid().await;
        tracing::info!(?woken, "no initiator name yet: waking iscsid");
        let polls = if matches!(woken, Ok(true)) {
            INITIATOR_NAME_TIMEOUT.as_millis() / INITIATOR_NAME_POLL_INTERVAL.as_millis()
        } else {
            1
        };
        for _ in 0..polls {
            self.host.pause(INITIATOR_NAME_POLL_INTERVAL).await;
            if let Some(name) = self.initiator_name().await? {
                return Ok(NodeId::derive(&self.node_name, &name));
            }
        }
        let iscsid = match woken {
            Ok(true) => "iscsid was woken and has generated none".to_owned(),
            Ok(false) => "nobody listens on iscsid's socket".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(Error::Refused {
            what: "deriving this node's id".to_owned(),
            seen: format!("{INITIATOR_NAME} holds no InitiatorName, and {iscsid}"),
            remedy: "on the node: systemctl start iscsid (install open-iscsi first if it is missing; iscsi-iname generates a name)".to_owned(),
        })
    }

    /// `None` if the file is missing or holds no valid name.
    async fn initiator_name(&self) -> Result<Option<String>, Error> {
        let file = if_present(self.host.read(INITIATOR_NAME).await)
            .context("reading the initiator name")?
            .unwrap_or_default();
        Ok(initiator_name(&String::from_utf8_lossy(&file)).map(str::to_owned))
    }

    /// A matcher for publications to this node: of one LUN, or of all.
    fn publications(&self, uuid: Option<&LunUuid>) -> Publications {
        Publications {
            node_name: self.node_name.clone(),
            lun: uuid.map(|uuid| (uuid.clone(), Iqn::prefixes(uuid))),
        }
    }

    /// Runs a command; an exit status other than 0 is an error.
    async fn run(&self, doing: &str, cmd: Cmd) -> Result<Exit, Error> {
        let program = cmd.program;
        self.host
            .run(cmd)
            .await
            .and_then(|exit| exit.ok(program))
            .context(doing)
    }
}

/// The name from the line `InitiatorName=iqn.…`.
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
