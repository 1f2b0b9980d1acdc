//! The CSI identity service. `Probe` reports this process and never calls a NAS: an outage of the NAS must not restart
//! pods (design.md#probe).
//!
//! What the host lacks is no reason either: the liveness sidecar takes an error and `ready: false` alike, the kubelet then
//! starts the container again, for ever, and nothing is installed by that. So it is a warning in the log, a metric, and the
//! refusal of the call that needs it; a node without an initiator's name is not even registered (`NodeGetInfo`).

use std::sync::{Arc, Mutex, PoisonError};

use proto::csi;
use proto::csi::identity_server::Identity as Service;
use proto::csi::plugin_capability::{self, VolumeExpansion, service, volume_expansion};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::host::{self, Host};
use crate::metrics;

/// The identity service.
#[derive(Clone, Debug)]
pub struct Identity<H> {
    driver: String,
    controller: bool,
    /// The node's machine, when the node service is offered.
    host: Option<H>,
    /// What the log says that the machine lacks.
    told: Arc<Mutex<Option<String>>>,
}

impl<H: Host> Identity<H> {
    /// For a plugin named `driver`.
    pub fn new(driver: String, controller: bool, host: Option<H>) -> Self {
        Self {
            driver,
            controller,
            host,
            told: Arc::default(),
        }
    }

    /// Looks for what the node's machine lacks, and tells it to the log when that has changed.
    pub fn check_host(&self) {
        let Some(host) = &self.host else { return };
        match self.readiness_change(host) {
            Some(ReadinessChange::Lacks(lack)) => {
                warn!(lack, "this node can do only a part of its work")
            }
            Some(ReadinessChange::Complete) => info!("this node has everything that it needs"),
            None => {}
        }
    }

    /// What has changed since the last look.
    fn readiness_change(&self, host: &H) -> Option<ReadinessChange> {
        let lack = lack(host);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == lack {
            return None;
        }
        told.clone_from(&lack);
        Some(lack.map_or(ReadinessChange::Complete, ReadinessChange::Lacks))
    }
}

/// How a node's machine is now.
#[derive(Debug, PartialEq)]
enum ReadinessChange {
    /// This is missing, and this is to be done.
    Lacks(String),
    /// Nothing is missing any more.
    Complete,
}

/// What this machine lacks and what to do.
fn lack(host: &impl Host) -> Option<String> {
    let missing = host::tools_present(host);
    metrics::of_process().missing_programs(missing.len());
    if let Err(error) = host.reach() {
        return Some(error.to_string());
    }
    (!missing.is_empty()).then(|| {
        format!(
            "programs are missing on this node: {}: install them (Debian: open-iscsi e2fsprogs xfsprogs btrfs-progs util-linux)",
            missing.join(", ")
        )
    })
}

#[tonic::async_trait]
impl<H: Host + 'static> Service for Identity<H> {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.driver.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: std::collections::HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let controller = plugin_capability::Service {
            r#type: service::Type::ControllerService.into(),
        };
        let controller = self
            .controller
            .then_some(plugin_capability::Type::Service(controller));
        let online = VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        };
        let all = controller
            .into_iter()
            .chain([plugin_capability::Type::VolumeExpansion(online)]);
        let capabilities = all
            .map(|capability| csi::PluginCapability {
                r#type: Some(capability),
            })
            .collect();
        Ok(Response::new(csi::GetPluginCapabilitiesResponse {
            capabilities,
        }))
    }

    /// The configuration was checked before the socket was opened: a process that answers is as ready as it can be.
    async fn probe(
        &self,
        _: Request<csi::ProbeRequest>,
    ) -> Result<Response<csi::ProbeResponse>, Status> {
        self.check_host();
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::Fake;

    #[tokio::test]
    async fn what_the_host_lacks_is_told_once_and_restarts_nothing() {
        let fake = Fake::with_lun();
        let identity = Identity::new("csi.synology.com".to_owned(), false, Some(fake.clone()));
        let ready = async || {
            let answer = identity.probe(Request::new(csi::ProbeRequest {})).await;
            answer.unwrap().into_inner().ready
        };
        let said = || identity.told.lock().unwrap().clone().unwrap_or_default();

        fake.machine().unreachable = true;
        assert_eq!(ready().await, Some(true));
        assert!(said().contains("namespaces"), "{}", said());
        assert_eq!(identity.readiness_change(&fake), None, "it was told");

        fake.machine().unreachable = false;
        let Some(ReadinessChange::Lacks(news)) = identity.readiness_change(&fake) else {
            panic!("programs are missing");
        };
        assert!(
            news.contains("mkfs.btrfs") && news.contains("install"),
            "{news}"
        );
        assert!(!news.contains("mkfs.ext4"), "{news}");
        assert_eq!(ready().await, Some(true));
        assert_eq!(identity.readiness_change(&fake), None);

        fake.machine().complete = true;
        assert_eq!(
            identity.readiness_change(&fake),
            Some(ReadinessChange::Complete),
            "that it is mended is told, too"
        );
        assert_eq!(ready().await, Some(true));
    }
}
