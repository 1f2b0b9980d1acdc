//! Tests with a real `tgtd`, without an initiator. They need root and the package tgt, but no kernel module.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use node_sim::target::tgt::Tgt;
use node_sim::target::{Chap, LogicalUnit, Target, TargetBackend};

/// A backend in its own directory. Its daemon is stopped after the test, even if it fails.
struct Fixture {
    backend: Tgt,
    portal: SocketAddr,
    dir: tempfile::TempDir,
}

impl Fixture {
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

    /// Opens the backend again, as after a `kill -9` of its user: only the directory is left.
    fn reopen(&self) -> Tgt {
        Tgt::open(&self.dir.path().join("tgt"), vec![self.portal]).unwrap()
    }
}

impl Drop for Fixture {
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
fn a_target_is_created_grown_changed_and_removed() {
    let Some(fixture) = Fixture::new("a_target_is_created_grown_changed_and_removed") else {
        return;
    };
    let backend = &fixture.backend;
    backend.reconcile(&[]).unwrap();
    assert!(!fixture.listens(), "without a target");
    // The backend verifies each step: it fails if the daemon shows anything else.
    let mut target = fixture.target("iqn.t", &["one", "two"]);
    backend.put(&target).unwrap();
    assert!(fixture.listens());
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
    assert!(!fixture.listens(), "the last target is gone");
    // The account of the old target was removed with it.
    backend.put(&clash).unwrap();
    assert!(fixture.listens());
}

#[test]
fn the_daemon_of_an_earlier_process_is_found_and_updated() {
    let Some(fixture) = Fixture::new("the_daemon_of_an_earlier_process_is_found_and_updated")
    else {
        return;
    };
    let mut kept = fixture.target("iqn.kept", &["one"]);
    kept.chap = Some(chap("secretsecret12"));
    fixture
        .backend
        .reconcile(&[kept.clone(), fixture.target("iqn.stray", &["two"])])
        .unwrap();
    let port = fs::read_to_string(fixture.dir.path().join("tgt/control-port")).unwrap();
    let socket = format!("/var/run/tgtd/socket.{port}");
    assert!(Path::new(&socket).exists());

    let reopen = fixture.reopen();
    reopen.reconcile(std::slice::from_ref(&kept)).unwrap();
    assert!(fixture.listens());
    // The stale target and the old account are not in the way.
    kept.chap = Some(chap("secretsecret34"));
    reopen.put(&kept).unwrap();
    reopen.close().unwrap();
    reopen.close().unwrap();
    assert!(!fixture.listens());
    assert!(!Path::new(&socket).exists());
    // The next change starts a new daemon.
    reopen.put(&kept).unwrap();
    assert!(fixture.listens());
}

#[test]
fn a_portal_in_use_is_named() {
    let Some(fixture) = Fixture::new("a_portal_in_use_is_named") else {
        return;
    };
    let _taken = TcpListener::bind(fixture.portal).unwrap();
    let error = fixture.backend.reconcile(&[]).unwrap_err().to_string();
    assert!(error.contains(&fixture.portal.to_string()), "{error}");
}
