//! Parses and validates CSI messages of the controller, and types that both services share: all checks that need only the
//! message. Pure.
//!
//! Order of the checks (design.md#volume-handle): missing required fields first, then values, then foreign ids.

use proto::csi;
use proto::csi::volume_capability::{AccessType, access_mode};

use crate::error::Error;
use crate::host::mount;
use crate::volume::{Bytes, FsType, LunUuid, NasName, VolumeId};

mod parameters;

pub use parameters::{LunType, Parameters};

/// A parsed `VolumeCapability`: how a volume is to be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Capability {
    /// File system or raw device.
    pub access: Access,
    /// The CSI access mode.
    pub mode: access_mode::Mode,
}

/// The access type of a capability.
#[derive(Clone, Debug, PartialEq)]
pub enum Access {
    /// A mounted file system.
    Mount {
        /// The requested file system; `None` if unspecified.
        fs_type: Option<FsType>,
        /// Options for `mount -o`.
        flags: Vec<String>,
    },
    /// The raw block device.
    Block,
}

impl Capability {
    /// Parses a capability and rejects unsupported ones.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub fn read(
        field: &'static str,
        capability: Option<&csi::VolumeCapability>,
    ) -> Result<Self, Error> {
        let missing = |what: &str| Error::Missing {
            field,
            remedy: what.to_owned(),
        };
        let capability =
            capability.ok_or_else(|| missing("specify how the volume is to be used"))?;
        let access = match &capability.access_type {
            None => return Err(missing("its access_type must be block or mount")),
            Some(AccessType::Block(_)) => Access::Block,
            Some(AccessType::Mount(mount)) => Access::Mount {
                fs_type: fs_type(&format!("{field}.mount.fs_type"), &mount.fs_type)?,
                flags: mount.mount_flags.clone(),
            },
        };
        let mode = capability
            .access_mode
            .as_ref()
            .ok_or_else(|| missing("its access_mode must be set"))?;
        let number = mode.mode;
        let known = access_mode::Mode::try_from(number);
        let value =
            || known.map_or_else(|_| number.to_string(), |mode| mode.as_str_name().to_owned());
        let invalid = |remedy: &str| Error::Invalid {
            field: format!("{field}.access_mode"),
            value: value(),
            remedy: remedy.to_owned(),
        };
        let mode = known.unwrap_or(access_mode::Mode::Unknown);
        if mode == access_mode::Mode::Unknown {
            return Err(invalid("choose one of the access modes of CSI"));
        }
        let capability = Self { access, mode };
        if capability.multi_node() && capability.access != Access::Block {
            return Err(invalid(
                "a file system on a LUN belongs to one node at a time: use a SINGLE_NODE mode, or volumeMode Block",
            ));
        }
        Ok(capability)
    }

    /// A MULTI_NODE access mode.
    pub fn multi_node(&self) -> bool {
        use access_mode::Mode::{MultiNodeMultiWriter, MultiNodeReaderOnly, MultiNodeSingleWriter};
        matches!(
            self.mode,
            MultiNodeReaderOnly | MultiNodeSingleWriter | MultiNodeMultiWriter
        )
    }

    /// A READER_ONLY access mode.
    pub fn reader_only(&self) -> bool {
        matches!(
            self.mode,
            access_mode::Mode::SingleNodeReaderOnly | access_mode::Mode::MultiNodeReaderOnly
        )
    }

    fn fs_type(&self) -> Option<FsType> {
        match &self.access {
            Access::Mount { fs_type, .. } => *fs_type,
            Access::Block => None,
        }
    }

    fn flags(&self) -> &[String] {
        match &self.access {
            Access::Mount { flags, .. } => flags,
            Access::Block => &[],
        }
    }
}

/// Parses the name of a file system, case-insensitively; empty is `None`.
///
/// # Errors
/// INVALID_ARGUMENT, naming `field`.
pub fn fs_type(field: &str, text: &str) -> Result<Option<FsType>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = |_| Error::Invalid {
        field: field.to_owned(),
        value: text.to_owned(),
        remedy: "use ext4, xfs or btrfs".to_owned(),
    };
    text.parse().map(Some).map_err(invalid)
}

