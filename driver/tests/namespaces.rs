//! Programs of the host, run from a driver that lives elsewhere, and who may be taken for the host.
//!
//! Each test is a machine of its own: it runs itself again in new process, network, mount and cgroup namespaces, where process 1
//! is a shell with the host's tools, and the driver is a process with another network and without the tools.
//! So `/proc/1`, abstract sockets and process numbers are this machine's, whatever else runs here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

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
use driver::host::{Cmd, Exit, Host as _, HostError, Who};

const DRIVER: &str = env!("CARGO_BIN_EXE_synology-csi");
const NAME: &str = "/etc/iscsi/initiatorname.iscsi";
const SECRET: &str = "/etc/iscsi/record";
/// What a daemon listens at: see the driver's `host/linux/daemon.rs`.
const ISCSID: &str = "ISCSIADM_ABSTRACT_NAMESPACE";
const MULTIPATHD: &str = "/org/kernel/linux/storage/multipathd";
const SHELL: &str = "/bin/sh";

/// The host, process 1. What it runs is the driver: in a mount namespace without the tools, and in another network.
const HOST: &str = r#"
mount -t tmpfs none /usr/local/sbin
printf '#!/bin/sh\necho "tool $*"; cat /usr/local/sbin/seen\n' >/usr/local/sbin/iscsiadm
chmod 755 /usr/local/sbin/iscsiadm
echo inside >/usr/local/sbin/seen
ON_ITS_OWN=1 unshare --mount --net sh -c 'umount /usr/local/sbin; exec "$0" --exact "$1" --nocapture' "$0" "$1"
exit $?
"#;

/// True in a machine of its own; else it runs the test in one, or skips it.
async fn on_its_own(test: &str) -> bool {
    listen_if_asked().await;
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
        assert_eq!(exit.status, 0, "{test} fails on its own machine: see above");
        assert!(exit.stdout.contains("1 passed"), "no test is called {test}");
    }
    false
}

fn this_program() -> String {
    let path = std::env::current_exe().unwrap();
    path.to_str().unwrap().to_owned()
}

/// Someone with a mount namespace of its own, and an iscsiadm and an initiator name of its own in there.
struct Someone {
    number: u32,
    alive: PathBuf,
    _folder: tempfile::TempDir,
}

/// What someone does.
#[derive(Clone, Copy)]
struct RunningDriver<'a> {
    /// What it is called.
    called: &'a str,
    /// Whose tools it has.
    tools: &'a str,
    /// The abstract address that it listens at.
    listens: Option<&'a str>,
    /// How long that address is, if it is filled with zeros.
    length: usize,
    /// A program that starts it, and options.
    by: &'a str,
    /// What it is in the end.
    user: u32,
    /// It ends, and leaves the socket to a child.
    ends: bool,
}

const NOTHING: RunningDriver<'_> = RunningDriver {
    called: "",
    tools: "",
    listens: None,
    length: 0,
    by: "",
    user: 0,
    ends: false,
};

/// What a pod does that nobody has given any right.
fn pod_called(called: &str) -> RunningDriver<'_> {
    RunningDriver {
        called,
        tools: "pod",
        ..NOTHING
    }
}

/// The real one; its own name is nothing that anybody has promised.
fn real<'a>(listens: &'a str, tools: &'a str) -> RunningDriver<'a> {
    RunningDriver {
        called: "daemon",
        tools,
        listens: Some(listens),
        ..NOTHING
    }
}

