//! Parses and validates the CSI requests of the node service: all checks that need only the message. Pure.
//!
//! Order of the checks (design.md#volume-handle): missing required fields first, then values, then ids that we never issued.

use std::collections::HashMap;

use proto::csi;

use crate::chap::{Chap, Method};
use crate::error::Error;
use crate::host::filesystem::FormatOptions;
use crate::host::mount;
use crate::publication::{NodeId, PublishContext};
use crate::request::{Access, Capability, Handle, Range, fs_type, required};
use crate::volume::{FsType, VolumeId};

/// File system or raw device, as in Kubernetes's `volumeMode`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum VolumeMode {
    /// A file system.
    FileSystem {
        /// Its type.
        fs: FsType,
        /// Mount options; `ro` is among them if the access mode is read-only.
        flags: Vec<String>,
    },
    /// The raw block device.
    Device,
}

/// The requested use of a volume on this node, from its capability.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Intent {
    /// File system or device.
    pub(crate) mode: VolumeMode,
    /// The access mode is read-only.
    pub(crate) readonly: bool,
    /// The access mode allows more than one target path.
    pub(crate) shared: bool,
}

impl Intent {
    fn read(
        capability: Option<&csi::VolumeCapability>,
        context: &HashMap<String, String>,
    ) -> Result<Self, Error> {
        use csi::volume_capability::access_mode::Mode;
        let capability = Capability::read("volume_capability", capability)?;
        let readonly = capability.reader_only();
        // CSI v1.12, NodePublishVolume, the table of second calls: the other modes allow one target path.
        let shared = capability.multi_node() || capability.mode == Mode::SingleNodeMultiWriter;
        let mode = match capability.access {
            Access::Block => VolumeMode::Device,
            Access::Mount {
                fs_type: asked,
                flags,
            } => {
                let fs = agreed_fs_type(asked, context)?;
                let mut flags = mount::parse_flags(&flags).map_err(|bad| {
                    invalid("volume_capability.mount.mount_flags", &bad.flag, bad.remedy)
                })?;
                if readonly && !flags.iter().any(|flag| flag == "ro") {
                    // The access mode overrides the mount flags.
                    flags.retain(|flag| flag != "rw");
                    flags.push("ro".to_owned());
                }
                VolumeMode::FileSystem { fs, flags }
            }
        };
        Ok(Self {
            mode,
            readonly,
            shared,
        })
    }
}

/// The file system type of capability and volume context, which must not differ; ext4 if neither names one
/// (design.md#parameters).
fn agreed_fs_type(
    asked: Option<FsType>,
    context: &HashMap<String, String>,
) -> Result<FsType, Error> {
    const FIELD: &str = "volume_context[fsType]";
    let text = context.get("fsType").map_or("", String::as_str);
    match (asked, fs_type(FIELD, text)?) {
        (Some(asked), Some(made)) if asked != made => Err(invalid(
            FIELD,
            text,
            &format!(
                "it disagrees with the fs_type {asked} of volume_capability: make them equal or leave one out"
            ),
        )),
        (Some(fs), _) | (None, Some(fs)) => Ok(fs),
        (None, None) => Ok(FsType::Ext4),
    }
}

/// `NodeStageVolume`, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stage {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Where to mount a file system.
    pub(crate) staging: String,
    /// The requested use.
    pub(crate) intent: Intent,
    /// Options of mkfs. `None`: never format.
    pub(crate) format: Option<FormatOptions>,
    /// Portals, target and LUN number.
    pub(crate) context: PublishContext,
    /// CHAP credentials from the node-stage Secret of the StorageClass.
    pub(crate) chap: Option<Chap>,
}

