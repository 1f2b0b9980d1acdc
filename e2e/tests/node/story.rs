//! The fixture of the node tests: a test cluster with one volume. Each method is a step of its life cycle, and checks the result.

use std::path::{Path, PathBuf};

use e2e::harness::skip::needs_root;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::tools::{device_bytes, fill, sha256};
use e2e::harness::until::until;
use proto::csi;
use serde_json::Value;
use tonic::{Code, Status};

use e2e::harness::inspect;
use e2e::interceptor::CommandInterceptor;

/// Enough to see that data persist; a checksum of more would take too long in a debug build.
const WRITTEN: u64 = 1 << 20;

/// A volume, and the test cluster that it belongs to.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) cluster: TestCluster,
    pub(crate) volume: TestVolume,
}

/// A user's data: path, size and SHA-256.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) file: Option<&'static str>,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Story {
    /// Starts a test cluster and creates a volume on its NAS. `None`, after printing the reason, if this machine cannot run it.
    pub(crate) async fn begin(test: &str, size: i64, content: Content) -> Option<Self> {
        if needs_root(test) {
            return None;
        }
        let cluster = Plan::with_node().start().await.unwrap();
        let volume = TestVolume::create(&cluster, "pvc-1", size, content)
            .await
            .unwrap();
        Some(Self { cluster, volume })
    }

    /// Like `begin`, with additional StorageClass parameters.
    pub(crate) async fn begin_as(
        test: &str,
        content: Content,
        class: &[(&str, &str)],
    ) -> Option<Self> {
        if needs_root(test) {
            return None;
        }
        let cluster = Plan::with_node().start().await.unwrap();
        let mut request = e2e::harness::test_volume::create_request("pvc-1", e2e::GIB, content);
        request.parameters.extend(
            class
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        let volume = TestVolume::create_as(&cluster, request, content)
            .await
            .unwrap();
        Some(Self { cluster, volume })
    }

    /// Awaits a node call, and checks that it made no NAS call (design.md#the-node-never-calls-dsm).
    pub(crate) async fn node<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let (_, before) = self.cluster.nas.journal(u64::MAX).await.unwrap();
        let answer = call.await;
        let (received, _) = self.cluster.nas.journal(before).await.unwrap();
        assert!(
            received.is_empty(),
            "a node call made NAS calls: {received:?}"
        );
        answer
    }

    pub(crate) async fn publish(&mut self) {
        self.volume.publish(&self.cluster).await.unwrap();
    }

    pub(crate) async fn stage(&self) -> Result<(), Status> {
        self.node(self.volume.stage(&self.cluster)).await
    }

    /// `NodePublishVolume`: mounts the volume at its pod's target path.
    pub(crate) async fn node_publish(&self) -> Result<(), Status> {
        self.node(self.volume.node_publish(&self.cluster)).await
    }

    pub(crate) async fn attach(&mut self) {
        self.publish().await;
        self.stage().await.unwrap();
        self.node_publish().await.unwrap();
    }

    /// `NodeUnpublishVolume`: unmounts it from its pod's target path.
    pub(crate) async fn node_unpublish(&self) -> Result<(), Status> {
        self.retry_while_busy(async || self.volume.node_unpublish(&self.cluster).await)
            .await
    }

    pub(crate) async fn unstage(&self) -> Result<(), Status> {
        self.retry_while_busy(async || self.volume.unstage(&self.cluster).await)
            .await
    }

    /// Repeats a call that unmounts, as the kubelet does. A process that this test program is just starting has all of its open files
    /// until its exec(2), so a mount point may be busy for a moment.
    async fn retry_while_busy(
        &self,
        call: impl AsyncFn() -> Result<(), Status>,
    ) -> Result<(), Status> {
        let busy = |status: &Status| {
            status.code() == Code::Unavailable && status.message().contains("is busy")
        };
        let probe = async || Ok(self.node(call()).await);
        until("an unmount", probe, |answer| {
            !answer.as_ref().is_err_and(busy)
        })
        .await
        .unwrap()
    }

    pub(crate) async fn detach(&self) {
        self.node_unpublish().await.unwrap();
        self.unstage().await.unwrap();
        self.volume.unpublish(&self.cluster).await.unwrap();
    }

    /// `ControllerExpandVolume`. The node must not see it yet: the device keeps its size until a rescan, as on real hardware.
    pub(crate) async fn grow_lun(&self, size: i64) {
        let device = self.volume.device(&self.cluster).ok();
        let before = device
            .as_deref()
            .map(|device| device_bytes(device).unwrap());
        assert_eq!(
            self.volume.expand_lun(&self.cluster, size).await.unwrap(),
            size
        );
        let after = device
            .as_deref()
            .map(|device| device_bytes(device).unwrap());
        assert_eq!(after, before, "the device grew without a rescan");
    }

    /// `NodeExpandVolume`, with the request that the kubelet sends.
    pub(crate) async fn grow_node(&self, size: i64) -> Result<i64, Status> {
        self.node(self.volume.expand_on_node(&self.cluster, size))
            .await
    }

    /// Checks that the device has `size` bytes, and that the file system uses all of it that it can.
    pub(crate) fn must_have(&self, size: i64) {
        self.volume.must_have(&self.cluster, size).unwrap();
    }

    /// How many bytes of its device the mounted file system uses.
    pub(crate) fn claimed(&self) -> u64 {
        inspect::used_bytes(
            self.volume.content.name(),
            &self.volume.staging,
            &self.device(),
        )
        .unwrap()
    }

    pub(crate) fn device(&self) -> PathBuf {
        self.volume.device(&self.cluster).unwrap()
    }

    /// Writes data to the pod's target path.
    pub(crate) fn write(&self, file: &'static str) -> Data {
        let file = matches!(self.volume.content, Content::Fs(_)).then_some(file);
        let path = place(&self.volume.path(), file);
        let sha256 = fill(
            &path,
            WRITTEN,
            WRITTEN + file.map_or(0, |name| name.len() as u64),
        )
        .unwrap();
        Data {
            file,
            bytes: WRITTEN,
            sha256,
        }
    }

    /// Checks that the data on the disk are as written.
    pub(crate) fn must_hold(&self, data: &Data) {
        let path = place(&self.volume.path(), data.file);
        assert_eq!(
            sha256(&path, data.bytes).unwrap(),
            data.sha256,
            "{} has changed",
            path.display()
        );
    }

    /// The backing file of the LUN on the NAS.
    pub(crate) fn lun_file(&self) -> PathBuf {
        let target = self.target();
        let units = target["luns"].as_object().unwrap();
        PathBuf::from(units.values().next().unwrap()["file"].as_str().unwrap())
    }

    /// The target's JSON file as node-sim reads it.
    pub(crate) fn target(&self) -> Value {
        self.target_of(&self.volume)
    }

    /// The same for another volume's target.
    pub(crate) fn target_of(&self, volume: &TestVolume) -> Value {
        serde_json::from_slice(&std::fs::read(self.target_file(volume)).unwrap()).unwrap()
    }

    /// Replaces the target's file, without the driver's knowledge.
    pub(crate) fn put_target(&self, target: &Value) {
        let (file, fresh) = (
            self.target_file(&self.volume),
            self.cluster.folder().join("target.new"),
        );
        std::fs::write(&fresh, target.to_string()).unwrap();
        std::fs::rename(fresh, file).unwrap();
    }

    fn target_file(&self, volume: &TestVolume) -> PathBuf {
        self.cluster
            .nas
            .targets()
            .join(format!("{}.json", volume.publish_context["iqn"]))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.cluster.folder().join("driver.log")).unwrap()
    }

    /// Installs an interceptor for all host commands.
    pub(crate) fn interceptor(&self) -> CommandInterceptor {
        let bin = self.cluster.initiator().unwrap().bin();
        CommandInterceptor::build(&self.cluster.folder().join("trap"), &bin).unwrap()
    }

    /// A `NodeExpandVolume` request with all optional fields omitted.
    pub(crate) fn bare_expand(&self, path: &Path) -> csi::NodeExpandVolumeRequest {
        csi::NodeExpandVolumeRequest {
            volume_id: self.volume.id.clone(),
            volume_path: path.to_string_lossy().into_owned(),
            ..csi::NodeExpandVolumeRequest::default()
        }
    }

    /// Tears everything down from the current state, and checks that nothing is left on the NAS, on the node or in
    /// the kubelet's folders.
    pub(crate) async fn end(self) {
        self.detach().await;
        self.volume.delete(&self.cluster).await.unwrap();
        self.must_leave_nothing().await;
    }

    pub(crate) async fn must_leave_nothing(&self) {
        assert_eq!(
            self.cluster.leftovers().await.unwrap(),
            Vec::<String>::new()
        );
        let home = self.volume.staging.parent().unwrap();
        assert_eq!(names(home), ["staging"], "in {}", home.display());
        assert_eq!(
            names(&self.volume.staging),
            Vec::<String>::new(),
            "in {}",
            self.volume.staging.display()
        );
    }
}

fn place(path: &Path, file: Option<&str>) -> PathBuf {
    file.map_or_else(|| path.to_owned(), |file| path.join(file))
}

/// The sorted names of a folder's entries.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}