impl Someone {
    async fn starts(test: &str, doing: RunningDriver<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (alive, script, program) = (at("alive"), at("script"), at(doing.called));
        let (target, rest) = match doing.listens {
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
        let tools = doing.tools;
        let steps = format!(
            "set -e
mount -t tmpfs none /usr/local/sbin
for tool in iscsiadm multipath multipathd; do
  printf '#!/bin/sh\\necho {tools} \"$0\" \"$*\"\\n' >/usr/local/sbin/$tool
  chmod 755 /usr/local/sbin/$tool
done
mount -t tmpfs none /etc
mkdir /etc/iscsi
echo InitiatorName=iqn.2026-01.test:{tools} >{NAME}
export LISTEN='{}' LENGTH={} RUN_AS={} ENDS={} ALIVE={}
exec {} {} {rest}
",
            doing.listens.unwrap_or_default(),
            doing.length,
            doing.user,
            u8::from(doing.ends),
            alive.display(),
            doing.by,
            program.display(),
        );
        fs::write(&script, steps).unwrap();
        // In the network of process 1.
        let cmd = Cmd::new("nsenter", 100)
            .args(["--net=/proc/1/ns/net", "unshare", "--mount", SHELL])
            .arg(script.to_str().unwrap());
        tokio::spawn(async move { common::host().run(cmd).await });
        let number = first_line(&alive).await.parse().unwrap();
        let called = fs::read_to_string(format!("/proc/{number}/comm")).unwrap();
        assert_eq!(called.trim_end(), doing.called);
        Self {
            number,
            alive,
            _folder: folder,
        }
    }

    async fn ends(self) {
        fs::remove_file(&self.alive).unwrap();
        let place = format!("/proc/{}", self.number);
        for _ in 0..100 {
            if !Path::new(&place).exists() {
                return;
            }
            // sleep: between two looks at the process.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("process {} does not end", self.number);
    }
}

/// The part of a process that [`Someone`] has started to listen.
async fn listen_if_asked() {
    let word = |name: &str| {
        let value: OsString = std::env::var_os(name)?;
        value.into_string().ok()
    };
    let Some(address) = word("LISTEN").filter(|address| !address.is_empty()) else {
        return;
    };
    let number = |name: &str| word(name).unwrap().parse::<usize>().unwrap();
    let mut address = address.into_bytes();
    address.resize(address.len().max(number("LENGTH")), 0);
    let listener =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(address).unwrap()).unwrap();
    if number("ENDS") == 1 {
        return leave_to_a_child(listener);
    }
    let mut alive = fs::File::create(word("ALIVE").unwrap()).unwrap();
    // What the kernel says of who has called listen() is of that moment.
    nix::unistd::setuid(u32::try_from(number("RUN_AS")).unwrap().into()).unwrap();
    writeln!(alive, "{}", std::process::id()).unwrap();
    while alive.metadata().unwrap().nlink() > 0 {
        // sleep: between two looks at the file.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(listener);
    #[expect(clippy::exit, reason = "this process is no test")]
    std::process::exit(0);
}

/// What a daemon does that puts itself into the background.
#[expect(clippy::disallowed_methods, reason = "the child has a socket")]
fn leave_to_a_child(listener: UnixListener) {
    let wait = "echo $$ >$ALIVE; while [ -e $ALIVE ]; do sleep 0.05; done";
    let mut child = std::process::Command::new(SHELL);
    child.args(["-c", wait]).stdin(OwnedFd::from(listener));
    child.spawn().unwrap();
    #[expect(clippy::exit, reason = "this process is no test")]
    std::process::exit(0);
}

/// The file's line, once it is written.
async fn first_line(file: &Path) -> String {
    for _ in 0..200 {
        match fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text.trim_end().to_owned(),
            // sleep: between two looks at the file.
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("{} does not appear", file.display());
}

/// A host's program, started as the driver starts it.
async fn enter(whose: &str, words: &[&str]) -> Exit {
    let cmd = Cmd::new(DRIVER, 20)
        .args(["enter-namespaces", whose])
        .args(words.iter().copied());
    common::host().run(cmd).await.unwrap()
}

fn linux() -> Linux {
    Linux::new(PathBuf::from("/")).in_namespaces(Namespaces::Iscsid)
}

/// Whose initiator name the driver believes.
async fn believed(linux: &Linux) -> Result<String, HostError> {
    let text = String::from_utf8(linux.read(NAME).await?).unwrap();
    Ok(text.trim().rsplit_once(':').unwrap().1.to_owned())
}

/// A record of open-iscsi's, with a password.
async fn writes_a_secret(linux: &Linux) -> Result<(), HostError> {
    let aside = "/etc/iscsi/.aside";
    linux.replace_file(SECRET, aside, "password".into()).await
}

/// Nothing of iscsid's container is used, for this reason.
async fn nobody_is_believed(linux: &Linux, says: &str) {
    let error = believed(linux).await.unwrap_err();
    assert!(matches!(&error, HostError::NoNamespaces { .. }), "{error}");
    assert!(error.to_string().contains(says), "{error}");
    assert!(linux.reach().unwrap_err().to_string().contains(says));
    assert!(!linux.has("iscsiadm"));
    let exit = enter("iscsid", &["iscsiadm", "-m", "session"]).await;
    assert_eq!((exit.status, exit.stdout.as_str()), (125, ""), "{exit:?}");
    assert!(exit.stderr.contains(says), "{exit:?}");
}

/// All of iscsid's container is used.
async fn the_real_one_is_believed(linux: &Linux) {
    assert_eq!(believed(linux).await.unwrap(), "real");
    linux.reach().unwrap();
    assert!(linux.has("iscsiadm"));
    let exit = enter("iscsid", &["iscsiadm", "-m", "two words"]).await;
    let said = "real /usr/local/sbin/iscsiadm -m two words\n";
    assert_eq!((exit.status, exit.stdout.as_str()), (0, said), "{exit:?}");
}

#[tokio::test]
async fn a_program_runs_in_the_namespaces_and_below_the_root_of_process_1() {
    if !on_its_own("a_program_runs_in_the_namespaces_and_below_the_root_of_process_1").await {
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
async fn a_pod_called_iscsid_is_nobody() {
    let test = "a_pod_called_iscsid_is_nobody";
    if !on_its_own(test).await {
        return;
    }
    let linux = linux();
    let pod = Someone::starts(test, pod_called("iscsid")).await;
    nobody_is_believed(&linux, "nobody listens on iscsid's socket").await;
    assert!(writes_a_secret(&linux).await.is_err());

    let iscsid = Someone::starts(test, real(ISCSID, "real")).await;
    assert!(pod.number < iscsid.number, "the pod's is the lowest number");
    the_real_one_is_believed(&linux).await;
    writes_a_secret(&linux).await.unwrap();
    for (one, has) in [(&iscsid, true), (&pod, false)] {
        let seen = format!("/proc/{}/root{SECRET}", one.number);
        assert_eq!(Path::new(&seen).exists(), has, "{seen}");
    }

    // A driver that does not see the host's processes.
    let words = "--net=/proc/1/ns/net unshare --pid --fork --mount-proc";
    let cmd = Cmd::new("nsenter", 20).args(words.split(' '));
    let cmd = cmd.args([DRIVER, "enter-namespaces", "iscsid", "iscsiadm"]);
    let exit = common::host().run(cmd).await.unwrap();
    assert_eq!((exit.status, exit.stdout.as_str()), (125, ""), "{exit:?}");
    assert!(exit.stderr.contains("hostPID: true"), "{exit:?}");

    // Nobody is believed for longer than it lives, and who comes next is.
    iscsid.ends().await;
    nobody_is_believed(&linux, "nobody listens on iscsid's socket").await;
    let iscsid = Someone::starts(test, real(ISCSID, "real")).await;
    the_real_one_is_believed(&linux).await;
    iscsid.ends().await;
    pod.ends().await;
}

/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn multipath_tools_run_where_multipathd_does() {
    let test = "multipath_tools_run_where_multipathd_does";
    if !on_its_own(test).await {
        return;
    }
    // iscsid's container has tools of that name, too.
    let iscsid = Someone::starts(test, real(ISCSID, "iscsid")).await;
    let pod = Someone::starts(test, pod_called("multipathd")).await;
    for words in [["multipathd", "show", "daemon"], ["multipath", "-f", "m"]] {
        let exit = enter("multipathd", &words).await;
        assert_eq!((exit.status, exit.stdout.as_str()), (127, ""), "{exit:?}");
        let says = "nobody listens on multipathd's socket";
        assert!(exit.stderr.contains(says), "{exit:?}");
    }

    let pretender = RunningDriver {
        listens: Some(MULTIPATHD),
        user: 65534,
        ..pod_called("multipathd")
    };
    let pretender = Someone::starts(test, pretender).await;
    let exit = enter("multipathd", &["multipathd", "show", "daemon"]).await;
    assert_eq!((exit.status, exit.stdout.as_str()), (125, ""), "{exit:?}");
    assert!(exit.stderr.contains("does not run as root"), "{exit:?}");
    pretender.ends().await;

    let multipathd = Someone::starts(test, real(MULTIPATHD, "real")).await;
    let exit = enter("multipathd", &["multipathd", "show", "daemon"]).await;
    let said = "real /usr/local/sbin/multipathd show daemon\n";
    assert_eq!((exit.status, exit.stdout.as_str()), (0, said), "{exit:?}");
    for one in [multipathd, pod, iscsid] {
        one.ends().await;
    }
}

/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn a_pod_called_multipathd_does_not_run_on_the_host() {
    let test = "a_pod_called_multipathd_does_not_run_on_the_host";
    if !on_its_own(test).await {
        return;
    }
    let linux = Linux::new(PathBuf::from("/")).in_namespaces(Namespaces::Init);
    let runs = async |who| linux.runs("multipathd", who).await.unwrap();
    assert!(!runs(Who::Anybody).await);
    let pod = RunningDriver {
        by: "setpriv --bounding-set=-sys_admin",
        ..pod_called("multipathd")
    };
    let pod = Someone::starts(test, pod).await;
    assert!(runs(Who::Anybody).await && !runs(Who::Host).await);
    // Without a socket, as one that hangs while it starts.
    let multipathd = Someone::starts(test, pod_called("multipathd")).await;
    assert!(runs(Who::Host).await);
    multipathd.ends().await;
    assert!(!runs(Who::Host).await);
    pod.ends().await;
    assert!(!runs(Who::Anybody).await);
}

/// systemd listens at iscsid's socket, and starts it when somebody calls.
#[tokio::test]
async fn iscsid_is_called_in_the_network_of_the_host() {
    let test = "iscsid_is_called_in_the_network_of_the_host";
    if !on_its_own(test).await {
        return;
    }
    let linux = Linux::new(PathBuf::from("/")).in_namespaces(Namespaces::Init);
    assert!(!linux.wake_iscsid().await.unwrap());
    let systemd = Someone::starts(test, real(ISCSID, "real")).await;
    assert!(linux.wake_iscsid().await.unwrap());
    let own = Linux::new(PathBuf::from("/"));
    assert!(
        !own.wake_iscsid().await.unwrap(),
        "it is in another network"
    );
    systemd.ends().await;
    assert!(!linux.wake_iscsid().await.unwrap());
}

/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn who_takes_iscsids_socket_is_judged() {
    let test = "who_takes_iscsids_socket_is_judged";
    if !on_its_own(test).await {
        return;
    }
    let pretends = RunningDriver {
        listens: Some(ISCSID),
        ..pod_called("iscsid")
    };
    let user = RunningDriver {
        user: 65534,
        ..pretends
    };
    for (doing, says) in [
        (user, "does not run as root"),
        (
            RunningDriver {
                by: "setpriv --bounding-set=-sys_admin",
                ..pretends
            },
            "lacks capabilities of process 1 (0x200000)",
        ),
        (
            RunningDriver {
                by: "unshare --user --map-root-user",
                ..pretends
            },
            "is in another user namespace",
        ),
    ] {
        let pretender = Someone::starts(test, doing).await;
        nobody_is_believed(&linux(), says).await;
        nobody_is_believed(&linux(), &format!("process {}", pretender.number)).await;
        pretender.ends().await;
    }

    // Its number may be anybody's by now.
    let background = RunningDriver {
        called: "sh",
        ends: true,
        ..real(ISCSID, "real")
    };
    let child = Someone::starts(test, background).await;
    nobody_is_believed(&linux(), "has ended: restart iscsid in the foreground").await;
    child.ends().await;

    // An older open-iscsi binds its name with zeros behind it. Who takes the other name does not hide it.
    let pretender = Someone::starts(test, user).await;
    let older = RunningDriver {
        length: 107,
        ..real(ISCSID, "real")
    };
    let iscsid = Someone::starts(test, older).await;
    the_real_one_is_believed(&linux()).await;
    iscsid.ends().await;
    pretender.ends().await;
}

/// A pod that is privileged differs from the host in one thing only.
/// design.md#whose-namespaces-the-driver-enters
#[tokio::test]
async fn a_privileged_pod_is_not_the_host() {
    let test = "a_privileged_pod_is_not_the_host";
    if !on_its_own(test).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    let mount = Cmd::new("mount", 20).args(["-t", "cgroup2", "none", at]);
    let mounted = common::host().run(mount).await.unwrap();
    // What a test that failed has left behind is another's.
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    let pods = folder.path().join(format!("kubepods{name}"));
    if mounted.status != 0 || fs::create_dir(&pods).is_err() {
        common::skip(test, "needs version 2 of cgroups");
        return;
    }
    let iscsid = Someone::starts(test, real(ISCSID, "real")).await;
    the_real_one_is_believed(&linux()).await;
    let moved = fs::write(pods.join("cgroup.procs"), iscsid.number.to_string());
    if moved.is_ok() {
        nobody_is_believed(&linux(), &format!("is in a pod (cgroup /kubepods{name})")).await;
    } else {
        common::skip(test, "needs a cgroup that takes processes");
    }
    iscsid.ends().await;
    fs::remove_dir(pods).unwrap();
    common::run("umount", &[at]).await;
}
