//! What a CO does next, as a pure function of its state. The comment of each action says which program does it.

use super::store::{CallState, PodState, Store};
use crate::co::Reclaim;

/// A call that is due.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Action {
    /// The provisioner creates a claim's volume.
    Create { claim: String },
    /// The provisioner deletes a volume whose claim is deleted.
    Delete { volume: String },
    /// The attacher, for a pod that is scheduled.
    Attach { volume: String, node: String },
    /// The attacher, after the kubelet has unstaged it.
    Detach { volume: String, node: String },
    /// The resizer, after a claim was edited.
    Grow { claim: String },
    /// The kubelet, after the volume is attached.
    Stage { volume: String, node: String },
    /// The kubelet, after the volume is staged.
    Publish { pod: String },
    /// The kubelet, after it is published: before the pod starts, or while it runs.
    GrowOnNode { pod: String },
    /// The kubelet, after the pod's processes have ended.
    Unpublish { pod: String },
    /// The kubelet, after the node's last pod with the volume.
    Unstage { volume: String, node: String },
}

/// All actions that are due now.
pub(super) fn next_actions(store: &Store) -> Vec<Action> {
    let mut due = Vec::new();
    provision(store, &mut due);
    attach(store, &mut due);
    mount(store, &mut due);
    due
}

fn provision(store: &Store, due: &mut Vec<Action>) {
    for (name, claim) in &store.claims {
        let claim_name = name.clone();
        // A create that was started is retried until its outcome is known: only then can the volume be deleted.
        if !claim.bound && (claim.create_started || !claim.deleting) {
            due.push(Action::Create { claim: claim_name });
            continue;
        }
        let grows = store
            .volumes
            .get(&claim.volume)
            .is_some_and(|volume| claim.bound && claim.requested > volume.bytes);
        if grows {
            due.push(Action::Grow { claim: claim_name });
        }
    }
    for (name, volume) in &store.volumes {
        let deletable = volume.claim.is_none() && volume.reclaim == Reclaim::Delete;
        if deletable && volume.attached.is_empty() {
            due.push(Action::Delete {
                volume: name.clone(),
            });
        }
    }
}

fn attach(store: &Store, due: &mut Vec<Action>) {
    for pod in store.pods.values().filter(|pod| !pod.stopping) {
        let (Some((name, volume)), Some(node)) = (store.volume_of(pod), &pod.node) else {
            continue;
        };
        let elsewhere = volume.attached.keys().any(|other| other != node);
        let known = volume.attached.get(node).is_some_and(Option::is_some);
        if !elsewhere && !known {
            due.push(Action::Attach {
                volume: name.to_owned(),
                node: node.clone(),
            });
        }
    }
    for (name, volume) in &store.volumes {
        for node in volume.attached.keys() {
            if !volume.staged.contains_key(node) && store.users(name, node).next().is_none() {
                due.push(Action::Detach {
                    volume: name.clone(),
                    node: node.clone(),
                });
            }
        }
    }
}

fn mount(store: &Store, due: &mut Vec<Action>) {
    for (name, pod) in &store.pods {
        if pod.stopping {
            if pod.published.is_some() && !pod.runs {
                due.push(Action::Unpublish { pod: name.clone() });
            }
        } else {
            due.extend(start(store, name, pod));
        }
    }
    for (name, volume) in &store.volumes {
        for node in volume.staged.keys() {
            if store.users(name, node).next().is_none() {
                due.push(Action::Unstage {
                    volume: name.clone(),
                    node: node.clone(),
                });
            }
        }
    }
}