impl Stage {
    /// Reads and checks the message.
    pub(crate) fn read(message: &csi::NodeStageVolumeRequest) -> Result<Self, Error> {
        let handle = Handle::read(&message.volume_id)?;
        required(
            "staging_target_path",
            &message.staging_target_path,
            "name the directory to stage at",
        )?;
        let intent = Intent::read(message.volume_capability.as_ref(), &message.volume_context)?;
        let staging = path("staging_target_path", &message.staging_target_path)?;
        let chap = Chap::read(&message.secrets)?;
        let volume = handle.ours()?;
        let context = publish_context(&volume, &message.publish_context)?;
        if context.chap.is_none() {
            must_agree(context.auth, Method::of(chap.as_ref()))?;
        } else if chap.is_some() {
            return Err(Error::BadSecret {
                field: "secrets".to_owned(),
                remedy: "the volume was published with generated CHAP credentials: name the Secret of csi.storage.k8s.io/node-stage-secret-name as csi.storage.k8s.io/controller-publish-secret-name too, or leave both out".to_owned(),
            });
        }
        let format = match &intent.mode {
            VolumeMode::FileSystem { fs, flags } => {
                let options = format_options(*fs, &message.volume_context)?;
                // A read-only volume is never formatted.
                let readonly = flags.iter().any(|flag| flag == "ro");
                (!readonly).then_some(options)
            }
            VolumeMode::Device => None,
        };
        Ok(Self {
            volume,
            staging,
            intent,
            format,
            context,
            chap,
        })
    }

    /// The CHAP credentials of a login: from a Secret of the StorageClass, or generated for this publication.
    pub(crate) fn chap_credentials(&self) -> Option<&Chap> {
        self.chap.as_ref().or(self.context.chap.as_ref())
    }

    /// Checks that the publication is for the node `id`.
    pub(crate) fn must_be_for(&self, id: &NodeId) -> Result<(), Error> {
        if self.context.iqn.publication() == Some((self.volume.uuid.clone(), id.clone())) {
            return Ok(());
        }
        let remedy = format!(
            "this node is {id:?}: pass what ControllerPublishVolume returned for it; if the node's initiator name has changed, publish again",
            id = id.as_str()
        );
        Err(invalid(
            "publish_context[iqn]",
            self.context.iqn.as_str(),
            &remedy,
        ))
    }
}

/// Checks that ControllerPublishVolume and NodeStageVolume were given the same Secret, as far as the CHAP method shows.
fn must_agree(published: Option<Method>, given: Method) -> Result<(), Error> {
    let refused = |remedy: &str| {
        Err(Error::BadSecret {
            field: "secrets".to_owned(),
            remedy: remedy.to_owned(),
        })
    };
    match (published, given) {
        (None, _) => Ok(()),
        (Some(published), given) if published == given => Ok(()),
        (Some(_), Method::None) => refused(
            "the volume was published with CHAP, and this call brings no secrets: name the Secret of csi.storage.k8s.io/controller-publish-secret-name as csi.storage.k8s.io/node-stage-secret-name too",
        ),
        (Some(Method::None), _) => refused(
            "the volume was published without CHAP: name the Secret of csi.storage.k8s.io/node-stage-secret-name as csi.storage.k8s.io/controller-publish-secret-name too, or leave both out",
        ),
        (Some(Method::Chap | Method::Mutual), _) => refused(
            "the volume was published with CHAP of another kind (one-way or mutual): csi.storage.k8s.io/controller-publish-secret-name and csi.storage.k8s.io/node-stage-secret-name must name the same Secret, and a changed Secret takes effect when the volume is published again",
        ),
    }
}

fn publish_context(
    volume: &VolumeId,
    map: &HashMap<String, String>,
) -> Result<PublishContext, Error> {
    const REMEDY: &str = "pass the publish_context that ControllerPublishVolume returned";
    if map.is_empty() {
        return Err(Error::Missing {
            field: "publish_context",
            remedy: REMEDY.to_owned(),
        });
    }
    let field = |key: &str| format!("publish_context[{key}]");
    let context = PublishContext::read(map).map_err(|bad| {
        invalid(
            &field(bad.key),
            &bad.value,
            &format!("it must be {}; {REMEDY}", bad.wanted),
        )
    })?;
    if context.uuid == volume.uuid {
        Ok(context)
    } else {
        Err(invalid(
            &field("uuid"),
            context.uuid.as_str(),
            &format!("it is not the LUN of volume_id {volume}; {REMEDY}"),
        ))
    }
}

