//! A file system is looked at before it is mounted: what a power cut or a dying disk has left is repaired where that is safe, and
//! refused where only a person may decide (design choice 11).

use super::attach::Attached;
use super::{Doing, Machine};
use crate::error::Error;
use crate::host::Host;
use crate::host::filesystem::{self, Checked};
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
            .doing(doing)?
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
