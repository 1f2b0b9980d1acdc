//! Fixture with a host root, a folder of targets and LUN files in a temporary folder. It checks at the end that nothing is left
//! behind.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use node_sim::target::loopdev::Targets;
use node_sim::target::{LogicalUnit, Target};
use serde_json::Value;

mod program;

use program::{program, skip};

pub(crate) const MIB: u64 = 1 << 20;

/// The fixture of one test.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) targets: Targets,
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    /// `None`, with a SKIP line, if loop devices are not available.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            skip(test, "root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let targets = Targets::open(&dir.path().join("targets")).unwrap();
        let bench = Self { targets, dir };
        let root = bench.root().display().to_string();
        let made = node_sim(&[
            "init",
            "--root",
            &root,
            "--targets",
            &bench.targets.dir().display().to_string(),
            // Tests kill commands, which leaves stale locks.
            "--lock-wait",
            "50",
        ]);
        assert!(made.status.success(), "{made:?}");
        Some(bench)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Creates a LUN's file of `size` bytes, which starts with `label`.
    pub(crate) fn lun(&self, label: &str, size: u64) -> LogicalUnit {
        let file = self.path(&format!("{label}.img"));
        let content = File::create(&file).unwrap();
        content.set_len(size).unwrap();
        content.write_all_at(label.as_bytes(), 0).unwrap();
        content.sync_all().unwrap();
        LogicalUnit {
            file,
            serial: format!("serial-{label}"),
            naa: format!("6001405{:025x}", u64::from(label.bytes().next().unwrap())),
            vendor: "SYNOLOGY".into(),
            product: "Storage".into(),
            revision: "4.0".into(),
            unmap: true,
            write_cache: true,
        }
    }

    pub(crate) fn put(&self, iqn: &str, luns: &[(u16, &LogicalUnit)]) {
        let luns: BTreeMap<u16, LogicalUnit> = luns
            .iter()
            .map(|(lun, unit)| (*lun, (*unit).clone()))
            .collect();
        let portals = vec!["127.0.0.1:3260".parse().unwrap()];
        self.targets
            .put(&Target {
                iqn: iqn.into(),
                enabled: true,
                max_sessions: 0,
                portals,
                luns,
                chap: None,
            })
            .unwrap();
    }

    /// Creates the record and logs in.
    pub(crate) fn login(&self, iqn: &str) {
        self.check(&format!("-m node -T {iqn} -p 127.0.0.1:3260,1 -o new"), 0);
        self.check(&format!("-m node -T {iqn} -p 127.0.0.1:3260 --login"), 0);
    }

    /// Runs `iscsiadm`, asserts its exit code and returns its standard output.
    #[track_caller]
    pub(crate) fn check(&self, line: &str, exit: i32) -> String {
        let output = self.iscsiadm(line).output().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command for the host root's `iscsiadm`, not started yet.
    pub(crate) fn iscsiadm(&self, line: &str) -> Command {
        let mut command = program(self.root().join("bin/iscsiadm"));
        command
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn cleanup(&self) -> Output {
        node_sim(&["cleanup", "--root", &self.root().display().to_string()])
    }

    pub(crate) fn status(&self) -> Value {
        let output = node_sim(&[
            "status",
            "--json",
            "--root",
            &self.root().display().to_string(),
        ]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The sysfs folder of a disk, found as a driver does it.
    pub(crate) fn disk(&self, iqn: &str, lun: u16) -> Option<PathBuf> {
        let class = self.root().join("sys/class/iscsi_session");
        let is_ours = |session: &PathBuf| {
            fs::read_to_string(session.join("targetname")).is_ok_and(|name| name.trim() == iqn)
        };
        let session = entries(&class).into_iter().find(is_ours)?;
        let target = entries(&session.join("device"))
            .into_iter()
            .find(|path| name(path).starts_with("target"))?;
        entries(&target)
            .into_iter()
            .find(|path| name(path).ends_with(&format!(":0:0:{lun}")))
    }

    /// The `/dev/loopN` of a disk.
    pub(crate) fn device(&self, iqn: &str, lun: u16) -> Option<PathBuf> {
        let block = entries(&self.disk(iqn, lun)?.join("block"));
        assert_eq!(block.len(), 1, "{block:?}");
        Some(Path::new("/dev").join(name(&block[0])))
    }

    /// The size of a disk in bytes, from the `size` file in the tree.
    pub(crate) fn bytes(&self, iqn: &str, lun: u16) -> u64 {
        let block = entries(&self.disk(iqn, lun).unwrap().join("block"));
        fs::read_to_string(block[0].join("size"))
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
            * 512
    }

    /// The unit serial number in the tree.
    pub(crate) fn serial(&self, iqn: &str, lun: u16) -> String {
        let page = fs::read(self.disk(iqn, lun).unwrap().join("vpd_pg80")).unwrap();
        String::from_utf8(page[4..].to_vec()).unwrap()
    }

    /// The machine's loop devices whose file is (or was) in this test's folder.
    pub(crate) fn loops(&self) -> Vec<String> {
        let mut ours = Vec::new();
        for device in entries(Path::new("/sys/class/block")) {
            let file = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            if file.starts_with(&*self.dir.path().to_string_lossy()) {
                ours.push(format!("{} {}", name(&device), file.trim()));
            }
        }
        ours
    }

    /// Asserts that nothing is left: no loop devices, tree entries or sessions at the targets.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.loops(), Vec::<String>::new());
        for class in ["iscsi_session", "iscsi_connection", "iscsi_host", "block"] {
            assert_eq!(
                entries(&self.root().join("sys/class").join(class)),
                Vec::<PathBuf>::new()
            );
        }
        assert_eq!(
            entries(&self.root().join("sys/devices/platform")),
            Vec::<PathBuf>::new()
        );
        assert_eq!(
            entries(&self.root().join("var/node-sim/sessions")),
            Vec::<PathBuf>::new()
        );
        for target in self.targets.list().unwrap() {
            assert_eq!(self.targets.sessions(&target.iqn).unwrap(), []);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let output = self.cleanup();
        if thread::panicking() {
            // Do not leave loop devices on the machine, even if the code under test leaked them.
            for leaked in self.loops() {
                let device = format!("/dev/{}", leaked.split(' ').next().unwrap_or_default());
                let _ = losetup(&["--detach", &device]);
            }
            return;
        }
        assert!(output.status.success(), "{output:?}");
        self.assert_clean();
    }
}

/// Runs `node-sim`.
pub(crate) fn node_sim(args: &[&str]) -> Output {
    program(env!("CARGO_BIN_EXE_node-sim"))
        .args(args)
        .output()
        .unwrap()
}

fn losetup(args: &[&str]) -> std::io::Result<Output> {
    program("losetup").args(args).output()
}

/// Write-protects a device, as a program under test may.
pub(crate) fn protect(device: &Path) {
    let status = program("blockdev").arg("--setro").arg(device).status();
    assert!(status.unwrap().success());
}

/// The label at the start of a device, see [`Bench::lun`].
pub(crate) fn label(device: &Path) -> String {
    let mut bytes = [0; 8];
    File::open(device)
        .unwrap()
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    String::from_utf8_lossy(&bytes)
        .trim_end_matches('\0')
        .to_owned()
}

/// Polls until `holds` returns true, for at most 10 s.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within 10 s");
        thread::park_timeout(Duration::from_millis(2));
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
