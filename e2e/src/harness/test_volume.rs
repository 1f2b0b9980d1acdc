//! The life cycle of a volume: one method per CSI call, with the arguments that a CO would send.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;
use proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use tonic::Status;

use crate::harness::inspect;
use crate::harness::plugin::Csi;
use crate::harness::test_cluster::TestCluster;
use crate::harness::tools::device_bytes;

/// The content of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file system of this type.
    Fs(&'static str),
    /// A raw block device.
    Block,
}

impl Content {
    /// All kinds, in the order in which tests use them.
    pub const ALL: [Self; 4] = [
        Self::Fs("ext4"),
        Self::Fs("xfs"),
        Self::Fs("btrfs"),
        Self::Block,
    ];

    /// Its name for command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fs(name) => name,
            Self::Block => "block",
        }
    }
}

/// A volume capability with this content and access mode.
pub fn capability(content: Content, mode: Mode) -> csi::VolumeCapability {
    let access_type = match content {
        Content::Fs(fs_type) => AccessType::Mount(MountVolume {
            fs_type: fs_type.to_owned(),
            ..MountVolume::default()
        }),
        Content::Block => AccessType::Block(BlockVolume {}),
    };
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(access_type),
    }
}

/// `capacity_range` with a required size only.
pub fn at_least(required_bytes: i64) -> csi::CapacityRange {
    csi::CapacityRange {
        required_bytes,
        limit_bytes: 0,
    }
}

/// The StorageClass parameters of the article.
pub fn storage_class() -> HashMap<String, String> {
    [("location", "/volume1"), ("type", "BLUN")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// A `CreateVolume` request as the provisioner sends it.
pub fn create_request(name: &str, size: i64, content: Content) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(at_least(size)),
        volume_capabilities: vec![capability(content, Mode::SingleNodeWriter)],
        parameters: storage_class(),
        ..csi::CreateVolumeRequest::default()
    }
}

/// A volume in a test cluster, with the arguments for its next CSI call.
#[derive(Clone, Debug)]
pub struct TestVolume {
    /// The CSI name.
    pub name: String,
    /// Its content.
    pub content: Content,
    /// The access mode: `SINGLE_NODE_WRITER` unless changed.
    pub mode: Mode,
    /// Mount flags in its capability.
    pub mount_flags: Vec<String>,
    /// `readonly` of `NodePublishVolume`.
    pub readonly: bool,
    /// The CSI volume id.
    pub id: String,
    /// From `CreateVolume`.
    pub volume_context: HashMap<String, String>,
    /// The Secret that the StorageClass names for `ControllerPublishVolume` and `NodeStageVolume`: CHAP, or nothing.
    pub secrets: HashMap<String, String>,
    /// From `ControllerPublishVolume`.
    pub publish_context: HashMap<String, String>,
    /// From `NodeGetInfo`.
    pub node_id: String,
    /// The staging path.
    pub staging: PathBuf,
    /// The target path.
    pub target: PathBuf,
}

