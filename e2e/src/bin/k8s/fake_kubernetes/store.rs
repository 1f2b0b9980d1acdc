//! The desired state and the CO's knowledge of the actual state. Makes no calls.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use e2e::harness::test_volume::Content;
use serde::Serialize;

use crate::co::{Claim, Class, Pod, Reclaim};

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) classes: BTreeMap<String, Class>,
    pub(super) claims: BTreeMap<String, ClaimState>,
    pub(super) volumes: BTreeMap<String, Volume>,
    pub(super) pods: BTreeMap<String, PodState>,
    /// The nodes' names, in order.
    pub(super) nodes: Vec<String>,
    /// Number of claims ever created.
    pub(super) claims_created: u64,
}

/// A claim and its state.
#[derive(Clone, Debug)]
pub(super) struct ClaimState {
    pub(super) claim: Claim,
    /// The name of its volume.
    pub(super) volume: String,
    /// Whether its volume exists.
    pub(super) bound: bool,
    /// Whether a create was started that may have had an effect.
    pub(super) create_started: bool,
    /// The size that it requests now, bytes.
    pub(super) requested: i64,
    /// Its capacity, bytes.
    pub(super) capacity: i64,
    /// The size of an expansion that was started and may still be in progress, bytes.
    pub(super) allocated: Option<i64>,
    pub(super) conditions: BTreeMap<String, String>,
    /// It is deleted as soon as no pod uses it.
    pub(super) deleting: bool,
}

/// State of what a call creates or removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum CallState {
    /// A call was started; the outcome is unknown.
    Perhaps,
    /// The call has succeeded.
    Done,
}

/// A volume and its state.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) handle: String,
    pub(super) context: HashMap<String, String>,
    /// File system or raw block.
    pub(super) content: Content,
    /// Size of the LUN, bytes.
    pub(super) bytes: i64,
    /// `None` after its claim is deleted.
    pub(super) claim: Option<String>,
    pub(super) reclaim: Reclaim,
    /// The nodes that it is or may be attached to, each with its `publish_context` once that is known.
    pub(super) attached: BTreeMap<String, Option<HashMap<String, String>>>,
    /// The nodes that it is or may be staged on.
    pub(super) staged: BTreeMap<String, CallState>,
}

/// A pod and its state.
#[derive(Clone, Debug)]
pub(super) struct PodState {
    pub(super) pod: Pod,
    /// Its node, once it is scheduled.
    pub(super) node: Option<String>,
    /// `None` before the first call.
    pub(super) published: Option<CallState>,
    /// Whether its process was started.
    pub(super) runs: bool,
    /// How often its process was restarted.
    pub(super) restarts: i32,
    pub(super) stopping: bool,
}

impl Store {
    /// The volume of a pod's claim, once it exists.
    pub(super) fn volume_of(&self, pod: &PodState) -> Option<(&str, &Volume)> {
        let claim = self
            .claims
            .get(&pod.pod.claim)
            .filter(|claim| claim.bound)?;
        let (name, volume) = self.volumes.get_key_value(&claim.volume)?;
        Some((name, volume))
    }

    /// Whether the claim has the volume's full size, so that nothing is left to grow on the pod's node.
    pub(super) fn has_all(&self, pod: &PodState) -> bool {
        let claim = self.claims.get(&pod.pod.claim);
        claim
            .zip(self.volume_of(pod))
            .is_some_and(|(claim, (_, volume))| claim.capacity >= volume.bytes)
    }

    /// The claim of the pod with this name.
    pub(super) fn claim_of(&mut self, pod: &str) -> Option<&mut ClaimState> {
        let pod = self.pods.get(pod)?;
        self.claims.get_mut(&pod.pod.claim)
    }

    /// The pods that use a volume on a node, including those that are being stopped.
    pub(super) fn users<'a>(
        &'a self,
        volume: &'a str,
        node: &'a str,
    ) -> impl Iterator<Item = &'a PodState> {
        self.pods.values().filter(move |pod| {
            pod.node.as_deref() == Some(node)
                && self.volume_of(pod).is_some_and(|(name, _)| name == volume)
        })
    }

    /// Changes that need no call: schedules pods, removes pods that have ended and claims that are no longer used.
    pub(super) fn reconcile(&mut self) {
        let placements: Vec<(String, String)> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.node.is_none() && !pod.stopping)
            .filter_map(|(name, pod)| {
                let (_, volume) = self.volume_of(pod)?;
                let attached_node = volume.attached.keys().next();
                let node = pod
                    .pod
                    .node
                    .as_ref()
                    .or(attached_node)
                    .or(self.nodes.first())?;
                Some((name.clone(), node.clone()))
            })
            .collect();
        for (name, node) in placements {
            if let Some(pod) = self.pods.get_mut(&name) {
                pod.node = Some(node);
            }
        }
        self.pods
            .retain(|_, pod| !pod.stopping || pod.published.is_some() || pod.runs);
        let claims_in_use: BTreeSet<String> = self
            .pods
            .values()
            .map(|pod| pod.pod.claim.clone())
            .collect();
        let volumes = &mut self.volumes;
        self.claims.retain(|name, claim| {
            let deletable = claim.deleting
                && !claims_in_use.contains(name)
                && (claim.bound || !claim.create_started);
            if deletable && let Some(volume) = volumes.get_mut(&claim.volume) {
                volume.claim = None;
            }
            !deletable
        });
    }
}
