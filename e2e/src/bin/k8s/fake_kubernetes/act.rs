//! Makes a call that is due, and records its result in the store.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use e2e::harness::plugin::Csi as _;
use e2e::harness::test_volume::{Content, TestVolume, at_least, capability, create_request};
use e2e::testbed::real::CsiClients;
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;
use tonic::{Code, Status};

use super::decide::Action;
use super::store::{CallState, Store, Volume};
use super::{Shared, pod_folder};
use crate::co::Class;

/// The timeout of a call, as the chart sets it for its sidecars.
const DEADLINE: Duration = Duration::from_secs(120);
/// What `ReadWriteOnce` becomes for a driver that distinguishes one pod from one node.
const MODE: Mode = Mode::SingleNodeMultiWriter;
/// The file system if the StorageClass names none, as the chart sets it for the provisioner.
const DEFAULT_FS: &str = "ext4";

/// Makes the call, with a timeout, and records a failure.
pub(super) async fn act(shared: &Shared, action: &Action) -> Result<(), Status> {
    let answer = tokio::time::timeout(DEADLINE, call(shared, action)).await;
    let answer =
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the CO's deadline has passed")));
    if let Err(status) = &answer {
        failed(&mut shared.store(), action, status);
    }
    answer
}

/// Codes after which the effect may exist or may still appear. Any other code means that it did not happen.
fn outcome_unknown(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::Aborted
            | Code::ResourceExhausted
    )
}

/// Codes by which the resizer concludes that this size is infeasible.
pub(super) fn is_infeasible(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound
    )
}

async fn call(shared: &Shared, action: &Action) -> Result<(), Status> {
    match action {
        Action::Create { claim } => create(shared, claim).await,
        Action::Grow { claim } => grow(shared, claim).await,
        Action::Delete { volume } => {
            let clients = shared.parts.clients(None).await;
            test_volume(shared, volume, None)?.delete(&clients).await?;
            shared.store().volumes.remove(volume);
            Ok(())
        }
        Action::Attach { volume, node } => attach(shared, volume, node).await,
        Action::Detach { volume, node } => {
            let clients = shared.parts.clients(None).await;
            let test_volume = test_volume(shared, volume, Some(node))?;
            test_volume.unpublish(&clients).await?;
            shared.with_volume(volume, |volume| volume.attached.remove(node));
            Ok(())
        }
        Action::Stage { volume, node } => stage(shared, volume, node).await,
        Action::Unstage { volume, node } => {
            let clients = shared.parts.clients(Some(node)).await;
            let test_volume = test_volume(shared, volume, Some(node))?;
            test_volume.unstage(&clients).await?;
            remove(&test_volume.staging)?;
            shared.with_volume(volume, |volume| volume.staged.remove(node));
            Ok(())
        }
        Action::GrowOnNode { pod } => grow_on_node(shared, pod).await,
        Action::Publish { pod } => {
            let (clients, test_volume) = pod_volume(shared, pod).await?;
            create_dir(test_volume.target.parent())?;
            set_published(shared, pod, Some(CallState::Perhaps));
            test_volume.node_publish(&clients).await?;
            set_published(shared, pod, Some(CallState::Done));
            Ok(())
        }
        Action::Unpublish { pod } => {
            let (clients, test_volume) = pod_volume(shared, pod).await?;
            test_volume.node_unpublish(&clients).await?;
            remove(&pod_folder(&shared.parts.home(&test_volume.node_id), pod))?;
            set_published(shared, pod, None);
            Ok(())
        }
    }
}

async fn create(shared: &Shared, claim: &str) -> Result<(), Status> {
    let (mut request, class, content) = {
        let mut store = shared.store();
        let Store {
            claims, classes, ..
        } = &mut *store;
        let claim_state = claims.get_mut(claim).ok_or_else(obsolete)?;
        let class = classes
            .get(&claim_state.claim.class)
            .ok_or_else(|| Status::invalid_argument("there is no such StorageClass"))?;
        claim_state.create_started = true;
        let content = content(claim_state.claim.block, class);
        let mut request = create_request(&claim_state.volume, claim_state.requested, content);
        request.volume_capabilities = vec![capability(content, MODE)];
        (request, class.clone(), content)
    };
    request.parameters = class.parameters.into_iter().collect();
    let name = request.name.clone();
    let clients = shared.parts.clients(None).await;
    let created = clients.controller().create_volume(request).await?;
    let created = created.into_inner().volume.unwrap_or_default();
    let mut store = shared.store();
    let claim_state = store.claims.get_mut(claim).ok_or_else(obsolete)?;
    claim_state.bound = true;
    claim_state.capacity = created.capacity_bytes;
    let volume = Volume {
        handle: created.volume_id,
        context: created.volume_context,
        content,
        bytes: created.capacity_bytes,
        claim: Some(claim.to_owned()),
        reclaim: class.reclaim,
        attached: BTreeMap::new(),
        staged: BTreeMap::new(),
    };
    store.volumes.insert(name, volume);
    Ok(())
}

