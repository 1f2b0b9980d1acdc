//! Exit codes and output, without root: targets without LUNs need no loop devices.

use std::collections::BTreeMap;
use std::fs;

use super::super::multipathd::State;
use super::*;
use crate::target::loopdev::Targets;
use crate::target::{Chap, Credential, Target};

struct Fixture {
    dir: tempfile::TempDir,
    targets: Targets,
}

impl Fixture {
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
    fn check(&self, line: &str, exit: u8, output: &str) {
        let (got, out, err) = self.run(line);
        assert_eq!(got, exit, "{line}\n{out}{err}");
        assert!(
            format!("{out}{err}").contains(output),
            "{line}: want {output}\n{out}{err}"
        );
    }

    fn session_state(&self, sid: u32) -> String {
        let class = self.dir.path().join("root/sys/class/iscsi_session");
        fs::read_to_string(class.join(format!("session{sid}/state"))).unwrap_or_default()
    }
}

#[test]
fn commands_on_an_empty_host() {
    let fixture = Fixture::new();
    for (line, exit, output) in [
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
        fixture.check(line, exit, output);
    }
    let exit = run(
        Path::new("/nonexistent"),
        &["-m".into(), "session".into()],
        &mut Vec::new(),
        &mut Vec::new(),
    );
    assert_eq!(exit, 9);
}

#[test]
fn a_session_from_creating_its_record_to_deleting_it() {
    let fixture = Fixture::new();
    fixture.target("iqn.t");
    let node = "-m node -T iqn.t -p 127.0.0.1:3260";
    fixture.check(
        &format!("{node},1 -o new"),
        0,
        "New iSCSI node [tcp:[hw=,ip=,net_if=,iscsi_if=default] 127.0.0.1,3260,1 iqn.t] added\n",
    );
    fixture.check("-m node", 0, "127.0.0.1:3260,1 iqn.t\n");
    fixture.check(
        "-m node -P 1",
        0,
        "Target: iqn.t\n\tPortal: 127.0.0.1:3260,1\n\t\tIface Name: default\n",
    );
    fixture.check(
        &format!("{node} -o update -n node.session.timeo.replacement_timeout -v 5"),
        0,
        "",
    );
    fixture.check(node, 0, "# BEGIN RECORD 2.1.9\nnode.name = iqn.t\n");
    fixture.check(
        "-m node -o show",
        0,
        "node.session.timeo.replacement_timeout = 5\n",
    );
    fixture.check(
        &format!("{node} --login"),
        0,
        "Login to [iface: default, target: iqn.t, portal: 127.0.0.1,3260] successful.\n",
    );
    assert_eq!(
        fixture.targets.sessions("iqn.t").unwrap()[0].initiator,
        "iqn.me"
    );
    assert_eq!(fixture.session_state(1), "LOGGED_IN\n");

    fixture.check(
        &format!("{node} --login"),
        15,
        "iscsiadm: default: 1 session requested, but 1 already present.\n",
    );
    fixture.check(
        "-m session",
        0,
        "tcp: [1] 127.0.0.1:3260,1 iqn.t (non-flash)\n",
    );
    fixture.check(
        "-m session -r 1 -P 1",
        0,
        "\t\tiSCSI Session State: LOGGED_IN\n",
    );
    fixture.check("-m session -P 3", 0, "Host Number: 11\tState: running");
    fixture.check("-m session -P 4", 7, "Invalid info level 4");
    fixture.check(
        "-m session -r 1",
        0,
        "node.session.timeo.replacement_timeout = 5\n",
    );
    fixture.check("-m session -r 1 -o new", 7, "not simulated");
    fixture.check(
        "-m host",
        0,
        "tcp: [11] 127.0.0.1,[<empty>],<empty> <empty>\n",
    );
    fixture.check(
        &format!("{node} -R"),
        0,
        "Rescanning session [sid: 1, target: iqn.t, portal: 127.0.0.1,3260]\n",
    );
    fixture.check("-m session -r 1 --rescan", 0, "Rescanning session [sid: 1");
    fixture.check(&format!("{node} -o delete"), 15, "in use by a session");
    fixture.check("-m node -T iqn.other -u", 21, "No matching sessions found");
    fixture.check("-m node -p 127.0.0.2 -u", 21, "No matching sessions found");
    fixture.check(
        "-m session -r 1 -u",
        0,
        "Logout of [sid: 1, target: iqn.t, portal: 127.0.0.1,3260] successful.\n",
    );
    fixture.check("-m session", 21, "");
    assert_eq!(fixture.targets.sessions("iqn.t").unwrap(), []);
    fixture.check(&format!("{node} -l"), 0, "");
    fixture.check("-m session", 0, "tcp: [2] ");
    fixture.check(&format!("{node} -u"), 0, "");
    fixture.check(&format!("{node} -o delete"), 0, "");
    fixture.check("-m node", 21, "");
}

