//! Tests with real loop devices, which need root: the `iscsiadm` that a driver runs.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod fixture;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::Duration;

use fixture::{Fixture, MIB, mark, node_sim, protect, until};

const IQN: &str = "iqn.2000-01.com.synology:0a1b.node1:12345678";

#[test]
fn login_attaches_the_disk_and_logout_removes_it() {
    let Some(fixture) = Fixture::new("login_attaches_the_disk_and_logout_removes_it") else {
        return;
    };
    let unit = fixture.lun("alpha", 16 * MIB);
    fixture.put(IQN, &[(1, &unit)]);
    fixture.login(IQN);
    let device = fixture.device(IQN, 1).unwrap();
    assert_eq!(mark(&device), "alpha");
    assert_eq!(fixture.bytes(IQN, 1), 16 * MIB);
    assert_eq!(fixture.serial(IQN, 1), "serial-alpha");
    let disk = fixture.disk(IQN, 1).unwrap();
    assert_eq!(
        fs::read_to_string(disk.join("wwid")).unwrap(),
        format!("naa.{}\n", unit.naa)
    );
    assert_eq!(fs::read_to_string(disk.join("state")).unwrap(), "running\n");
    let block = disk.join("block").join(device.file_name().unwrap());
    assert_eq!(
        fs::read_to_string(block.join("queue/logical_block_size")).unwrap(),
        "512\n"
    );
    assert!(
        fixture
            .root()
            .join("sys/class/block")
            .join(device.file_name().unwrap())
            .join("dev")
            .exists()
    );

    // Writes to the disk reach the LUN.
    let written = OpenOptions::new().write(true).open(&device).unwrap();
    written.write_all_at(b"written!", 4096).unwrap();
    written.sync_all().unwrap();
    drop(written);
    let mut read = [0; 8];
    File::open(&unit.file)
        .unwrap()
        .read_exact_at(&mut read, 4096)
        .unwrap();
    assert_eq!(&read, b"written!");

    fixture.check(&format!("-m node -T {IQN} -u"), 0);
    fixture.assert_clean();
    fixture.check("-m session", 21);
}

/// As with a SCSI disk, the protection ends with the disk. The loop device stays and may be reused by others.
#[test]
fn write_protection_ends_with_the_disk() {
    let Some(fixture) = Fixture::new("write_protection_ends_with_the_disk") else {
        return;
    };
    let unit = fixture.lun("alpha", 16 * MIB);
    fixture.put(IQN, &[(1, &unit)]);
    fixture.login(IQN);
    let device = fixture.device(IQN, 1).unwrap();
    let ro = Path::new("/sys/class/block")
        .join(device.file_name().unwrap())
        .join("ro");
    protect(&device);
    assert_eq!(fs::read_to_string(&ro).unwrap(), "1\n");
    fixture.check(&format!("-m node -T {IQN} -u"), 0);
    assert_eq!(fs::read_to_string(&ro).unwrap(), "0\n");
    fixture.assert_clean();
}

#[test]
fn a_grown_file_is_seen_only_after_a_rescan() {
    let Some(fixture) = Fixture::new("a_grown_file_is_seen_only_after_a_rescan") else {
        return;
    };
    let unit = fixture.lun("alpha", 16 * MIB);
    fixture.put(IQN, &[(1, &unit)]);
    fixture.login(IQN);
    let device = fixture.device(IQN, 1).unwrap();
    // A size above 4 GiB that is only a multiple of the sector size.
    let grown = (5 << 30) + 512;
    OpenOptions::new()
        .write(true)
        .open(&unit.file)
        .unwrap()
        .set_len(grown)
        .unwrap();
    fixture.check("-m session", 0);
    fixture.check(&format!("-m node -T {IQN} -p 127.0.0.1 -l"), 15);
    assert_eq!(fixture.bytes(IQN, 1), 16 * MIB);
    assert_eq!(
        fixture.status()["sessions"][0]["disks"][0]["file_bytes"],
        grown
    );

    let sid = fixture.status()["sessions"][0]["sid"].clone();
    fixture.check(&format!("-m session -r {sid} --rescan"), 0);
    assert_eq!(fixture.bytes(IQN, 1), grown);
    assert_eq!(fixture.device(IQN, 1).unwrap(), device);
    assert_eq!(fixture.status()["sessions"][0]["disks"][0]["bytes"], grown);
}