impl TestVolume {
    /// Creates a volume of `size` bytes.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn create(
        clients: &impl Csi,
        name: &str,
        size: i64,
        content: Content,
    ) -> Result<Self, Status> {
        Self::create_as(clients, create_request(name, size, content), content).await
    }

    /// Creates a volume with this request.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn create_as(
        clients: &impl Csi,
        request: csi::CreateVolumeRequest,
        content: Content,
    ) -> Result<Self, Status> {
        let name = request.name.clone();
        let volume = clients
            .controller()
            .create_volume(request)
            .await?
            .into_inner()
            .volume
            .unwrap_or_default();
        Self::of(clients, &name, content, volume)
    }

    /// Wraps a volume that `CreateVolume` returned.
    ///
    /// # Errors
    /// The CO cannot make its directories.
    pub fn of(
        clients: &impl Csi,
        name: &str,
        content: Content,
        volume: csi::Volume,
    ) -> Result<Self, Status> {
        let kubelet = clients.folder().join("kubelet").join(name);
        let (staging, target) = (kubelet.join("staging"), kubelet.join("target"));
        // The CO makes the staging path and the parent of the target path.
        clients
            .make_dir(&staging)
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Self {
            name: name.to_owned(),
            content,
            mode: Mode::SingleNodeWriter,
            mount_flags: Vec::new(),
            readonly: false,
            id: volume.volume_id,
            volume_context: volume.volume_context,
            secrets: HashMap::new(),
            publish_context: HashMap::new(),
            node_id: String::new(),
            staging,
            target,
        })
    }

    /// The uuid of its LUN.
    pub fn uuid(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or_default()
    }

    /// Its capability, as the CO sends it in each call.
    pub fn capability(&self) -> csi::VolumeCapability {
        let mut capability = capability(self.content, self.mode);
        if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
            mount.mount_flags.clone_from(&self.mount_flags);
        }
        capability
    }

    /// Where a pod finds the volume: a directory, or a device.
    pub fn path(&self) -> PathBuf {
        self.target.clone()
    }

    /// Where a pod keeps data: a file of this name, or else the device itself.
    pub fn file(&self, name: &str) -> PathBuf {
        match self.content {
            Content::Fs(_) => self.path().join(name),
            Content::Block => self.path(),
        }
    }

    /// `NodeGetInfo` and `ControllerPublishVolume`.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn publish(&mut self, clients: &impl Csi) -> Result<(), Status> {
        self.node_id = clients
            .node()
            .node_get_info(csi::NodeGetInfoRequest {})
            .await?
            .into_inner()
            .node_id;
        self.publish_context = self.publish_to(clients, &self.node_id).await?;
        Ok(())
    }

    /// `ControllerPublishVolume` to any node.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn publish_to(
        &self,
        clients: &impl Csi,
        node_id: &str,
    ) -> Result<HashMap<String, String>, Status> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: node_id.to_owned(),
            volume_capability: Some(self.capability()),
            volume_context: self.volume_context.clone(),
            secrets: self.secrets.clone(),
            ..csi::ControllerPublishVolumeRequest::default()
        };
        Ok(clients
            .controller()
            .controller_publish_volume(request)
            .await?
            .into_inner()
            .publish_context)
    }

    /// `NodeStageVolume`.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn stage(&self, clients: &impl Csi) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.publish_context.clone(),
            staging_target_path: text(&self.staging),
            volume_capability: Some(self.capability()),
            volume_context: self.volume_context.clone(),
            secrets: self.secrets.clone(),
        };
        clients.node().node_stage_volume(request).await.map(drop)
    }

    /// `NodePublishVolume`.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn node_publish(&self, clients: &impl Csi) -> Result<(), Status> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.publish_context.clone(),
            staging_target_path: text(&self.staging),
            target_path: text(&self.target),
            volume_capability: Some(self.capability()),
            readonly: self.readonly,
            volume_context: self.volume_context.clone(),
            ..csi::NodePublishVolumeRequest::default()
        };
        clients.node().node_publish_volume(request).await.map(drop)
    }

    /// Publishes, stages and node-publishes: the volume is then at [`TestVolume::path`].
    ///
    /// # Errors
    /// The driver's error.
    pub async fn attach(&mut self, clients: &impl Csi) -> Result<(), Status> {
        self.publish(clients).await?;
        self.stage(clients).await?;
        self.node_publish(clients).await
    }

    /// `ControllerExpandVolume`: returns the new size.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn expand_lun(&self, clients: &impl Csi, size: i64) -> Result<i64, Status> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: self.id.clone(),
            capacity_range: Some(at_least(size)),
            volume_capability: Some(self.capability()),
            ..csi::ControllerExpandVolumeRequest::default()
        };
        Ok(clients
            .controller()
            .controller_expand_volume(request)
            .await?
            .into_inner()
            .capacity_bytes)
    }

    /// `NodeExpandVolume`, as the kubelet calls it: returns the new size.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn expand_on_node(&self, clients: &impl Csi, size: i64) -> Result<i64, Status> {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: self.id.clone(),
            volume_path: text(&self.target),
            staging_target_path: text(&self.staging),
            capacity_range: Some(at_least(size)),
            volume_capability: Some(self.capability()),
            ..csi::NodeExpandVolumeRequest::default()
        };
        Ok(clients
            .node()
            .node_expand_volume(request)
            .await?
            .into_inner()
            .capacity_bytes)
    }

    /// `NodeGetVolumeStats`: the answer.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn stats(
        &self,
        clients: &impl Csi,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: text(&self.target),
            staging_target_path: text(&self.staging),
        };
        Ok(clients
            .node()
            .node_get_volume_stats(request)
            .await?
            .into_inner())
    }

    /// `NodeUnpublishVolume`.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn node_unpublish(&self, clients: &impl Csi) -> Result<(), Status> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: text(&self.target),
        };
        clients
            .node()
            .node_unpublish_volume(request)
            .await
            .map(drop)
    }

    /// `NodeUnstageVolume`.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn unstage(&self, clients: &impl Csi) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging),
        };
        clients.node().node_unstage_volume(request).await.map(drop)
    }

    /// `ControllerUnpublishVolume` from this node.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn unpublish(&self, clients: &impl Csi) -> Result<(), Status> {
        self.unpublish_from(clients, &self.node_id).await
    }

    /// `ControllerUnpublishVolume` from any node.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn unpublish_from(&self, clients: &impl Csi, node_id: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: node_id.to_owned(),
            ..csi::ControllerUnpublishVolumeRequest::default()
        };
        clients
            .controller()
            .controller_unpublish_volume(request)
            .await
            .map(drop)
    }

    /// Node-unpublishes, unstages and unpublishes: only the LUN is left.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn detach(&self, clients: &impl Csi) -> Result<(), Status> {
        self.node_unpublish(clients).await?;
        self.unstage(clients).await?;
        self.unpublish(clients).await
    }

    /// `DeleteVolume`.
    ///
    /// # Errors
    /// The driver's error.
    pub async fn delete(&self, clients: &impl Csi) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest {
            volume_id: self.id.clone(),
            ..csi::DeleteVolumeRequest::default()
        };
        clients.controller().delete_volume(request).await.map(drop)
    }

    /// The block device of the LUN on the node.
    ///
    /// # Errors
    /// The volume is not attached.
    pub fn device(&self, cluster: &TestCluster) -> Result<PathBuf> {
        cluster
            .initiator()?
            .device(self.publish_context.get("iqn").context("not published")?)
    }

    /// Checks that the device has `size` bytes, and that its file system fills it.
    ///
    /// # Errors
    /// One of them has another size.
    pub fn must_have(&self, cluster: &TestCluster, size: i64) -> Result<()> {
        let (size, device) = (size.unsigned_abs(), self.device(cluster)?);
        let found = device_bytes(&device)?;
        ensure!(
            found == size,
            "{} has {found} bytes, not {size}",
            device.display()
        );
        if let Content::Fs(fs) = self.content {
            let claimed = inspect::used_bytes(fs, &self.staging, &device)?;
            ensure!(
                claimed <= size && size - claimed < inspect::unusable(fs),
                "the {fs} has {claimed} bytes on a device of {size}"
            );
        }
        Ok(())
    }
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}
