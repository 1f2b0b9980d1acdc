//! The part of `/sys` with iSCSI sessions and their disks, with the files, symbolic links and formats of the kernel.
//!
//! ```text
//! devices/platform/hostH/iscsi_host/hostH/…
//! devices/platform/hostH/sessionN/iscsi_session/sessionN/{targetname,state,…,device -> ../../../sessionN}
//! devices/platform/hostH/sessionN/connectionN:0/iscsi_connection/connectionN:0/{persistent_address,…}
//! devices/platform/hostH/sessionN/targetH:0:0/H:0:0:LUN/{vendor,model,rev,state,wwid,vpd_pg80,vpd_pg83,rescan,delete,block/loopX}
//! class/{iscsi_host,iscsi_session,iscsi_connection}/… -> the folders above
//! class/block/loopX -> the real /sys/class/block/loopX
//! ```
//! A session appears only when it is complete (its link in `class/iscsi_session` is created last), and is removed link first.
//! Like the kernel's, a disk's identity is cached at attach and at rescan, and may be out of date.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::store::{self, Durability, Lock};
use crate::target::LogicalUnit;

/// The kernel's folder of the real loop devices.
const REAL_BLOCK: &str = "/sys/class/block";

/// The data of a session in the tree.
#[derive(Debug)]
pub(crate) struct SessionView<'a> {
    pub(crate) sid: u32,
    pub(crate) host: u32,
    pub(crate) iqn: &'a str,
    pub(crate) initiator: &'a str,
    pub(crate) address: &'a str,
    pub(crate) port: u16,
    pub(crate) tpgt: u16,
    /// Seconds until I/O fails after the target is gone.
    pub(crate) recovery_tmo: &'a str,
}

/// The state of a session's connection to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// Logged in.
    Up,
    /// The target no longer has this session.
    Lost,
}

impl LinkState {
    fn session(self) -> &'static str {
        match self {
            LinkState::Up => "LOGGED_IN\n",
            LinkState::Lost => "FAILED\n",
        }
    }

    fn device(self) -> &'static str {
        match self {
            LinkState::Up => "running\n",
            LinkState::Lost => "transport-offline\n",
        }
    }
}

