//! A real `tgtd`, without an initiator: it takes root and the package tgt, and no kernel module.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use node_sim::target::tgt::Tgt;
use node_sim::target::{Chap, LogicalUnit, Target, TargetBackend};

/// A side in a folder of its own. Its daemon ends with the test, even with one that fails.
struct Bench {
    side: Tgt,
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
        let side = Tgt::open(&dir.path().join("tgt"), vec![portal]).unwrap();
        Some(Self { side, portal, dir })
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

    /// As after `kill -9` of whoever used the side: nothing is remembered but the folder.
    fn again(&self) -> Tgt {
        Tgt::open(&self.dir.path().join("tgt"), vec![self.portal]).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.side.close().unwrap();
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
    let side = &bench.side;
    side.align(&[]).unwrap();
    assert!(!bench.listens(), "without a target");
    // Each step is read back by the side itself: it fails when the daemon shows anything else.
    let mut target = bench.target("iqn.t", &["one", "two"]);
    side.put(&target).unwrap();
    assert!(bench.listens());
    side.put(&target).unwrap();
    target.luns.get_mut(&1).unwrap().unmap = false;
    side.put(&target).unwrap();
    let grown = File::options()
        .write(true)
        .open(&target.luns[&1].file)
        .unwrap();
    grown.set_len(5 << 20).unwrap();
    side.put(&target).unwrap();
    target.chap = Some(chap("secretsecret12"));
    side.put(&target).unwrap();
    target.chap = Some(chap("secretsecret34"));
    target.luns.remove(&1);
    side.put(&target).unwrap();
    target.enabled = false;
    side.put(&target).unwrap();
    let clash = Target {
        iqn: "iqn.clash".to_owned(),
        chap: Some(chap("secretsecret56")),
        ..target.clone()
    };
    let wrong = side.put(&clash).unwrap_err().to_string();
    assert!(wrong.contains("joe"), "{wrong}");
    assert_eq!(side.sessions("iqn.t").unwrap(), []);
    side.remove("iqn.t").unwrap();
    side.remove("iqn.t").unwrap();
    assert!(!bench.listens(), "the last target is gone");
    // With the old target its account is gone too.
    side.put(&clash).unwrap();
    assert!(bench.listens());
}

#[test]
fn the_daemon_of_an_earlier_life_is_found_and_made_to_follow() {
    let Some(bench) = Bench::new("the_daemon_of_an_earlier_life_is_found_and_made_to_follow")
    else {
        return;
    };
    let mut kept = bench.target("iqn.kept", &["one"]);
    kept.chap = Some(chap("secretsecret12"));
    bench
        .side
        .align(&[kept.clone(), bench.target("iqn.stray", &["two"])])
        .unwrap();
    let port = fs::read_to_string(bench.dir.path().join("tgt/control-port")).unwrap();
    let socket = format!("/var/run/tgtd/socket.{port}");
    assert!(Path::new(&socket).exists());

    let again = bench.again();
    again.align(std::slice::from_ref(&kept)).unwrap();
    assert!(bench.listens());
    // The stray's file is nobody's any more, and the account of before is no obstacle.
    kept.chap = Some(chap("secretsecret34"));
    again.put(&kept).unwrap();
    again.close().unwrap();
    again.close().unwrap();
    assert!(!bench.listens());
    assert!(!Path::new(&socket).exists());
    // Whoever comes next starts a new one.
    again.put(&kept).unwrap();
    assert!(bench.listens());
}

#[test]
fn a_portal_that_is_taken_is_named() {
    let Some(bench) = Bench::new("a_portal_that_is_taken_is_named") else {
        return;
    };
    let _taken = TcpListener::bind(bench.portal).unwrap();
    let wrong = bench.side.align(&[]).unwrap_err().to_string();
    assert!(wrong.contains(&bench.portal.to_string()), "{wrong}");
}
