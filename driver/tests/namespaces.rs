//! Running the host's programs from a driver in other namespaces, and which process is trusted as iscsid or multipathd.
//!
//! Each test re-executes itself in new PID, network, mount and cgroup namespaces, where process 1 is a shell with the host's
//! tools, and the driver is a process in another network namespace and without the tools. So `/proc/1`, abstract sockets and
//! PIDs are isolated from the real machine.

#![expect(clippy::unwrap_used, reason = "a panic shows where the test failed")]

mod common;

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use driver::host::linux::Linux;
use driver::host::linux::nsenter::Namespaces;
use driver::host::{Cmd, Exit, Host as _, HostError, ProcessScope};

const DRIVER: &str = env!("CARGO_BIN_EXE_synology-csi");
const INITIATOR_NAME: &str = "/etc/iscsi/initiatorname.iscsi";
const SECRET: &str = "/etc/iscsi/record";
/// The abstract socket that the daemon listens on: see the driver's `host/linux/daemon.rs`.
const ISCSID: &str = "ISCSIADM_ABSTRACT_NAMESPACE";
const MULTIPATHD: &str = "/org/kernel/linux/storage/multipathd";
const SHELL: &str = "/bin/sh";

/// The script of process 1, the host. It runs the test as the driver: in a mount namespace without the tools, and in another
/// network namespace.
const HOST: &str = r#"
mount -t tmpfs none /usr/local/sbin
printf '#!/bin/sh\necho "tool $*"; cat /usr/local/sbin/seen\n' >/usr/local/sbin/iscsiadm
chmod 755 /usr/local/sbin/iscsiadm
echo inside >/usr/local/sbin/seen
ON_ITS_OWN=1 unshare --mount --net sh -c 'umount /usr/local/sbin; exec "$0" --exact "$1" --nocapture' "$0" "$1"
exit $?
"#;

/// True inside the new namespaces; otherwise re-executes the test in new ones, or skips it without root.
async fn in_own_namespaces(test: &str) -> bool {
    listen_if_requested().await;
    if std::env::var_os("ON_ITS_OWN").is_some() {
        return true;
    }
    if common::is_root(test) {
        let own = "--pid --fork --kill-child --net --cgroup --mount-proc sh -c";
        let cmd = Cmd::new("unshare", 120)
            .args(own.split(' '))
            .args([HOST, &this_program(), test]);
        let exit = common::host().run(cmd).await.unwrap();
        eprintln!("{}{}", exit.stdout, exit.stderr);
        assert_eq!(
            exit.status, 0,
            "{test} fails in its own namespaces: see above"
        );
        assert!(exit.stdout.contains("1 passed"), "no test is called {test}");
    }
    false
}

fn this_program() -> String {
    let path = std::env::current_exe().unwrap();
    path.to_str().unwrap().to_owned()
}

/// A running process with its own mount namespace, which has its own iscsiadm and initiator name.
struct Process {
    pid: u32,
    alive: PathBuf,
    _folder: tempfile::TempDir,
}

/// What process to start.
#[derive(Clone, Copy)]
struct ProcessSpec<'a> {
    /// Its name in `/proc/PID/comm`.
    name: &'a str,
    /// What its tools print first, and the end of its initiator name.
    tools: &'a str,
    /// The abstract socket that it listens on.
    listens: Option<&'a str>,
    /// Minimum length of that address; padded with zeros.
    min_length: usize,
    /// A wrapper program that starts it, with options.
    wrapper: &'a str,
    /// The user id that it changes to.
    user: u32,
    /// It exits, and its child inherits the socket.
    exits: bool,
}

const DEFAULT_SPEC: ProcessSpec<'_> = ProcessSpec {
    name: "",
    tools: "",
    listens: None,
    min_length: 0,
    wrapper: "",
    user: 0,
    exits: false,
};

/// A process of an unprivileged pod.
fn pod_named(name: &str) -> ProcessSpec<'_> {
    ProcessSpec {
        name,
        tools: "pod",
        ..DEFAULT_SPEC
    }
}

