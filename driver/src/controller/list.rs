//! The read-only RPCs: `ValidateVolumeCapabilities`, `ListVolumes`, `ControllerGetVolume`, `GetCapacity`.

use parking_lot::MutexGuard;
use std::collections::{BTreeSet, HashMap};

use futures::future::join_all;
use proto::csi;
use proto::csi::controller_get_volume_response::VolumeStatus;
use proto::csi::{list_volumes_response, validate_volume_capabilities_response::Confirmed};
use tokio::time::Instant;

use super::Shared;
use super::paging::{self, Volumes};
use crate::dsm::Nas;
use crate::dsm::location::Location;
use crate::dsm::lun::{Lun, may_be_ours};
use crate::dsm::rows::UnreadableRow;
use crate::dsm::target::Target;
use crate::error::{Context as _, Error};
use crate::plan;
use crate::request::{self, Handle, Page};
use crate::volume::{Bytes, LunUuid, NasName, VolumeId};

impl Shared {
    pub(super) async fn validate(
        &self,
        message: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Error> {
        let handle = Handle::read(&message.volume_id)?;
        let unsupported = match request::capabilities(&message.volume_capabilities) {
            Err(missing @ Error::Missing { .. }) => return Err(missing),
            read => read
                .and_then(|capabilities| request::confirm(&message, &capabilities))
                .err(),
        };
        let id = handle.ours()?;
        self.lun(&id).await?;
        let confirmed = Confirmed {
            volume_context: message.volume_context,
            volume_capabilities: message.volume_capabilities,
            parameters: message.parameters,
            mutable_parameters: HashMap::new(),
        };
        Ok(match unsupported {
            None => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(confirmed),
                message: String::new(),
            },
            Some(error) => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: None,
                message: error.chain(),
            },
        })
    }

    pub(super) async fn get(
        &self,
        id: &VolumeId,
    ) -> Result<csi::ControllerGetVolumeResponse, Error> {
        let lun = self.lun(id).await?;
        let targets = self
            .nas(id)?
            .targets_of(&id.uuid)
            .await
            .with_context(|| format!("listing the targets of volume {id}"))?;
        let status = VolumeStatus {
            published_node_ids: published_nodes(&id.uuid, &targets),
            volume_condition: None,
        };
        Ok(csi::ControllerGetVolumeResponse {
            volume: Some(volume(id.to_string(), lun.size())),
            status: Some(status),
        })
    }

    /// Our volumes on all NASes, ordered by uuid (design.md#listvolumes). If a NAS has aliases, each volume is listed under each
    /// name: it is unknown which one the CO uses, and the CO takes a volume that it does not find in the list for detached.
    pub(super) async fn list(&self, page: &Page) -> Result<csi::ListVolumesResponse, Error> {
        // The first page always queries the NASes.
        let known = page.after.as_ref().and_then(|_| self.snapshot.lists());
        if let Some(lists) = known {
            return Ok(paging::page(&lists, page));
        }
        let queried = Instant::now();
        let lists = self.all_volumes().await?;
        let listed = paging::page(&lists, page);
        if !listed.next_token.is_empty() {
            self.snapshot.store(queried, &lists);
        }
        Ok(listed)
    }

    /// If a NAS fails while another one answers, its volumes are reported as last listed: nothing is left out, and the volumes of
    /// the other NAS are still listed.
    async fn all_volumes(&self) -> Result<Vec<Volumes>, Error> {
        // Concurrently: several NASes that hang take no longer than one.
        let results = join_all(self.nases.iter().map(|nas| self.volumes_of(nas))).await;
        let any_ok = results.iter().any(Result::is_ok);
        let or_last_listed = |(nas, result): (&Nas, Result<Volumes, Error>)| match result {
            Ok(volumes) => {
                self.last_listed().insert(nas.name.clone(), volumes.clone());
                Ok(volumes)
            }
            Err(error) => {
                let before = self.last_listed().get(&nas.name).cloned();
                let Some(before) = before.filter(|_| any_ok) else {
                    return Err(error);
                };
                tracing::warn!(nas = %nas.name, error = error.chain(), "a NAS cannot be listed: reporting its volumes as last listed");
                Ok(before)
            }
        };
        self.nases.iter().zip(results).map(or_last_listed).collect()
    }

    fn last_listed(&self) -> MutexGuard<'_, HashMap<NasName, Volumes>> {
        self.last_listed.lock()
    }

    /// The volumes of one NAS, sorted.
    async fn volumes_of(&self, nas: &Nas) -> Result<Volumes, Error> {
        let doing = || format!("listing the volumes of NAS {}", nas.name);
        let could_be = |row: &UnreadableRow| may_be_ours(&self.owner, row);
        let listing = nas.all_luns(could_be).await.with_context(doing)?;
        if let Some(seen) = listing.incomplete {
            return Err(Error::Unverified {
                what: doing(),
                seen,
            });
        }
        let mut nodes: HashMap<&str, Vec<&Target>> = HashMap::new();
        for target in &listing.targets {
            for mapping in &target.mapped_luns {
                nodes.entry(&mapping.lun_uuid).or_default().push(target);
            }
        }
        let entry = |lun: &Lun| {
            self.owner.read(&lun.description).ok()?;
            let uuid: LunUuid = lun.uuid.parse().ok()?;
            let published_node_ids = nodes
                .get(lun.uuid.as_str())
                .into_iter()
                .flatten()
                .filter_map(|target| node_of(&uuid, target))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            let status = list_volumes_response::VolumeStatus {
                published_node_ids,
                volume_condition: None,
            };
            let under = move |name: &NasName| {
                let entry = list_volumes_response::Entry {
                    volume: Some(volume(format!("{name}/{uuid}"), lun.size())),
                    status: Some(status.clone()),
                };
                (uuid.clone(), name.clone(), entry)
            };
            Some(nas.names().map(under).collect::<Vec<_>>())
        };
        let volumes = listing.luns.iter().filter_map(entry).flatten();
        Ok(paging::sorted(volumes.collect()))
    }

    pub(super) async fn capacity(
        &self,
        message: &csi::GetCapacityRequest,
    ) -> Result<csi::GetCapacityResponse, Error> {
        let capabilities = match message.volume_capabilities.as_slice() {
            [] => Vec::new(),
            messages => request::capabilities(messages)?,
        };
        let parameters = request::Parameters::read(&message.parameters, &capabilities)?;
        let (mut free, mut failure, mut any_ok) = (Vec::new(), None, false);
        let matching = self.nases.iter().filter(|nas| parameters.match_nas(nas));
        let requests = matching.map(async |nas| (nas, nas.locations().await));
        for (nas, locations) in join_all(requests).await {
            let doing = || format!("reading the free space of NAS {}", nas.name);
            let locations = match locations.with_context(doing) {
                Ok(locations) => locations,
                Err(error) => {
                    failure.get_or_insert(error);
                    continue;
                }
            };
            any_ok = true;
            let fits = |location: &Location| match &parameters.location {
                Some(path) => location.takes_luns() && *path == location.path,
                None => plan::is_candidate(location, &parameters.kind),
            };
            let floor = parameters.floor.unwrap_or(nas.floor);
            let fitting = locations.into_iter().filter(fits);
            let free_here = fitting.filter_map(|location| location.free);
            free.extend(free_here.map(|free| floor.usable(free)));
        }
        // A NAS that does not answer counts as full, unless none answers.
        if let Some(error) = failure.filter(|_| !any_ok) {
            return Err(error);
        }
        let total = Bytes(free.iter().map(|free| free.0).sum());
        Ok(csi::GetCapacityResponse {
            available_capacity: total.as_i64(),
            maximum_volume_size: free.into_iter().max().map(Bytes::as_i64),
            minimum_volume_size: Some(Bytes::GIB.as_i64()),
        })
    }
}

fn volume(volume_id: String, size: Bytes) -> csi::Volume {
    csi::Volume {
        capacity_bytes: size.as_i64(),
        volume_id,
        ..csi::Volume::default()
    }
}

fn published_nodes(lun: &LunUuid, targets: &[Target]) -> Vec<String> {
    let mapped = targets
        .iter()
        .filter(|target| target.mapping_of(lun).is_some());
    // Two concurrent controllers may have created two targets for one node.
    let nodes: BTreeSet<String> = mapped.filter_map(|target| node_of(lun, target)).collect();
    nodes.into_iter().collect()
}

fn node_of(lun: &LunUuid, target: &Target) -> Option<String> {
    let (published, node) = target.iqn()?.publication()?;
    (published == *lun).then(|| node.to_string())
}
