//! What is wanted, and what a CO knows of how it is. Nothing here calls anybody.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use e2e::harness::test_volume::Content;
use serde::Serialize;

use crate::co::{Claim, Class, Pod, Reclaim};

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) classes: BTreeMap<String, Class>,
    pub(super) claims: BTreeMap<String, Claimed>,
    pub(super) volumes: BTreeMap<String, Volume>,
    pub(super) pods: BTreeMap<String, Running>,
    /// The nodes' names, in order.
    pub(super) nodes: Vec<String>,
    /// Claims that there ever were.
    pub(super) made: u64,
}

/// A claim.
#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) claim: Claim,
    /// What its volume is called.
    pub(super) volume: String,
    /// The volume is there.
    pub(super) bound: bool,
    /// A creation was begun, and may have made something.
    pub(super) begun: bool,
    /// What it asks for now, bytes.
    pub(super) asked: i64,
    /// What it has, bytes.
    pub(super) capacity: i64,
    /// A growth to this size was begun and may still go on, bytes.
    pub(super) allocated: Option<i64>,
    pub(super) conditions: BTreeMap<String, String>,
    /// It goes as soon as no pod uses it.
    pub(super) deleting: bool,
}

/// Where something stands that a call does or undoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Stands {
    /// A call was begun; nobody knows.
    Perhaps,
    /// It is done.
    Done,
}

/// A volume.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) handle: String,
    pub(super) context: HashMap<String, String>,
    /// What its pods get.
    pub(super) content: Content,
    /// What the LUN has, bytes.
    pub(super) bytes: i64,
    /// `None` once its claim has gone.
    pub(super) claim: Option<String>,
    pub(super) reclaim: Reclaim,
    /// The nodes that it is attached to or may be, each with its `publish_context` once that is known.
    pub(super) attached: BTreeMap<String, Option<HashMap<String, String>>>,
    /// Where it is staged.
    pub(super) staged: BTreeMap<String, Stands>,
}

/// A pod.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) pod: Pod,
    /// Once it has one.
    pub(super) node: Option<String>,
    /// `None` before the first call.
    pub(super) published: Option<Stands>,
    /// Its process was started.
    pub(super) runs: bool,
    /// How often it was started again.
    pub(super) restarts: i32,
    pub(super) stopping: bool,
}

impl Store {
    /// The volume of a pod's claim, once there is one.
    pub(super) fn volume_of(&self, pod: &Running) -> Option<(&str, &Volume)> {
        let claim = self
            .claims
            .get(&pod.pod.claim)
            .filter(|claim| claim.bound)?;
        let (name, volume) = self.volumes.get_key_value(&claim.volume)?;
        Some((name, volume))
    }

    /// What a pod's volume has, its claim has too: nothing is left to be grown on its node.
    pub(super) fn has_all(&self, pod: &Running) -> bool {
        let claim = self.claims.get(&pod.pod.claim);
        claim
            .zip(self.volume_of(pod))
            .is_some_and(|(claim, (_, volume))| claim.capacity >= volume.bytes)
    }

    /// The claim of a pod, by the pod's name.
    pub(super) fn claim_of(&mut self, pod: &str) -> Option<&mut Claimed> {
        let pod = self.pods.get(pod)?;
        self.claims.get_mut(&pod.pod.claim)
    }

    /// The pods that use a volume on a node, also those that are being stopped.
    pub(super) fn users<'a>(
        &'a self,
        volume: &'a str,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Running> {
        self.pods.values().filter(move |pod| {
            pod.node.as_deref() == Some(node)
                && self.volume_of(pod).is_some_and(|(name, _)| name == volume)
        })
    }

    /// What goes and comes without a call: pods get nodes, claims go that nobody uses.
    pub(super) fn settle(&mut self) {
        let place: Vec<(String, String)> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.node.is_none() && !pod.stopping)
            .filter_map(|(name, pod)| {
                let (_, volume) = self.volume_of(pod)?;
                let near = volume.attached.keys().next();
                let node = pod.pod.node.as_ref().or(near).or(self.nodes.first())?;
                Some((name.clone(), node.clone()))
            })
            .collect();
        for (name, node) in place {
            if let Some(pod) = self.pods.get_mut(&name) {
                pod.node = Some(node);
            }
        }
        self.pods
            .retain(|_, pod| !pod.stopping || pod.published.is_some() || pod.runs);
        let used: BTreeSet<String> = self
            .pods
            .values()
            .map(|pod| pod.pod.claim.clone())
            .collect();
        let volumes = &mut self.volumes;
        self.claims.retain(|name, claim| {
            let goes = claim.deleting && !used.contains(name) && (claim.bound || !claim.begun);
            if goes && let Some(volume) = volumes.get_mut(&claim.volume) {
                volume.claim = None;
            }
            !goes
        });
    }
}
