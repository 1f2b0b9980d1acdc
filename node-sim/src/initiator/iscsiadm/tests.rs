//! Exit codes and output, without root: targets without LUNs need no loop devices.

use std::collections::BTreeMap;
use std::fs;

use super::super::multipathd::State;
use super::*;
use crate::target::loopdev::Targets;
use crate::target::{Chap, Credential, Target};

struct Bench {
    dir: tempfile::TempDir,
    targets: Targets,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let targets = dir.path().join("targets");
        let program = std::env::current_exe().unwrap();
        Host::init(
            &dir.path().join("root"),
            std::slice::from_ref(&targets),
            Some("iqn.me"),
            &program,
        )
        .unwrap();
        let targets = Targets::open(&targets).unwrap();
        Self { dir, targets }
    }

    fn target(&self, iqn: &str) -> Target {
        let portals = vec!["127.0.0.1:3260".parse().unwrap()];
        let target = Target {
            iqn: iqn.into(),
            enabled: true,
            max_sessions: 0,
            portals,
            luns: BTreeMap::new(),
            chap: None,
        };
        self.targets.put(&target).unwrap();
        target
    }

    /// Exit code, stdout, stderr.
    fn run(&self, line: &str) -> (u8, String, String) {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&self.dir.path().join("root"), &args, &mut out, &mut err);
        (
            exit,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }

    #[track_caller]
    fn check(&self, line: &str, exit: u8, says: &str) {
        let (got, out, err) = self.run(line);
        assert_eq!(got, exit, "{line}\n{out}{err}");
        assert!(
            format!("{out}{err}").contains(says),
            "{line}: want {says}\n{out}{err}"
        );
    }

    fn session_state(&self, sid: u32) -> String {
        let class = self.dir.path().join("root/sys/class/iscsi_session");
        fs::read_to_string(class.join(format!("session{sid}/state"))).unwrap_or_default()
    }
}

#[test]
fn an_empty_host() {
    let bench = Bench::new();
    for (line, exit, says) in [
        ("--version", 0, "iscsiadm version 2.1.9\n"),
        ("-h", 0, "manual page"),
        ("-m session", 21, "iscsiadm: No active sessions.\n"),
        (
            "-m session -r 1",
            22,
            "Could not get session info for sid 1",
        ),
        ("-m session -r 1 -R", 22, "sid 1"),
        ("-m session -R", 21, "No session found."),
        ("-m session -u", 21, "No matching sessions found"),
        ("-m session -o show", 7, "needs --sid"),
        ("-m node", 21, "No records found"),
        ("-m node -P 2", 7, "Invalid info level 2"),
        ("-m node -T iqn.t", 21, "No records found"),
        ("-m node -T iqn.t -l", 21, "No records found"),
        ("-m node -T iqn.t -u", 21, "No matching sessions found"),
        ("-m node -T iqn.t -R", 21, "No session found."),
        ("-m node -T iqn.t -o delete", 21, "No records found"),
        (
            "-m node -T iqn.t -o update -n node.startup -v manual",
            21,
            "No records found",
        ),
        (
            "-m node -T iqn.t -o new",
            7,
            "needs --targetname and --portal",
        ),
        (
            "-m node -p 127.0.0.1 -o new",
            7,
            "needs --targetname and --portal",
        ),
        (
            "-m node -T a/b -p 127.0.0.1 -o new",
            7,
            "cannot be the name of a target",
        ),
        (
            "-m node -T iqn.t -p 127.0.0.1 -I eth0 -o new",
            7,
            "iface info for eth0",
        ),
        ("-m discovery", 21, ""),
        ("-m discovery -p 127.0.0.1", 7, "needs --type"),
        ("-m discovery -t st", 7, "specify portal"),
        ("-m discovery -t st -p 127.0.0.1", 11, "does not listen"),
        (
            "-m discoverydb -t st -p 127.0.0.2 -o show",
            6,
            "[127.0.0.2,3260] not found",
        ),
        ("-m host", 21, ""),
        (
            "-m iface",
            0,
            "default tcp,<empty>,<empty>,<empty>,<empty>\n",
        ),
        ("-m node --bogus", 7, "unrecognized option"),
    ] {
        bench.check(line, exit, says);
    }
    let nowhere = run(
        Path::new("/nonexistent"),
        &["-m".into(), "session".into()],
        &mut Vec::new(),
        &mut Vec::new(),
    );
    assert_eq!(nowhere, 9);
}