/// A validated `capacity_range`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Zero if unspecified.
    pub required: Bytes,
    /// `None` if unspecified.
    pub limit: Option<Bytes>,
}

impl Range {
    /// Parses a range; an absent one has no bounds.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for negative sizes, OUT_OF_RANGE if no size fits.
    pub fn read(range: Option<&csi::CapacityRange>) -> Result<Self, Error> {
        let Some(range) = range else {
            return Ok(Self::default());
        };
        let size = |field: &str, bytes: i64| {
            let negative = |_| Error::Invalid {
                field: format!("capacity_range.{field}"),
                value: bytes.to_string(),
                remedy: "a size is not negative".to_owned(),
            };
            u64::try_from(bytes).map(Bytes).map_err(negative)
        };
        let (required, limit) = (
            size("required_bytes", range.required_bytes)?,
            size("limit_bytes", range.limit_bytes)?,
        );
        let range = Self {
            required,
            limit: (limit.0 > 0).then_some(limit),
        };
        if range.limit.is_some_and(|limit| limit < required) {
            return Err(range.out_of_range(
                "limit_bytes is below required_bytes: raise the limit or ask for less",
            ));
        }
        if required > Bytes::MAX {
            return Err(range.out_of_range(&format!(
                "no LUN is larger than {}: ask for less",
                Bytes::MAX
            )));
        }
        Ok(range)
    }

    /// The OUT_OF_RANGE error: why no size fits.
    pub fn out_of_range(&self, seen: &str) -> Error {
        Error::OutOfRange {
            required: self.required,
            limit: self.limit,
            seen: seen.to_owned(),
        }
    }
}

/// A volume id of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Handle {
    /// A valid id of this driver.
    Ours(VolumeId),
    /// Not in the format of this driver, so no such volume can exist.
    Foreign(String),
}

impl Handle {
    /// Parses a required volume id.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is empty.
    pub fn read(text: &str) -> Result<Self, Error> {
        required("volume_id", text, "name the volume")?;
        Ok(text
            .parse()
            .map_or_else(|_| Self::Foreign(text.to_owned()), Self::Ours))
    }

    /// The id, or the error for a volume that cannot exist.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub fn ours(self) -> Result<VolumeId, Error> {
        match self {
            Self::Ours(id) => Ok(id),
            Self::Foreign(volume) => Err(Error::NoSuchVolume {
                volume,
                seen: "ids of this driver have the form <nas>/<lun uuid>".to_owned(),
            }),
        }
    }
}

/// Rejects an empty required field.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn required(field: &'static str, text: &str, remedy: &str) -> Result<(), Error> {
    if text.is_empty() {
        Err(Error::Missing {
            field,
            remedy: remedy.to_owned(),
        })
    } else {
        Ok(())
    }
}

/// A validated `CreateVolume` request.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateVolume {
    /// The CSI name.
    pub name: String,
    /// The requested size.
    pub range: Range,
    /// The parameters of the StorageClass.
    pub parameters: Parameters,
}

impl CreateVolume {
    /// Parses and validates the message.
    ///
    /// # Errors
    /// INVALID_ARGUMENT or OUT_OF_RANGE.
    pub fn read(message: &csi::CreateVolumeRequest) -> Result<Self, Error> {
        required("name", &message.name, "give the volume a name")?;
        let capabilities = capabilities(&message.volume_capabilities)?;
        check_name(&message.name)?;
        if message.volume_content_source.is_some() {
            return Err(not_offered("volume_content_source", "snapshots and clones"));
        }
        if !message.mutable_parameters.is_empty() {
            return Err(not_offered("mutable_parameters", "volume modification"));
        }
        let parameters = Parameters::read(&message.parameters, &capabilities)?;
        // The node parses these again; here they are rejected before anything is created.
        for flags in capabilities.iter().map(Capability::flags) {
            mount::parse_flags(flags).map_err(|bad| Error::Invalid {
                field: "volume_capabilities.mount.mount_flags".to_owned(),
                value: bad.flag,
                remedy: bad.remedy.to_owned(),
            })?;
        }
        parameters.check_format_options()?;
        Ok(Self {
            name: message.name.clone(),
            range: Range::read(message.capacity_range.as_ref())?,
            parameters,
        })
    }
}