#[test]
fn a_new_record_over_an_old_one_has_default_settings() {
    let fixture = Fixture::new();
    for tpgt in [",1", ""] {
        let new = format!("-m node -T iqn.t{tpgt} -p 127.0.0.1:3260{tpgt} -o new")
            .replace("iqn.t,1", "iqn.t");
        fixture.check(&new, 0, "added");
        fixture.check(
            "-m node -T iqn.t -o update -n node.session.scan -v manual",
            0,
            "",
        );
        fixture.check(&new, 0, "added");
        fixture.check("-m node -T iqn.t", 0, "node.session.scan = auto\n");
        fixture.check("-m node -T iqn.t -o delete", 0, "");
    }
    fixture.check(
        "-m node -T iqn.t -p 127.0.0.1 -o new",
        0,
        "127.0.0.1,3260,-1 iqn.t] added\n",
    );
    fixture.check("-m node", 0, "127.0.0.1:3260,4294967295 iqn.t\n");
}

#[test]
fn an_invalid_update_changes_nothing() {
    let fixture = Fixture::new();
    fixture.check("-m node -T iqn.t -p 127.0.0.1,1 -o new", 0, "");
    fixture.check("-m node -T iqn.t -o update", 7, "requires name and value");
    fixture.check(
        "-m node -T iqn.t -o update -n node.session.scan -v manual -n node.bogus -v 1",
        7,
        "Invalid param name",
    );
    fixture.check("-m node -T iqn.t", 0, "node.session.scan = auto\n");
}

#[test]
fn refused_logins() {
    let fixture = Fixture::new();
    let target = fixture.target("iqn.t");
    let login = |iqn: &str, portal: &str| {
        let node = format!("-m node -T {iqn} -p {portal}");
        assert_eq!(fixture.run(&format!("{node} -o new")).0, 0);
        let (exit, _, err) = fixture.run(&format!("{node} -l"));
        assert!(
            err.contains(&format!("initiator reported error ({exit} - ")),
            "{err}"
        );
        assert!(
            err.ends_with("iscsiadm: Could not log into all portals\n"),
            "{err}"
        );
        assert_eq!(fixture.run("-m session").0, 21);
        let left = fs::read_dir(fixture.dir.path().join("root/var/node-sim/sessions"))
            .unwrap()
            .count();
        assert_eq!(left, 0);
        exit
    };
    assert_eq!(login("iqn.t", "127.0.0.1:3261"), 8, "no portal there");
    assert_eq!(login("iqn.other", "127.0.0.1:3260"), 19, "no such target");
    fixture
        .targets
        .put(&Target {
            enabled: false,
            ..target.clone()
        })
        .unwrap();
    assert_eq!(login("iqn.t", "127.0.0.1:3260"), 19, "disabled");
    fixture
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
    fixture
        .targets
        .login("iqn.t", "other-host-1", &other, None)
        .unwrap();
    assert_eq!(login("iqn.t", "127.0.0.1:3260"), 19, "too many sessions");
    fixture.targets.remove("iqn.t").unwrap();
    assert_eq!(
        login("iqn.t", "127.0.0.1:3260"),
        8,
        "a NAS without targets does not listen"
    );
}

#[test]
fn chap_and_mutual_chap() {
    let fixture = Fixture::new();
    let chap = Some(Chap {
        user: "me".into(),
        password: "secret-secret".into(),
        mutual: Some(Credential {
            user: "nas".into(),
            password: "other-secret".into(),
        }),
    });
    fixture
        .targets
        .put(&Target {
            chap,
            ..fixture.target("iqn.t")
        })
        .unwrap();
    let node = "-m node -T iqn.t -p 127.0.0.1";
    fixture.check(&format!("{node} -o new"), 0, "");
    fixture.check(&format!("{node} -l"), 24, "(24 - ");
    fixture.check(&format!("{node} -o update -n node.session.auth.authmethod -v CHAP -n node.session.auth.username -v me -n node.session.auth.password -v wrong"), 0, "");
    fixture.check(&format!("{node} -l"), 24, "(24 - ");
    fixture.check(
        &format!("{node} -o update -n node.session.auth.password -v secret-secret"),
        0,
        "",
    );
    let (_, out, _) = fixture.run(node);
    assert!(!out.contains("secret-secret"));
    let mutual = |password: &str| {
        format!(
            "{node} -o update -n node.session.auth.username_in -v nas -n node.session.auth.password_in -v {password}"
        )
    };
    fixture.check(&mutual("wrong"), 0, "");
    fixture.check(&format!("{node} -l"), 24, "(24 - ");
    fixture.check(&mutual("other-secret"), 0, "");
    fixture.check(&format!("{node} -l"), 0, "successful");
    fixture.check("-m session -P 2", 0, "username: me\n");
}

