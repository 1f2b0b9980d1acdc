//! Finds who holds a device that should be free (LVM, md, leaked mounts) and names the holders in error messages.

use super::Machine;
use super::attachment::Attachment;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Block};
use crate::host::{Host, KernelFiles};

/// Maximum number of holders in a message.
const MAX_NAMED_HOLDERS: usize = 3;
/// Maximum number of processes whose mount tables are read.
const MAX_SCANNED_PROCESSES: usize = 4000;

impl<H: Host> Machine<H> {
    /// Refuses a raw device that the host has claimed: LVM and md activate whatever has their signatures, and then would write to
    /// the same disk as the pod. Checked only before the first publication: later claims may be the pods' own.
    pub(super) async fn must_be_unclaimed(&self, device: &Block) -> Result<(), Error> {
        if !self
            .mount_points(std::slice::from_ref(device))
            .await?
            .is_empty()
        {
            return Ok(());
        }
        let (node, doing) = (device.node(), format!("opening {}", device.node()));
        if !self.host.is_claimed(&node).await.context(doing)? {
            return Ok(());
        }
        let holders = self.holders(device).await;
        if holders.is_empty() {
            return Err(Error::NotReady {
                what: format!("publishing {node} as a raw device"),
                seen: format!(
                    "something on this node has claimed it: {}",
                    self.who_holds(device).await
                ),
            });
        }
        Err(Error::Refused {
            what: format!("publishing {node} as a raw device"),
            seen: format!("this node itself has claimed it: {}", holders.join(", ")),
            remedy: "end that (vgchange -an VG; mdadm --stop MD) and keep the node from it: global_filter in /etc/lvm/lvm.conf (or its devices file), AUTO -all in /etc/mdadm/mdadm.conf".to_owned(),
        })
    }

    /// Refuses a logout while another LUN of the volume's target is in use: its disk would vanish with the session.
    pub(super) async fn foreign_luns_must_be_unused(
        &self,
        attachment: &Attachment,
    ) -> Result<(), Error> {
        for disk in &attachment.foreign_disks {
            let node = disk.block.node();
            if matches!(self.host.is_claimed(&node).await, Ok(true)) {
                return Err(Error::NotReady {
                    what: format!("the release of {node}, another LUN of the volume's target,"),
                    seen: format!("it is in use: {}", self.who_holds(&disk.block).await),
                });
            }
        }
        Ok(())
    }

    /// Names what holds a device that is not mounted in this mount namespace; or, if nothing was found, what to check.
    pub(super) async fn who_holds(&self, block: &Block) -> String {
        let mut found = self.holders(block).await;
        found.extend(self.mounts_elsewhere(block).await);
        if found.is_empty() {
            return format!(
                "a container that has not ended, LVM or RAID; to find it, type on the node: lsblk {}; grep -l ' {} ' /proc/[0-9]*/mountinfo",
                block.node(),
                block.number
            );
        }
        found.truncate(MAX_NAMED_HOLDERS);
        found.join(", ")
    }

    async fn holders(&self, block: &Block) -> Vec<String> {
        let block = block.clone();
        let read = move |files: &dyn KernelFiles| disk::holders(files, &block);
        let found = self
            .host
            .blocking("listing the holders of a disk", read)
            .await;
        found.unwrap_or_default()
    }

    /// Processes that have it mounted in other mount namespaces; one per mount point.
    async fn mounts_elsewhere(&self, block: &Block) -> Vec<String> {
        let block = block.clone();
        let read = move |files: &dyn KernelFiles| {
            let mut found: Vec<String> = Vec::new();
            let names = disk::list(files, "/proc")?;
            let pids = names.iter().filter(|name| name.parse::<u32>().is_ok());
            for pid in pids.take(MAX_SCANNED_PROCESSES) {
                let Ok(table) = files.read(&format!("/proc/{pid}/mountinfo")) else {
                    continue;
                };
                let table = String::from_utf8_lossy(&table);
                let Some(point) = table.lines().find_map(|line| mount_point_in(line, &block))
                else {
                    continue;
                };
                let name = files.read(&format!("/proc/{pid}/comm")).unwrap_or_default();
                let name = String::from_utf8_lossy(&name);
                // Processes of the same mount namespace have the same mount.
                let at = format!("mounted at {point}");
                if !found.iter().any(|other| other.ends_with(&at)) {
                    found.push(format!("process {pid} ({}) has it {at}", name.trim()));
                }
                if found.len() >= MAX_NAMED_HOLDERS {
                    break;
                }
            }
            Ok(found)
        };
        let found = self
            .host
            .blocking("searching all mount namespaces for a disk", read)
            .await;
        found.unwrap_or_default()
    }
}

/// The mount point of a mountinfo line, if it is on the device. btrfs shows another device number, so its source is compared.
fn mount_point_in(line: &str, block: &Block) -> Option<String> {
    let (mount, fs) = line.split_once(" - ")?;
    let mut mount = mount.split(' ');
    let number = mount.nth(2)?;
    let point = mount.nth(1)?;
    let of_btrfs = || fs.starts_with(&format!("btrfs {} ", block.node()));
    (number == block.number.to_string() || of_btrfs()).then(|| point.to_owned())
}