/// The next action towards starting a pod, or towards growing its volume on the node.
fn start(store: &Store, name: &str, pod: &PodState) -> Option<Action> {
    let (volume_name, volume) = store.volume_of(pod)?;
    let node = pod.node.clone()?;
    volume.attached.get(&node)?.as_ref()?;
    if volume.staged.get(&node) != Some(&CallState::Done) {
        let volume = volume_name.to_owned();
        return Some(Action::Stage { volume, node });
    }
    let pod_name = name.to_owned();
    if pod.published != Some(CallState::Done) {
        return Some(Action::Publish { pod: pod_name });
    }
    (!store.has_all(pod)).then_some(Action::GrowOnNode { pod: pod_name })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use e2e::GIB;
    use e2e::harness::test_volume::Content;

    use super::super::store::{ClaimState, Volume};
    use super::*;
    use crate::co::{Claim, Pod};

    fn claim_state(requested: i64) -> ClaimState {
        ClaimState {
            claim: Claim {
                name: "c".into(),
                class: "k".into(),
                bytes: GIB,
                block: false,
            },
            volume: "v".into(),
            bound: true,
            create_started: true,
            requested,
            capacity: GIB,
            allocated: None,
            conditions: BTreeMap::new(),
            deleting: false,
        }
    }

    fn pod(name: &str, node: &str) -> PodState {
        PodState {
            pod: Pod {
                name: name.into(),
                claim: "c".into(),
                block: false,
                node: None,
                script: None,
            },
            node: Some(node.into()),
            published: None,
            runs: false,
            restarts: 0,
            stopping: false,
        }
    }

    /// A bound claim, its volume, and a pod on the node `a`.
    fn store() -> Store {
        let mut store = Store {
            nodes: vec!["a".into(), "b".into()],
            ..Store::default()
        };
        store.claims.insert("c".into(), claim_state(GIB));
        store.pods.insert("p".into(), pod("p", "a"));
        let volume = Volume {
            handle: "h".into(),
            context: HashMap::new(),
            content: Content::Fs("xfs"),
            bytes: GIB,
            claim: Some("c".into()),
            reclaim: Reclaim::Delete,
            attached: BTreeMap::new(),
            staged: BTreeMap::new(),
        };
        store.volumes.insert("v".into(), volume);
        store
    }

    fn volume(store: &mut Store) -> &mut Volume {
        store.volumes.get_mut("v").unwrap()
    }

    fn on(node: &str) -> (String, String) {
        ("v".into(), node.into())
    }

    #[test]
    fn a_pod_goes_through_attach_stage_publish_and_back() {
        let mut store = store();
        let (volume_, node) = on("a");
        assert_eq!(
            next_actions(&store),
            [Action::Attach {
                volume: volume_,
                node
            }]
        );
        volume(&mut store)
            .attached
            .insert("a".into(), Some(HashMap::new()));
        let (volume_, node) = on("a");
        assert_eq!(
            next_actions(&store),
            [Action::Stage {
                volume: volume_,
                node
            }]
        );
        volume(&mut store)
            .staged
            .insert("a".into(), CallState::Done);
        assert_eq!(next_actions(&store), [Action::Publish { pod: "p".into() }]);
        let running = store.pods.get_mut("p").unwrap();
        (running.published, running.runs) = (Some(CallState::Done), true);
        assert_eq!(next_actions(&store), []);
        // Nothing is unmounted while a process uses it.
        store.pods.get_mut("p").unwrap().stopping = true;
        assert_eq!(next_actions(&store), []);
        store.pods.get_mut("p").unwrap().runs = false;
        assert_eq!(
            next_actions(&store),
            [Action::Unpublish { pod: "p".into() }]
        );
        store.pods.get_mut("p").unwrap().published = None;
        store.reconcile();
        let (volume_, node) = on("a");
        assert_eq!(
            next_actions(&store),
            [Action::Unstage {
                volume: volume_,
                node
            }]
        );
        volume(&mut store).staged.clear();
        let (volume_, node) = on("a");
        assert_eq!(
            next_actions(&store),
            [Action::Detach {
                volume: volume_,
                node
            }]
        );
        volume(&mut store).attached.clear();
        assert_eq!(next_actions(&store), []);
        store.claims.get_mut("c").unwrap().deleting = true;
        store.reconcile();
        assert_eq!(
            next_actions(&store),
            [Action::Delete { volume: "v".into() }]
        );
    }

    #[test]
    fn a_volume_that_is_elsewhere_is_waited_for() {
        let mut store = store();
        volume(&mut store).attached.insert("b".into(), None);
        // No pod on b uses it: it is detached there, and only then attached here.
        let (volume_, node) = on("b");
        assert_eq!(
            next_actions(&store),
            [Action::Detach {
                volume: volume_,
                node
            }]
        );
        volume(&mut store)
            .staged
            .insert("b".into(), CallState::Perhaps);
        let (volume_, node) = on("b");
        assert_eq!(
            next_actions(&store),
            [Action::Unstage {
                volume: volume_,
                node
            }]
        );
    }

    #[test]
    fn an_expanded_volume_grows_on_the_node_after_publish() {
        let mut store = store();
        store.claims.get_mut("c").unwrap().requested = 2 * GIB;
        assert_eq!(next_actions(&store)[0], Action::Grow { claim: "c".into() });
        let grown = volume(&mut store);
        grown.bytes = 2 * GIB;
        grown.attached.insert("a".into(), Some(HashMap::new()));
        grown.staged.insert("a".into(), CallState::Done);
        assert_eq!(next_actions(&store), [Action::Publish { pod: "p".into() }]);
        store.pods.get_mut("p").unwrap().published = Some(CallState::Done);
        assert_eq!(
            next_actions(&store),
            [Action::GrowOnNode { pod: "p".into() }]
        );
        assert!(!store.has_all(&store.pods["p"]));
        store.claims.get_mut("c").unwrap().capacity = 2 * GIB;
        assert_eq!(next_actions(&store), []);
        assert!(store.has_all(&store.pods["p"]));
    }

    #[test]
    fn a_started_create_is_finished_before_its_claim_is_removed() {
        let mut store = store();
        store.pods.clear();
        store.volumes.clear();
        let claim = store.claims.get_mut("c").unwrap();
        (claim.bound, claim.deleting) = (false, true);
        store.reconcile();
        assert_eq!(next_actions(&store), [Action::Create { claim: "c".into() }]);
        store.claims.get_mut("c").unwrap().create_started = false;
        assert_eq!(next_actions(&store), []);
        store.reconcile();
        assert!(store.claims.is_empty());
    }
}
