//! The CSI identity service. `Probe` reports on this process and never calls a NAS: a NAS outage must not restart pods
//! (design.md#probe).
//!
//! Programs missing on the host do not fail it either: the liveness sidecar treats an error and `ready: false` alike, and the
//! kubelet would restart the container for ever, which installs nothing. So they cause a warning in the log, a metric, and an
//! error from the call that needs them; a node without an initiator name is not registered at all (`NodeGetInfo`).

use parking_lot::Mutex;
use std::sync::Arc;

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
    /// Set if the node service is offered.
    host: Option<H>,
    /// The problem that was last logged.
    last_reported: Arc<Mutex<Option<String>>>,
}

impl<H: Host> Identity<H> {
    /// An identity service for the driver name `driver`.
    pub fn new(driver: String, controller: bool, host: Option<H>) -> Self {
        Self {
            driver,
            controller,
            host,
            last_reported: Arc::default(),
        }
    }

    /// Checks the host for missing programs, and logs a change.
    pub fn check_host(&self) {
        let Some(host) = &self.host else { return };
        match self.readiness_change(host) {
            Some(ReadinessChange::Lacks(lack)) => {
                warn!(lack, "node is degraded");
            }
            Some(ReadinessChange::Complete) => info!("node is ready: no programs are missing"),
            None => {}
        }
    }

    /// What has changed since the last report.
    fn readiness_change(&self, host: &H) -> Option<ReadinessChange> {
        let lack = lack(host);
        let mut last_reported = self.last_reported.lock();
        if *last_reported == lack {
            return None;
        }
        last_reported.clone_from(&lack);
        Some(lack.map_or(ReadinessChange::Complete, ReadinessChange::Lacks))
    }
}

/// A change in the readiness of the host.
#[derive(Debug, PartialEq)]
enum ReadinessChange {
    /// What is missing, and the remedy.
    Lacks(String),
    /// Nothing is missing.
    Complete,
}

/// What is missing on this machine, and the remedy.
fn lack(host: &impl Host) -> Option<String> {
    let missing = host::missing_programs(host);
    metrics::of_process().missing_programs(missing.len());
    if let Err(error) = host.check_namespaces() {
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

    /// Always ready: the configuration was checked before the socket was opened.
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
    async fn missing_programs_are_reported_once_and_do_not_fail_the_probe() {
        let fake = Fake::with_lun();
        let identity = Identity::new("csi.synology.com".to_owned(), false, Some(fake.clone()));
        let ready = async || {
            let reply = identity.probe(Request::new(csi::ProbeRequest {})).await;
            reply.unwrap().into_inner().ready
        };
        let reported = || identity.last_reported.lock().clone().unwrap_or_default();

        fake.machine().unreachable = true;
        assert_eq!(ready().await, Some(true));
        assert!(reported().contains("namespaces"), "{}", reported());
        assert_eq!(identity.readiness_change(&fake), None, "already reported");

        fake.machine().unreachable = false;
        let Some(ReadinessChange::Lacks(lack)) = identity.readiness_change(&fake) else {
            panic!("programs are missing");
        };
        assert!(
            lack.contains("mkfs.btrfs") && lack.contains("install"),
            "{lack}"
        );
        assert!(!lack.contains("mkfs.ext4"), "{lack}");
        assert_eq!(ready().await, Some(true));
        assert_eq!(identity.readiness_change(&fake), None);

        fake.machine().complete = true;
        assert_eq!(
            identity.readiness_change(&fake),
            Some(ReadinessChange::Complete),
            "recovery is reported, too"
        );
        assert_eq!(ready().await, Some(true));
    }
}