fn not_offered(field: &str, what: &str) -> Error {
    let remedy = format!("this driver does not offer {what} yet: leave it out");
    Error::Invalid {
        field: field.to_owned(),
        value: "(set)".to_owned(),
        remedy,
    }
}

/// Further checks of `ValidateVolumeCapabilities`: the parameters are valid, and a volume with this `volume_context` supports
/// these capabilities. Unknown keys (the provisioner adds one) are ignored.
///
/// # Errors
/// INVALID_ARGUMENT: the reason for not confirming.
pub fn confirm(
    message: &csi::ValidateVolumeCapabilitiesRequest,
    capabilities: &[Capability],
) -> Result<(), Error> {
    const FIELD: &str = "volume_context[fsType]";
    if !message.mutable_parameters.is_empty() {
        return Err(not_offered("mutable_parameters", "volume modification"));
    }
    Parameters::read(&message.parameters, capabilities)?;
    let text = message
        .volume_context
        .get("fsType")
        .map_or("", String::as_str);
    let Some(actual) = fs_type(FIELD, text)? else {
        return Ok(());
    };
    match capabilities
        .iter()
        .filter_map(Capability::fs_type)
        .find(|requested| *requested != actual)
    {
        None => Ok(()),
        Some(requested) => {
            let remedy = format!(
                "it disagrees with the fs_type {requested} of volume_capabilities: make them equal or leave one out"
            );
            Err(Error::Invalid {
                field: FIELD.to_owned(),
                value: text.to_owned(),
                remedy,
            })
        }
    }
}

/// Parses a required list of capabilities.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn capabilities(messages: &[csi::VolumeCapability]) -> Result<Vec<Capability>, Error> {
    const FIELD: &str = "volume_capabilities";
    if messages.is_empty() {
        return Err(Error::Missing {
            field: FIELD,
            remedy: "specify how the volume is to be used".to_owned(),
        });
    }
    messages
        .iter()
        .map(|message| Capability::read(FIELD, Some(message)))
        .collect()
}

/// Rejects only what the CSI specification bans from strings (design.md#lun-names).
fn check_name(name: &str) -> Result<(), Error> {
    let invalid = |remedy: &str| {
        Err(Error::Invalid {
            field: "name".to_owned(),
            value: name.chars().take(140).collect(),
            remedy: remedy.to_owned(),
        })
    };
    if name.len() > 128 {
        return invalid("a name has at most 128 bytes");
    }
    let banned = |c: char| matches!(c, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\x7f'..='\u{9f}');
    if name.contains(banned) {
        invalid("a name holds no control characters")
    } else {
        Ok(())
    }
}

/// A request for a page of `ListVolumes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The last entry of the previous page: a uuid, with this name of its NAS or with all of them.
    pub after: Option<(LunUuid, Option<NasName>)>,
    /// Maximum number of entries; `None` for all.
    pub size: Option<usize>,
}

impl Page {
    /// Parses `starting_token` and `max_entries` (design.md#listvolumes).
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a negative count, ABORTED for an invalid token.
    pub fn read(message: &csi::ListVolumesRequest) -> Result<Self, Error> {
        let negative = |_| Error::Invalid {
            field: "max_entries".to_owned(),
            value: message.max_entries.to_string(),
            remedy: "a count is not negative".to_owned(),
        };
        let size = usize::try_from(message.max_entries).map_err(negative)?;
        let token = &message.starting_token;
        let after = if token.is_empty() {
            None
        } else {
            let bad = |_| Error::BadToken(token.clone());
            let (uuid, name) = match token.split_once('/') {
                Some((uuid, name)) => (uuid, Some(name.parse().map_err(bad)?)),
                None => (token.as_str(), None),
            };
            Some((uuid.parse().map_err(bad)?, name))
        };
        Ok(Self {
            after,
            size: (size > 0).then_some(size),
        })
    }
}

#[cfg(test)]
mod tests;
