//! Tests with a real `tgtd`, without an initiator. They need root and the package tgt, but no kernel module.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use node_sim::target::tgt::Tgt;
use node_sim::target::{Chap, LogicalUnit, Target, TargetBackend};

/// A target backend with its own folder. Its daemon is stopped at the end of the test, even if it fails.
struct Bench {
    backend: Tgt,
    portal: SocketAddr,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(test: &str) -> Option<Self> {
        let missing = if nix::unistd::geteuid().is_root() {
            let found = |dir| Path::new(dir).join("tgtd").exists();
            (!["/usr/sbin", "/usr/bin", "/sbin"].into_iter().any(found))
                .then_some("the package tgt")
        } else {
            Some("root")
        };
        if let Some(missing) = missing {
            eprintln!("SKIP: {test} needs {missing}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let portal = free_port();
        let backend = Tgt::open(&dir.path().join("tgt"), vec![portal]).unwrap();
        Some(Self {
            backend,
            portal,
            dir,
        })
    }

    fn target(&self, iqn: &str, serials: &[&str]) -> Target {
        let unit = |serial: &&str| {
            let file = self.dir.path().join(serial);
            if !file.exists() {
                File::create(&file).unwrap().set_len(1 << 20).unwrap();
            }
            LogicalUnit {
                file,
                serial: (*serial).to_owned(),
                naa: "600140513a3cd1edf296d4d4bdb712da".to_owned(),
                vendor: "SYNOLOGY".to_owned(),
                product: "Storage".to_owned(),
                revision: "4.0".to_owned(),
                unmap: true,
                write_cache: true,
            }
        };
        Target {
            iqn: iqn.to_owned(),
            enabled: true,
            max_sessions: 0,
            portals: vec![self.portal],
            luns: (1..).zip(serials.iter().map(unit)).collect(),
            chap: None,
        }
    }

    fn listens(&self) -> bool {
        TcpStream::connect(self.portal).is_ok()
    }

    /// A new backend for the same folder, as after `kill -9` of the previous caller.
    fn restarted(&self) -> Tgt {
        Tgt::open(&self.dir.path().join("tgt"), vec![self.portal]).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.backend.close().unwrap();
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

fn chap(password: &str) -> Chap {
    Chap {
        user: "joe".to_owned(),
        password: password.to_owned(),
        mutual: None,
    }
}

#[test]
fn a_target_is_made_grown_changed_and_removed() {
    let Some(bench) = Bench::new("a_target_is_made_grown_changed_and_removed") else {
        return;
    };
    let backend = &bench.backend;
    backend.align(&[]).unwrap();
    assert!(!bench.listens(), "without a target");
    // The backend itself verifies each step: it fails if the daemon shows anything else.
    let mut target = bench.target("iqn.t", &["one", "two"]);
    backend.put(&target).unwrap();
    assert!(bench.listens());
    backend.put(&target).unwrap();
    target.luns.get_mut(&1).unwrap().unmap = false;
    backend.put(&target).unwrap();
    let grown = File::options()
        .write(true)
        .open(&target.luns[&1].file)
        .unwrap();
    grown.set_len(5 << 20).unwrap();
    backend.put(&target).unwrap();
    target.chap = Some(chap("secretsecret12"));
    backend.put(&target).unwrap();
    target.chap = Some(chap("secretsecret34"));
    target.luns.remove(&1);
    backend.put(&target).unwrap();
    target.enabled = false;
    backend.put(&target).unwrap();
    let clash = Target {
        iqn: "iqn.clash".to_owned(),
        chap: Some(chap("secretsecret56")),
        ..target.clone()
    };
    let error = backend.put(&clash).unwrap_err().to_string();
    assert!(error.contains("joe"), "{error}");
    assert_eq!(backend.sessions("iqn.t").unwrap(), []);
    backend.remove("iqn.t").unwrap();
    backend.remove("iqn.t").unwrap();
    assert!(!bench.listens(), "the last target is gone");
    // The account was removed with the old target.
    backend.put(&clash).unwrap();
    assert!(bench.listens());
}

#[test]
fn the_daemon_of_an_earlier_caller_is_found_and_updated() {
    let Some(bench) = Bench::new("the_daemon_of_an_earlier_caller_is_found_and_updated") else {
        return;
    };
    let mut kept = bench.target("iqn.kept", &["one"]);
    kept.chap = Some(chap("secretsecret12"));
    bench
        .backend
        .align(&[kept.clone(), bench.target("iqn.stray", &["two"])])
        .unwrap();
    let port = fs::read_to_string(bench.dir.path().join("tgt/control-port")).unwrap();
    let socket = format!("/var/run/tgtd/socket.{port}");
    assert!(Path::new(&socket).exists());

    let restarted = bench.restarted();
    restarted.align(std::slice::from_ref(&kept)).unwrap();
    assert!(bench.listens());
    // The leftover target is gone, and the earlier account does not conflict.
    kept.chap = Some(chap("secretsecret34"));
    restarted.put(&kept).unwrap();
    restarted.close().unwrap();
    restarted.close().unwrap();
    assert!(!bench.listens());
    assert!(!Path::new(&socket).exists());
    // The next change starts a new daemon.
    restarted.put(&kept).unwrap();
    assert!(bench.listens());
}

#[test]
fn the_error_names_a_portal_that_is_in_use() {
    let Some(bench) = Bench::new("the_error_names_a_portal_that_is_in_use") else {
        return;
    };
    let _taken = TcpListener::bind(bench.portal).unwrap();
    let error = bench.backend.align(&[]).unwrap_err().to_string();
    assert!(error.contains(&bench.portal.to_string()), "{error}");
}