async fn attach(shared: &Shared, volume: &str, node: &str) -> Result<(), Status> {
    shared.with_volume(volume, |volume| {
        volume.attached.entry(node.to_owned()).or_insert(None);
    });
    let clients = shared.parts.clients(None).await;
    let test_volume = test_volume(shared, volume, Some(node))?;
    let context = test_volume
        .publish_to(&clients, &test_volume.node_id)
        .await?;
    shared.with_volume(volume, |volume| {
        volume.attached.insert(node.to_owned(), Some(context));
    });
    Ok(())
}

async fn stage(shared: &Shared, volume: &str, node: &str) -> Result<(), Status> {
    let clients = shared.parts.clients(Some(node)).await;
    let test_volume = test_volume(shared, volume, Some(node))?;
    create_dir(Some(&test_volume.staging))?;
    let set_state = |state| {
        shared.with_volume(volume, |volume| {
            volume.staged.insert(node.to_owned(), state);
        });
    };
    set_state(CallState::Perhaps);
    test_volume.stage(&clients).await?;
    set_state(CallState::Done);
    Ok(())
}

async fn grow(shared: &Shared, claim: &str) -> Result<(), Status> {
    let (volume, bytes) = {
        let mut store = shared.store();
        let claim_state = store.claims.get_mut(claim).ok_or_else(obsolete)?;
        // An expansion that may still be in progress is completed first, whatever size the claim requests by now.
        let bytes = *claim_state.allocated.get_or_insert(claim_state.requested);
        (claim_state.volume.clone(), bytes)
    };
    let test_volume = test_volume(shared, &volume, None)?;
    let request = csi::ControllerExpandVolumeRequest {
        volume_id: test_volume.id.clone(),
        capacity_range: Some(at_least(bytes)),
        volume_capability: Some(test_volume.capability()),
        ..csi::ControllerExpandVolumeRequest::default()
    };
    let clients = shared.parts.clients(None).await;
    let grown = clients
        .controller()
        .controller_expand_volume(request)
        .await?;
    let grown = grown.into_inner();
    let mut store = shared.store();
    if let Some(volume) = store.volumes.get_mut(&volume) {
        volume.bytes = grown.capacity_bytes;
    }
    let claim_state = store.claims.get_mut(claim).ok_or_else(obsolete)?;
    claim_state.allocated = None;
    claim_state.conditions.clear();
    if grown.node_expansion_required {
        let pending = "FileSystemResizePending".to_owned();
        claim_state.conditions.insert(pending, String::new());
    } else {
        claim_state.capacity = grown.capacity_bytes;
    }
    Ok(())
}

async fn grow_on_node(shared: &Shared, pod: &str) -> Result<(), Status> {
    let (clients, test_volume) = pod_volume(shared, pod).await?;
    let volume = shared.with_volume(&test_volume.name, |volume| volume.bytes);
    let bytes = volume.ok_or_else(obsolete)?;
    test_volume.expand_on_node(&clients, bytes).await?;
    if let Some(claim_state) = shared.store().claim_of(pod) {
        claim_state.capacity = bytes;
        claim_state.conditions.clear();
    }
    Ok(())
}

