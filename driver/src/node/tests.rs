//! Tests of the node service on the fake host: whole RPCs, against the sections of design.md that they cite.

mod chap;
mod cost;
mod dead_fs;
mod ended_publication;
mod expand;
mod holders;
mod multipath;
mod publish;
mod real;
mod record_lock;
mod selinux;
mod stage;
mod sweep;
mod unstage;

use proto::csi;
use proto::csi::node_server::Node as _;
use proto::csi::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode,
};
use tonic::{Code, Request, Status};

use std::collections::HashMap;

use super::*;
use crate::chap::Method;
use crate::host::fake::{Fake, NODE, UUID};
use crate::publication::PublishContext;
use crate::volume::{Bytes, FsType};

/// A CO with one node and one volume.
struct Co {
    fake: Fake,
    node: Node<Fake>,
    volume_id: String,
    fs: &'static str,
    flags: Vec<String>,
    mode: Mode,
    raw: bool,
    staging: &'static str,
    secrets: HashMap<String, String>,
    auth: Option<Method>,
}

/// An operation that holds a LUN's lock until [`Operation::end`].
struct Operation {
    release: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Operation {
    async fn end(self) {
        self.release.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

impl Co {
    /// A blank LUN of 1 GiB, replacement timeout 120 s.
    fn new() -> Self {
        Self::with_replacement_timeout(Duration::from_secs(120))
    }

    fn with_replacement_timeout(replacement_timeout: Duration) -> Self {
        Self::with(Fake::with_lun(), replacement_timeout)
    }

    fn on_host(fake: Fake) -> Self {
        Self::with(fake, Duration::from_secs(120))
    }

    fn with(fake: Fake, replacement_timeout: Duration) -> Self {
        let node = Node::new(
            fake.clone(),
            NODE.to_owned(),
            "csi.synology.com".to_owned(),
            replacement_timeout,
            InFlight::default(),
        );
        Self {
            fake,
            node,
            volume_id: format!("nas1/{UUID}"),
            fs: "",
            flags: vec![],
            mode: Mode::SingleNodeMultiWriter,
            raw: false,
            staging: "/staging",
            secrets: HashMap::new(),
            auth: None,
        }
    }

    fn with_fs(fs: &'static str) -> Self {
        Self { fs, ..Self::new() }
    }

    fn raw() -> Self {
        Self {
            raw: true,
            ..Self::new()
        }
    }

    /// Takes the LUN's lock.
    async fn occupy(&self) -> Operation {
        self.occupy_lun(UUID).await
    }

    async fn occupy_lun(&self, uuid: &str) -> Operation {
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let (busy, uuid) = (self.node.in_flight.clone(), uuid.to_owned());
        let task = tokio::spawn(async move {
            busy.run(&uuid, async {
                let _ = released.await;
                Ok(())
            })
            .await
        });
        tokio::task::yield_now().await;
        Operation { release, task }
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the field of the message is an Option"
    )]
    fn capability(&self) -> Option<csi::VolumeCapability> {
        let mount = || MountVolume {
            fs_type: self.fs.to_owned(),
            mount_flags: self.flags.clone(),
            ..MountVolume::default()
        };
        let access_type = if self.raw {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(mount())
        };
        Some(csi::VolumeCapability {
            access_mode: Some(AccessMode {
                mode: self.mode.into(),
            }),
            access_type: Some(access_type),
        })
    }

    fn context(&self, portals: &[&str]) -> PublishContext {
        let portals = portals
            .iter()
            .map(|portal| portal.parse().unwrap())
            .collect();
        PublishContext {
            portals,
            iqn: self.fake.iqn(),
            lun: 1,
            uuid: UUID.parse().unwrap(),
            auth: self.auth,
            chap: None,
        }
    }

    async fn stage(&self) -> Result<(), Status> {
        self.stage_through(&["10.0.0.5:3260"]).await
    }

    async fn stage_through(&self, portals: &[&str]) -> Result<(), Status> {
        self.stage_by(&self.context(portals)).await
    }

    async fn stage_by(&self, context: &PublishContext) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: self.volume_id.clone(),
            publish_context: context.to_map(),
            staging_target_path: self.staging.to_owned(),
            volume_capability: self.capability(),
            secrets: self.secrets.clone(),
            ..Default::default()
        };
        self.node
            .node_stage_volume(Request::new(request))
            .await
            .map(|_| ())
    }