#[test]
fn discovery_creates_and_deletes_records() {
    let fixture = Fixture::new();
    fixture.target("iqn.a");
    fixture.target("iqn.b");
    let found = "127.0.0.1:3260,1 iqn.a\n127.0.0.1:3260,1 iqn.b\n";
    let node = |line: &str| fixture.run(line).1;
    fixture.check("-m discovery -t st -p 127.0.0.1 -o nonpersistent", 0, found);
    fixture.check("-m node", 21, "");
    fixture.check("-m discovery -t st -p 127.0.0.1", 0, found);
    assert_eq!(node("-m node"), found);
    fixture.check("-m discovery", 0, "127.0.0.1:3260 via sendtargets\n");
    fixture.check(
        "-m node -T iqn.a -p 127.0.0.1",
        0,
        "node.discovery_type = send_targets\n",
    );

    fixture.check("-m node -T iqn.b -l", 0, "");
    fixture.targets.remove("iqn.b").unwrap();
    fixture.check("-m discovery -t st -p 127.0.0.1", 0, "");
    assert_eq!(node("-m node"), found, "a record in use is kept");
    fixture.check("-m node -T iqn.b -u", 0, "");
    fixture.check(
        "-m node -T iqn.a -o update -n node.startup -v automatic",
        0,
        "",
    );
    fixture.check("-m discovery -t st -p 127.0.0.1 -o new -o delete", 0, "");
    assert_eq!(node("-m node"), "127.0.0.1:3260,1 iqn.a\n");
    fixture.check("-m node -T iqn.a", 0, "node.startup = automatic\n");
    fixture.check("-m discoverydb -t st -p 127.0.0.1 --discover", 0, "iqn.a");
    fixture.check("-m node -T iqn.a", 0, "node.startup = manual\n");

    fixture.check(
        "-m discovery -t st -p 127.0.0.1 -l",
        0,
        "target: iqn.a, portal: 127.0.0.1,3260] successful.\n",
    );
    fixture.check("-m node -u", 0, "");
    fixture.check(
        "-m discoverydb -t st -p 127.0.0.1 -o show",
        0,
        "discovery.sendtargets.address = 127.0.0.1\n",
    );
    fixture.check("-m discoverydb -t st -p 127.0.0.1 -o delete", 0, "");
    fixture.check("-m node", 21, "");
    let disabled = Target {
        enabled: false,
        ..fixture.target("iqn.a")
    };
    fixture.targets.put(&disabled).unwrap();
    fixture.check("-m discovery -t st -p 127.0.0.1", 21, "No portals found");
}

#[test]
fn a_target_that_is_removed_and_restored() {
    let fixture = Fixture::new();
    fixture.target("iqn.t");
    // Keeps the portal open.
    fixture.target("iqn.z");
    fixture.check("-m node -T iqn.t -p 127.0.0.1 -o new", 0, "");
    fixture.check("-m node -T iqn.t -l", 0, "");
    fixture.targets.remove("iqn.t").unwrap();
    assert_eq!(fixture.session_state(1), "LOGGED_IN\n", "not rescanned yet");
    fixture.check("-m session -R", 0, "");
    assert_eq!(fixture.session_state(1), "FAILED\n");
    fixture.check("-m session", 0, "tcp: [1] ");
    fixture.check("-m session -P 1", 0, "iSCSI Session State: FAILED\n");
    fixture.target("iqn.t");
    fixture.check("-m session -R", 0, "");
    assert_eq!(fixture.session_state(1), "LOGGED_IN\n");
    assert_eq!(fixture.targets.sessions("iqn.t").unwrap().len(), 1);
    fixture.targets.remove("iqn.t").unwrap();
    fixture.targets.remove("iqn.z").unwrap();
    fixture.check("-m session -R", 0, "");
    assert_eq!(fixture.session_state(1), "FAILED\n");
    fixture.check("-m node -T iqn.t -u", 0, "successful");
    assert_eq!(fixture.session_state(1), "");
}