#[test]
fn a_rescan_attaches_new_luns_but_a_manual_login_does_not() {
    let Some(fixture) = Fixture::new("a_rescan_attaches_new_luns_but_a_manual_login_does_not")
    else {
        return;
    };
    let (one, two) = (fixture.lun("alpha", MIB), fixture.lun("beta", 2 * MIB));
    fixture.put(IQN, &[(1, &one)]);
    fixture.check(&format!("-m node -T {IQN} -p 127.0.0.1 -o new"), 0);
    fixture.check(
        &format!("-m node -T {IQN} -o update -n node.session.scan -v manual"),
        0,
    );
    fixture.check(&format!("-m node -T {IQN} -l"), 0);
    assert_eq!(fixture.device(IQN, 1), None);
    assert!(fixture.loops().is_empty());
    fixture.check(&format!("-m node -T {IQN} -R"), 0);
    assert_eq!(mark(&fixture.device(IQN, 1).unwrap()), "alpha");
    fixture.put(IQN, &[(1, &one), (2, &two)]);
    assert_eq!(fixture.device(IQN, 2), None);
    fixture.check("-m session -R", 0);
    assert_eq!(mark(&fixture.device(IQN, 2).unwrap()), "beta");
    assert_eq!(fixture.loops().len(), 2);
}

#[test]
fn a_rescan_notices_a_removed_target() {
    let Some(fixture) = Fixture::new("a_rescan_notices_a_removed_target") else {
        return;
    };
    let (one, other) = (fixture.lun("alpha", MIB), fixture.lun("beta", MIB));
    fixture.put(IQN, &[(1, &one)]);
    fixture.put("iqn.other", &[(1, &other)]);
    fixture.login(IQN);
    let state = || fs::read_to_string(fixture.disk(IQN, 1).unwrap().join("state")).unwrap();
    fixture.targets.remove(IQN).unwrap();
    assert_eq!(state(), "running\n");
    fixture.check("-m session -R", 0);
    assert_eq!(state(), "transport-offline\n");
    assert_eq!(fixture.status()["sessions"][0]["state"], "target lost");
    fixture.check(&format!("-m node -T {IQN} -l"), 15);
    fixture.check(&format!("-m node -T {IQN} -u"), 0);
    fixture.check(&format!("-m node -T {IQN} -l"), 19);
    fixture.assert_clean();
}