/// A real daemon; its process name does not matter.
fn real<'a>(listens: &'a str, tools: &'a str) -> ProcessSpec<'a> {
    ProcessSpec {
        name: "daemon",
        tools,
        listens: Some(listens),
        ..DEFAULT_SPEC
    }
}

impl Process {
    async fn start(test: &str, spec: ProcessSpec<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (alive, script, program) = (at("alive"), at("script"), at(spec.name));
        let (target, rest) = match spec.listens {
            Some(_) => (this_program(), format!("--exact {test} --nocapture")),
            None => (
                SHELL.to_owned(),
                format!(
                    "-c 'echo $$ >{0}; while [ -e {0} ]; do sleep 0.05; done'",
                    alive.display()
                ),
            ),
        };
        symlink(target, &program).unwrap();
        let tools = spec.tools;
        let steps = format!(
            "set -e
mount -t tmpfs none /usr/local/sbin
for tool in iscsiadm multipath multipathd; do
  printf '#!/bin/sh\\necho {tools} \"$0\" \"$*\"\\n' >/usr/local/sbin/$tool
  chmod 755 /usr/local/sbin/$tool
done
mount -t tmpfs none /etc
mkdir /etc/iscsi
echo InitiatorName=iqn.2026-01.test:{tools} >{INITIATOR_NAME}
export LISTEN='{}' LENGTH={} RUN_AS={} ENDS={} ALIVE={}
exec {} {} {rest}
",
            spec.listens.unwrap_or_default(),
            spec.min_length,
            spec.user,
            u8::from(spec.exits),
            alive.display(),
            spec.wrapper,
            program.display(),
        );
        fs::write(&script, steps).unwrap();
        // In the network namespace of process 1.
        let cmd = Cmd::new("nsenter", 100)
            .args(["--net=/proc/1/ns/net", "unshare", "--mount", SHELL])
            .arg(script.to_str().unwrap());
        tokio::spawn(async move { common::host().run(cmd).await });
        let pid = first_line(&alive).await.parse().unwrap();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name.trim_end(), spec.name);
        Self {
            pid,
            alive,
            _folder: folder,
        }
    }

    async fn stop(self) {
        fs::remove_file(&self.alive).unwrap();
        let place = format!("/proc/{}", self.pid);
        for _ in 0..100 {
            if !Path::new(&place).exists() {
                return;
            }
            // sleep: poll interval for the end of the process.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("process {} does not end", self.pid);
    }
}

/// The main function of a listening process that [`Process::start`] has started.
async fn listen_if_requested() {
    let env_var = |name: &str| {
        let value: OsString = std::env::var_os(name)?;
        value.into_string().ok()
    };
    let Some(address) = env_var("LISTEN").filter(|address| !address.is_empty()) else {
        return;
    };
    let number = |name: &str| env_var(name).unwrap().parse::<usize>().unwrap();
    let mut address = address.into_bytes();
    address.resize(address.len().max(number("LENGTH")), 0);
    let listener =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(address).unwrap()).unwrap();
    if number("ENDS") == 1 {
        return leave_to_a_child(listener);
    }
    let mut alive = fs::File::create(env_var("ALIVE").unwrap()).unwrap();
    // The kernel keeps the credentials of the moment of listen(), so the user changes only afterwards.
    nix::unistd::setuid(u32::try_from(number("RUN_AS")).unwrap().into()).unwrap();
    writeln!(alive, "{}", std::process::id()).unwrap();
    while alive.metadata().unwrap().nlink() > 0 {
        // sleep: poll interval for the removal of the file.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(listener);
    #[expect(clippy::exit, reason = "this process is not a test")]
    std::process::exit(0);
}

/// Leaves the socket to a child and exits, like a daemon that forks into the background.
#[expect(clippy::disallowed_methods, reason = "the child has a socket")]
fn leave_to_a_child(listener: UnixListener) {
    let wait = "echo $$ >$ALIVE; while [ -e $ALIVE ]; do sleep 0.05; done";
    let mut child = std::process::Command::new(SHELL);
    child.args(["-c", wait]).stdin(OwnedFd::from(listener));
    child.spawn().unwrap();
    #[expect(clippy::exit, reason = "this process is not a test")]
    std::process::exit(0);
}