#[test]
fn a_session_from_record_to_record() {
    let bench = Bench::new();
    bench.target("iqn.t");
    let node = "-m node -T iqn.t -p 127.0.0.1:3260";
    bench.check(
        &format!("{node},1 -o new"),
        0,
        "New iSCSI node [tcp:[hw=,ip=,net_if=,iscsi_if=default] 127.0.0.1,3260,1 iqn.t] added\n",
    );
    bench.check("-m node", 0, "127.0.0.1:3260,1 iqn.t\n");
    bench.check(
        "-m node -P 1",
        0,
        "Target: iqn.t\n\tPortal: 127.0.0.1:3260,1\n\t\tIface Name: default\n",
    );
    bench.check(
        &format!("{node} -o update -n node.session.timeo.replacement_timeout -v 5"),
        0,
        "",
    );
    bench.check(node, 0, "# BEGIN RECORD 2.1.9\nnode.name = iqn.t\n");
    bench.check(
        "-m node -o show",
        0,
        "node.session.timeo.replacement_timeout = 5\n",
    );
    bench.check(
        &format!("{node} --login"),
        0,
        "Login to [iface: default, target: iqn.t, portal: 127.0.0.1,3260] successful.\n",
    );
    assert_eq!(
        bench.targets.sessions("iqn.t").unwrap()[0].initiator,
        "iqn.me"
    );
    assert_eq!(bench.session_state(1), "LOGGED_IN\n");

    bench.check(
        &format!("{node} --login"),
        15,
        "iscsiadm: default: 1 session requested, but 1 already present.\n",
    );
    bench.check(
        "-m session",
        0,
        "tcp: [1] 127.0.0.1:3260,1 iqn.t (non-flash)\n",
    );
    bench.check(
        "-m session -r 1 -P 1",
        0,
        "\t\tiSCSI Session State: LOGGED_IN\n",
    );
    bench.check("-m session -P 3", 0, "Host Number: 11\tState: running");
    bench.check("-m session -P 4", 7, "Invalid info level 4");
    bench.check(
        "-m session -r 1",
        0,
        "node.session.timeo.replacement_timeout = 5\n",
    );
    bench.check("-m session -r 1 -o new", 7, "not simulated");
    bench.check(
        "-m host",
        0,
        "tcp: [11] 127.0.0.1,[<empty>],<empty> <empty>\n",
    );
    bench.check(
        &format!("{node} -R"),
        0,
        "Rescanning session [sid: 1, target: iqn.t, portal: 127.0.0.1,3260]\n",
    );
    bench.check("-m session -r 1 --rescan", 0, "Rescanning session [sid: 1");
    bench.check(&format!("{node} -o delete"), 15, "in use by a session");
    bench.check("-m node -T iqn.other -u", 21, "No matching sessions found");
    bench.check("-m node -p 127.0.0.2 -u", 21, "No matching sessions found");
    bench.check(
        "-m session -r 1 -u",
        0,
        "Logout of [sid: 1, target: iqn.t, portal: 127.0.0.1,3260] successful.\n",
    );
    bench.check("-m session", 21, "");
    assert_eq!(bench.targets.sessions("iqn.t").unwrap(), []);
    bench.check(&format!("{node} -l"), 0, "");
    bench.check("-m session", 0, "tcp: [2] ");
    bench.check(&format!("{node} -u"), 0, "");
    bench.check(&format!("{node} -o delete"), 0, "");
    bench.check("-m node", 21, "");
}

#[test]
fn a_new_record_over_an_old_one_has_default_settings() {
    let bench = Bench::new();
    for tpgt in [",1", ""] {
        let new = format!("-m node -T iqn.t{tpgt} -p 127.0.0.1:3260{tpgt} -o new")
            .replace("iqn.t,1", "iqn.t");
        bench.check(&new, 0, "added");
        bench.check(
            "-m node -T iqn.t -o update -n node.session.scan -v manual",
            0,
            "",
        );
        bench.check(&new, 0, "added");
        bench.check("-m node -T iqn.t", 0, "node.session.scan = auto\n");
        bench.check("-m node -T iqn.t -o delete", 0, "");
    }
    bench.check(
        "-m node -T iqn.t -p 127.0.0.1 -o new",
        0,
        "127.0.0.1,3260,-1 iqn.t] added\n",
    );
    bench.check("-m node", 0, "127.0.0.1:3260,4294967295 iqn.t\n");
}