/// The `sys` folder of a host root.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    sys: PathBuf,
    lock: &'a Lock,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(sys: PathBuf, lock: &'a Lock) -> Self {
        Self { sys, lock }
    }

    /// Writes the session's own folders. They are invisible until [`Tree::show`].
    pub(crate) fn build(&self, view: &SessionView<'_>) -> io::Result<()> {
        let SessionView { sid, host, .. } = *view;
        let line = |text: &str| format!("{text}\n").into_bytes();
        let device = self.host(host);
        let session = device.join(format!("session{sid}/iscsi_session/session{sid}"));
        self.files(
            &session,
            &[
                ("targetname", line(view.iqn)),
                ("initiatorname", line(view.initiator)),
                ("state", LinkState::Up.session().into()),
                ("recovery_tmo", line(view.recovery_tmo)),
                ("tpgt", line(&view.tpgt.to_string())),
                ("ifacename", line("default")),
                ("creator", line("1")),
            ],
        )?;
        linked(&format!("../../../session{sid}"), &session.join("device"))?;
        let connection = device.join(format!(
            "session{sid}/connection{sid}:0/iscsi_connection/connection{sid}:0"
        ));
        let port = line(&view.port.to_string());
        self.files(
            &connection,
            &[
                ("persistent_address", line(view.address)),
                ("persistent_port", port.clone()),
                ("address", line(view.address)),
                ("port", port),
                ("state", line("up")),
            ],
        )?;
        linked(
            &format!("../../../connection{sid}:0"),
            &connection.join("device"),
        )?;
        let scsi_host = device.join(format!("iscsi_host/host{host}"));
        self.files(
            &scsi_host,
            &[
                ("initiatorname", line(view.initiator)),
                ("ipaddress", line(view.address)),
                ("netdev", line("<NULL>")),
            ],
        )?;
        linked(&format!("../../../host{host}"), &scsi_host.join("device"))
    }

    /// Makes the session visible, by creating its links in `class`.
    pub(crate) fn show(&self, sid: u32, host: u32) -> io::Result<()> {
        for (class, inner) in entries(sid, host) {
            let name = inner.rsplit('/').next().unwrap_or_default();
            let to = format!("../../devices/platform/host{host}/{inner}");
            linked(&to, &self.sys.join("class").join(class).join(name))?;
        }
        Ok(())
    }

    /// Removes all entries of the session. Idempotent.
    pub(crate) fn remove(&self, sid: u32, host: u32, devices: &[String]) -> io::Result<()> {
        for (class, inner) in entries(sid, host).iter().rev() {
            let name = inner.rsplit('/').next().unwrap_or_default();
            store::remove(&self.sys.join("class").join(class).join(name))?;
        }
        for device in devices {
            store::remove(&self.block(device))?;
        }
        store::remove_tree(&self.host(host))
    }

    /// Adds a disk, or the missing parts of its entry.
    pub(crate) fn add_disk(
        &self,
        sid: u32,
        host: u32,
        lun: u16,
        unit: &LogicalUnit,
        device: &str,
    ) -> io::Result<()> {
        let folder = self.disk(sid, host, lun);
        self.identify(sid, host, lun, unit)?;
        self.files(
            &folder,
            &[
                ("type", b"0\n".to_vec()),
                ("state", LinkState::Up.device().into()),
                ("queue_depth", b"32\n".to_vec()),
                ("timeout", b"30\n".to_vec()),
            ],
        )?;
        let name = short(device);
        let real = format!("{REAL_BLOCK}/{name}");
        linked(&real, &self.block(device))?;
        linked(&real, &folder.join("block").join(name))
    }

    /// Removes a disk.
    pub(crate) fn remove_disk(
        &self,
        sid: u32,
        host: u32,
        lun: u16,
        device: &str,
    ) -> io::Result<()> {
        store::remove_tree(&self.disk(sid, host, lun))?;
        store::remove(&self.block(device))
    }

    /// Updates the unit's identity from its current SCSI INQUIRY data.
    pub(crate) fn identify(
        &self,
        sid: u32,
        host: u32,
        lun: u16,
        unit: &LogicalUnit,
    ) -> io::Result<()> {
        let padded = |text: &str, width: usize| format!("{text:<width$.width$}\n").into_bytes();
        let folder = self.disk(sid, host, lun);
        self.files(
            &folder,
            &[
                ("vendor", padded(&unit.vendor, 8)),
                ("model", padded(&unit.product, 16)),
                ("rev", padded(&unit.revision, 4)),
                ("wwid", format!("naa.{}\n", unit.naa).into_bytes()),
                ("vpd_pg80", page(0x80, unit.serial.as_bytes())),
            ],
        )?;
        match designator(&unit.naa) {
            Some(bytes) => self.files(&folder, &[("vpd_pg83", page(0x83, &bytes))]),
            None => store::remove(&folder.join("vpd_pg83")),
        }
    }

    /// Writes the state files of the session and its disks.
    pub(crate) fn state(
        &self,
        sid: u32,
        host: u32,
        luns: impl Iterator<Item = u16>,
        link: LinkState,
    ) -> io::Result<()> {
        let session = self
            .host(host)
            .join(format!("session{sid}/iscsi_session/session{sid}"));
        self.files(&session, &[("state", link.session().into())])?;
        for lun in luns {
            self.files(
                &self.disk(sid, host, lun),
                &[("state", link.device().into())],
            )?;
        }
        Ok(())
    }

    /// Removes all leftovers. Call it only if there is no session.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        for class in ["iscsi_session", "iscsi_connection", "iscsi_host", "block"] {
            let folder = self.sys.join("class").join(class);
            for name in store::names(&folder)? {
                store::remove(&folder.join(name))?;
            }
        }
        store::remove_tree(&self.sys.join("devices/platform"))
    }

    /// Writes files that may be read concurrently: atomically, and only if their content changes.
    fn files(&self, folder: &Path, contents: &[(&str, Vec<u8>)]) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        for (name, content) in contents {
            let path = folder.join(name);
            if fs::read(&path).ok().as_ref() != Some(content) {
                self.lock.write(&path, content, Durability::Reboot)?;
            }
        }
        Ok(())
    }

    fn host(&self, host: u32) -> PathBuf {
        self.sys.join(format!("devices/platform/host{host}"))
    }

    fn disk(&self, sid: u32, host: u32, lun: u16) -> PathBuf {
        self.host(host)
            .join(format!("session{sid}/target{host}:0:0/{host}:0:0:{lun}"))
    }

    fn block(&self, device: &str) -> PathBuf {
        self.sys.join("class/block").join(short(device))
    }
}

