//! CSI clients of a controller process and a node process.

use std::path::{Path, PathBuf};

use http_body_util::BodyExt as _;
use proto::csi::controller_client::ControllerClient;
use proto::csi::node_client::NodeClient;
use tonic::Status;
use tower::ServiceExt as _;

use crate::harness::plugin::{Csi, CsiChannel};

/// CSI clients of a controller and a node, as they run now.
#[derive(Clone, Debug)]
pub struct CsiClients {
    controller: CsiChannel,
    node: CsiChannel,
    folder: PathBuf,
}

impl CsiClients {
    /// `None` for a process that is not running.
    pub fn new(controller: Option<CsiChannel>, node: Option<CsiChannel>, folder: &Path) -> Self {
        Self {
            controller: line_or_dead(controller),
            node: line_or_dead(node),
            folder: folder.to_owned(),
        }
    }
}

impl Csi for CsiClients {
    fn controller(&self) -> ControllerClient<CsiChannel> {
        ControllerClient::new(self.controller.clone())
    }

    fn node(&self) -> NodeClient<CsiChannel> {
        NodeClient::new(self.node.clone())
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A connection that returns `UNAVAILABLE`, as a sidecar sees it, when the process dies at any point of the answer.
fn line_or_dead(line: Option<CsiChannel>) -> CsiChannel {
    CsiChannel::new(tower::service_fn(move |request| {
        let line = line.clone();
        async move {
            let line = line.ok_or_else(|| dead("it is not running"))?;
            let answer = line.oneshot(request).await.map_err(dead)?;
            Ok(answer.map(|body| tonic::body::Body::new(body.map_err(dead))))
        }
    }))
}

fn dead(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the process has died: {error}"))
}
