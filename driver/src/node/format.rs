//! Decides whether a disk is mounted, formatted or refused, and makes mkfs crash-safe with a marker
//! (design.md#identity-before-action).
//!
//! ```text
//! inspect ─▶ decide ─┬▶ mount as it is
//!                    ├▶ erase our marker, mount        mkfs had finished before the crash
//!                    ├▶ format                         our marker and nothing complete: our own interrupted mkfs
//!                    ├▶ format if all samples are zero
//!                    └▶ refuse
//! format = marker written and synced ─▶ mkfs ─▶ superblock read back ─▶ marker erased and synced
//! ```

use futures::future::join_all;
use tokio::sync::OwnedSemaphorePermit;

use super::Machine;
use super::attach::Attached;
use crate::error::{Context as _, Error};
use crate::host::filesystem::{self, FormatOptions, Probe, SMALLEST_XFS};
use crate::host::marker::{self, MarkerState};
use crate::host::superblock::{self, Geometry, Superblock};
use crate::host::{Host, ReadMode, blank};
use crate::volume::{Bytes, FsType, LunUuid};

/// The marker does not fit on a smaller disk.
const MIN_SIZE: Bytes = Bytes::mib(64);
/// Additional readers of a disk, besides the first: parallel reads are faster, because the NAS reorders them.
const EXTRA_READS: usize = 7;
/// Limit of additional readers of all disks together: each is a thread.
pub(super) const SHARED_READS: usize = 16;

/// What was found on a disk.
#[derive(Debug)]
struct Contents {
    probe: Probe,
    superblocks: Vec<Superblock>,
    marker: MarkerState,
}

/// What to do with a disk.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Mount,
    EraseMarker,
    Format,
    FormatIfBlank,
    /// What was found, and the remedy.
    Refuse(String, &'static str),
}

const NOT_OURS: &str = "nothing was written; if the data is not needed, wipe the LUN; otherwise use the volume as what it is";

impl Contents {
    fn decide(&self, fs: FsType, size: Bytes) -> Next {
        let complete = match self.superblocks.as_slice() {
            [Superblock::Complete(geometry)] if geometry.kind() == fs => Some(geometry),
            _ => None,
        };
        let confirmed = |found: &str| found == fs.as_str();
        match (&self.probe, complete, &self.marker) {
            (Probe::Found(found), Some(geometry), marker) if confirmed(found) => {
                mountable(geometry, size, marker)
            }
            // Our own format, never mounted: whatever a killed mkfs has left, it is not user data.
            (Probe::Nothing, _, MarkerState::Ours) => Next::Format,
            (Probe::Found(found), _, MarkerState::Ours)
                if found.parse::<FsType>().is_ok() && !self.holds_another(fs) =>
            {
                Next::Format
            }
            (Probe::Nothing, _, MarkerState::Other(other)) => Next::Refuse(
                format!("it has the marker of an unfinished format for another volume, {other}"),
                NOT_OURS,
            ),
            (Probe::Nothing, _, MarkerState::None) if self.superblocks.is_empty() => {
                Next::FormatIfBlank
            }
            (Probe::Nothing, ..) => Next::Refuse(
                "it holds an incomplete or damaged file system".to_owned(),
                "nothing was written; repair it, or wipe the LUN if the data is not needed",
            ),
            (Probe::Several, ..) => Next::Refuse(
                "it holds signatures of several file systems or partition tables".to_owned(),
                NOT_OURS,
            ),
            (Probe::Found(found), ..) if confirmed(found) => Next::Refuse(
                format!("it holds an incomplete or damaged {found}"),
                "nothing was written; repair it, or wipe the LUN if the data is not needed",
            ),
            (Probe::Found(found), ..) => {
                Next::Refuse(format!("it holds {found}, not {fs}"), NOT_OURS)
            }
        }
    }

    /// True if there is a complete file system of another type.
    fn holds_another(&self, fs: FsType) -> bool {
        self.superblocks
            .iter()
            .any(|found| matches!(found, Superblock::Complete(geometry) if geometry.kind() != fs))
    }
}

fn mountable(geometry: &Geometry, size: Bytes, marker: &MarkerState) -> Next {
    if geometry.size() > size {
        let seen = format!(
            "its file system is {} and the disk only {size}",
            geometry.size()
        );
        return Next::Refuse(
            seen,
            "the LUN was made smaller or restored from a smaller copy: give it its old size again",
        );
    }
    match marker {
        MarkerState::Ours => Next::EraseMarker,
        // Inside a complete file system, another volume's marker is part of a user's file.
        MarkerState::None | MarkerState::Other(_) => Next::Mount,
    }
}

impl<H: Host> Machine<H> {
    /// Ensures that the disk holds a complete file system. Formats it only if it is ours or blank, and `options` are given.
    /// Writes nothing if `readonly`. True: it was formatted by this call, and fills the disk.
    pub(super) async fn ensure_file_system(
        &self,
        attached: &Attached,
        uuid: &LunUuid,
        fs: FsType,
        options: Option<&FormatOptions>,
        readonly: bool,
    ) -> Result<bool, Error> {
        let next = self
            .inspect(attached, uuid)
            .await?
            .decide(fs, attached.size);
        match (next, options) {
            (Next::Mount, _) => Ok(false),
            // The file system has never been mounted since mkfs, and a reader does not change it: the next writer erases the
            // marker.
            (Next::EraseMarker, _) if readonly => Ok(false),
            (Next::EraseMarker, _) => self.erase_marker(attached, uuid).await.map(|()| false),
            (Next::Format | Next::FormatIfBlank, None) => Err(refused(
                attached,
                "it holds no file system".to_owned(),
                if readonly {
                    "a read-only volume is never formatted: stage it once read-write (ReadWriteOnce, without ro among the mountOptions)"
                } else {
                    "stage the volume first: only NodeStageVolume formats"
                },
            )),
            (Next::Format, Some(options)) => {
                tracing::warn!(
                    disk = attached.device.node(),
                    "restarting an interrupted format"
                );
                self.format(attached, uuid, fs, options)
                    .await
                    .map(|()| true)
            }
            (Next::FormatIfBlank, Some(options)) => {
                self.must_be_blank(attached).await?;
                self.format(attached, uuid, fs, options)
                    .await
                    .map(|()| true)
            }
            (Next::Refuse(seen, remedy), _) => Err(refused(attached, seen, remedy)),
        }
    }

