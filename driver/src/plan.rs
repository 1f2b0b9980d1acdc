//! Decisions: what to do next, from the request and the observed state. Pure and synchronous.

use crate::dsm::location::Location;
use crate::dsm::lun::Lun;
use crate::dsm::target::{Mapping, Target};
use crate::error::Error;
use crate::owner_tag::{NotOurs, Owner};
use crate::publication::{Iqn, NodeId};
use crate::request::{CreateVolume, LunType, Range};
use crate::volume::{Bytes, LunUuid};

/// The size of a new LUN (design.md#sizes): at least 1 GiB, a whole number of blocks, within the range.
///
/// # Errors
/// OUT_OF_RANGE if there is no such size.
pub fn new_size(range: &Range) -> Result<Bytes, Error> {
    let least = range.required.max(Bytes::GIB);
    whole_blocks(least, range.limit).ok_or_else(|| {
        range.out_of_range(&format!(
            "a LUN has at least 1 GiB and whole blocks of {BLOCK} bytes, so this one would have {}: raise limit_bytes",
            Bytes(least.0.next_multiple_of(BLOCK))
        ))
    })
}

/// The smallest logical block size of a LUN, in bytes.
const BLOCK: u64 = 512;

/// `least` rounded up to whole MiB if `limit` leaves room for it, else to whole blocks of 4096 or 512 bytes. `None`: there is no
/// such size.
fn whole_blocks(least: Bytes, limit: Option<Bytes>) -> Option<Bytes> {
    [Bytes::MIB.0, 4096, BLOCK]
        .into_iter()
        .map(|unit| Bytes(least.0.next_multiple_of(unit)))
        .find(|size| limit.is_none_or(|limit| *size <= limit))
}

/// What `ControllerExpandVolume` has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Expand {
    /// Nothing: the LUN is large enough, with this size.
    Done(Bytes),
    /// Grow it to this size, which is above the current one.
    Grow(Bytes),
}

/// Grows only if the LUN is smaller than required; never shrinks it (design.md#large-enough-already).
///
/// # Errors
/// OUT_OF_RANGE if the LUN is above the limit, or no size fits the range.
pub fn expand(current: Bytes, range: &Range) -> Result<Expand, Error> {
    if range.limit.is_some_and(|limit| current > limit) {
        return Err(range.out_of_range(&format!(
            "the volume has {current} already, and volumes do not shrink"
        )));
    }
    if range.required <= current {
        return Ok(Expand::Done(current));
    }
    whole_blocks(range.required, range.limit)
        .map(Expand::Grow)
        .ok_or_else(|| {
            range.out_of_range(&format!(
                "LUNs have whole blocks of {BLOCK} bytes, so it would become {}: raise limit_bytes",
                Bytes(range.required.0.next_multiple_of(BLOCK))
            ))
        })
}

/// Whether a LUN with the name of the requested volume *is* that volume (design.md#sizes), and may be returned.
///
/// # Errors
/// ALREADY_EXISTS if it is incompatible, ABORTED if it is not ready (design.md#create-first).
pub fn check_compatible(owner: &Owner, lun: &Lun, request: &CreateVolume) -> Result<(), Error> {
    let differs = |seen: String, wanted: String| {
        Err(Error::Incompatible {
            what: format!("LUN {} ({})", lun.name, lun.uuid),
            seen,
            asked: wanted,
        })
    };
    match owner.read(&lun.description) {
        Ok(tag) if !tag.matches_name(&request.name) => {
            return differs(
                format!(
                    "its description {:?} is that of another volume",
                    lun.description
                ),
                format!("volume {:?}", request.name),
            );
        }
        Ok(tag) if !tag.matches_parameters(&request.parameters.digest()) => {
            return differs(
                "it was created with another fsType or formatOptions".to_owned(),
                "those of this request".to_owned(),
            );
        }
        Ok(_) => {}
        Err(reason) => {
            let (seen, remedy) = not_ours(owner, &reason, lun);
            return differs(
                format!("{seen} ({remedy})"),
                "a LUN of this driver".to_owned(),
            );
        }
    }
    let Range { required, limit } = request.range;
    if lun.size() < required || limit.is_some_and(|limit| lun.size() > limit) {
        let limit = limit.map_or_else(String::new, |limit| format!(" and at most {limit}"));
        return differs(
            format!("it has {}", lun.size()),
            format!("at least {required}{limit}"),
        );
    }
    if let Some(location) = request
        .parameters
        .location
        .as_deref()
        .filter(|location| *location != lun.location)
    {
        return differs(format!("it is on {}", lun.location), location.to_owned());
    }
    if request.parameters.kind_given && !type_fits(lun, request) {
        return differs(
            format!("it has type {}", lun.type_name().unwrap_or("unknown")),
            format!("type {}", request.parameters.kind),
        );
    }
    match lun.not_ready() {
        None => Ok(()),
        Some(seen) => Err(Error::NotReady {
            what: format!("volume {:?}", request.name),
            seen,
        }),
    }
}

/// Why a LUN is not this driver's, and so is not touched, and the remedy.
pub fn not_ours(owner: &Owner, reason: &NotOurs, lun: &Lun) -> (String, String) {
    match reason {
        NotOurs::Unmarked => (
            format!("LUN {} lacks the owner tag of {}", lun.name, owner.driver()),
            format!(
                "this driver touches its own LUNs only; if somebody has edited its description, write {:?} at the beginning of it in SAN Manager; it is {:?}",
                owner.minimal_tag(),
                lun.description
            ),
        ),
        NotOurs::OfCluster(cluster) => (
            format!("LUN {} belongs to cluster {cluster:?}", lun.name),
            "if that is this cluster, set this name in the driver's configuration (cluster)"
                .to_owned(),
        ),
    }
}