/// A fenced node must not write to the LUN when it flushes its cache.
#[test]
fn writes_of_a_fenced_node_do_not_reach_the_lun() {
    let Some(fixture) = Fixture::new("writes_of_a_fenced_node_do_not_reach_the_lun") else {
        return;
    };
    let unit = fixture.lun("alpha", MIB);
    fixture.put(IQN, &[(1, &unit)]);
    fixture.login(IQN);
    let device = fixture.device(IQN, 1).unwrap();
    // Opened exclusively, as by a mounted file system.
    let mounted = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(&device)
        .unwrap();
    mounted.write_all_at(b"early", 4096).unwrap();
    mounted.sync_all().unwrap();
    fixture.targets.remove(IQN).unwrap();
    let late = mounted.write_all_at(b"later", 8192);
    let _ = late.and_then(|()| mounted.sync_all());
    let holds = |at: u64| {
        let mut bytes = [0; 5];
        let file = File::open(&unit.file).unwrap();
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    assert_eq!(&holds(4096), b"early", "synced before");
    assert_eq!(holds(8192), [0; 5]);

    // The target is restored under its name: a session with the disk in use stays lost.
    fixture.put(IQN, &[(1, &unit)]);
    let state = || fs::read_to_string(fixture.disk(IQN, 1).unwrap().join("state")).unwrap();
    for _ in 0..2 {
        fixture.check("-m session -R", 0);
        assert_eq!(state(), "transport-offline\n");
        assert_eq!(fixture.status()["sessions"][0]["state"], "target lost");
        assert_eq!(fixture.targets.sessions(IQN).unwrap(), []);
    }
    let _ = mounted.write_all_at(b"later", 12288);
    drop(mounted);
    // The disk is not in use any more: the session logs in again and shows the LUN's current content.
    File::options()
        .write(true)
        .open(&unit.file)
        .unwrap()
        .write_all_at(b"other", 0)
        .unwrap();
    fixture.check("-m session -R", 0);
    assert_eq!(state(), "running\n");
    assert_eq!(mark(&fixture.device(IQN, 1).unwrap()), "other");
    assert_eq!(holds(12288), [0; 5]);
    assert_eq!(fixture.loops().len(), 1);
}

#[test]
fn a_lun_that_another_session_uses_keeps_its_file() {
    let Some(fixture) = Fixture::new("a_lun_that_another_session_uses_keeps_its_file") else {
        return;
    };
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let unit = fixture.lun("alpha", MIB);
    let other = "iqn.2000-01.com.synology:other";
    for iqn in [IQN, other] {
        fixture.put(iqn, &[(1, &unit)]);
        fixture.login(iqn);
    }
    let before = inode(&unit.file);
    fixture.targets.remove(IQN).unwrap();
    assert_eq!(inode(&unit.file), before);
    let device = fixture.device(other, 1).unwrap();
    let written = OpenOptions::new().write(true).open(&device).unwrap();
    written.write_all_at(b"written!", 0).unwrap();
    written.sync_all().unwrap();
    assert_eq!(&fs::read(&unit.file).unwrap()[..8], b"written!");
    fixture.targets.remove(other).unwrap();
    assert_ne!(inode(&unit.file), before);
    assert_eq!(&fs::read(&unit.file).unwrap()[..8], b"written!");

    // Without a session the file is not replaced.
    let before = inode(&unit.file);
    fixture.put(IQN, &[(1, &unit)]);
    fixture.targets.remove(IQN).unwrap();
    assert_eq!(inode(&unit.file), before);

    // A unit that is removed from a target receives no more writes either. First a rescan restores the node's session.
    fixture.put(IQN, &[(1, &unit)]);
    fixture.check("-m session -R", 0);
    assert_eq!(fixture.targets.sessions(IQN).unwrap().len(), 1);
    fixture.put(IQN, &[(1, &unit)]);
    assert_eq!(inode(&unit.file), before, "nothing has changed");
    fixture.put(IQN, &[]);
    assert_ne!(inode(&unit.file), before);
}

#[test]
fn another_lun_under_the_same_number() {
    let Some(fixture) = Fixture::new("another_lun_under_the_same_number") else {
        return;
    };
    let (one, two) = (fixture.lun("alpha", MIB), fixture.lun("beta", 2 * MIB));
    fixture.put(IQN, &[(1, &one)]);
    fixture.login(IQN);
    let device = fixture.device(IQN, 1).unwrap();
    fixture.put(IQN, &[(1, &two)]);
    assert_eq!(
        fixture.serial(IQN, 1),
        "serial-alpha",
        "cached until a rescan"
    );

    // In use: the identity is that of the new LUN, the content cannot be.
    let claimed = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(&device)
        .unwrap();
    fixture.check("-m session -R", 0);
    assert_eq!(fixture.serial(IQN, 1), "serial-beta");
    assert_eq!(mark(&fixture.device(IQN, 1).unwrap()), "alpha");
    drop(claimed);
    fixture.check("-m session -R", 0);
    assert_eq!(fixture.serial(IQN, 1), "serial-beta");
    assert_eq!(mark(&fixture.device(IQN, 1).unwrap()), "beta");
    assert_eq!(fixture.bytes(IQN, 1), 2 * MIB);
    assert_eq!(fixture.loops().len(), 1);

    // A new file with the same name is treated as another file.
    fs::remove_file(&two.file).unwrap();
    let new = fixture.lun("beta", 3 * MIB);
    assert_eq!(new.file, two.file);
    fixture.check("-m session -R", 0);
    assert_eq!(fixture.bytes(IQN, 1), 3 * MIB);
    assert_eq!(fixture.loops().len(), 1);
}

/// As with a SCSI disk, a process that looked it up before the rescan finds the new identity under the old name.
#[test]
fn a_disk_keeps_its_name_when_another_lun_gets_its_number() {
    let Some(fixture) = Fixture::new("a_disk_keeps_its_name_when_another_lun_gets_its_number")
    else {
        return;
    };
    let other = "iqn.2000-01.com.synology:other";
    let luns = ["alpha", "beta", "gamma"].map(|name| fixture.lun(name, MIB));
    fixture.put(other, &[(1, &luns[0])]);
    fixture.login(other);
    fixture.put(IQN, &[(1, &luns[1])]);
    fixture.login(IQN);
    let device = fixture.device(IQN, 1).unwrap();
    // Now the first free device has a lower number.
    fixture.check(&format!("-m node -T {other} -u"), 0);
    fixture.put(IQN, &[(1, &luns[2])]);
    fixture.check("-m session -R", 0);
    assert_eq!(fixture.device(IQN, 1).unwrap(), device);
    assert_eq!(mark(&device), "gamma");
    assert_eq!(fixture.loops().len(), 1);
}

#[test]
fn a_disk_in_use_outlives_its_logout_until_it_is_closed() {
    let Some(fixture) = Fixture::new("a_disk_in_use_outlives_its_logout_until_it_is_closed") else {
        return;
    };
    let unit = fixture.lun("alpha", MIB);
    fixture.put(IQN, &[(1, &unit)]);
    fixture.login(IQN);
    let open = File::open(fixture.device(IQN, 1).unwrap()).unwrap();
    fixture.check(&format!("-m node -T {IQN} -u"), 0);
    assert_eq!(fixture.disk(IQN, 1), None);
    assert_eq!(fixture.loops().len(), 1);
    // A new login in the meantime gets another device.
    fixture.check(&format!("-m node -T {IQN} -l"), 0);
    assert_eq!(fixture.loops().len(), 2);
    fixture.check("-m session -u", 0);
    drop(open);
    until("the loop device is gone", || fixture.loops().is_empty());
}

#[test]
fn a_login_that_cannot_attach_leaves_nothing_behind() {
    let Some(fixture) = Fixture::new("a_login_that_cannot_attach_leaves_nothing_behind") else {
        return;
    };
    let (one, mut missing) = (fixture.lun("alpha", MIB), fixture.lun("beta", MIB));
    missing.file = fixture.path("missing.img");
    fixture.put(IQN, &[(1, &one), (2, &missing)]);
    fixture.check(&format!("-m node -T {IQN} -p 127.0.0.1 -o new"), 0);
    fixture.check(&format!("-m node -T {IQN} -l"), 9);
    fixture.assert_clean();
}

#[test]
fn eight_logins_at_once() {
    let Some(fixture) = Fixture::new("eight_logins_at_once") else {
        return;
    };
    let iqns: Vec<String> = (0..8).map(|number| format!("iqn.t{number}")).collect();
    for iqn in &iqns {
        fixture.put(iqn, &[(1, &fixture.lun(&iqn[4..], MIB))]);
        fixture.check(&format!("-m node -T {iqn} -p 127.0.0.1 -o new"), 0);
    }
    let all = |line: &str| -> Vec<Option<i32>> {
        let running: Vec<Child> = iqns
            .iter()
            .map(|iqn| fixture.iscsiadm(&line.replace("IQN", iqn)).spawn().unwrap())
            .collect();
        running
            .into_iter()
            .map(|child| child.wait_with_output().unwrap().status.code())
            .collect()
    };
    assert_eq!(all("-m node -T IQN --login"), [Some(0); 8]);
    for iqn in &iqns {
        assert_eq!(mark(&fixture.device(iqn, 1).unwrap()), iqn[4..]);
    }
    assert_eq!(all("-m node -T IQN --rescan"), [Some(0); 8]);
    assert_eq!(all("-m node -T IQN --logout"), [Some(0); 8]);
    fixture.assert_clean();

    // Eight logins to the same target: one succeeds.
    let mut codes = all("-m node -T iqn.t3 --login");
    codes.sort();
    assert_eq!(codes, [[Some(0)].as_slice(), &[Some(15); 7]].concat());
    assert_eq!(fixture.loops().len(), 1);
}

#[test]
fn two_host_roots_attach_the_same_lun_independently() {
    let Some(fixture) = Fixture::new("two_host_roots_attach_the_same_lun_independently") else {
        return;
    };
    let Some(mut other) = Fixture::new("two_host_roots_attach_the_same_lun_independently") else {
        return;
    };
    other.targets = fixture.targets.clone();
    let targets = fixture.targets.dir().display().to_string();
    node_sim(&[
        "init",
        "--root",
        &other.root().display().to_string(),
        "--targets",
        &targets,
    ]);
    let unit = fixture.lun("alpha", MIB);
    fixture.put(IQN, &[(1, &unit)]);
    thread::scope(|scope| {
        scope.spawn(|| fixture.login(IQN));
        scope.spawn(|| other.login(IQN));
    });
    assert_ne!(fixture.device(IQN, 1), other.device(IQN, 1));
    assert_eq!(fixture.targets.sessions(IQN).unwrap().len(), 2);
    assert!(other.cleanup().status.success());
    assert_eq!(mark(&fixture.device(IQN, 1).unwrap()), "alpha");
    assert_eq!(fixture.targets.sessions(IQN).unwrap().len(), 1);
    fixture.check("-m session -u", 0);
}

#[test]
fn kill_9_at_any_moment_leaks_no_loop_device() {
    let Some(fixture) = Fixture::new("kill_9_at_any_moment_leaks_no_loop_device") else {
        return;
    };
    let (one, two) = (fixture.lun("alpha", MIB), fixture.lun("beta", MIB));
    fixture.put(IQN, &[(1, &one), (2, &two)]);
    fixture.check(&format!("-m node -T {IQN} -p 127.0.0.1 -o new"), 0);
    fixture.check(
        &format!("-m node -T {IQN} -o update -n node.session.scan -v manual"),
        0,
    );
    let login = format!("-m node -T {IQN} --login");
    let (mut half_made, mut undone) = (0, 0);
    for round in 0..60_u64 {
        // Login with scan, rescan that attaches, logout: each is killed at a different moment in each round.
        let scan = if round % 2 == 0 { "auto" } else { "manual" };
        fixture.check(
            &format!("-m node -T {IQN} -o update -n node.session.scan -v {scan}"),
            0,
        );
        let after = Duration::from_micros(700 * (round / 2));
        kill_after(fixture.iscsiadm(&login).spawn().unwrap(), after);
        half_made += usize::from(fixture.status()["sessions"][0]["state"] == "half-made");
        if round % 2 == 1 {
            // The next login finds a complete session or none.
            let code = fixture.iscsiadm(&login).output().unwrap().status.code();
            assert!(matches!(code, Some(0 | 15)), "{code:?}");
            kill_after(
                fixture.iscsiadm("-m session --rescan").spawn().unwrap(),
                after,
            );
            fixture.check("-m session --rescan", 0);
            assert_eq!(mark(&fixture.device(IQN, 1).unwrap()), "alpha");
            assert_eq!(mark(&fixture.device(IQN, 2).unwrap()), "beta");
            assert_eq!(fixture.loops().len(), 2);
            kill_after(
                fixture.iscsiadm("-m session --logout").spawn().unwrap(),
                after,
            );
        }
        undone += usize::from(!fixture.loops().is_empty());
        assert!(fixture.cleanup().status.success());
        fixture.assert_clean();
    }
    // Otherwise no kill was at a relevant moment.
    assert!(
        half_made > 0 && undone > 0,
        "half-made: {half_made}, undone: {undone}"
    );
}

#[test]
fn cleanup_is_idempotent_and_status_is_readable() {
    let Some(fixture) = Fixture::new("cleanup_is_idempotent_and_status_is_readable") else {
        return;
    };
    let unit = fixture.lun("alpha", 16 * MIB);
    fixture.put(IQN, &[(1, &unit)]);
    let root = fixture.root().display().to_string();
    let table = |args: &[&str]| String::from_utf8(node_sim(args).stdout).unwrap();
    assert_eq!(
        table(&["status", "--root", &root]),
        "No sessions, no node records.\n"
    );
    fixture.login(IQN);
    let status = table(&["status", "--root", &root]);
    for part in [IQN, "logged in", "16 MiB", "serial-alpha", "/dev/loop"] {
        assert!(status.contains(part), "{part} in\n{status}");
    }
    assert_eq!(
        table(&["cleanup", "--root", &root]),
        "1 session logged out.\n"
    );
    fixture.assert_clean();
    assert_eq!(
        table(&["cleanup", "--root", &root]),
        "Nothing to clean up.\n"
    );
    fixture.check("-m node", 0);
}

fn kill_after(mut child: Child, after: Duration) {
    thread::park_timeout(after);
    child.kill().unwrap();
    child.wait().unwrap();
}