#[test]
fn a_bad_update_changes_nothing() {
    let bench = Bench::new();
    bench.check("-m node -T iqn.t -p 127.0.0.1,1 -o new", 0, "");
    bench.check("-m node -T iqn.t -o update", 7, "requires name and value");
    bench.check(
        "-m node -T iqn.t -o update -n node.session.scan -v manual -n node.bogus -v 1",
        7,
        "Invalid param name",
    );
    bench.check("-m node -T iqn.t", 0, "node.session.scan = auto\n");
}

#[test]
fn refused_logins() {
    let bench = Bench::new();
    let target = bench.target("iqn.t");
    let login = |iqn: &str, portal: &str| {
        let node = format!("-m node -T {iqn} -p {portal}");
        assert_eq!(bench.run(&format!("{node} -o new")).0, 0);
        let (exit, _, err) = bench.run(&format!("{node} -l"));
        assert!(
            err.contains(&format!("initiator reported error ({exit} - ")),
            "{err}"
        );
        assert!(
            err.ends_with("iscsiadm: Could not log into all portals\n"),
            "{err}"
        );
        assert_eq!(bench.run("-m session").0, 21);
        let left = fs::read_dir(bench.dir.path().join("root/var/node-sim/sessions"))
            .unwrap()
            .count();
        assert_eq!(left, 0);
        exit
    };
    assert_eq!(
        login("iqn.t", "127.0.0.1:3261"),
        8,
        "no process listens there"
    );
    assert_eq!(login("iqn.other", "127.0.0.1:3260"), 19, "no such target");
    bench
        .targets
        .put(&Target {
            enabled: false,
            ..target.clone()
        })
        .unwrap();
    assert_eq!(login("iqn.t", "127.0.0.1:3260"), 19, "disabled");
    bench
        .targets
        .put(&Target {
            max_sessions: 1,
            ..target.clone()
        })
        .unwrap();
    let other = crate::target::Session {
        initiator: "iqn.you".into(),
        address: "127.0.0.1".parse().unwrap(),
    };
    bench
        .targets
        .login("iqn.t", "other-host-1", &other, None)
        .unwrap();
    assert_eq!(login("iqn.t", "127.0.0.1:3260"), 19, "too many sessions");
    bench.targets.remove("iqn.t").unwrap();
    assert_eq!(
        login("iqn.t", "127.0.0.1:3260"),
        8,
        "a NAS without targets does not listen"
    );
}

#[test]
fn chap() {
    let bench = Bench::new();
    let chap = Some(Chap {
        user: "me".into(),
        password: "secret-secret".into(),
        mutual: Some(Credential {
            user: "nas".into(),
            password: "other-secret".into(),
        }),
    });
    bench
        .targets
        .put(&Target {
            chap,
            ..bench.target("iqn.t")
        })
        .unwrap();
    let node = "-m node -T iqn.t -p 127.0.0.1";
    bench.check(&format!("{node} -o new"), 0, "");
    bench.check(&format!("{node} -l"), 24, "(24 - ");
    bench.check(&format!("{node} -o update -n node.session.auth.authmethod -v CHAP -n node.session.auth.username -v me -n node.session.auth.password -v wrong"), 0, "");
    bench.check(&format!("{node} -l"), 24, "(24 - ");
    bench.check(
        &format!("{node} -o update -n node.session.auth.password -v secret-secret"),
        0,
        "",
    );
    let (_, out, _) = bench.run(node);
    assert!(!out.contains("secret-secret"));
    let mutual = |password: &str| {
        format!(
            "{node} -o update -n node.session.auth.username_in -v nas -n node.session.auth.password_in -v {password}"
        )
    };
    bench.check(&mutual("wrong"), 0, "");
    bench.check(&format!("{node} -l"), 24, "(24 - ");
    bench.check(&mutual("other-secret"), 0, "");
    bench.check(&format!("{node} -l"), 0, "successful");
    bench.check("-m session -P 2", 0, "username: me\n");
}

