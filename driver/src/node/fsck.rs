//! A file system is looked at before it is mounted: what a power cut or a dying disk has left is repaired where that is safe, and
//! refused where only a person may decide (design.md#mkfs-defaults).

use super::Machine;
use super::attach::Attached;
use crate::error::{Context as _, Error};
use crate::host::filesystem::{self, Checked};
use crate::host::{Host, HostError};
use crate::volume::FsType;

impl<H: Host> Machine<H> {
    /// Checks what is about to be mounted, as quickly as its journal allows. xfs and btrfs need no such thing: the kernel looks after
    /// them as it mounts them.
    pub(super) async fn check(
        &self,
        attached: &Attached,
        fs: FsType,
        readonly: bool,
    ) -> Result<(), Error> {
        if fs != FsType::Ext4 {
            return Ok(());
        }
        let node = attached.device.node();
        let doing = format!("checking the {fs} on {node}");
        let exit = self.host.run(filesystem::check(&node, readonly)).await;
        match exit
            .and_then(|exit| filesystem::read_check(&exit))
            .context(doing)?
        {
            Checked::Sound => Ok(()),
            Checked::Damaged(said) => Err(damaged(attached, &said)),
            Checked::Unchecked(said) => {
                tracing::warn!(
                    disk = node,
                    said,
                    "the file system cannot be checked and is mounted as it is"
                );
                Ok(())
            }
        }
    }

    /// Why a file system was not mounted: mount(8) leaves that to the kernel's log.
    pub(super) async fn with_advice(
        &self,
        attached: &Attached,
        fs: FsType,
        failure: Error,
    ) -> Error {
        let Error::Host {
            doing,
            source:
                HostError::Failed {
                    program,
                    status,
                    said,
                },
        } = failure
        else {
            return failure;
        };
        let why = match self.host.kernel_log().await {
            Ok(log) => kernel_says(&log, fs, &attached.device.name),
            // mount(8) points to it in words that are of no use in a pod's events.
            Err(error) => format!("nothing that the driver may read ({error}); dmesg on the node"),
        };
        let (node, tool) = (attached.device.node(), repairer(fs));
        let damaged = [&said, &why].into_iter().any(|text| {
            let text = text.to_lowercase();
            DAMAGED.iter().any(|word| text.contains(word))
        });
        let doing = if damaged {
            format!(
                "mounting {node}: its {fs} is damaged; scale the pods to 0, in SAN Manager map the LUN to a new target, log in to that on a Linux machine, run {tool}, log out, delete that target and scale up ({doing})"
            )
        } else {
            doing
        };
        let said = match why.as_str() {
            _ if said.contains("busy") => {
                format!(
                    "{said}; it is held: {}",
                    self.who_holds(&attached.device).await
                )
            }
            "" => said,
            why => format!("{said}; the kernel says: {why}"),
        };
        Error::Host {
            doing,
            source: HostError::Failed {
                program,
                status,
                said,
            },
        }
    }
}

/// Words of mount(8) and of the kernel for what no other try will change: EUCLEAN, and what leads to it.
const DAMAGED: [&str; 4] = [
    "structure needs cleaning",
    "corruption",
    "metadata crc error",
    "unmount and run xfs_repair",
];

/// What a person would repair it with.
fn repairer(fs: FsType) -> &'static str {
    match fs {
        FsType::Ext4 => "e2fsck -f",
        FsType::Xfs => "xfs_repair",
        FsType::Btrfs => "btrfs check",
    }
}

/// The newest lines of the kernel's log that are about this device, or about options that this type of file system does not have.
fn kernel_says(log: &[String], fs: FsType, name: &str) -> String {
    const LINES: usize = 2;
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let about = |line: &&String| {
        let lower = line.to_lowercase();
        let prefixes = [format!("{fs}: "), format!("{fs}-fs: ")];
        line.split(|c| !in_word(c)).any(|word| word == name)
            || prefixes
                .iter()
                .any(|prefix| lower.starts_with(prefix.as_str()))
    };
    let mut lines: Vec<&str> = log.iter().filter(about).map(String::as_str).collect();
    lines.dedup();
    lines
        .split_off(lines.len().saturating_sub(LINES))
        .join("; ")
}

/// What only a person may repair. The way leads by a target of one's own, because the volume's goes with its publication.
pub(super) fn damaged(attached: &Attached, said: &str) -> Error {
    Error::Refused {
        what: format!("using the ext4 on {}", attached.device.node()),
        seen: "e2fsck finds damage that it does not repair by itself".to_owned(),
        remedy: format!(
            "scale the pods to 0; in SAN Manager map the LUN to a new target; on a Linux machine log in to it (iscsiadm), run e2fsck -f on its disk, log out; delete that target and scale up (e2fsck said: {said})"
        ),
    }
}
