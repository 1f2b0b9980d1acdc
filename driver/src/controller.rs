//! The CSI controller service. One method per RPC; the implementations are in the submodules.
//!
//! Stateless: the NAS is the source of truth. Locks are per process, and each sidecar elects its own leader, so every sequence
//! here must also be safe when two controllers interleave (design.md#one-operation-per-volume).

mod auth;
mod create;
mod delete;
mod expand;
mod former_node;
mod list;
mod lookup;
mod paging;
mod publish;
mod target;
mod unpublish;

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto::csi;
use proto::csi::controller_server::Controller as Service;
use proto::csi::controller_service_capability::{Rpc, Type, rpc};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tonic::{Request, Response, Status};

use crate::chap::keys::Keys;
use crate::dsm::Nas;
use crate::error::Error;
use crate::in_flight::InFlight;
use crate::owner_tag::Owner;
use crate::publication::Nonce;
use crate::request::{Capability, Handle, Page, Range, required};
use crate::telemetry;
use crate::volume::{NasName, VolumeId};

/// The controller service.
#[derive(Clone, Debug)]
pub struct Controller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    owner: Owner,
    nases: Vec<Nas>,
    keys: Keys,
    /// For nonces in target names, and for backoff.
    random: Mutex<StdRng>,
    /// Since when targets to be changed or replaced have had no session.
    idle_targets: former_node::IdleTargets,
    /// The volumes of each NAS when it was last listed, for when it is unreachable and another NAS is not.
    last_listed: Mutex<HashMap<NasName, paging::Volumes>>,
    /// For the next pages of `ListVolumes`.
    snapshot: paging::Snapshot,
    in_flight: InFlight,
}

/// The advertised capabilities (design.md#capabilities). Not PUBLISH_READONLY: read-only is enforced on the node.
const CAPABILITIES: [rpc::Type; 8] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::ListVolumes,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::GetCapacity,
    rpc::Type::GetVolume,
    rpc::Type::ExpandVolume,
    rpc::Type::SingleNodeMultiWriter,
];

impl Controller {
    /// A controller for `nases`, whose LUNs are tagged with `owner`. CHAP credentials of publications are derived from `keys`.
    /// `random` is for target names: no other controller may draw the same.
    pub fn new(
        owner: Owner,
        nases: Vec<Nas>,
        keys: Keys,
        random: StdRng,
        in_flight: InFlight,
    ) -> Self {
        Self(Arc::new(Shared {
            owner,
            nases,
            keys,
            random: Mutex::new(random),
            idle_targets: former_node::IdleTargets::default(),
            last_listed: Mutex::default(),
            snapshot: paging::Snapshot::default(),
            in_flight,
        }))
    }

    /// Logs out of all NASes.
    pub async fn logout(&self) {
        for nas in &self.0.nases {
            nas.client.logout().await;
        }
    }
}

impl Shared {
    /// A nonce that distinguishes a new target from all others of its LUN and node.
    fn nonce(&self) -> Nonce {
        let mut random = self.random.lock();
        Nonce::draw(&mut *random)
    }

    /// A random delay of at most `longest`, so that two controllers that collided do not collide again.
    fn random_delay(&self, longest: Duration) -> Duration {
        let mut random = self.random.lock();
        longest.mul_f64(random.random())
    }

    /// The NAS of a volume.
    fn nas(&self, id: &VolumeId) -> Result<&Nas, Error> {
        self.nases
            .iter()
            .find(|nas| nas.has_name(&id.nas))
            .ok_or_else(|| Error::Refused {
                what: format!("volume {id}"),
                seen: format!(
                    "no nas named {:?} is in the driver's configuration",
                    id.nas.to_string()
                ),
                remedy: "add it there, or give it as an alias of the NAS that has taken its place"
                    .to_owned(),
            })
    }
}

