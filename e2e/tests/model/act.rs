//! The calls that change something, as values.

use std::collections::BTreeMap;

use e2e::life::{Content, at_least, capability, create_request};
use proto::csi;
use proto::csi::controller_client::ControllerClient;
use proto::csi::volume_capability::access_mode::Mode;
use tonic::Status;
use tonic::transport::Channel;

/// One CSI call.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Create { name: String, size: i64 },
    Expand { id: String, size: i64 },
    Publish { id: String, node: &'static str },
    Unpublish { id: String, node: &'static str },
    Delete { id: String },
}

/// What was answered; equal answers are equal promises.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Volume { id: String, size: i64 },
    Size(i64),
    Context(BTreeMap<String, String>),
    Done,
}

impl Act {
    pub(super) async fn call(
        self,
        mut controller: ControllerClient<Channel>,
    ) -> Result<Answer, Status> {
        let capability = capability(Content::Fs("ext4"), Mode::SingleNodeWriter);
        match self {
            Self::Create { name, size } => {
                let answer = controller
                    .create_volume(create_request(&name, size, Content::Fs("ext4")))
                    .await?;
                let volume = answer.into_inner().volume.unwrap_or_default();
                Ok(Answer::Volume {
                    id: volume.volume_id,
                    size: volume.capacity_bytes,
                })
            }
            Self::Expand { id, size } => {
                let capacity_range = Some(at_least(size));
                let request = csi::ControllerExpandVolumeRequest {
                    volume_id: id,
                    capacity_range,
                    ..Default::default()
                };
                Ok(Answer::Size(
                    controller
                        .controller_expand_volume(request)
                        .await?
                        .into_inner()
                        .capacity_bytes,
                ))
            }
            Self::Publish { id, node } => {
                let request = csi::ControllerPublishVolumeRequest {
                    volume_id: id,
                    node_id: node.to_owned(),
                    volume_capability: Some(capability),
                    ..Default::default()
                };
                let context = controller
                    .controller_publish_volume(request)
                    .await?
                    .into_inner()
                    .publish_context;
                Ok(Answer::Context(context.into_iter().collect()))
            }
            Self::Unpublish { id, node } => {
                let request = csi::ControllerUnpublishVolumeRequest {
                    volume_id: id,
                    node_id: node.to_owned(),
                    ..Default::default()
                };
                controller.controller_unpublish_volume(request).await?;
                Ok(Answer::Done)
            }
            Self::Delete { id } => {
                let request = csi::DeleteVolumeRequest {
                    volume_id: id,
                    ..Default::default()
                };
                controller.delete_volume(request).await?;
                Ok(Answer::Done)
            }
        }
    }
}
