//! Makes a call that is due, and notes what came of it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use e2e::harness::plugin::Csi as _;
use e2e::harness::test_volume::{Content, TestVolume, at_least, capability, create_request};
use e2e::testbed::real::CsiClients;
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;
use tonic::{Code, Status};

use super::decide::Action;
use super::store::{Stands, Store, Volume};
use super::{Shared, pod_folder};
use crate::co::Class;

/// How long a call may take: as the chart tells its sidecars.
const DEADLINE: Duration = Duration::from_secs(120);
/// What `ReadWriteOnce` is for a driver that knows the difference between one pod and one node.
const MODE: Mode = Mode::SingleNodeMultiWriter;
/// What the file system is for those whose class names none: as the chart tells the provisioner.
const DEFAULT_FS: &str = "ext4";

/// Makes the call, unless it is not due any more.
pub(super) async fn act(shared: &Shared, deed: &Action) -> Result<(), Status> {
    let answer = tokio::time::timeout(DEADLINE, call(shared, deed)).await;
    let answer =
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the CO waits no longer")));
    if let Err(status) = &answer {
        failed(&mut shared.store(), deed, status);
    }
    answer
}

/// Codes after which the effect may be there, or still come. Everything else says that it did not happen.
fn leaves_doubt(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::Aborted
            | Code::ResourceExhausted
    )
}

/// Codes that tell the resizer that this size can never be had.
pub(super) fn is_hopeless(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound
    )
}

