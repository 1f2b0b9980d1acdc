//! The CSI identity service. `Probe` reports this process and never calls a NAS: an outage of the NAS must not restart
//! pods (design choice 21).

use proto::csi;
use proto::csi::identity_server::Identity as Service;
use proto::csi::plugin_capability::{self, VolumeExpansion, service, volume_expansion};
use tonic::{Request, Response, Status};

use crate::host::{self, Host};

/// The identity service.
#[derive(Clone, Debug)]
pub struct Identity<H> {
    driver: String,
    controller: bool,
    /// The node's machine, when the node service is offered.
    host: Option<H>,
}

impl<H: Host> Identity<H> {
    /// For a plugin named `driver`.
    pub fn new(driver: String, controller: bool, host: Option<H>) -> Self {
        Self {
            driver,
            controller,
            host,
        }
    }
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

    /// The configuration was checked before the socket was opened; what can go away are the host's tools.
    async fn probe(
        &self,
        _: Request<csi::ProbeRequest>,
    ) -> Result<Response<csi::ProbeResponse>, Status> {
        if let Some(host) = &self.host {
            host.reach()
                .map_err(|error| Status::failed_precondition(error.to_string()))?;
            let missing = host::tools_present(host);
            if !missing.is_empty() {
                return Err(Status::failed_precondition(format!(
                    "programs are missing on this node: {}: install them (Debian: open-iscsi e2fsprogs xfsprogs btrfs-progs util-linux)",
                    missing.join(", ")
                )));
            }
        }
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}