/// Class and path of a session's entries, the session itself last.
fn entries(sid: u32, host: u32) -> [(&'static str, String); 3] {
    [
        ("iscsi_host", format!("iscsi_host/host{host}")),
        (
            "iscsi_connection",
            format!("session{sid}/connection{sid}:0/iscsi_connection/connection{sid}:0"),
        ),
        (
            "iscsi_session",
            format!("session{sid}/iscsi_session/session{sid}"),
        ),
    ]
}

/// `loop3` of `/dev/loop3`.
fn short(device: &str) -> &str {
    device.rsplit('/').next().unwrap_or(device)
}

/// SPC-4 section 7.8: peripheral 0, page code, length, content.
fn page(code: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![0, code];
    bytes.extend(length.to_be_bytes());
    bytes.extend(&content[..usize::from(length)]);
    bytes
}

/// SPC-4 section 7.8.6: one binary designator of type NAA for the logical unit. `None` if `naa` is not valid hex.
fn designator(naa: &str) -> Option<Vec<u8>> {
    let digits = naa.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() > 32 {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let name = digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>()?;
    let mut bytes = vec![0x01, 0x03, 0x00, u8::try_from(name.len()).ok()?];
    bytes.extend(name);
    Some(bytes)
}

/// Creates a link, unless it exists already: readers must not miss it even for a moment.
fn linked(to: &str, link: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == Path::new(to)) {
        return Ok(());
    }
    store::remove(link)?;
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    symlink(to, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vital_product_data_is_binary() {
        assert_eq!(page(0x80, b"abc"), [0, 0x80, 0, 3, b'a', b'b', b'c']);
        let naa = designator("60014050123456789abcdef012345678").unwrap();
        assert_eq!(naa[..6], [0x01, 0x03, 0x00, 16, 0x60, 0x01]);
        assert_eq!(naa.len(), 20);
        assert_eq!(page(0x83, &naa)[..4], [0, 0x83, 0, 20]);
        assert_eq!(designator("600"), None);
        assert_eq!(designator("zz"), None);
    }

    #[test]
    fn a_session_appears_and_disappears_as_in_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(&dir.path().join("lock")).unwrap();
        let tree = Tree::new(dir.path().to_owned(), &lock);
        let view = SessionView {
            sid: 3,
            host: 7,
            iqn: "iqn.t",
            initiator: "iqn.i",
            address: "127.0.0.1",
            port: 3260,
            tpgt: 1,
            recovery_tmo: "120",
        };
        tree.build(&view).unwrap();
        let class = dir.path().join("class/iscsi_session");
        assert!(!class.join("session3").exists());
        tree.show(3, 7).unwrap();
        let unit = LogicalUnit {
            file: "/lun".into(),
            serial: "5f1c".into(),
            naa: "60014050123456789abcdef012345678".into(),
            vendor: "SYNOLOGY".into(),
            product: "Storage".into(),
            revision: "4.0".into(),
            unmap: true,
            write_cache: true,
        };
        tree.add_disk(3, 7, 1, &unit, "/dev/loop9").unwrap();
        let read = |path: &str| fs::read_to_string(class.join("session3").join(path)).unwrap();
        assert_eq!(read("targetname"), "iqn.t\n");
        assert_eq!(read("state"), "LOGGED_IN\n");
        let disk = "device/target7:0:0/7:0:0:1";
        assert_eq!(read(&format!("{disk}/vendor")), "SYNOLOGY\n");
        assert_eq!(read(&format!("{disk}/model")), "Storage         \n");
        assert_eq!(
            read(&format!("{disk}/wwid")),
            "naa.60014050123456789abcdef012345678\n"
        );
        assert_eq!(
            fs::read(class.join("session3").join(disk).join("vpd_pg80")).unwrap(),
            b"\0\x80\0\x045f1c"
        );
        let block = class.join("session3").join(disk).join("block/loop9");
        assert_eq!(
            fs::read_link(block).unwrap(),
            Path::new("/sys/class/block/loop9")
        );
        assert_eq!(
            fs::read_to_string(
                dir.path()
                    .join("class/iscsi_connection/connection3:0/persistent_port")
            )
            .unwrap(),
            "3260\n"
        );
        tree.state(3, 7, [1].into_iter(), LinkState::Lost).unwrap();
        assert_eq!(read("state"), "FAILED\n");
        assert_eq!(read(&format!("{disk}/state")), "transport-offline\n");
        for _ in 0..2 {
            tree.remove(3, 7, &["/dev/loop9".to_owned()]).unwrap();
            assert!(store::names(&class).unwrap().is_empty());
            assert!(
                store::names(&dir.path().join("class/block"))
                    .unwrap()
                    .is_empty()
            );
            assert!(!dir.path().join("devices/platform/host7").exists());
        }
    }
}