async fn call(shared: &Shared, deed: &Action) -> Result<(), Status> {
    match deed {
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
            let (clients, test_volume) = pods_life(shared, pod).await?;
            make(test_volume.target.parent())?;
            mark(shared, pod, Some(Stands::Perhaps));
            test_volume.node_publish(&clients).await?;
            mark(shared, pod, Some(Stands::Done));
            Ok(())
        }
        Action::Unpublish { pod } => {
            let (clients, test_volume) = pods_life(shared, pod).await?;
            test_volume.node_unpublish(&clients).await?;
            remove(&pod_folder(&shared.parts.home(&test_volume.node_id), pod))?;
            mark(shared, pod, None);
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
        let claimed = claims.get_mut(claim).ok_or_else(gone)?;
        let class = classes
            .get(&claimed.claim.class)
            .ok_or_else(|| Status::invalid_argument("there is no such StorageClass"))?;
        claimed.begun = true;
        let content = content(claimed.claim.block, class);
        let mut request = create_request(&claimed.volume, claimed.asked, content);
        request.volume_capabilities = vec![capability(content, MODE)];
        (request, class.clone(), content)
    };
    request.parameters = class.parameters.into_iter().collect();
    let name = request.name.clone();
    let clients = shared.parts.clients(None).await;
    let made = clients.controller().create_volume(request).await?;
    let made = made.into_inner().volume.unwrap_or_default();
    let mut store = shared.store();
    let claimed = store.claims.get_mut(claim).ok_or_else(gone)?;
    claimed.bound = true;
    claimed.capacity = made.capacity_bytes;
    let volume = Volume {
        handle: made.volume_id,
        context: made.volume_context,
        content,
        bytes: made.capacity_bytes,
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
    make(Some(&test_volume.staging))?;
    let stands = |stands| {
        shared.with_volume(volume, |volume| {
            volume.staged.insert(node.to_owned(), stands);
        });
    };
    stands(Stands::Perhaps);
    test_volume.stage(&clients).await?;
    stands(Stands::Done);
    Ok(())
}

async fn grow(shared: &Shared, claim: &str) -> Result<(), Status> {
    let (volume, bytes) = {
        let mut store = shared.store();
        let claimed = store.claims.get_mut(claim).ok_or_else(gone)?;
        // What may still go on is ended first, whatever the claim asks for by now.
        let bytes = *claimed.allocated.get_or_insert(claimed.asked);
        (claimed.volume.clone(), bytes)
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
    let claimed = store.claims.get_mut(claim).ok_or_else(gone)?;
    claimed.allocated = None;
    claimed.conditions.clear();
    if grown.node_expansion_required {
        let pending = "FileSystemResizePending".to_owned();
        claimed.conditions.insert(pending, String::new());
    } else {
        claimed.capacity = grown.capacity_bytes;
    }
    Ok(())
}

async fn grow_on_node(shared: &Shared, pod: &str) -> Result<(), Status> {
    let (clients, test_volume) = pods_life(shared, pod).await?;
    let volume = shared.with_volume(&test_volume.name, |volume| volume.bytes);
    let bytes = volume.ok_or_else(gone)?;
    test_volume.expand_on_node(&clients, bytes).await?;
    if let Some(claimed) = shared.store().claim_of(pod) {
        claimed.capacity = bytes;
        claimed.conditions.clear();
    }
    Ok(())
}

/// What a failure tells the programs of a CO.
fn failed(store: &mut Store, deed: &Action, status: &Status) {
    let doubt = leaves_doubt(status);
    match deed {
        Action::Create { claim } => {
            // The provisioner alone takes a lack of room for an end.
            let ended = !doubt || status.code() == Code::ResourceExhausted;
            if let Some(claimed) = store.claims.get_mut(claim) {
                claimed.begun = !ended;
            }
        }
        Action::Stage { volume, node } if !doubt => {
            if let Some(volume) = store.volumes.get_mut(volume) {
                volume.staged.remove(node);
            }
        }
        Action::Grow { claim } => {
            let Some(claimed) = store.claims.get_mut(claim) else {
                return;
            };
            let mut say = |condition: &str| {
                let message = status.message().to_owned();
                claimed.conditions.insert(condition.to_owned(), message);
            };
            say("ControllerResizeError");
            if is_hopeless(status) {
                say("ControllerResizeInfeasible");
            }
            if !doubt {
                claimed.allocated = None;
            }
        }
        Action::GrowOnNode { pod } => {
            if let Some(claimed) = store.claim_of(pod) {
                let message = status.message().to_owned();
                claimed
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

/// What the provisioner asks for: the class's file system, however its key is spelt.
fn content(block: bool, class: &Class) -> Content {
    if block {
        return Content::Block;
    }
    let named = class
        .parameters
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("fstype"))
        .map(|(_, value)| value.as_str());
    let wanted = |content: &Content| Some(content.name()) == named;
    let content = Content::ALL.into_iter().find(wanted);
    content.unwrap_or(Content::Fs(DEFAULT_FS))
}

/// A volume as calls want it; on a node, if they are for one.
fn test_volume(shared: &Shared, name: &str, node: Option<&str>) -> Result<TestVolume, Status> {
    let store = shared.store();
    let volume = store.volumes.get(name).ok_or_else(gone)?;
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

/// The same for a pod. `node_id` is the node's name: calls of the kubelet do without its id.
async fn pods_life(shared: &Shared, pod: &str) -> Result<(CsiClients, TestVolume), Status> {
    let (volume, node) = {
        let store = shared.store();
        let running = store.pods.get(pod).ok_or_else(gone)?;
        let (volume, _) = store.volume_of(running).ok_or_else(gone)?;
        let node = running.node.clone().ok_or_else(gone)?;
        (volume.to_owned(), node)
    };
    let mut test_volume = test_volume(shared, &volume, Some(&node))?;
    test_volume.target = target_of(shared, &node, pod);
    let clients = shared.parts.clients(Some(&node)).await;
    test_volume.node_id = node;
    Ok((clients, test_volume))
}

/// Where a pod has its volume.
pub(super) fn target_of(shared: &Shared, node: &str, pod: &str) -> std::path::PathBuf {
    pod_folder(&shared.parts.home(node), pod).join("volume")
}

fn mark(shared: &Shared, pod: &str, published: Option<Stands>) {
    if let Some(running) = shared.store().pods.get_mut(pod) {
        running.published = published;
    }
}

/// Somebody was faster: what the call was for is not there any more.
fn gone() -> Status {
    Status::aborted("the CO does not want this any more")
}

fn make(folder: Option<&std::path::Path>) -> Result<(), Status> {
    let made = folder.map_or(Ok(()), std::fs::create_dir_all);
    made.map_err(|error| Status::aborted(format!("the CO cannot make a directory: {error}")))
}

/// Never what is below a mount: only empty directories go.
fn remove(folder: &std::path::Path) -> Result<(), Status> {
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Status::aborted(
            format!("the CO cannot remove {}: {error}", folder.display()),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}
