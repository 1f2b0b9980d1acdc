//! Any RPC as a value: a request to send, and its response.

use e2e::harness::plugin::Plugin;
use proto::csi;
use tonic::Status;

macro_rules! rpcs {
    ($($rpc:ident = $service:ident.$method:ident($request:ident) -> $response:ident;)*) => {
        /// A request of any RPC.
        #[derive(Clone, Debug)]
        pub(crate) enum Call { $($rpc(csi::$request)),* }

        /// Its response.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Answer { $($rpc(csi::$response)),* }

        $(impl From<csi::$request> for Call {
            fn from(request: csi::$request) -> Self {
                Self::$rpc(request)
            }
        })*

        impl Call {
            /// The name of the RPC.
            pub(crate) fn rpc(&self) -> &'static str {
                match self { $(Self::$rpc(_) => stringify!($rpc)),* }
            }

            /// Makes the call.
            pub(crate) async fn send(&self, plugin: &Plugin) -> Result<Answer, Status> {
                match self.clone() {
                    $(Self::$rpc(request) => plugin.$service().$method(request).await.map(|answer| Answer::$rpc(answer.into_inner()))),*
                }
            }
        }
    };
}

rpcs! {
    CreateVolume = controller.create_volume(CreateVolumeRequest) -> CreateVolumeResponse;
    DeleteVolume = controller.delete_volume(DeleteVolumeRequest) -> DeleteVolumeResponse;
    ControllerPublishVolume = controller.controller_publish_volume(ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse;
    ControllerUnpublishVolume = controller.controller_unpublish_volume(ControllerUnpublishVolumeRequest) -> ControllerUnpublishVolumeResponse;
    ValidateVolumeCapabilities = controller.validate_volume_capabilities(ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse;
    ListVolumes = controller.list_volumes(ListVolumesRequest) -> ListVolumesResponse;
    GetCapacity = controller.get_capacity(GetCapacityRequest) -> GetCapacityResponse;
    ControllerGetVolume = controller.controller_get_volume(ControllerGetVolumeRequest) -> ControllerGetVolumeResponse;
    ControllerExpandVolume = controller.controller_expand_volume(ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse;
    ControllerModifyVolume = controller.controller_modify_volume(ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse;
    CreateSnapshot = controller.create_snapshot(CreateSnapshotRequest) -> CreateSnapshotResponse;
    DeleteSnapshot = controller.delete_snapshot(DeleteSnapshotRequest) -> DeleteSnapshotResponse;
    ListSnapshots = controller.list_snapshots(ListSnapshotsRequest) -> ListSnapshotsResponse;
    GetSnapshot = controller.get_snapshot(GetSnapshotRequest) -> GetSnapshotResponse;
    NodeStageVolume = node.node_stage_volume(NodeStageVolumeRequest) -> NodeStageVolumeResponse;
    NodeUnstageVolume = node.node_unstage_volume(NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse;
    NodePublishVolume = node.node_publish_volume(NodePublishVolumeRequest) -> NodePublishVolumeResponse;
    NodeUnpublishVolume = node.node_unpublish_volume(NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse;
    NodeGetVolumeStats = node.node_get_volume_stats(NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse;
    NodeExpandVolume = node.node_expand_volume(NodeExpandVolumeRequest) -> NodeExpandVolumeResponse;
    NodeGetInfo = node.node_get_info(NodeGetInfoRequest) -> NodeGetInfoResponse;
}

impl Answer {
    /// Why `ValidateVolumeCapabilities` confirmed nothing; `None` for every other response.
    pub(crate) fn unconfirmed(&self) -> Option<&str> {
        let Self::ValidateVolumeCapabilities(answer) = self else {
            return None;
        };
        answer.confirmed.is_none().then_some(&answer.message)
    }
}
