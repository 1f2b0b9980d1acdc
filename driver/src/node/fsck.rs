//! fsck before mount: damage by a power cut or a failing disk is repaired where that is safe, and refused where a person has to
//! decide (design.md#mkfs-defaults). Also turns mount(8) failures into messages with advice.

use super::Machine;
use super::attach::Attached;
use crate::error::{Context as _, Error};
use crate::host::filesystem::{self, CheckResult};
use crate::host::{Host, HostError};
use crate::volume::FsType;

impl<H: Host> Machine<H> {
    /// Checks an ext4 before it is mounted; quick if its journal is clean. xfs and btrfs need no fsck: the kernel recovers them
    /// at mount time.
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
            CheckResult::Sound => Ok(()),
            CheckResult::Damaged(said) => Err(damaged(attached, &said)),
            CheckResult::Unchecked(said) => {
                tracing::warn!(
                    disk = node,
                    said,
                    "the file system cannot be checked and is mounted unchecked"
                );
                Ok(())
            }
        }
    }

    /// Adds to a mount failure what the kernel log says about it, and what to do: mount(8) reports only a generic cause.
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
            // mount(8)'s own hint at dmesg does not say on which machine.
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
                    "{said}; in use by: {}",
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

/// Phrases of mount(8) and of the kernel for damage that no retry fixes: EUCLEAN and its causes. In lower case.
const DAMAGED: [&str; 4] = [
    "structure needs cleaning",
    "corruption",
    "metadata crc error",
    "unmount and run xfs_repair",
];

/// The command that an administrator would repair it with.
fn repairer(fs: FsType) -> &'static str {
    match fs {
        FsType::Ext4 => "e2fsck -f",
        FsType::Xfs => "xfs_repair",
        FsType::Btrfs => "btrfs check",
    }
}

/// The newest kernel log lines about this device, or about mount options unknown to this type of file system.
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

/// The error for damage that only a person may repair. The recipe uses a new target, because the volume's own is deleted when the
/// publication ends.
pub(super) fn damaged(attached: &Attached, said: &str) -> Error {
    Error::Refused {
        what: format!("using the ext4 on {}", attached.device.node()),
        seen: "e2fsck finds damage that it does not repair by itself".to_owned(),
        remedy: format!(
            "scale the pods to 0; in SAN Manager map the LUN to a new target; on a Linux machine log in to it (iscsiadm), run e2fsck -f on its disk, log out; delete that target and scale up (e2fsck said: {said})"
        ),
    }
}