    async fn unstage(&self) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: self.volume_id.clone(),
            staging_target_path: self.staging.to_owned(),
        };
        self.node
            .node_unstage_volume(Request::new(request))
            .await
            .map(|_| ())
    }

    async fn publish(&self, target: &str, readonly: bool) -> Result<(), Status> {
        let context = self.context(&["10.0.0.5:3260"]);
        self.publish_as(&context, target, readonly).await
    }

    async fn publish_by(&self, context: &PublishContext, target: &str) -> Result<(), Status> {
        self.publish_as(context, target, false).await
    }

    async fn publish_through(&self, portals: &[&str], target: &str) -> Result<(), Status> {
        self.publish_as(&self.context(portals), target, false).await
    }

    async fn publish_as(
        &self,
        context: &PublishContext,
        target: &str,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: self.volume_id.clone(),
            publish_context: context.to_map(),
            staging_target_path: self.staging.to_owned(),
            target_path: target.to_owned(),
            volume_capability: self.capability(),
            readonly,
            ..Default::default()
        };
        self.node
            .node_publish_volume(Request::new(request))
            .await
            .map(|_| ())
    }

    async fn unpublish(&self, target: &str) -> Result<(), Status> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: self.volume_id.clone(),
            target_path: target.to_owned(),
        };
        self.node
            .node_unpublish_volume(Request::new(request))
            .await
            .map(|_| ())
    }

    async fn stats(&self, path: &str) -> Result<Vec<csi::VolumeUsage>, Status> {
        self.stats_and_condition(path).await.map(|reply| reply.0)
    }

    /// Usage, and the message of an abnormal condition.
    async fn stats_and_condition(
        &self,
        path: &str,
    ) -> Result<(Vec<csi::VolumeUsage>, Option<String>), Status> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: self.volume_id.clone(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        self.node
            .node_get_volume_stats(Request::new(request))
            .await
            .map(|reply| {
                let reply = reply.into_inner();
                let condition = reply.volume_condition.unwrap();
                let wrong = condition.abnormal.then_some(condition.message);
                (reply.usage, wrong)
            })
    }

    /// Sends only the required fields and the capacity range.
    async fn expand(&self, path: &str, required: Bytes, limit: Bytes) -> Result<Bytes, Status> {
        let capacity_range = Some(csi::CapacityRange {
            required_bytes: required.as_i64(),
            limit_bytes: limit.as_i64(),
        });
        let request = csi::NodeExpandVolumeRequest {
            volume_id: self.volume_id.clone(),
            volume_path: path.to_owned(),
            capacity_range,
            ..Default::default()
        };
        let reply = self.node.node_expand_volume(Request::new(request)).await?;
        Ok(Bytes(
            u64::try_from(reply.into_inner().capacity_bytes).unwrap(),
        ))
    }
}

/// The driver's default mount options.
fn default_options(fs: &str) -> &'static str {
    match fs {
        "ext4" => "nodev,nosuid,errors=remount-ro",
        _ => "nodev,nosuid",
    }
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, cause: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(cause),
        "{:?} does not name {cause:?}",
        status.message()
    );
}

/// design.md#node-id
#[tokio::test]
async fn the_node_id_comes_from_name_and_initiator() {
    let co = Co::new();
    let info = co
        .node
        .node_get_info(Request::new(csi::NodeGetInfoRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        info.node_id,
        NodeId::derive(NODE, "iqn.1993-08.org.debian:01:abc").as_str()
    );
    assert_eq!(
        (info.max_volumes_per_node, info.accessible_topology),
        (0, None)
    );
    let bounded = co.node.clone().with_max_volumes(64);
    let info = bounded.node_get_info(Request::new(csi::NodeGetInfoRequest {}));
    let info = info.await.unwrap().into_inner();
    assert_eq!(info.max_volumes_per_node, 64);
    for file in [
        None,
        Some(""),
        Some("# InitiatorName=iqn.x\n"),
        Some("InitiatorName=\n"),
        Some("InitiatorName=my node\n"),
        Some("GenerateName=yes\n"),
    ] {
        let files = &mut co.fake.machine().files;
        match file {
            Some(text) => drop(files.insert(INITIATOR_NAME.to_owned(), text.as_bytes().to_vec())),
            None => drop(files.remove(INITIATOR_NAME)),
        }
    }
    fails(
        co.node
            .node_get_info(Request::new(csi::NodeGetInfoRequest {}))
            .await,
        Code::FailedPrecondition,
        "systemctl start iscsid",
    );
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "initiatorname.iscsi",
    );
}