#[test]
fn init_again_keeps_the_initiators_name() {
    let fixture = Fixture::new();
    let root = fixture.dir.path().join("root");
    let program = std::env::current_exe().unwrap();
    let name = || fs::read_to_string(root.join("etc/iscsi/initiatorname.iscsi")).unwrap();
    Host::init(
        &root,
        &[fixture.dir.path().join("elsewhere")],
        None,
        &program,
    )
    .unwrap();
    assert_eq!(name(), "InitiatorName=iqn.me\n");
    Host::init(
        &root,
        &[fixture.dir.path().join("targets")],
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
    fixture.target("iqn.t");
    fixture.check("-m discovery -t st -p 127.0.0.1", 7, "no InitiatorName");
}

#[test]
fn an_initiator_without_a_name_gets_one_when_iscsid_starts() {
    let fixture = Fixture::new();
    let root = fixture.dir.path().join("root");
    let host = Host::at(&root);
    let text = || fs::read_to_string(root.join("etc/iscsi/initiatorname.iscsi")).unwrap();
    assert!(!host.start_iscsid().unwrap(), "it already has a name");
    host.remove_initiator_name().unwrap();
    let program = std::env::current_exe().unwrap();
    Host::init(&root, &[fixture.dir.path().join("targets")], None, &program).unwrap();
    assert_eq!(
        text(),
        "GenerateName=yes\n",
        "like a reboot, it does not generate a name"
    );
    fixture.check("-m node", 21, "");
    assert_eq!(text(), "GenerateName=yes\n");
    assert!(host.start_iscsid().unwrap());
    let name = text();
    assert!(name.starts_with("InitiatorName=iqn.1993-08.org.debian:01:"));
    assert!(!host.start_iscsid().unwrap());
    // A discovery starts iscsid, too.
    host.remove_initiator_name().unwrap();
    fixture.target("iqn.t");
    fixture.check("-m discovery -t st -p 127.0.0.1", 0, "iqn.t");
    assert_eq!(text(), name);
}

#[test]
fn multipathd_exists_if_it_is_installed() {
    let fixture = Fixture::new();
    let root = fixture.dir.path().join("root");
    let (host, program) = (Host::at(&root), std::env::current_exe().unwrap());
    for (state, installed) in [
        (State::Stopped, true),
        (State::Absent, false),
        (State::Excluding, true),
    ] {
        host.set_multipathd(state, &program).unwrap();
        assert_eq!(host.multipathd().unwrap(), state);
        assert_eq!(root.join("bin/multipathd").exists(), installed);
    }
}

#[test]
fn a_session_id_is_never_reused() {
    let fixture = Fixture::new();
    let sids = |fixture: &Fixture| -> Vec<u32> {
        let read = super::super::session::read(&Host::at(&fixture.dir.path().join("root")));
        read.unwrap().iter().map(|session| session.sid).collect()
    };
    for iqn in ["iqn.a", "iqn.b"] {
        fixture.target(iqn);
        fixture.check(&format!("-m node -T {iqn} -p 127.0.0.1 -o new"), 0, "added");
        fixture.check(&format!("-m node -T {iqn} -l"), 0, "successful");
    }
    assert_eq!(sids(&fixture), [1, 2]);
    // Even the id of the newest session is not reused.
    for (out, left) in [("iqn.b", vec![1, 3]), ("iqn.a", vec![3, 4])] {
        fixture.check(&format!("-m node -T {out} -u"), 0, "successful");
        fixture.check(&format!("-m node -T {out} -l"), 0, "successful");
        assert_eq!(sids(&fixture), left);
    }
    fixture.check("-m session -u", 0, "successful");
    fixture.check("-m node -T iqn.a -l", 0, "successful");
    assert_eq!(sids(&fixture), [5]);
    // A failed login uses up its id, as a killed one does.
    fixture.targets.remove("iqn.b").unwrap();
    fixture.check("-m node -T iqn.b -l", 19, "refuses");
    fixture.target("iqn.b");
    fixture.check("-m node -T iqn.b -l", 0, "successful");
    assert_eq!(sids(&fixture), [5, 7]);
    // Without the counter, the ids of live sessions are not reused.
    fs::remove_file(fixture.dir.path().join("root/var/node-sim/last-sid")).unwrap();
    fixture.check("-m node -T iqn.b -u", 0, "successful");
    fixture.check("-m node -T iqn.b -l", 0, "successful");
    assert_eq!(sids(&fixture), [5, 6]);
    // An update of the host root keeps the counter.
    let root = fixture.dir.path().join("root");
    let program = std::env::current_exe().unwrap();
    Host::init(&root, &[fixture.dir.path().join("targets")], None, &program).unwrap();
    fixture.check("-m session -u", 0, "successful");
    fixture.check("-m node -T iqn.a -l", 0, "successful");
    assert_eq!(sids(&fixture), [7]);
}