fn type_fits(lun: &Lun, request: &CreateVolume) -> bool {
    let kind = &request.parameters.kind;
    lun.type_name()
        .is_none_or(|name| name == kind.on("btrfs") || name == kind.on("ext4"))
}

/// How much of `more` bytes a LUN of this type allocates immediately: all of it if thick, else nothing.
pub fn allocated_at_once(kind: Option<&str>, more: Bytes) -> Bytes {
    match kind {
        Some("BLUN_THICK" | "FILE") => more,
        Some(_) | None => Bytes::default(),
    }
}

/// The volume of the NAS for a new LUN if the StorageClass names none: the candidate with the most free space.
pub fn choose_location(locations: Vec<Location>, kind: &LunType) -> Option<Location> {
    locations
        .into_iter()
        .filter(|location| is_candidate(location, kind))
        .max_by_key(|location| location.free)
}

/// The driver may choose this volume of the NAS for a LUN of this type, without the StorageClass naming it.
pub fn is_candidate(location: &Location, kind: &LunType) -> bool {
    location.takes_luns() && !location.is_external() && kind.fits(&location.fs_type)
}

/// The targets of a NAS that concern the publication of a LUN to one node.
#[derive(Debug, Default)]
pub struct Publication<'a> {
    /// Targets of this LUN and node that export the LUN, in order of preference: with a session first, then by IQN. More than one
    /// only after two concurrent controllers.
    pub exporting: Vec<(&'a Target, &'a Mapping)>,
    /// Targets of this LUN and node that do not export it, by IQN: publications that were not completed.
    pub unmapped: Vec<&'a Target>,
    /// Targets of this LUN and this node under a former initiator name.
    pub former: Vec<&'a Target>,
    /// Another holder of the LUN, with which it may not be shared.
    pub conflict: Option<Holder>,
}

impl Publication<'_> {
    /// The publication has a target other than `own`.
    pub fn has_another(&self, own: &Iqn) -> bool {
        let exporting = self.exporting.iter().map(|(target, _)| *target);
        let mut all = exporting.chain(self.unmapped.iter().copied());
        all.any(|target| target.iqn != own.as_str())
    }
}

/// Finds the publication of `lun` to `node` among all targets of a NAS.
pub fn publication<'a>(
    lun: &LunUuid,
    node: &NodeId,
    multi_node: bool,
    targets: &'a [Target],
) -> Publication<'a> {
    let mut publication = Publication::default();
    for target in targets {
        let published = target.iqn().and_then(|iqn| iqn.publication());
        let to = published.filter(|(published, _)| published == lun);
        let to = to.map(|(_, to)| to);
        if to
            .as_ref()
            .is_some_and(|to| to != node && to.is_same_node(node))
        {
            publication.former.push(target);
        }
        let ours = to.is_some_and(|to| to == *node);
        match (ours, target.mapping_of(lun)) {
            (true, Some(mapping)) => publication.exporting.push((target, mapping)),
            (true, None) => publication.unmapped.push(target),
            (false, _) => {}
        }
    }
    let in_use = |target: &Target| !target.connected_sessions.is_empty();
    publication
        .exporting
        .sort_unstable_by_key(|(target, _)| (!in_use(target), &target.iqn));
    publication
        .unmapped
        .sort_unstable_by_key(|target| &target.iqn);
    publication.conflict = holders(lun, targets)
        .into_iter()
        .find(|holder| holder.exports && !holder.may_share(node, multi_node));
    publication
}

/// A target through which a LUN is exported or published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The node, if the target is a publication of this driver.
    pub node: Option<NodeId>,
    /// The target exports the LUN.
    pub exports: bool,
    /// The target.
    pub iqn: String,
    /// DSM's key of the target.
    pub target_id: u64,
    /// Initiators that are logged in.
    pub initiators: Vec<String>,
}

impl Holder {
    /// It may have the LUN at the same time as `node`.
    fn may_share(&self, node: &NodeId, multi_node: bool) -> bool {
        self.node
            .as_ref()
            .is_some_and(|holder| multi_node || holder == node)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.node {
            Some(node) => write!(
                f,
                "it is published to node {node} by target {} (id {})",
                self.iqn, self.target_id
            )?,
            None => write!(
                f,
                "target {} (id {}), which is not this driver's, exports it",
                self.iqn, self.target_id
            )?,
        }
        if self.initiators.is_empty() {
            Ok(())
        } else {
            write!(f, ", logged in: {}", self.initiators.join(", "))
        }
    }
}

/// All `targets` that export `lun`, or are a publication of it. The `lun_uuid` filter of `list` is not verified, so every row is
/// checked.
pub fn holders(lun: &LunUuid, targets: &[Target]) -> Vec<Holder> {
    let holder = |target: &Target| {
        let published = target
            .iqn()
            .and_then(|iqn| iqn.publication())
            .filter(|(published, _)| published == lun);
        if target.mapping_of(lun).is_none() && published.is_none() {
            return None;
        }
        let initiators = target
            .connected_sessions
            .iter()
            .map(|session| session.iqn.clone())
            .collect();
        Some(Holder {
            node: published.map(|(_, node)| node),
            exports: target.mapping_of(lun).is_some(),
            iqn: target.iqn.clone(),
            target_id: target.target_id,
            initiators,
        })
    };
    targets.iter().filter_map(holder).collect()
}

#[cfg(test)]
mod tests;