/// As on Ubuntu's cloud images, and others, before iscsid's first start.
#[tokio::test]
async fn a_fresh_node_gets_an_initiator_name() {
    for file in [Some("GenerateName=yes\n"), Some(""), None] {
        let co = Co::new();
        {
            let mut machine = co.fake.machine();
            machine.files.remove(INITIATOR_NAME);
            machine
                .files
                .extend(file.map(|text| (INITIATOR_NAME.to_owned(), text.into())));
            machine.name_on_start = Some("iqn.1993-08.org.debian:01:fresh".to_owned());
        }
        let info = co
            .node
            .node_get_info(Request::new(csi::NodeGetInfoRequest {}));
        let id = NodeId::derive(NODE, "iqn.1993-08.org.debian:01:fresh");
        assert_eq!(info.await.unwrap().into_inner().node_id, id.as_str());
        let again = co
            .node
            .node_get_info(Request::new(csi::NodeGetInfoRequest {}));
        assert_eq!(again.await.unwrap().into_inner().node_id, id.as_str());
        assert_eq!(co.fake.ran("call iscsid").len(), 1);
    }
}

#[test]
fn initiator_names() {
    assert_eq!(
        initiator_name("## x\nInitiatorName=iqn.1993-08.org.debian:01:abc\n"),
        Some("iqn.1993-08.org.debian:01:abc")
    );
    assert_eq!(initiator_name("InitiatorName = iqn.x \n"), Some("iqn.x"));
    assert_eq!(
        initiator_name("InitiatorName=eui.02004567A425678D"),
        Some("eui.02004567A425678D")
    );
    for bad in [
        "",
        "#InitiatorName=iqn.x",
        "InitiatorName=",
        "InitiatorName=x",
        "InitiatorName=iqn.a b",
        "InitiatorAlias=iqn.x",
    ] {
        assert_eq!(initiator_name(bad), None, "{bad}");
    }
}

/// design.md#capabilities
#[tokio::test]
async fn capabilities() {
    let reply = Co::new()
        .node
        .node_get_capabilities(Request::new(csi::NodeGetCapabilitiesRequest {}))
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = reply
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type {
            Some(node_service_capability::Type::Rpc(rpc)) => rpc.r#type().as_str_name(),
            None => "",
        })
        .collect();
    assert_eq!(
        names,
        [
            "STAGE_UNSTAGE_VOLUME",
            "GET_VOLUME_STATS",
            "EXPAND_VOLUME",
            "VOLUME_CONDITION",
            "SINGLE_NODE_MULTI_WRITER"
        ]
    );
}

/// design.md#one-operation-per-volume
#[tokio::test]
async fn one_operation_per_lun_whatever_the_alias() {
    let mut co = Co::new();
    let operation = co.occupy().await;
    for nas in ["nas1", "alias"] {
        co.volume_id = format!("{nas}/{UUID}");
        fails(co.stage().await, Code::Aborted, "in progress");
        fails(co.unstage().await, Code::Aborted, "in progress");
        fails(
            co.publish("/pods/1", false).await,
            Code::Aborted,
            "in progress",
        );
        fails(co.unpublish("/pods/1").await, Code::Aborted, "in progress");
        fails(
            co.expand("/staging", Bytes::GIB, Bytes(0)).await,
            Code::Aborted,
            "in progress",
        );
        // NodeGetVolumeStats has its own lock.
        fails(
            co.stats("/staging").await,
            Code::NotFound,
            "nothing is mounted",
        );
    }
    operation.end().await;
    co.stage().await.unwrap();
}

#[test]
fn missing_tools_are_named() {
    assert_eq!(
        crate::host::missing_programs(&Fake::with_lun()),
        ["mkfs.btrfs"]
    );
}

/// design.md#the-node-never-calls-dsm
#[test]
fn the_node_service_never_calls_dsm() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for part in ["node.rs", "node", "host"] {
        visit(&sources.join(part), &mut |path, text| {
            seen += 1;
            let code = !path.ends_with("tests.rs");
            assert!(
                !(code && text.contains(concat!("crate::", "dsm"))),
                "{}",
                path.display()
            );
        });
    }
    assert!(seen > 20);
}

fn visit(path: &std::path::Path, check: &mut dyn FnMut(&std::path::Path, &str)) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            visit(&entry.unwrap().path(), check);
        }
    } else {
        check(path, &std::fs::read_to_string(path).unwrap());
    }
}