#[test]
fn discovery_creates_and_deletes_records() {
    let bench = Bench::new();
    bench.target("iqn.a");
    bench.target("iqn.b");
    let found = "127.0.0.1:3260,1 iqn.a\n127.0.0.1:3260,1 iqn.b\n";
    let node = |line: &str| bench.run(line).1;
    bench.check("-m discovery -t st -p 127.0.0.1 -o nonpersistent", 0, found);
    bench.check("-m node", 21, "");
    bench.check("-m discovery -t st -p 127.0.0.1", 0, found);
    assert_eq!(node("-m node"), found);
    bench.check("-m discovery", 0, "127.0.0.1:3260 via sendtargets\n");
    bench.check(
        "-m node -T iqn.a -p 127.0.0.1",
        0,
        "node.discovery_type = send_targets\n",
    );

    bench.check("-m node -T iqn.b -l", 0, "");
    bench.targets.remove("iqn.b").unwrap();
    bench.check("-m discovery -t st -p 127.0.0.1", 0, "");
    assert_eq!(node("-m node"), found, "a record in use stays");
    bench.check("-m node -T iqn.b -u", 0, "");
    bench.check(
        "-m node -T iqn.a -o update -n node.startup -v automatic",
        0,
        "",
    );
    bench.check("-m discovery -t st -p 127.0.0.1 -o new -o delete", 0, "");
    assert_eq!(node("-m node"), "127.0.0.1:3260,1 iqn.a\n");
    bench.check("-m node -T iqn.a", 0, "node.startup = automatic\n");
    bench.check("-m discoverydb -t st -p 127.0.0.1 --discover", 0, "iqn.a");
    bench.check("-m node -T iqn.a", 0, "node.startup = manual\n");

    bench.check(
        "-m discovery -t st -p 127.0.0.1 -l",
        0,
        "target: iqn.a, portal: 127.0.0.1,3260] successful.\n",
    );
    bench.check("-m node -u", 0, "");
    bench.check(
        "-m discoverydb -t st -p 127.0.0.1 -o show",
        0,
        "discovery.sendtargets.address = 127.0.0.1\n",
    );
    bench.check("-m discoverydb -t st -p 127.0.0.1 -o delete", 0, "");
    bench.check("-m node", 21, "");
    let disabled = Target {
        enabled: false,
        ..bench.target("iqn.a")
    };
    bench.targets.put(&disabled).unwrap();
    bench.check("-m discovery -t st -p 127.0.0.1", 21, "No portals found");
}

#[test]
fn a_target_that_goes_and_comes_back() {
    let bench = Bench::new();
    bench.target("iqn.t");
    // Keeps the portal open.
    bench.target("iqn.z");
    bench.check("-m node -T iqn.t -p 127.0.0.1 -o new", 0, "");
    bench.check("-m node -T iqn.t -l", 0, "");
    bench.targets.remove("iqn.t").unwrap();
    assert_eq!(bench.session_state(1), "LOGGED_IN\n", "no rescan yet");
    bench.check("-m session -R", 0, "");
    assert_eq!(bench.session_state(1), "FAILED\n");
    bench.check("-m session", 0, "tcp: [1] ");
    bench.check("-m session -P 1", 0, "iSCSI Session State: FAILED\n");
    bench.target("iqn.t");
    bench.check("-m session -R", 0, "");
    assert_eq!(bench.session_state(1), "LOGGED_IN\n");
    assert_eq!(bench.targets.sessions("iqn.t").unwrap().len(), 1);
    bench.targets.remove("iqn.t").unwrap();
    bench.targets.remove("iqn.z").unwrap();
    bench.check("-m session -R", 0, "");
    assert_eq!(bench.session_state(1), "FAILED\n");
    bench.check("-m node -T iqn.t -u", 0, "successful");
    assert_eq!(bench.session_state(1), "");
}