/// Waits for the file's line and returns it.
async fn first_line(file: &Path) -> String {
    for _ in 0..200 {
        match fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text.trim_end().to_owned(),
            // sleep: poll interval for the file.
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("{} does not appear", file.display());
}

/// Runs a host's program through the driver's `enter-namespaces` subcommand.
async fn enter(whose: &str, words: &[&str]) -> Exit {
    let cmd = Cmd::new(DRIVER, 20)
        .args(["enter-namespaces", whose])
        .args(words.iter().copied());
    common::host().run(cmd).await.unwrap()
}

fn linux() -> Linux {
    Linux::new(PathBuf::from("/")).in_namespaces(Namespaces::Iscsid)
}

/// The end of the initiator name that the driver reads: the `tools` of the process that it trusts.
async fn trusted_initiator(linux: &Linux) -> Result<String, HostError> {
    let text = String::from_utf8(linux.read(INITIATOR_NAME).await?).unwrap();
    Ok(text.trim().rsplit_once(':').unwrap().1.to_owned())
}

/// Writes an open-iscsi record with a password.
async fn write_secret(linux: &Linux) -> Result<(), HostError> {
    let temp_file = "/etc/iscsi/.aside";
    linux
        .replace_file(SECRET, temp_file, "password".into())
        .await
}

/// Asserts that nothing of iscsid's container is used, and that the error contains `says`.
async fn assert_not_trusted(linux: &Linux, says: &str) {
    let error = trusted_initiator(linux).await.unwrap_err();
    assert!(matches!(&error, HostError::NoNamespaces { .. }), "{error}");
    assert!(error.to_string().contains(says), "{error}");
    assert!(
        linux
            .check_namespaces()
            .unwrap_err()
            .to_string()
            .contains(says)
    );
    assert!(!linux.has_program("iscsiadm"));
    let exit = enter("iscsid", &["iscsiadm", "-m", "session"]).await;
    assert_eq!((exit.status, exit.stdout.as_str()), (125, ""), "{exit:?}");
    assert!(exit.stderr.contains(says), "{exit:?}");
}

/// Asserts that files and tools of iscsid's container are used.
async fn assert_trusted(linux: &Linux) {
    assert_eq!(trusted_initiator(linux).await.unwrap(), "real");
    linux.check_namespaces().unwrap();
    assert!(linux.has_program("iscsiadm"));
    let exit = enter("iscsid", &["iscsiadm", "-m", "two words"]).await;
    let said = "real /usr/local/sbin/iscsiadm -m two words\n";
    assert_eq!((exit.status, exit.stdout.as_str()), (0, said), "{exit:?}");
}

#[tokio::test]
async fn a_program_runs_in_the_namespaces_and_root_of_process_1() {
    if !in_own_namespaces("a_program_runs_in_the_namespaces_and_root_of_process_1").await {
        return;
    }
    let exit = enter("init", &["iscsiadm", "one", "two words"]).await;
    let said = "tool one two words\ninside\n";
    assert_eq!((exit.status, exit.stdout.as_str()), (0, said), "{exit:?}");
    let tool = Path::new("/usr/local/sbin/iscsiadm");
    assert!(!tool.exists(), "it is in no other namespace");
    let network = enter("init", &["readlink", "/proc/self/ns/net"]).await;
    let theirs = fs::read_link("/proc/1/ns/net").unwrap();
    assert_eq!(Path::new(network.stdout.trim_end()), theirs);

    let exit = enter("init", &["no-such-tool"]).await;
    assert_eq!(exit.status, 127);
    assert!(
        exit.stderr.contains("no-such-tool is in none of"),
        "{exit:?}"
    );
}

/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn a_pod_named_iscsid_is_not_trusted() {
    let test = "a_pod_named_iscsid_is_not_trusted";
    if !in_own_namespaces(test).await {
        return;
    }
    let linux = linux();
    let pod = Process::start(test, pod_named("iscsid")).await;
    assert_not_trusted(&linux, "nobody listens on iscsid's socket").await;
    assert!(write_secret(&linux).await.is_err());

    let iscsid = Process::start(test, real(ISCSID, "real")).await;
    assert!(pod.pid < iscsid.pid, "the pod has the lower PID");
    assert_trusted(&linux).await;
    write_secret(&linux).await.unwrap();
    for (process, has) in [(&iscsid, true), (&pod, false)] {
        let seen = format!("/proc/{}/root{SECRET}", process.pid);
        assert_eq!(Path::new(&seen).exists(), has, "{seen}");
    }

    // A driver that cannot see the host's processes.
    let words = "--net=/proc/1/ns/net unshare --pid --fork --mount-proc";
    let cmd = Cmd::new("nsenter", 20).args(words.split(' '));
    let cmd = cmd.args([DRIVER, "enter-namespaces", "iscsid", "iscsiadm"]);
    let exit = common::host().run(cmd).await.unwrap();
    assert_eq!((exit.status, exit.stdout.as_str()), (125, ""), "{exit:?}");
    assert!(exit.stderr.contains("hostPID: true"), "{exit:?}");

    // The trust ends with the process; the next iscsid is trusted again.
    iscsid.stop().await;
    assert_not_trusted(&linux, "nobody listens on iscsid's socket").await;
    let iscsid = Process::start(test, real(ISCSID, "real")).await;
    assert_trusted(&linux).await;
    iscsid.stop().await;
    pod.stop().await;
}

/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn multipath_tools_run_where_multipathd_does() {
    let test = "multipath_tools_run_where_multipathd_does";
    if !in_own_namespaces(test).await {
        return;
    }
    // iscsid's container has tools of the same names.
    let iscsid = Process::start(test, real(ISCSID, "iscsid")).await;
    let pod = Process::start(test, pod_named("multipathd")).await;
    for words in [["multipathd", "show", "daemon"], ["multipath", "-f", "m"]] {
        let exit = enter("multipathd", &words).await;
        assert_eq!((exit.status, exit.stdout.as_str()), (127, ""), "{exit:?}");
        let says = "nobody listens on multipathd's socket";
        assert!(exit.stderr.contains(says), "{exit:?}");
    }

    let pretender = ProcessSpec {
        listens: Some(MULTIPATHD),
        user: 65534,
        ..pod_named("multipathd")
    };
    let pretender = Process::start(test, pretender).await;
    let exit = enter("multipathd", &["multipathd", "show", "daemon"]).await;
    assert_eq!((exit.status, exit.stdout.as_str()), (125, ""), "{exit:?}");
    assert!(exit.stderr.contains("does not run as root"), "{exit:?}");
    pretender.stop().await;

    let multipathd = Process::start(test, real(MULTIPATHD, "real")).await;
    let exit = enter("multipathd", &["multipathd", "show", "daemon"]).await;
    let said = "real /usr/local/sbin/multipathd show daemon\n";
    assert_eq!((exit.status, exit.stdout.as_str()), (0, said), "{exit:?}");
    for process in [multipathd, pod, iscsid] {
        process.stop().await;
    }
}

/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn a_pod_named_multipathd_does_not_count_as_the_hosts() {
    let test = "a_pod_named_multipathd_does_not_count_as_the_hosts";
    if !in_own_namespaces(test).await {
        return;
    }
    let linux = Linux::new(PathBuf::from("/")).in_namespaces(Namespaces::Init);
    let runs = async |who| linux.is_running("multipathd", who).await.unwrap();
    assert!(!runs(ProcessScope::Any).await);
    let pod = ProcessSpec {
        wrapper: "setpriv --bounding-set=-sys_admin",
        ..pod_named("multipathd")
    };
    let pod = Process::start(test, pod).await;
    assert!(runs(ProcessScope::Any).await && !runs(ProcessScope::Host).await);
    // Without a socket, like a daemon that hangs during startup.
    let multipathd = Process::start(test, pod_named("multipathd")).await;
    assert!(runs(ProcessScope::Host).await);
    multipathd.stop().await;
    assert!(!runs(ProcessScope::Host).await);
    pod.stop().await;
    assert!(!runs(ProcessScope::Any).await);
}

/// Socket activation: systemd listens on iscsid's socket, and starts iscsid at the first connection.
#[tokio::test]
async fn iscsid_is_woken_in_the_network_of_the_host() {
    let test = "iscsid_is_woken_in_the_network_of_the_host";
    if !in_own_namespaces(test).await {
        return;
    }
    let linux = Linux::new(PathBuf::from("/")).in_namespaces(Namespaces::Init);
    assert!(!linux.wake_iscsid().await.unwrap());
    let systemd = Process::start(test, real(ISCSID, "real")).await;
    assert!(linux.wake_iscsid().await.unwrap());
    let own = Linux::new(PathBuf::from("/"));
    assert!(
        !own.wake_iscsid().await.unwrap(),
        "it is in another network"
    );
    systemd.stop().await;
    assert!(!linux.wake_iscsid().await.unwrap());
}

/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn a_process_on_iscsids_socket_is_trusted_only_if_it_is_the_hosts() {
    let test = "a_process_on_iscsids_socket_is_trusted_only_if_it_is_the_hosts";
    if !in_own_namespaces(test).await {
        return;
    }
    let pretends = ProcessSpec {
        listens: Some(ISCSID),
        ..pod_named("iscsid")
    };
    let user = ProcessSpec {
        user: 65534,
        ..pretends
    };
    for (spec, says) in [
        (user, "does not run as root"),
        (
            ProcessSpec {
                wrapper: "setpriv --bounding-set=-sys_admin",
                ..pretends
            },
            "lacks capabilities of process 1 (0x200000)",
        ),
        (
            ProcessSpec {
                wrapper: "unshare --user --map-root-user",
                ..pretends
            },
            "is in another user namespace",
        ),
    ] {
        let pretender = Process::start(test, spec).await;
        assert_not_trusted(&linux(), says).await;
        assert_not_trusted(&linux(), &format!("process {}", pretender.pid)).await;
        pretender.stop().await;
    }

    // The listener has exited, so its PID may belong to any process by now.
    let background = ProcessSpec {
        name: "sh",
        exits: true,
        ..real(ISCSID, "real")
    };
    let child = Process::start(test, background).await;
    assert_not_trusted(&linux(), "has ended: restart iscsid in the foreground").await;
    child.stop().await;

    // An older open-iscsi binds its address padded with zeros. A pretender at the unpadded address does not hide it.
    let pretender = Process::start(test, user).await;
    let older = ProcessSpec {
        min_length: 107,
        ..real(ISCSID, "real")
    };
    let iscsid = Process::start(test, older).await;
    assert_trusted(&linux()).await;
    iscsid.stop().await;
    pretender.stop().await;
}

/// A privileged pod differs from the host only in its cgroup.
/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn a_privileged_pod_is_not_the_host() {
    let test = "a_privileged_pod_is_not_the_host";
    if !in_own_namespaces(test).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    let mount = Cmd::new("mount", 20).args(["-t", "cgroup2", "none", at]);
    let mounted = common::host().run(mount).await.unwrap();
    // A unique name: a failed test may have left its cgroup behind.
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    let pods = folder.path().join(format!("kubepods{name}"));
    if mounted.status != 0 || fs::create_dir(&pods).is_err() {
        common::skip(test, "needs version 2 of cgroups");
        return;
    }
    let iscsid = Process::start(test, real(ISCSID, "real")).await;
    assert_trusted(&linux()).await;
    let moved = fs::write(pods.join("cgroup.procs"), iscsid.pid.to_string());
    if moved.is_ok() {
        assert_not_trusted(&linux(), &format!("is in a pod (cgroup /kubepods{name})")).await;
    } else {
        common::skip(test, "needs a cgroup that takes processes");
    }
    iscsid.stop().await;
    fs::remove_dir(pods).unwrap();
    common::run("umount", &[at]).await;
}
