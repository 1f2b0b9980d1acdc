//! Stops the world at a chosen host command of the driver, so that the driver can be killed there.
//!
//! Each program that the driver starts is found first in the node's `bin`, where a few lines of shell count the calls down
//! and let them through, until the chosen one: that is held before it starts, after it has ended, or is killed in between.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use e2e::until::until;
use e2e::world::World;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What the driver starts, with the exception of what these programs start themselves.
const PROGRAMS: [&str; 13] = [
    "iscsiadm",
    "blkid",
    "blockdev",
    "mkfs.ext4",
    "mkfs.xfs",
    "mkfs.btrfs",
    "mount",
    "umount",
    "e2fsck",
    "resize2fs",
    "xfs_info",
    "xfs_growfs",
    "btrfs",
];

/// Where a command is held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// It has not started.
    Before,
    /// It has ended, and the driver does not know it.
    After,
    /// It was killed so many microseconds after its start.
    During(u32),
}

/// The gate that the host commands of a world go through.
#[derive(Debug)]
pub(crate) struct Trap(PathBuf);

/// A held command.
#[derive(Debug)]
pub(crate) struct Held {
    group: Pid,
    go: PathBuf,
    /// The program.
    pub(crate) program: String,
}

impl Held {
    /// Ends it, as the end of its container would.
    pub(crate) fn kill(&self) {
        let _ = killpg(self.group, Signal::SIGKILL);
    }

    /// Lets it go on, whatever has become of the driver, and waits for its end.
    pub(crate) async fn release(self) {
        fs::write(&self.go, "").unwrap();
        let ended = async || Ok(killpg(self.group, None).is_err());
        until("the released command ends", ended, |ended| *ended)
            .await
            .unwrap();
        fs::remove_file(&self.go).unwrap();
    }
}

impl Trap {
    /// Builds the gate, which is open.
    pub(crate) fn build(world: &World) -> Self {
        let trap = Self(world.folder().join("trap"));
        fs::create_dir(&trap.0).unwrap();
        let bin = world.initiator().unwrap().bin();
        // node-sim's iscsiadm finds its host root two folders above itself, so this is as good a place for it as bin.
        let aside = bin.with_file_name("aside");
        fs::create_dir(&aside).unwrap();
        fs::rename(bin.join("iscsiadm"), aside.join("iscsiadm")).unwrap();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let search: Vec<PathBuf> = std::iter::once(aside)
            .chain(std::env::split_paths(&path))
            .collect();
        for program in PROGRAMS {
            let real = search
                .iter()
                .map(|folder| folder.join(program))
                .find(|path| path.is_file())
                .unwrap();
            let gate = bin.join(program);
            fs::write(&gate, trap.script(&real)).unwrap();
            fs::set_permissions(&gate, fs::Permissions::from_mode(0o755)).unwrap();
        }
        trap
    }

    fn script(&self, real: &Path) -> String {
        // It ends by itself when the world's folder is gone, however that came.
        format!(
            r#"#!/bin/sh
trap={trap} real={real}
[ -e "$trap/left" ] || exec "$real" "$@"
read -r left <"$trap/left"
case $left in
  1 | {program}) ;;
  *[!0-9]*) exec "$real" "$@" ;;
  *) echo $((left - 1)) >"$trap/left"; exec "$real" "$@" ;;
esac
rm "$trap/left"
read -r when <"$trap/when"
case $when in
  before) ;;
  after) "$real" "$@" ;;
  *) "$real" "$@" & sleep "$when"; kill -9 $! ;;
esac
echo "$$ {program}" >"$trap/held.new"
mv "$trap/held.new" "$trap/held"
while [ -d "$trap" ] && [ ! -e "$trap/go" ]; do sleep 0.05; done
[ -d "$trap" ] && [ "$when" = before ] && exec "$real" "$@"
"#,
            trap = self.0.display(),
            real = real.display(),
            program = real.file_name().unwrap_or_default().display(),
        )
    }

    /// Closes the gate for the `nth` command from now.
    pub(crate) fn arm(&self, nth: usize, when: When) {
        self.close(&nth.to_string(), when);
    }

    /// Closes the gate for the next call of `program`.
    pub(crate) fn arm_for(&self, program: &str, when: When) {
        self.close(program, when);
    }

    fn close(&self, left: &str, when: When) {
        let when = match when {
            When::Before => "before".to_owned(),
            When::After => "after".to_owned(),
            When::During(micros) => format!("0.{micros:06}"),
        };
        let _ = fs::remove_file(self.0.join("held"));
        fs::write(self.0.join("when"), when + "\n").unwrap();
        fs::write(self.0.join("left"), format!("{left}\n")).unwrap();
    }

    /// Opens it again.
    pub(crate) fn disarm(&self) {
        let _ = fs::remove_file(self.0.join("left"));
    }

    /// Waits for the command at the gate.
    pub(crate) async fn held(&self) -> Result<Held> {
        let note = self.0.join("held");
        let seen = until(
            "a command is held",
            async || Ok(fs::read_to_string(&note).ok()),
            Option::is_some,
        )
        .await?;
        let seen = seen.unwrap_or_default();
        let (group, program) = seen.trim().split_once(' ').unwrap_or_default();
        Ok(Held {
            group: Pid::from_raw(group.parse()?),
            go: self.0.join("go"),
            program: program.to_owned(),
        })
    }
}