#[test]
fn init_again_keeps_the_initiators_name() {
    let bench = Bench::new();
    let root = bench.dir.path().join("root");
    let program = std::env::current_exe().unwrap();
    let name = || fs::read_to_string(root.join("etc/iscsi/initiatorname.iscsi")).unwrap();
    Host::init(&root, &[bench.dir.path().join("elsewhere")], None, &program).unwrap();
    assert_eq!(name(), "InitiatorName=iqn.me\n");
    Host::init(
        &root,
        &[bench.dir.path().join("targets")],
        Some("iqn.new"),
        &program,
    )
    .unwrap();
    assert_eq!(name(), "InitiatorName=iqn.new\n");
    let bin: Vec<_> = fs::read_dir(root.join("bin"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(bin, ["iscsiadm"]);
    fs::remove_file(root.join("etc/iscsi/initiatorname.iscsi")).unwrap();
    bench.target("iqn.t");
    bench.check("-m discovery -t st -p 127.0.0.1", 7, "no InitiatorName");
}

#[test]
fn an_initiator_without_a_name_gets_one_when_iscsid_starts() {
    let bench = Bench::new();
    let root = bench.dir.path().join("root");
    let host = Host::at(&root);
    let text = || fs::read_to_string(root.join("etc/iscsi/initiatorname.iscsi")).unwrap();
    assert!(!host.start_iscsid().unwrap(), "it has one");
    host.remove_initiator_name().unwrap();
    let program = std::env::current_exe().unwrap();
    Host::init(&root, &[bench.dir.path().join("targets")], None, &program).unwrap();
    assert_eq!(
        text(),
        "GenerateName=yes\n",
        "no more than a reboot names it"
    );
    bench.check("-m node", 21, "");
    assert_eq!(text(), "GenerateName=yes\n");
    assert!(host.start_iscsid().unwrap());
    let made = text();
    assert!(made.starts_with("InitiatorName=iqn.1993-08.org.debian:01:"));
    assert!(!host.start_iscsid().unwrap());
    // A login starts it, too.
    host.remove_initiator_name().unwrap();
    bench.target("iqn.t");
    bench.check("-m discovery -t st -p 127.0.0.1", 0, "iqn.t");
    assert_eq!(text(), made);
}

#[test]
fn multipathd_exists_only_if_it_is_installed() {
    let bench = Bench::new();
    let root = bench.dir.path().join("root");
    let (host, program) = (Host::at(&root), std::env::current_exe().unwrap());
    for (state, there) in [
        (State::Stopped, true),
        (State::Absent, false),
        (State::Excluding, true),
    ] {
        host.set_multipathd(state, &program).unwrap();
        assert_eq!(host.multipathd().unwrap(), state);
        assert_eq!(root.join("bin/multipathd").exists(), there);
    }
}

#[test]
fn session_numbers_are_never_reused() {
    let bench = Bench::new();
    let numbers = |bench: &Bench| -> Vec<u32> {
        let read = super::super::session::read(&Host::at(&bench.dir.path().join("root")));
        read.unwrap().iter().map(|session| session.sid).collect()
    };
    for iqn in ["iqn.a", "iqn.b"] {
        bench.target(iqn);
        bench.check(&format!("-m node -T {iqn} -p 127.0.0.1 -o new"), 0, "added");
        bench.check(&format!("-m node -T {iqn} -l"), 0, "successful");
    }
    assert_eq!(numbers(&bench), [1, 2]);
    // All sessions are gone, and the next one still gets a new number.
    for (out, left) in [("iqn.b", vec![1, 3]), ("iqn.a", vec![3, 4])] {
        bench.check(&format!("-m node -T {out} -u"), 0, "successful");
        bench.check(&format!("-m node -T {out} -l"), 0, "successful");
        assert_eq!(numbers(&bench), left);
    }
    bench.check("-m session -u", 0, "successful");
    bench.check("-m node -T iqn.a -l", 0, "successful");
    assert_eq!(numbers(&bench), [5]);
    // A failed login has consumed its number, as a killed one has.
    bench.targets.remove("iqn.b").unwrap();
    bench.check("-m node -T iqn.b -l", 19, "refuses");
    bench.target("iqn.b");
    bench.check("-m node -T iqn.b -l", 0, "successful");
    assert_eq!(numbers(&bench), [5, 7]);
    // Even if the counter is lost, as long as a session is alive.
    fs::remove_file(bench.dir.path().join("root/var/node-sim/last-sid")).unwrap();
    bench.check("-m node -T iqn.b -u", 0, "successful");
    bench.check("-m node -T iqn.b -l", 0, "successful");
    assert_eq!(numbers(&bench), [5, 6]);
    // An update of the host root keeps the counter as well.
    let root = bench.dir.path().join("root");
    let program = std::env::current_exe().unwrap();
    Host::init(&root, &[bench.dir.path().join("targets")], None, &program).unwrap();
    bench.check("-m session -u", 0, "successful");
    bench.check("-m node -T iqn.a -l", 0, "successful");
    assert_eq!(numbers(&bench), [7]);
}
