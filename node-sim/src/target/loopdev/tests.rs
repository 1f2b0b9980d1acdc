use std::collections::BTreeMap;

use super::*;
use crate::target::{Credential, LogicalUnit};

const IQN: &str = "iqn.2000-01.com.synology:0a1b.node1:12345678";

fn target(iqn: &str) -> Target {
    let lun = LogicalUnit {
        file: "/volume1/lun.img".into(),
        serial: "0a1b".into(),
        naa: "6001405".repeat(5)[..32].into(),
        vendor: "SYNOLOGY".into(),
        product: "Storage".into(),
        revision: "4.0".into(),
        unmap: true,
        write_cache: true,
    };
    Target {
        iqn: iqn.into(),
        enabled: true,
        max_sessions: 0,
        portals: vec!["127.0.0.1:3260".parse().unwrap()],
        luns: BTreeMap::from([(1, lun)]),
        chap: None,
    }
}

fn session() -> Session {
    Session {
        initiator: "iqn.1993-08.org.debian:01:abc".into(),
        address: "127.0.0.1".parse().unwrap(),
    }
}

fn targets() -> (tempfile::TempDir, Targets) {
    let dir = tempfile::tempdir().unwrap();
    let targets = Targets::open(&dir.path().join("targets")).unwrap();
    (dir, targets)
}

#[test]
fn put_get_list_remove() {
    let (_dir, targets) = targets();
    assert_eq!(targets.list().unwrap(), []);
    targets.put(&target("iqn.b")).unwrap();
    targets.put(&target("iqn.a")).unwrap();
    let mut changed = target("iqn.a");
    changed.enabled = false;
    targets.put(&changed).unwrap();
    assert_eq!(targets.get("iqn.a").unwrap(), Some(changed.clone()));
    assert_eq!(targets.list().unwrap(), [changed, target("iqn.b")]);
    targets.remove("iqn.a").unwrap();
    targets.remove("iqn.a").unwrap();
    assert_eq!(targets.get("iqn.a").unwrap(), None);
    assert_eq!(targets.list().unwrap(), [target("iqn.b")]);
}

#[test]
fn unusual_names_stay_in_the_directory_and_are_unique() {
    let (dir, targets) = targets();
    for iqn in [
        "../../evil",
        "a/b",
        "a%2Fb",
        ".hidden",
        "a b",
        "A",
        "a",
        "ü",
    ] {
        targets.put(&target(iqn)).unwrap();
        assert_eq!(targets.get(iqn).unwrap().unwrap().iqn, iqn);
    }
    assert_eq!(targets.list().unwrap().len(), 8);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(targets.put(&target("")).is_err());
    assert!(targets.put(&target(&"x".repeat(224))).is_err());
    assert_eq!(targets.get(&"x".repeat(224)).unwrap(), None);
}

#[test]
fn a_session_lives_until_logout_or_until_its_target_is_removed() {
    let (_dir, targets) = targets();
    targets.put(&target(IQN)).unwrap();
    targets.login(IQN, "h-1", &session(), None).unwrap();
    targets.login(IQN, "h-1", &session(), None).unwrap();
    targets.login(IQN, "h-2", &session(), None).unwrap();
    assert_eq!(targets.sessions(IQN).unwrap(), [session(), session()]);
    targets.logout(IQN, "h-2").unwrap();
    targets.logout(IQN, "h-2").unwrap();
    assert_eq!(targets.sessions(IQN).unwrap(), [session()]);
    targets.put(&target(IQN)).unwrap();
    assert!(targets.attached(IQN, "h-1").unwrap().is_some());
    targets.remove(IQN).unwrap();
    assert_eq!(targets.sessions(IQN).unwrap(), []);
    // A later target of the same name does not know the old session.
    targets.put(&target(IQN)).unwrap();
    assert!(targets.attached(IQN, "h-1").unwrap().is_none());
}

#[test]
fn logins_are_refused_for_each_reason() {
    let (_dir, targets) = targets();
    let login = |key, offered: Option<&Chap>| targets.login(IQN, key, &session(), offered);
    assert!(matches!(login("k", None), Err(Refusal::NoTarget)));
    let chap = Chap {
        user: "u".into(),
        password: "secret-secret".into(),
        mutual: None,
    };
    let wanted = Target {
        max_sessions: 1,
        chap: Some(chap.clone()),
        ..target(IQN)
    };
    targets.put(&wanted).unwrap();
    assert!(matches!(login("k", None), Err(Refusal::Authentication)));
    let wrong = Chap {
        password: "x".into(),
        ..chap.clone()
    };
    assert!(matches!(
        login("k", Some(&wrong)),
        Err(Refusal::Authentication)
    ));
    login("k", Some(&chap)).unwrap();
    assert!(matches!(
        login("other", Some(&chap)),
        Err(Refusal::SessionLimit)
    ));
    login("k", Some(&chap)).unwrap();
    targets
        .put(&Target {
            enabled: false,
            ..wanted
        })
        .unwrap();
    assert!(matches!(login("k", Some(&chap)), Err(Refusal::NoTarget)));
    assert!(!format!("{chap:?}").contains("secret"));
}

#[test]
fn mutual_chap_needs_the_right_credentials_of_the_target() {
    let (_dir, targets) = targets();
    let nas = |password: &str| Credential {
        user: "nas".into(),
        password: password.into(),
    };
    let chap = |mutual| Chap {
        user: "u".into(),
        password: "secret-secret".into(),
        mutual,
    };
    let login = |offered: &Chap| targets.login(IQN, "k", &session(), Some(offered));
    let put = |chap| {
        targets
            .put(&Target {
                chap,
                ..target(IQN)
            })
            .unwrap();
    };
    put(Some(chap(Some(nas("other-secret")))));
    login(&chap(Some(nas("other-secret")))).unwrap();
    login(&chap(None)).unwrap();
    let wrong = login(&chap(Some(nas("x"))));
    assert!(matches!(wrong, Err(Refusal::Authentication)));
    put(Some(chap(None)));
    let none = login(&chap(Some(nas("other-secret"))));
    assert!(matches!(none, Err(Refusal::Authentication)));
    put(None);
    login(&chap(None)).unwrap();
    assert!(!format!("{:?}", chap(Some(nas("hush")))).contains("hush"));
}

#[test]
fn a_file_from_before_mutual_chap_can_be_read() {
    let old = r#"{"user": "u", "password": "p"}"#;
    let chap: Chap = serde_json::from_str(old).unwrap();
    assert_eq!(chap.mutual, None);
}

#[test]
fn align_exports_exactly_these_targets() {
    let (_dir, targets) = targets();
    targets.put(&target("iqn.a")).unwrap();
    targets.put(&target("iqn.b")).unwrap();
    targets
        .reconcile(&[target("iqn.b"), target("iqn.c")])
        .unwrap();
    assert_eq!(targets.list().unwrap(), [target("iqn.b"), target("iqn.c")]);
}

#[test]
fn other_targets_are_read_only_if_a_unit_is_removed() {
    let (_dir, targets) = targets();
    targets.put(&target(IQN)).unwrap();
    targets.login(IQN, "key", &session(), None).unwrap();
    // Reading all targets fails at this one.
    fs::write(targets.dir().join("iqn.broken.json"), "{").unwrap();
    targets.list().unwrap_err();
    let mut changed = target(IQN);
    changed.enabled = false;
    targets.put(&changed).unwrap();
    targets.logout(IQN, "key").unwrap();
    targets.remove(IQN).unwrap();
}