fn format_options(fs: FsType, context: &HashMap<String, String>) -> Result<FormatOptions, Error> {
    let text = context.get("formatOptions").map_or("", String::as_str);
    FormatOptions::parse(fs, text)
        .map_err(|bad| invalid("volume_context[formatOptions]", &bad.word, &bad.remedy))
}

/// `NodeUnstageVolume`, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unstage {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Where it was staged.
    pub(crate) staging: String,
}

impl Unstage {
    /// Reads and checks the message.
    pub(crate) fn read(message: &csi::NodeUnstageVolumeRequest) -> Result<Self, Error> {
        let handle = Handle::read(&message.volume_id)?;
        required(
            "staging_target_path",
            &message.staging_target_path,
            "name the directory that the volume is staged at",
        )?;
        let staging = path("staging_target_path", &message.staging_target_path)?;
        Ok(Self {
            volume: handle.ours()?,
            staging,
        })
    }
}

/// `NodePublishVolume`, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Publish {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Where it is staged.
    pub(crate) staging: String,
    /// The target path.
    pub(crate) target: String,
    /// The requested use.
    pub(crate) intent: Intent,
    /// Nothing may be written through this path. For a raw device the container runtime enforces that (the kubelet gives the pod
    /// the device without write permission): a read-only bind mount of a device node does not prevent writes to the device.
    pub(crate) readonly: bool,
    /// The publication that it must be staged under.
    pub(crate) context: PublishContext,
}

impl Publish {
    /// Reads and checks the message.
    pub(crate) fn read(message: &csi::NodePublishVolumeRequest) -> Result<Self, Error> {
        let handle = Handle::read(&message.volume_id)?;
        required(
            "target_path",
            &message.target_path,
            "name the path to publish at",
        )?;
        let intent = Intent::read(message.volume_capability.as_ref(), &message.volume_context)?;
        let target = path("target_path", &message.target_path)?;
        let volume = handle.ours()?;
        if message.staging_target_path.is_empty() {
            // CSI v1.12, NodePublishVolume errors: "Staging target path not set" is FAILED_PRECONDITION.
            return Err(Error::Refused {
                what: format!("publishing volume {volume}"),
                seen: "staging_target_path is missing".to_owned(),
                remedy: "stage the volume first and name its staging path".to_owned(),
            });
        }
        let staging = path("staging_target_path", &message.staging_target_path)?;
        if target == staging {
            return Err(invalid(
                "target_path",
                &target,
                "it must be another path than staging_target_path",
            ));
        }
        let readonly = message.readonly || intent.readonly;
        let context = publish_context(&volume, &message.publish_context)?;
        Ok(Self {
            volume,
            staging,
            target,
            intent,
            readonly,
            context,
        })
    }

    /// The stage request that this publication implies. `None`: the login needs a Secret that only `NodeStageVolume` brings.
    pub(crate) fn stage_request(&self) -> Option<Stage> {
        let proven = self.context.chap.is_some()
            || !matches!(self.context.auth, Some(Method::Chap | Method::Mutual));
        proven.then(|| self.stage_request_without_login())
    }

    /// The same if there is a session, so that no login and no Secret is necessary.
    pub(crate) fn stage_request_without_login(&self) -> Stage {
        Stage {
            volume: self.volume.clone(),
            staging: self.staging.clone(),
            intent: self.intent.clone(),
            // Only NodeStageVolume formats: the volume was staged before, so it has a file system.
            format: None,
            context: self.context.clone(),
            chap: None,
        }
    }
}

/// `NodeUnpublishVolume`, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unpublish {
    /// The volume; `None` if we never issued such an id, so nothing of it can be published (design.md#volume-handle).
    pub(crate) volume: Option<VolumeId>,
    /// The target path.
    pub(crate) target: String,
}