    /// Reads superblocks, marker and blkid's probe. Our own reads come first, because they fail on an unreadable disk, while
    /// `blkid` reports that it found nothing.
    async fn inspect(&self, attached: &Attached, uuid: &LunUuid) -> Result<Contents, Error> {
        let node = attached.device.node();
        if attached.size < MIN_SIZE {
            return Err(refused(
                attached,
                format!("it is only {}", attached.size),
                "a volume has at least 1 GiB",
            ));
        }
        let doing = format!("looking for a file system on {node}");
        let head = self
            .host
            .read_device(&node, superblock::HEAD, ReadMode::Disk)
            .await
            .context(&doing)?;
        let mark = self
            .host
            .read_device(&node, marker::PLACE, ReadMode::Disk)
            .await
            .context(&doing)?;
        let probe = self
            .host
            .run(filesystem::probe(&node))
            .await
            .and_then(filesystem::read_probe)
            .context(&doing)?;
        Ok(Contents {
            probe,
            superblocks: superblock::read(&head),
            marker: marker::read(&mark, uuid),
        })
    }

    async fn must_be_blank(&self, attached: &Attached) -> Result<(), Error> {
        let node = attached.device.node();
        let (samples, shared) = (blank::samples(attached.size), self.shared_reads.clone());
        let more = u32::try_from(shared.available_permits().min(EXTRA_READS)).unwrap_or_default();
        // No permit left: a single reader reads all samples.
        let more = shared.try_acquire_many_owned(more).ok();
        let readers = 1 + more.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let parts = samples.chunks(samples.len().div_ceil(readers).max(1));
        let finds = parts.map(|part| self.host.find_data(&node, part.to_vec()));
        // Wait for all of them: none may still be reading when a refusal ends the session.
        for found in join_all(finds).await {
            if let Some(span) = found.context(format!("checking that {node} is blank"))? {
                return Err(refused(
                    attached,
                    format!(
                        "it is not blank: there is data near byte {}, of a kind unknown to blkid",
                        span.offset
                    ),
                    NOT_OURS,
                ));
            }
        }
        Ok(())
    }

    async fn format(
        &self,
        attached: &Attached,
        uuid: &LunUuid,
        fs: FsType,
        options: &FormatOptions,
    ) -> Result<(), Error> {
        if fs == FsType::Xfs && attached.size < SMALLEST_XFS {
            return Err(refused(
                attached,
                format!("it is {}", attached.size),
                "xfs needs at least 300 MiB: use ext4 or a larger volume",
            ));
        }
        let node = attached.device.node();
        self.write_mark(attached, marker::block(uuid)).await?;
        self.run(
            &format!("formatting {node} with {fs}"),
            filesystem::make(fs, &node, options),
        )
        .await?;
        self.must_be_formatted(attached, fs).await?;
        self.erase_marker(attached, uuid).await
    }

    /// Reads the superblock back: mkfs's exit status is not trusted.
    async fn must_be_formatted(&self, attached: &Attached, fs: FsType) -> Result<(), Error> {
        let node = attached.device.node();
        let head = self
            .host
            .read_device(&node, superblock::HEAD, ReadMode::Disk)
            .await
            .context(format!("reading back the {fs} on {node}"))?;
        match superblock::read(&head).as_slice() {
            [Superblock::Complete(geometry)]
                if geometry.kind() == fs && geometry.is_as_made_for(attached.size) =>
            {
                Ok(())
            }
            found => Err(Error::Unverified {
                what: format!("formatting {node} with {fs}"),
                seen: format!("mkfs reports success, but the disk holds {found:?}"),
            }),
        }
    }

    /// Erases the marker if it is still there: it must not remain inside a file system in use.
    async fn erase_marker(&self, attached: &Attached, uuid: &LunUuid) -> Result<(), Error> {
        let node = attached.device.node();
        let mark = self
            .host
            .read_device(&node, marker::PLACE, ReadMode::Disk)
            .await
            .context(format!("reading the marker on {node}"))?;
        match marker::read(&mark, uuid) {
            MarkerState::Ours => self.write_mark(attached, marker::blank_block()).await,
            // mkfs has overwritten it, with options from the StorageClass.
            MarkerState::None | MarkerState::Other(_) => Ok(()),
        }
    }

    async fn write_mark(&self, attached: &Attached, block: Vec<u8>) -> Result<(), Error> {
        let node = attached.device.node();
        match self
            .host
            .write_device(&node, marker::PLACE.offset, block)
            .await
        {
            Err(error) if error.is_busy() => Err(refused(
                attached,
                format!(
                    "something on this node has claimed it: {}",
                    self.who_holds(&attached.device).await
                ),
                "release it, then try again",
            )),
            other => other.context(format!("writing the marker on {node}")),
        }
    }
}

fn refused(attached: &Attached, seen: String, remedy: &str) -> Error {
    Error::Refused {
        what: format!("using {} as a file system", attached.device.node()),
        seen,
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests;
