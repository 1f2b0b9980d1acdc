//! A freshly installed node: the initiator has no name yet, iscsid has never run and is socket-activated, there are
//! no multipath tools, and the NAS has two portals. No manual steps are needed.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::plugin::Csi as _;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::Content;
use e2e::harness::until::until;
use e2e::vm::remote::Remote;
use proto::csi::NodeGetInfoRequest;

use crate::scene::{PORTALS, Scene};
use crate::setup::SECOND_ADDRESS;
use crate::worker::Worker;

const NAME: &str = "/etc/iscsi/initiatorname.iscsi";
const MULTIPATH: [&str; 2] = ["/usr/sbin/multipath", "/usr/sbin/multipathd"];
/// Debian's `iscsid.socket`.
const SOCKET: &str = "@ISCSIADM_ABSTRACT_NAMESPACE";
/// Debian's `iscsid.service`.
const SERVICE: &str = "/lib/open-iscsi/startup-checks.sh && exec iscsid -f";
const LOG: &str = "/run/iscsid.log";

/// The second VM in that state.
struct Fresh {
    remote: Remote,
    /// The initiator's name before.
    named: String,
    /// The process that waits for the first connection, and then is iscsid.
    service: u32,
}

impl Fresh {
    async fn make() -> Result<Self> {
        let remote = Remote::at(SECOND_ADDRESS);
        remote.ready().await?;
        let named = remote.read(NAME).await?;
        remote.run(&["pkill", "-KILL", "-x", "iscsid"]).await?;
        no_iscsid(&remote).await?;
        let unnamed = format!("echo GenerateName=yes >{NAME}");
        remote.run(&["sh", "-c", &unnamed]).await?;
        for tool in MULTIPATH {
            remote.run(&["mount", "--bind", "/dev/null", tool]).await?;
        }
        // What systemd does: it listens, and starts the service on the first connection.
        let systemd = ["systemd-socket-activate", "--listen", SOCKET];
        let args = [&systemd[..], &["sh", "-c", SERVICE]].concat();
        let service = remote.start(&args, LOG).await?;
        let listens = async || {
            let sockets = remote.read("/proc/net/unix").await?;
            Ok(sockets.contains(SOCKET))
        };
        until("the iscsid socket is listening", listens, |listens| {
            *listens
        })
        .await?;
        Ok(Self {
            remote,
            named,
            service,
        })
    }

    /// Restores the state for the next story.
    async fn undo(self) -> Result<()> {
        let remote = &self.remote;
        for tool in MULTIPATH {
            remote.run(&["umount", "--lazy", tool]).await?;
        }
        remote
            .run(&["kill", "-9", &self.service.to_string()])
            .await?;
        no_iscsid(remote).await?;
        let name = format!("echo '{}' >{NAME}", self.named.trim());
        remote.run(&["sh", "-c", &name]).await?;
        remote.start(&["iscsid", "-f"], LOG).await.map(drop)
    }
}

async fn no_iscsid(remote: &Remote) -> Result<()> {
    let sockets = async || remote.read("/proc/net/unix").await;
    let is_gone = |sockets: &String| !sockets.contains(SOCKET);
    until("iscsid is gone", sockets, is_gone).await.map(drop)
}

pub(crate) async fn node(scene: &mut Scene) -> Result<String> {
    scene
        .reset(Plan::real(scene.export.name(), &PORTALS))
        .await?;
    let fresh = Fresh::make().await?;
    let worker = Worker::start_contained(&["--host-namespaces", "init"]).await?;
    let clients = worker.on(&scene.cluster);

    // The kubelet registers the node.
    let info = clients.node().node_get_info(NodeGetInfoRequest {}).await?;
    let name = worker.remote.read(NAME).await?;
    let name = name
        .lines()
        .find_map(|line| line.strip_prefix("InitiatorName="))
        .with_context(|| format!("no name was generated: {name}"))?;
    ensure!(
        name.starts_with("iqn.") && !fresh.named.contains(name),
        "{name} is not a new name"
    );

    let volume = worker
        .volume(&scene.cluster, "pvc-fresh", Content::Fs("ext4"))
        .await?;
    let sessions = worker.remote.list("/sys/class/iscsi_session").await?;
    ensure!(sessions.len() == 1, "expected one path: {sessions:?}");
    let file = volume.file("kept");
    let sum = worker.write(&file).await?;
    ensure!(volume.expand_lun(&clients, 2 * GIB).await? == 2 * GIB);
    ensure!(volume.expand_on_node(&clients, 2 * GIB).await? == 2 * GIB);
    ensure!(worker.sha256(&file).await? == sum, "the data have changed");
    volume.detach(&clients).await?;
    volume.delete(&clients).await?;
    worker.teardown().await?;
    fresh.undo().await?;
    Ok(format!(
        "registered as {}, one path of two portals, grown online, data equal",
        info.into_inner().node_id
    ))
}
