//! Runs a program in a container like that of the driver: in a pod's cgroup, with its own network namespace, and without the
//! host's iSCSI tools and records.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use e2e::harness::process::binary;
use e2e::vm::guest::CGROUPS;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::execv;

/// Tools that the image does not contain.
const TOOLS: [&str; 3] = [
    "/usr/sbin/iscsiadm",
    "/usr/sbin/multipath",
    "/usr/sbin/multipathd",
];
const RECORDS: &str = "/etc/iscsi";
/// The cgroup that the kubelet uses for a pod without limits.
const POD: &str = "kubepods/besteffort/pod-synology-csi";

/// Replaces this process with a program of this workspace in such a container.
pub(crate) fn exec_in_container(words: &[String]) -> Result<()> {
    let pod = Path::new(CGROUPS).join(POD);
    fs::create_dir_all(&pod)?;
    // 0 means the writing process.
    fs::write(pod.join("cgroup.procs"), "0")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWCGROUP)?;
    for point in ["/", RECORDS] {
        // Only the mount itself, not those below it: the kubelet's directory stays shared, as with `mountPropagation:
        // Bidirectional`.
        change_mount(point, None, None, MsFlags::MS_PRIVATE)?;
    }
    for tool in TOOLS {
        let tool = fs::canonicalize(tool).context(tool)?;
        let tool = tool.to_str().context("a path in UTF-8")?;
        change_mount(tool, Some("/dev/null"), None, MsFlags::MS_BIND)?;
    }
    change_mount(RECORDS, Some("tmpfs"), Some("tmpfs"), MsFlags::empty())?;
    let program = binary(words.first().context("no program")?)?;
    let argument = |word: &[u8]| Ok::<_, anyhow::Error>(CString::new(word)?);
    let words: Result<Vec<CString>> = words.iter().map(|word| argument(word.as_bytes())).collect();
    execv(&argument(program.as_os_str().as_bytes())?, &words?)?;
    Ok(())
}

fn change_mount(at: &str, source: Option<&str>, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(source, Path::new(at), kind, flags, None::<&str>).with_context(|| at.to_owned())
}