#[tonic::async_trait]
impl Service for Controller {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("CreateVolume", &message.name, async {
            let request = crate::request::CreateVolume::read(&message)?;
            let shared = self.0.clone();
            self.0
                .in_flight
                .run(&format!("named {}", request.name), async move {
                    shared.create(&request).await
                })
                .await
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("DeleteVolume", &message.volume_id, async {
            if let Handle::Ours(id) = Handle::read(&message.volume_id)? {
                let shared = self.0.clone();
                self.0
                    .in_flight
                    .run(
                        id.uuid.clone().as_str(),
                        async move { shared.delete(&id).await },
                    )
                    .await?;
            }
            Ok(csi::DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("ControllerPublishVolume", &message.volume_id, async {
            let request = publish::Publish::read(&message)?;
            let shared = self.0.clone();
            let context = self
                .0
                .in_flight
                .run(request.id.uuid.clone().as_str(), async move {
                    // Boxed: the future is large.
                    Box::pin(shared.publish(&request)).await
                })
                .await?;
            Ok(csi::ControllerPublishVolumeResponse {
                publish_context: context.to_map(),
            })
        })
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("ControllerUnpublishVolume", &message.volume_id, async {
            if let Handle::Ours(id) = Handle::read(&message.volume_id)? {
                let shared = self.0.clone();
                self.0
                    .in_flight
                    .run(id.uuid.clone().as_str(), async move {
                        shared.unpublish(&id, &message.node_id).await
                    })
                    .await?;
            }
            Ok(csi::ControllerUnpublishVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let message = request.into_inner();
        let id = message.volume_id.clone();
        telemetry::rpc("ValidateVolumeCapabilities", &id, self.0.validate(message)).await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        telemetry::rpc("ListVolumes", "", async {
            self.0.list(&Page::read(request.get_ref())?).await
        })
        .await
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        telemetry::rpc("GetCapacity", "", self.0.capacity(request.get_ref())).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        telemetry::rpc("ControllerGetVolume", &id, async {
            self.0.get(&Handle::read(&id)?.ours()?).await
        })
        .await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        let message = request.into_inner();
        telemetry::rpc("ControllerExpandVolume", &message.volume_id, async {
            let (id, range) = read_expand(&message)?;
            let shared = self.0.clone();
            let size = self
                .0
                .in_flight
                .run(id.uuid.clone().as_str(), async move {
                    shared.expand(&id, range).await
                })
                .await?;
            // Always: the node decides from its own state (design.md#node-expansion-is-always-required).
            Ok(csi::ControllerExpandVolumeResponse {
                capacity_bytes: size.as_i64(),
                node_expansion_required: true,
            })
        })
        .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let capability = |rpc: rpc::Type| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: rpc.into() })),
        };
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse {
            capabilities: CAPABILITIES.into_iter().map(capability).collect(),
        }))
    }

    async fn create_snapshot(
        &self,
        _: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        Err(unimplemented("CreateSnapshot"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        Err(unimplemented("DeleteSnapshot"))
    }

    async fn list_snapshots(
        &self,
        _: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        Err(unimplemented("ListSnapshots"))
    }

    async fn get_snapshot(
        &self,
        _: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        Err(unimplemented("GetSnapshot"))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        Err(unimplemented("ControllerModifyVolume"))
    }
}

fn unimplemented(rpc: &str) -> Status {
    Status::unimplemented(format!(
        "{rpc} is not among the capabilities of this driver"
    ))
}

fn read_expand(message: &csi::ControllerExpandVolumeRequest) -> Result<(VolumeId, Range), Error> {
    let handle = Handle::read(&message.volume_id)?;
    let missing = || Error::Missing {
        field: "capacity_range",
        remedy: "give the size of the volume (required_bytes)".to_owned(),
    };
    let range = message
        .capacity_range
        .as_ref()
        .filter(|range| range.required_bytes != 0 || range.limit_bytes != 0);
    let range = range.ok_or_else(missing)?;
    if message.volume_capability.is_some() {
        Capability::read("volume_capability", message.volume_capability.as_ref())?;
    }
    let range = Range::read(Some(range))?;
    Ok((handle.ours()?, range))
}

/// Parses the required `node_id` of a call.
fn read_node(node_id: &str) -> Result<crate::publication::NodeId, Error> {
    required("node_id", node_id, "name the node as NodeGetInfo does")?;
    node_id.parse().map_err(|_| Error::NoSuchNode {
        node: node_id.to_owned(),
        remedy: "node ids come from NodeGetInfo and have the form <node name>:<8 hexadecimal digits>",
    })
}
