//! Compares our `iscsiadm` with the real one, command by command: records, exit codes, output and the lock of the database. Needs
//! root and the package open-iscsi, but no iSCSI in the kernel: the real one runs in a mount namespace with its own `/etc/iscsi`.
//!
//! `cargo test -p node-sim --test real -- --nocapture` lists every command with the output of both. Every difference needs a
//! reason, and an obsolete reason is a failure, too.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;

#[path = "bench/program.rs"]
mod program;

use program::{program, skip};

/// What must be equal, after normalization (see [`normalize`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agree {
    /// Exit code, standard output and standard error.
    All,
    /// Exit code and standard output; standard error differs, for this reason.
    Words(&'static str),
    /// Exit code, and each line of our output; the real one prints more, for this reason.
    Lines(&'static str),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

use Agree::{All, Lines, Nothing, Words};

const STRICT: &str = "ours is strict, and refuses invalid command lines";
const OWN_WORDS: &str = "the text of ours is shorter";
const NO_ISCSID: &str = "no login is possible without iscsid and a kernel";
const HELP: &str = "ours does not point to its help";
const IFACES: &str = "ours has only the default interface, without its settings";

/// A step of the comparison.
enum Step {
    /// Runs a command line, without the program's name.
    Run(&'static str, Agree),
    /// Writes a file below `/etc/iscsi`; `None` removes it.
    Write(&'static str, Option<&'static str>),
    /// Appends to a file.
    Append(&'static str, &'static str),
    /// Truncates a file to this number of bytes.
    Cut(&'static str, u64),
}

use Step::{Append, Cut, Run, Write};

const RECORD: &str = "nodes/iqn.a/10.0.0.5,3260";
const OTHER: &str = "nodes/iqn.other/10.0.0.9,3260";

const STEPS: &[Step] = &[
    // An empty database.
    Run("-m node", All),
    Run("-m node -P 1", All),
    Run("-m node -P 7", All),
    Run("-m node -T iqn.a", All),
    Run("-m node -T iqn.a -o update -n node.startup -v manual", All),
    Run("-m node -T iqn.a -o delete", All),
    Run("-m node -T iqn.a -p 10.0.0.5:3260 --login", All),
    Run("-m node -T iqn.a --logout", All),
    Run("-m session", All),
    Run("-m session -P 1", All),
    Run("-m session -r 3", Words(OWN_WORDS)),
    Run("-m session -r 3 --logout", Words(OWN_WORDS)),
    Run("-m session -r 3 --rescan", Words(OWN_WORDS)),
    Run("-m session -r x --logout", Nothing(STRICT)),
    Run("-m session --logout", All),
    Run("-m session --rescan", All),
    Run("-m session -o delete", Nothing(STRICT)),
    Run("-m host", Words(OWN_WORDS)),
    Run("-m discoverydb", All),
    Run("-m discovery", All),
    Run("-m iface", All),
    Run("-m iface -I nope", Nothing(IFACES)),
    // Invalid command lines.
    Run("", Words(HELP)),
    Run("-m nonsense", Words(OWN_WORDS)),
    Run("-m node --nonsense", Words(OWN_WORDS)),
    Run("-m node -o nonsense", All),
    Run("-m node -T iqn.a -o new", Nothing(STRICT)),
    Run("-m node -T iqn.a -p 10.0.0.5:99999 -o new", Nothing(STRICT)),
    Write("nodes/iqn.a/10.0.0.5,99999", None),
    // The life cycle of a record.
    Run("-m node -T iqn.a -p 10.0.0.5:3260 -o new", All),
    Run("-m node", All),
    Run("-m node -P 1", All),
    Run("-m node -p 10.0.0.5", Lines(IFACES)),
    Run(
        "-m node -T iqn.a -p 10.0.0.5:3260 -o update -n node.startup -v manual -n node.conn[0].startup -v manual \
         -n node.leading_login -v No -n node.session.nr_sessions -v 1 -n node.session.scan -v manual \
         -n node.session.timeo.replacement_timeout -v 120 -n node.session.initial_login_retry_max -v 1 \
         -n node.conn[0].timeo.login_timeout -v 15",
        All,
    ),
    Run("-m node -T iqn.a -p 10.0.0.5:3260 -o show", Lines(IFACES)),
    Run("-m node -T iqn.a -p 10.0.0.5:3260", Lines(IFACES)),
    Run(
        "-m node -T iqn.a -o update -n node.session.auth.password -v secret",
        All,
    ),
    Run("-m node -T iqn.a", Lines(IFACES)),
    Run("-m node -T iqn.a -S", Lines(IFACES)),
    Run(
        "-m node -T iqn.a -o update -n node.foo -v 1",
        Words(OWN_WORDS),
    ),
    Run(
        "-m node -T iqn.a -o update -n node.startup -v never",
        Words(OWN_WORDS),
    ),
    Run(
        "-m node -T iqn.a -o update -n node.startup",
        Words(OWN_WORDS),
    ),
    Run("-m node -T iqn.a -o update", All),
    Run("-m node -T iqn.a -o update -n iface.mtu -v 9000", All),
    Run(
        "-m node -T iqn.a -p 10.0.0.5:3260 --login",
        Nothing(NO_ISCSID),
    ),
    Run("-m node -T iqn.a -p 10.0.0.5:3260 -o new", All),
    Run("-m node -T iqn.a -p 10.0.0.5:3260", Lines(IFACES)),
    Run("-m node -T iqn.six -p [fd00::5]:3261 -o new", All),
    Run("-m node", All),
    Run("-m node -T iqn.six -p fd00::5 -o delete", All),
    Run("-m node -T iqn.six -p [fd00::5]:3261 -o delete", All),
    Run("-m node", All),
    // A record of another product and another release.
    Write(
        OTHER,
        Some(
            "# BEGIN RECORD 9.9.9\nnode.name = iqn.other\nnode.tpgt = -1\nnode.conn[0].address = 10.0.0.9\nnode.conn[0].port = 3260\n# END RECORD\n",
        ),
    ),
    Run("-m node", All),
    Append(OTHER, "node.future = 1\n"),
    Run("-m node", Words(OWN_WORDS)),
    Run("-m node -P 1", Words(OWN_WORDS)),
    Run(
        "-m node -T iqn.a -p 10.0.0.5:3260 -o show",
        Words(OWN_WORDS),
    ),
    Run(
        "-m node -T iqn.a -p 10.0.0.5:3260 -o update -n node.startup -v manual",
        All,
    ),
    Run("-m node -T iqn.a -p 10.0.0.5:3260 -o new", All),
    Run("-m node -T iqn.a -o delete", All),
    Run("-m node -T iqn.other -o delete", All),
    Run("-m node", All),
    // A truncated last line.
    Run("-m node -T iqn.a -p 10.0.0.5:3260 -o new", All),
    Append(RECORD, "node.session.scan = man"),
    Run("-m node", Words("ours does not warn of a line")),
    Run(
        "-m node -T iqn.a -p 10.0.0.5:3260 -o update -n node.startup -v manual",
        Words("ours does not warn of a line"),
    ),
    Run("-m node", All),
    // A record that was truncated by a power cut.
    Cut(RECORD, 100),
    Run("-m node", All),
    Run(
        "-m node -T iqn.a",
        Nothing("ours has no record without a portal to show"),
    ),
    Run("-m node -T iqn.a -o delete", Words(OWN_WORDS)),
    Run("-m node -T iqn.a -p 10.0.0.5:3260 -o new", Words(OWN_WORDS)),
    Cut(RECORD, 0),
    Run("-m node", All),
    Run("-m node -T iqn.a -o delete", All),
    Write(RECORD, None),
    Run("-m node", All),
    // A file among the folders of `nodes`.
    Write("nodes/stray", Some("")),
    Run("-m node", All),
    Run("-m node -T iqn.a -o delete", All),
    Write("nodes/stray", None),
    // Discovery records.
    Run("-m discoverydb -t st -p 10.0.0.5:3260 -o new", All),
    Run("-m discoverydb", All),
    Run("-m discovery", All),
    Run("-m discoverydb -t st -p 10.0.0.5:3260 -o delete", All),
    Run("-m discoverydb -t st -p 10.0.0.5:3260 -o delete", All),
    Run("-m discoverydb -t st -p 10.0.0.5:3260", All),
];

/// The real iscsiadm and ours, each with its own folder.
struct Pair {
    dir: tempfile::TempDir,
    real: PathBuf,
}

/// The result of a command: exit code, standard output, standard error.
#[derive(Debug, PartialEq, Eq)]
struct Outcome(Option<i32>, String, String);

impl Pair {
    fn new(test: &str) -> Option<Self> {
        let real = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .chain(["/sbin", "/usr/sbin"].map(PathBuf::from))
            .map(|folder| folder.join("iscsiadm"))
            .find(|path| path.is_file());
        let missing = match real {
            _ if !nix::unistd::geteuid().is_root() => "root",
            None => "the package open-iscsi (cargo ci doctor --layer test)",
            Some(real) => return Some(Self::of(&real)),
        };
        skip(test, missing);
        None
    }

    fn of(real: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let made = run_program(
            &[env!("CARGO_BIN_EXE_node-sim"), "init", "--root"],
            &[
                at("ours").to_str().unwrap(),
                "--targets",
                at("targets").to_str().unwrap(),
                "--initiator-name",
                "iqn.me",
            ],
        );
        assert_eq!(made.0, Some(0), "{made:?}");
        fs::create_dir_all(at("etc/iscsi")).unwrap();
        for name in ["passwd", "group", "nsswitch.conf", "hosts", "ld.so.cache"] {
            // Ignore missing files; they are not needed.
            let _ = fs::copy(Path::new("/etc").join(name), at("etc").join(name));
        }
        // Without iscsid the real one uses its built-in settings; give ours the same.
        let built_in =
            "node.session.initial_login_retry_max = 4\nnode.conn[0].timeo.login_timeout = 30\n";
        fs::write(at("ours/etc/iscsi/iscsid.conf"), built_in).unwrap();
        fs::write(at("etc/iscsi/iscsid.conf"), "").unwrap();
        fs::write(
            at("etc/iscsi/initiatorname.iscsi"),
            "InitiatorName=iqn.me\n",
        )
        .unwrap();
        let script = format!(
            "#!/bin/sh\nset -e\nmount --bind {0}/etc /etc\nmount -t tmpfs none /run\nmkdir -p {0}/lock /run/lock/iscsi\n\
             mount --bind {0}/lock /run/lock/iscsi\nexec {1} \"$@\"\n",
            dir.path().display(),
            real.display()
        );
        let program = at("real");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, real: program }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn real(&self, line: &str) -> Outcome {
        let real = self.real.to_str().unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        normalize(
            run_program(&["unshare", "--mount", "--net", real], &words),
            "/etc/iscsi",
        )
    }

    fn ours(&self, line: &str) -> Outcome {
        let program = self.at("ours/bin/iscsiadm");
        let words: Vec<&str> = line.split_whitespace().collect();
        let root = fs::canonicalize(self.at("ours")).unwrap();
        let etc = root.join("etc/iscsi");
        let Outcome(code, out, err) = run_program(&[program.to_str().unwrap()], &words);
        let err = err.replace(root.join("run").to_str().unwrap(), "/run");
        normalize(Outcome(code, out, err), etc.to_str().unwrap())
    }

    fn change(&self, act: impl Fn(&Path)) {
        for side in ["ours/etc/iscsi", "etc/iscsi"] {
            act(&self.at(side));
        }
    }

    fn step(&self, step: &Step, table: &mut String) -> Option<String> {
        match *step {
            Run(line, agree) => return self.compare(line, agree, table),
            Write(name, Some(text)) => self.change(|side| {
                fs::create_dir_all(side.join(name).parent().unwrap()).unwrap();
                fs::write(side.join(name), text).unwrap();
            }),
            Write(name, None) => self.change(|side| {
                let _ = fs::remove_file(side.join(name));
                let _ = fs::remove_dir(side.join(name).parent().unwrap());
            }),
            Append(name, text) => self.change(|side| {
                let mut file = fs::OpenOptions::new()
                    .append(true)
                    .open(side.join(name))
                    .unwrap();
                file.write_all(text.as_bytes()).unwrap();
            }),
            Cut(name, length) => self.change(|side| {
                let file = fs::OpenOptions::new().write(true).open(side.join(name));
                file.unwrap().set_len(length).unwrap();
            }),
        }
        None
    }

    /// A description of the difference, if it is not as expected.
    fn compare(&self, line: &str, agree: Agree, table: &mut String) -> Option<String> {
        check_agreement(line, agree, &self.real(line), &self.ours(line), table)
    }
}

fn check_agreement(
    line: &str,
    agree: Agree,
    real: &Outcome,
    ours: &Outcome,
    table: &mut String,
) -> Option<String> {
    let (code, out, err) = (real.0 == ours.0, real.1 == ours.1, real.2 == ours.2);
    let ours_in_real = ours
        .1
        .lines()
        .all(|line| real.1.lines().any(|other| other == line));
    let (holds, needed, reason) = match agree {
        All => (code && out && err, true, ""),
        Words(reason) => (code && out, !err, reason),
        Lines(reason) => (code && ours_in_real && err, !out, reason),
        Nothing(reason) => (true, !(code && out && err), reason),
    };
    let shown = |Outcome(code, out, err): &Outcome| {
        let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        format!("{} | {} | {}", code.unwrap_or(-1), first(out), first(err))
    };
    let _ = writeln!(table, "iscsiadm {line}\n  real  {}", shown(real));
    if !(code && out && err) {
        let _ = writeln!(table, "  ours  {}\n  why   {reason}", shown(ours));
    }
    (!holds || !needed).then(|| {
        let why = if holds {
            "nothing differs any more: remove the reason"
        } else {
            "they differ"
        };
        format!("iscsiadm {line} ({agree:?}): {why}\n  real {real:?}\n  ours {ours:?}")
    })
}

/// Normalizes output: paths, the release and its settings, and messages that iscsid is not running.
fn normalize(outcome: Outcome, etc: &str) -> Outcome {
    let Outcome(code, out, err) = outcome;
    let no_iscsid = |line: &&str| {
        !line.contains("iscsid is not running") && !line.contains("can not connect to iSCSI daemon")
    };
    // Settings of releases after 2.1.8 and of ours.
    let newer = |line: &&str| {
        line.starts_with("node.session.sess_reopen_log_freq = ")
            || line.starts_with("node.conn[0].tcp.congestion_control = ")
    };
    let normalize = |text: &str| {
        let mut normalized = String::new();
        let lines = text.lines().filter(no_iscsid);
        for line in lines.filter(|line| !newer(line)) {
            // The library appends the source location of the error.
            let line = line.split_once(" # idbm.c").map_or(line, |(line, _)| line);
            let line = line.split_once(" # misc.c").map_or(line, |(line, _)| line);
            let line = line
                .replace(etc, "/etc/iscsi")
                .replace("iSCSI ERROR: ", "iscsiadm: ");
            let line = match line.strip_prefix("# BEGIN RECORD ") {
                Some(_) => "# BEGIN RECORD".to_owned(),
                None => line,
            };
            let _ = writeln!(normalized, "{}", line.trim_end());
        }
        normalized
    };
    Outcome(code, normalize(&out), normalize(&err))
}

fn run_program(words: &[&str], args: &[&str]) -> Outcome {
    let outcome = program(words[0])
        .args(&words[1..])
        .args(args)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome(
        outcome.status.code(),
        text(&outcome.stdout),
        text(&outcome.stderr),
    )
}

#[test]
fn every_command_behaves_as_the_real_one() {
    let Some(pair) = Pair::new("every_command_behaves_as_the_real_one") else {
        return;
    };
    let mut table = String::new();
    let wrong: Vec<String> = STEPS
        .iter()
        .filter_map(|step| pair.step(step, &mut table))
        .collect();
    eprintln!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A stale lock of a killed process: each command waits 30 s; the commands run in parallel.
#[test]
fn a_stale_lock_is_waited_for_as_long() {
    let line = "-m node -T iqn.a -p 10.0.0.5:3260 -o update -n node.startup -v manual";
    let test = "a_stale_lock_is_waited_for_as_long";
    if Pair::new(test).is_none() {
        return;
    }
    let one = |line: &'static str, agree: Agree| {
        thread::spawn(move || {
            let pair = Pair::new(test).unwrap();
            let new = "-m node -T iqn.a -p 10.0.0.5:3260 -o new";
            let made = [pair.real(new), pair.ours(new)];
            assert!(made.iter().all(|made| made.0 == Some(0)), "{made:?}");
            for folder in ["lock", "ours/run/lock/iscsi"] {
                let folder = pair.at(folder);
                fs::hard_link(folder.join("lock"), folder.join("lock.write")).unwrap();
            }
            let started = std::time::Instant::now();
            let (real, ours) = thread::scope(|scope| {
                let real = scope.spawn(|| pair.real(line));
                let ours = scope.spawn(|| pair.ours(line));
                (real.join().unwrap(), ours.join().unwrap())
            });
            assert!(
                started.elapsed().as_secs() >= 30,
                "neither has waited for the lock"
            );
            let mut table = String::new();
            let wrong = check_agreement(line, agree, &real, &ours, &mut table);
            eprintln!("{table}");
            let left = ["lock", "ours/run/lock/iscsi"]
                .map(|folder| pair.at(folder).join("lock.write").exists());
            assert_eq!(wrong, None);
            assert_eq!(left[0], left[1], "the stale lock");
        })
    };
    let all = [one(line, All), one("-m node", Words(OWN_WORDS))];
    for one in all {
        one.join().unwrap();
    }
}