impl Unpublish {
    /// Reads and checks the message.
    pub(crate) fn read(message: &csi::NodeUnpublishVolumeRequest) -> Result<Self, Error> {
        let handle = Handle::read(&message.volume_id)?;
        required(
            "target_path",
            &message.target_path,
            "name the path to unpublish",
        )?;
        let target = path("target_path", &message.target_path)?;
        Ok(Self {
            volume: handle.ours().ok(),
            target,
        })
    }
}

/// `NodeGetVolumeStats`, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stats {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Where it is published or staged.
    pub(crate) path: String,
}

impl Stats {
    /// Reads and checks the message.
    pub(crate) fn read(message: &csi::NodeGetVolumeStatsRequest) -> Result<Self, Error> {
        let handle = Handle::read(&message.volume_id)?;
        required(
            "volume_path",
            &message.volume_path,
            "name a path where the volume is published or staged",
        )?;
        let (volume, path) = volume_at(handle, &message.volume_path)?;
        Ok(Self { volume, path })
    }
}

/// `NodeExpandVolume`, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expand {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Where it is published or staged.
    pub(crate) path: String,
    /// The acceptable sizes.
    pub(crate) range: Range,
    /// The request says that the volume is a raw device, or that `path` is its staging path: only then may nothing be mounted at
    /// `path`, because staging a raw device mounts nothing.
    pub(crate) may_be_staged_device: bool,
}

impl Expand {
    /// Reads and checks the message.
    pub(crate) fn read(message: &csi::NodeExpandVolumeRequest) -> Result<Self, Error> {
        let handle = Handle::read(&message.volume_id)?;
        required(
            "volume_path",
            &message.volume_path,
            "name a path where the volume is published or staged",
        )?;
        let access = match &message.volume_capability {
            None => None,
            capability => Some(Capability::read("volume_capability", capability.as_ref())?.access),
        };
        let range = Range::read(message.capacity_range.as_ref())?;
        let (volume, path) = volume_at(handle, &message.volume_path)?;
        let is_staging = message.staging_target_path.trim_end_matches('/') == path;
        let may_be_staged_device = access.map_or(is_staging, |access| access == Access::Block);
        Ok(Self {
            volume,
            path,
            range,
            may_be_staged_device,
        })
    }
}

/// Volume and path of a look-up. A relative path is NOT_FOUND: nothing is ever mounted there.
fn volume_at(handle: Handle, text: &str) -> Result<(VolumeId, String), Error> {
    if !text.starts_with('/') {
        let volume = handle.ours()?.to_string();
        return Err(Error::NotMounted {
            volume,
            path: text.to_owned(),
            seen: "the path is not absolute, so nothing is mounted there".to_owned(),
        });
    }
    let path = path("volume_path", text)?;
    Ok((handle.ours()?, path))
}

/// Validates a path: absolute, not the root, no `.` or `..`, no control characters, at most 4000 bytes. Removes duplicate and
/// trailing slashes.
fn path(field: &str, text: &str) -> Result<String, Error> {
    let plain = text.trim_end_matches('/');
    let remedy = if !text.starts_with('/') {
        "use an absolute path"
    } else if plain.is_empty() {
        "this is the root of the file system: use a directory of the volume's own"
    } else if plain.split('/').any(|part| part == ".." || part == ".") {
        "use a path without . and .."
    } else if text.contains(char::is_control) {
        "use a path without control characters"
    } else if text.len() > 4000 {
        "use a path of at most 4000 bytes"
    } else {
        return Ok(plain
            .split('/')
            .filter(|part| !part.is_empty())
            .fold(String::new(), |path, part| path + "/" + part));
    };
    Err(invalid(
        field,
        &text.chars().take(200).collect::<String>(),
        remedy,
    ))
}

fn invalid(field: &str, value: &str, remedy: &str) -> Error {
    Error::Invalid {
        field: field.to_owned(),
        value: value.to_owned(),
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests;
