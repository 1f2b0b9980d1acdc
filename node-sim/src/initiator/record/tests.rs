use super::*;

fn host() -> (tempfile::TempDir, Host, Lock) {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::at(dir.path());
    let lock = Lock::take(&dir.path().join("lock")).unwrap();
    (dir, host, lock)
}

fn key(iqn: &str, port: u16) -> NodeKey {
    NodeKey {
        iqn: iqn.into(),
        address: "127.0.0.1".into(),
        port,
    }
}

fn fixed(iqn: &str, tpgt: Option<u16>) -> Record {
    Record::new(key(iqn, 3260), tpgt, Origin::Static)
}

/// Every file and link below `etc/iscsi`.
fn files(host: &Host) -> Vec<String> {
    fn walk(folder: &Path, top: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), top, found);
            } else {
                found.push(
                    entry
                        .path()
                        .strip_prefix(top)
                        .unwrap()
                        .display()
                        .to_string(),
                );
            }
        }
    }
    let mut found = Vec::new();
    walk(&host.iscsi_dir(), &host.iscsi_dir(), &mut found);
    found.sort();
    found
}

#[test]
fn the_layout_is_that_of_open_iscsi() {
    let (_dir, host, lock) = host();
    write(&host, &lock, &mut fixed("iqn.a", Some(1))).unwrap();
    write(&host, &lock, &mut fixed("iqn.b", None)).unwrap();
    let source = Origin::SendTargets {
        address: "10.0.0.5".into(),
        port: 3260,
    };
    write(
        &host,
        &lock,
        &mut Record::new(key("iqn.c", 3261), Some(2), source),
    )
    .unwrap();
    let want = [
        "nodes/iqn.a/127.0.0.1,3260,1/default",
        "nodes/iqn.b/127.0.0.1,3260",
        "nodes/iqn.c/127.0.0.1,3261,2/default",
        "send_targets/10.0.0.5,3260/iqn.c,127.0.0.1,3261,2,default",
        "static/iqn.a,127.0.0.1,3260,1,default",
    ];
    assert_eq!(files(&host), want);
    let text = fs::read_to_string(host.iscsi_dir().join(want[0])).unwrap();
    assert!(
        text.starts_with(
            "# BEGIN RECORD 2.1.9\nnode.name = iqn.a\nnode.tpgt = 1\nnode.startup = manual\n"
        ),
        "{text}"
    );
    assert!(
        text.contains("\nnode.conn[0].address = 127.0.0.1\n") && text.ends_with("# END RECORD\n"),
        "{text}"
    );
    for record in list(&host, &Pattern::default()).unwrap() {
        delete(&host, &record).unwrap();
    }
    assert!(files(&host).is_empty());
    assert!(
        store::names(&host.iscsi_dir().join("nodes"))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn records_are_read_as_written() {
    let (_dir, host, lock) = host();
    let source = Origin::SendTargets {
        address: "fd00::5".into(),
        port: 3260,
    };
    let key = NodeKey {
        iqn: "iqn.a".into(),
        address: "fd00::5".into(),
        port: 3260,
    };
    let mut record = Record::new(key, Some(1), source);
    record.set("node.session.auth.password", "a = b").unwrap();
    record.set("node.session.scan", "manual").unwrap();
    write(&host, &lock, &mut record).unwrap();
    let read = list(&host, &exactly(&record.key)).unwrap();
    assert_eq!(
        (read[0].origin.clone(), read[0].tpgt),
        (record.origin.clone(), Some(1))
    );
    for setting in SETTINGS {
        assert_eq!(
            read[0].get(setting.name),
            record.get(setting.name),
            "{}",
            setting.name
        );
    }
    assert!(
        record
            .print(false)
            .contains("node.session.auth.password = ********\n")
    );
    assert!(
        record
            .print(true)
            .contains("node.session.auth.password = a = b\n")
    );
    assert!(
        record
            .print(true)
            .contains("node.session.auth.username = <empty>\n")
    );
}

#[test]
fn settings_are_checked() {
    let mut record = fixed("iqn.a", Some(1));
    for (name, value) in [
        ("node.startup", "automatic"),
        ("node.session.timeo.replacement_timeout", "5"),
        ("node.session.xmit_thread_priority", "-20"),
        ("node.session.auth.authmethod", "CHAP"),
        ("node.conn[0].iscsi.HeaderDigest", "CRC32C,None"),
        ("node.transport_name", "tcp"),
    ] {
        record
            .set(name, value)
            .unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
    for (name, value) in [
        ("node.name", "iqn.b"),
        ("node.conn[0].port", "1"),
        ("node.session.scan", "maybe"),
        ("node.session.scan", ""),
        ("node.session.timeo.replacement_timeout", "soon"),
        ("node.session.timeo.recovery", "5"),
        ("iface.initiatorname", "iqn.me"),
        ("node.session.auth.username", "two\nlines"),
        ("iface.transport_name", "iser"),
    ] {
        let failure = record.set(name, value).expect_err(name);
        assert_eq!(failure.exit, Exit::Invalid, "{name}");
    }
    let secret = record
        .set("node.session.auth.password", "hush\n")
        .unwrap_err();
    assert!(!secret.text.contains("hush"), "{secret}");
}

#[test]
fn a_portal_group_tag_is_taken_over_and_never_lost() {
    let (_dir, host, lock) = host();
    write(&host, &lock, &mut fixed("iqn.a", None)).unwrap();
    write(&host, &lock, &mut fixed("iqn.a", Some(1))).unwrap();
    assert_eq!(files(&host)[0], "nodes/iqn.a/127.0.0.1,3260,1/default");
    write(&host, &lock, &mut fixed("iqn.a", None)).unwrap();
    assert_eq!(list(&host, &Pattern::default()).unwrap().len(), 1);
    assert_eq!(files(&host)[0], "nodes/iqn.a/127.0.0.1,3260,1/default");
}

#[test]
fn names_that_are_paths_are_refused() {
    let (_dir, host, lock) = host();
    for iqn in ["", "..", "../x", "a/b", ".x"] {
        assert_eq!(
            write(&host, &lock, &mut fixed(iqn, Some(1)))
                .unwrap_err()
                .exit,
            Exit::Invalid,
            "{iqn}"
        );
    }
}

#[test]
fn a_truncated_record_is_ignored_but_cannot_be_deleted() {
    let (_dir, host, lock) = host();
    write(&host, &lock, &mut fixed("iqn.a", None)).unwrap();
    write(&host, &lock, &mut fixed("iqn.b", None)).unwrap();
    let file = host.iscsi_dir().join("nodes/iqn.a/127.0.0.1,3260");
    let text = fs::read_to_string(&file).unwrap();
    // A last line without a newline is ignored.
    fs::write(&file, format!("{text}node.session.scan = ")).unwrap();
    assert_eq!(list(&host, &Pattern::default()).unwrap().len(), 2);
    let a = exactly(&key("iqn.a", 3260));
    for (left, name) in [(300, Some("iqn.a".to_owned())), (0, None)] {
        fs::write(&file, &text[..left]).unwrap();
        assert_eq!(list(&host, &Pattern::default()).unwrap().len(), 1);
        assert_eq!(truncated(&host).unwrap()[0].name, name);
        let blocks = must_not_be_truncated(&host, &a).is_err();
        assert_eq!(blocks, name.is_some());
        must_not_be_truncated(&host, &exactly(&key("iqn.b", 3260))).unwrap();
    }
}

#[test]
fn a_record_of_another_release_makes_listing_fail() {
    let (_dir, host, lock) = host();
    write(&host, &lock, &mut fixed("iqn.a", None)).unwrap();
    write(&host, &lock, &mut fixed("iqn.b", None)).unwrap();
    must_be_readable(&host).unwrap();
    let file = host.iscsi_dir().join("nodes/iqn.b/127.0.0.1,3260");
    let text = fs::read_to_string(&file).unwrap() + "node.future = 1\n";
    fs::write(&file, text).unwrap();
    let failure = must_be_readable(&host).unwrap_err();
    assert_eq!(failure.exit, Exit::Invalid);
    assert!(failure.text.contains("node.future"));
    // Updates and deletes still work.
    assert_eq!(list(&host, &Pattern::default()).unwrap().len(), 2);
    fs::write(host.iscsi_dir().join("nodes/stray"), "").unwrap();
    assert_eq!(
        list(&host, &Pattern::default()).unwrap_err().exit,
        Exit::Error
    );
}

#[test]
fn iscsid_conf_has_the_defaults_of_new_records() {
    let (_dir, host, _lock) = host();
    let conf = "# node.session.nr_sessions = 9\nnode.session.nr_sessions = 2\nnode.startup=automatic\nnode.name = x\nnode.session.scan = never\niscsid.startup = y\n";
    fs::create_dir_all(host.iscsi_dir()).unwrap();
    fs::write(host.iscsi_dir().join("iscsid.conf"), conf).unwrap();
    let mut record = fixed("iqn.a", None);
    record.take_defaults(&host.defaults());
    assert_eq!(record.get("node.session.nr_sessions"), "2");
    assert_eq!(record.get("node.startup"), "automatic");
    assert_eq!(record.get("node.session.scan"), "auto");
    assert_eq!(record.get("node.name"), "iqn.a");
}