/// Records what a failure means to the CO's programs.
fn failed(store: &mut Store, action: &Action, status: &Status) {
    let unknown = outcome_unknown(status);
    match action {
        Action::Create { claim } => {
            // Only the provisioner considers ResourceExhausted final.
            let ended = !unknown || status.code() == Code::ResourceExhausted;
            if let Some(claim_state) = store.claims.get_mut(claim) {
                claim_state.create_started = !ended;
            }
        }
        Action::Stage { volume, node } if !unknown => {
            if let Some(volume) = store.volumes.get_mut(volume) {
                volume.staged.remove(node);
            }
        }
        Action::Grow { claim } => {
            let Some(claim_state) = store.claims.get_mut(claim) else {
                return;
            };
            let mut set_condition = |condition: &str| {
                let message = status.message().to_owned();
                claim_state.conditions.insert(condition.to_owned(), message);
            };
            set_condition("ControllerResizeError");
            if is_infeasible(status) {
                set_condition("ControllerResizeInfeasible");
            }
            if !unknown {
                claim_state.allocated = None;
            }
        }
        Action::GrowOnNode { pod } => {
            if let Some(claim_state) = store.claim_of(pod) {
                let message = status.message().to_owned();
                claim_state
                    .conditions
                    .insert("NodeResizeError".to_owned(), message);
            }
        }
        Action::Stage { .. }
        | Action::Delete { .. }
        | Action::Attach { .. }
        | Action::Detach { .. }
        | Action::Publish { .. }
        | Action::Unpublish { .. }
        | Action::Unstage { .. } => {}
    }
}

/// The content that the provisioner requests: the class's file system, in any spelling of its key.
fn content(block: bool, class: &Class) -> Content {
    if block {
        return Content::Block;
    }
    let named = class
        .parameters
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("fstype"))
        .map(|(_, value)| value.as_str());
    let matches = |content: &Content| Some(content.name()) == named;
    let content = Content::ALL.into_iter().find(matches);
    content.unwrap_or(Content::Fs(DEFAULT_FS))
}

/// The volume as CSI calls need it; with the state of a node, if one is given.
fn test_volume(shared: &Shared, name: &str, node: Option<&str>) -> Result<TestVolume, Status> {
    let store = shared.store();
    let volume = store.volumes.get(name).ok_or_else(obsolete)?;
    let node = node.unwrap_or_default();
    let context = volume.attached.get(node).cloned().flatten();
    let staging = shared.parts.home(node).join("staging").join(name);
    Ok(TestVolume {
        name: name.to_owned(),
        content: volume.content,
        mode: MODE,
        mount_flags: Vec::new(),
        readonly: false,
        id: volume.handle.clone(),
        volume_context: volume.context.clone(),
        secrets: HashMap::new(),
        publish_context: context.unwrap_or_default(),
        node_id: shared.node_ids.get(node).cloned().unwrap_or_default(),
        target: staging.clone(),
        staging,
    })
}

/// The same for a pod. `node_id` is the node's name, because the kubelet's calls do not need its id.
async fn pod_volume(shared: &Shared, pod: &str) -> Result<(CsiClients, TestVolume), Status> {
    let (volume, node) = {
        let store = shared.store();
        let running = store.pods.get(pod).ok_or_else(obsolete)?;
        let (volume, _) = store.volume_of(running).ok_or_else(obsolete)?;
        let node = running.node.clone().ok_or_else(obsolete)?;
        (volume.to_owned(), node)
    };
    let mut test_volume = test_volume(shared, &volume, Some(&node))?;
    test_volume.target = target_of(shared, &node, pod);
    let clients = shared.parts.clients(Some(&node)).await;
    test_volume.node_id = node;
    Ok((clients, test_volume))
}

/// The target path of a pod.
pub(super) fn target_of(shared: &Shared, node: &str, pod: &str) -> std::path::PathBuf {
    pod_folder(&shared.parts.home(node), pod).join("volume")
}

fn set_published(shared: &Shared, pod: &str, published: Option<CallState>) {
    if let Some(running) = shared.store().pods.get_mut(pod) {
        running.published = published;
    }
}

/// The state has changed: the object of the call no longer exists.
fn obsolete() -> Status {
    Status::aborted("the CO no longer needs this call")
}

fn create_dir(folder: Option<&std::path::Path>) -> Result<(), Status> {
    let created = folder.map_or(Ok(()), std::fs::create_dir_all);
    created.map_err(|error| Status::aborted(format!("the CO cannot make a directory: {error}")))
}

/// Removes only empty directories, so nothing below a mount.
fn remove(folder: &std::path::Path) -> Result<(), Status> {
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Status::aborted(
            format!("the CO cannot remove {}: {error}", folder.display()),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}
