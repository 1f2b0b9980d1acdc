//! Tests with real loop devices behind our `iscsiadm`. They need root.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bench;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::Duration;

use bench::{Bench, MIB, label, node_sim, protect, until};

const IQN: &str = "iqn.2000-01.com.synology:0a1b.node1:12345678";

#[test]
fn login_shows_the_disk_and_logout_takes_it_away() {
    let Some(bench) = Bench::new("login_shows_the_disk_and_logout_takes_it_away") else {
        return;
    };
    let unit = bench.lun("alpha", 16 * MIB);
    bench.put(IQN, &[(1, &unit)]);
    bench.login(IQN);
    let device = bench.device(IQN, 1).unwrap();
    assert_eq!(label(&device), "alpha");
    assert_eq!(bench.bytes(IQN, 1), 16 * MIB);
    assert_eq!(bench.serial(IQN, 1), "serial-alpha");
    let disk = bench.disk(IQN, 1).unwrap();
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
        bench
            .root()
            .join("sys/class/block")
            .join(device.file_name().unwrap())
            .join("dev")
            .exists()
    );

    // Writes to the disk are in the LUN's file.
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

    bench.check(&format!("-m node -T {IQN} -u"), 0);
    bench.assert_clean();
    bench.check("-m session", 21);
}

/// As with a SCSI disk, the protection ends with the disk, although the loop device is reused.
#[test]
fn write_protection_ends_with_the_disk() {
    let Some(bench) = Bench::new("write_protection_ends_with_the_disk") else {
        return;
    };
    let unit = bench.lun("alpha", 16 * MIB);
    bench.put(IQN, &[(1, &unit)]);
    bench.login(IQN);
    let device = bench.device(IQN, 1).unwrap();
    let ro = Path::new("/sys/class/block")
        .join(device.file_name().unwrap())
        .join("ro");
    protect(&device);
    assert_eq!(fs::read_to_string(&ro).unwrap(), "1\n");
    bench.check(&format!("-m node -T {IQN} -u"), 0);
    assert_eq!(fs::read_to_string(&ro).unwrap(), "0\n");
    bench.assert_clean();
}

#[test]
fn a_grown_file_is_seen_only_after_a_rescan() {
    let Some(bench) = Bench::new("a_grown_file_is_seen_only_after_a_rescan") else {
        return;
    };
    let unit = bench.lun("alpha", 16 * MIB);
    bench.put(IQN, &[(1, &unit)]);
    bench.login(IQN);
    let device = bench.device(IQN, 1).unwrap();
    // A size beyond 4 GiB that is a multiple of sectors only.
    let grown = (5 << 30) + 512;
    OpenOptions::new()
        .write(true)
        .open(&unit.file)
        .unwrap()
        .set_len(grown)
        .unwrap();
    bench.check("-m session", 0);
    bench.check(&format!("-m node -T {IQN} -p 127.0.0.1 -l"), 15);
    assert_eq!(bench.bytes(IQN, 1), 16 * MIB);
    assert_eq!(
        bench.status()["sessions"][0]["disks"][0]["file_bytes"],
        grown
    );

    let sid = bench.status()["sessions"][0]["sid"].clone();
    bench.check(&format!("-m session -r {sid} --rescan"), 0);
    assert_eq!(bench.bytes(IQN, 1), grown);
    assert_eq!(bench.device(IQN, 1).unwrap(), device);
    assert_eq!(bench.status()["sessions"][0]["disks"][0]["bytes"], grown);
}

#[test]
fn a_rescan_attaches_new_luns_and_a_manual_login_none() {
    let Some(bench) = Bench::new("a_rescan_attaches_new_luns_and_a_manual_login_none") else {
        return;
    };
    let (one, two) = (bench.lun("alpha", MIB), bench.lun("beta", 2 * MIB));
    bench.put(IQN, &[(1, &one)]);
    bench.check(&format!("-m node -T {IQN} -p 127.0.0.1 -o new"), 0);
    bench.check(
        &format!("-m node -T {IQN} -o update -n node.session.scan -v manual"),
        0,
    );
    bench.check(&format!("-m node -T {IQN} -l"), 0);
    assert_eq!(bench.device(IQN, 1), None);
    assert!(bench.loops().is_empty());
    bench.check(&format!("-m node -T {IQN} -R"), 0);
    assert_eq!(label(&bench.device(IQN, 1).unwrap()), "alpha");
    bench.put(IQN, &[(1, &one), (2, &two)]);
    assert_eq!(bench.device(IQN, 2), None);
    bench.check("-m session -R", 0);
    assert_eq!(label(&bench.device(IQN, 2).unwrap()), "beta");
    assert_eq!(bench.loops().len(), 2);
}

#[test]
fn a_target_that_is_removed_is_noticed_by_a_rescan() {
    let Some(bench) = Bench::new("a_target_that_is_removed_is_noticed_by_a_rescan") else {
        return;
    };
    let (one, other) = (bench.lun("alpha", MIB), bench.lun("beta", MIB));
    bench.put(IQN, &[(1, &one)]);
    bench.put("iqn.other", &[(1, &other)]);
    bench.login(IQN);
    let state = || fs::read_to_string(bench.disk(IQN, 1).unwrap().join("state")).unwrap();
    bench.targets.remove(IQN).unwrap();
    assert_eq!(state(), "running\n");
    bench.check("-m session -R", 0);
    assert_eq!(state(), "transport-offline\n");
    assert_eq!(bench.status()["sessions"][0]["state"], "target lost");
    bench.check(&format!("-m node -T {IQN} -l"), 15);
    bench.check(&format!("-m node -T {IQN} -u"), 0);
    bench.check(&format!("-m node -T {IQN} -l"), 19);
    bench.assert_clean();
}

/// A node that was cut off must not write into the LUN when it flushes what it has.
#[test]
fn writes_of_a_cut_off_node_do_not_reach_the_lun() {
    let Some(bench) = Bench::new("writes_of_a_cut_off_node_do_not_reach_the_lun") else {
        return;
    };
    let unit = bench.lun("alpha", MIB);
    bench.put(IQN, &[(1, &unit)]);
    bench.login(IQN);
    let device = bench.device(IQN, 1).unwrap();
    // In use, as by a mounted file system.
    let mounted = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(&device)
        .unwrap();
    mounted.write_all_at(b"early", 4096).unwrap();
    mounted.sync_all().unwrap();
    bench.targets.remove(IQN).unwrap();
    let late = mounted.write_all_at(b"later", 8192);
    let _ = late.and_then(|()| mounted.sync_all());
    let holds = |at: u64| {
        let mut bytes = [0; 5];
        let file = File::open(&unit.file).unwrap();
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    assert_eq!(&holds(4096), b"early", "what was synced before is there");
    assert_eq!(holds(8192), [0; 5]);

    // The target is back under its name: the session stays lost while its disk is in use.
    bench.put(IQN, &[(1, &unit)]);
    let state = || fs::read_to_string(bench.disk(IQN, 1).unwrap().join("state")).unwrap();
    for _ in 0..2 {
        bench.check("-m session -R", 0);
        assert_eq!(state(), "transport-offline\n");
        assert_eq!(bench.status()["sessions"][0]["state"], "target lost");
        assert_eq!(bench.targets.sessions(IQN).unwrap(), []);
    }
    let _ = mounted.write_all_at(b"later", 12288);
    drop(mounted);
    // The disk is no longer in use: the session logs in again and shows the current LUN.
    File::options()
        .write(true)
        .open(&unit.file)
        .unwrap()
        .write_all_at(b"other", 0)
        .unwrap();
    bench.check("-m session -R", 0);
    assert_eq!(state(), "running\n");
    assert_eq!(label(&bench.device(IQN, 1).unwrap()), "other");
    assert_eq!(holds(12288), [0; 5]);
    assert_eq!(bench.loops().len(), 1);
}

#[test]
fn a_lun_that_another_session_has_keeps_its_file() {
    let Some(bench) = Bench::new("a_lun_that_another_session_has_keeps_its_file") else {
        return;
    };
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let unit = bench.lun("alpha", MIB);
    let other = "iqn.2000-01.com.synology:other";
    for iqn in [IQN, other] {
        bench.put(iqn, &[(1, &unit)]);
        bench.login(iqn);
    }
    let before = inode(&unit.file);
    bench.targets.remove(IQN).unwrap();
    assert_eq!(inode(&unit.file), before);
    let device = bench.device(other, 1).unwrap();
    let written = OpenOptions::new().write(true).open(&device).unwrap();
    written.write_all_at(b"written!", 0).unwrap();
    written.sync_all().unwrap();
    assert_eq!(&fs::read(&unit.file).unwrap()[..8], b"written!");
    bench.targets.remove(other).unwrap();
    assert_ne!(inode(&unit.file), before);
    assert_eq!(&fs::read(&unit.file).unwrap()[..8], b"written!");

    // Without a session the file need not be replaced.
    let before = inode(&unit.file);
    bench.put(IQN, &[(1, &unit)]);
    bench.targets.remove(IQN).unwrap();
    assert_eq!(inode(&unit.file), before);

    // A unit that is removed from a target is cut off, too. First a rescan restores the session.
    bench.put(IQN, &[(1, &unit)]);
    bench.check("-m session -R", 0);
    assert_eq!(bench.targets.sessions(IQN).unwrap().len(), 1);
    bench.put(IQN, &[(1, &unit)]);
    assert_eq!(inode(&unit.file), before, "nothing has changed");
    bench.put(IQN, &[]);
    assert_ne!(inode(&unit.file), before);
}

#[test]
fn another_lun_under_the_same_number() {
    let Some(bench) = Bench::new("another_lun_under_the_same_number") else {
        return;
    };
    let (one, two) = (bench.lun("alpha", MIB), bench.lun("beta", 2 * MIB));
    bench.put(IQN, &[(1, &one)]);
    bench.login(IQN);
    let device = bench.device(IQN, 1).unwrap();
    bench.put(IQN, &[(1, &two)]);
    assert_eq!(
        bench.serial(IQN, 1),
        "serial-alpha",
        "cached until the next rescan"
    );

    // In use: the rescan shows the new identity, but still the old content.
    let claimed = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(&device)
        .unwrap();
    bench.check("-m session -R", 0);
    assert_eq!(bench.serial(IQN, 1), "serial-beta");
    assert_eq!(label(&bench.device(IQN, 1).unwrap()), "alpha");
    drop(claimed);
    bench.check("-m session -R", 0);
    assert_eq!(bench.serial(IQN, 1), "serial-beta");
    assert_eq!(label(&bench.device(IQN, 1).unwrap()), "beta");
    assert_eq!(bench.bytes(IQN, 1), 2 * MIB);
    assert_eq!(bench.loops().len(), 1);

    // A new file with the same name counts as another file.
    fs::remove_file(&two.file).unwrap();
    let again = bench.lun("beta", 3 * MIB);
    assert_eq!(again.file, two.file);
    bench.check("-m session -R", 0);
    assert_eq!(bench.bytes(IQN, 1), 3 * MIB);
    assert_eq!(bench.loops().len(), 1);
}

/// As with a SCSI disk, the new identity appears under the old device name.
#[test]
fn a_disk_keeps_its_name_when_another_lun_takes_its_number() {
    let Some(bench) = Bench::new("a_disk_keeps_its_name_when_another_lun_takes_its_number") else {
        return;
    };
    let other = "iqn.2000-01.com.synology:other";
    let luns = ["alpha", "beta", "gamma"].map(|name| bench.lun(name, MIB));
    bench.put(other, &[(1, &luns[0])]);
    bench.login(other);
    bench.put(IQN, &[(1, &luns[1])]);
    bench.login(IQN);
    let device = bench.device(IQN, 1).unwrap();
    // From now on the first free device has a lower number.
    bench.check(&format!("-m node -T {other} -u"), 0);
    bench.put(IQN, &[(1, &luns[2])]);
    bench.check("-m session -R", 0);
    assert_eq!(bench.device(IQN, 1).unwrap(), device);
    assert_eq!(label(&device), "gamma");
    assert_eq!(bench.loops().len(), 1);
}

#[test]
fn a_disk_in_use_outlives_its_logout_until_it_is_closed() {
    let Some(bench) = Bench::new("a_disk_in_use_outlives_its_logout_until_it_is_closed") else {
        return;
    };
    let unit = bench.lun("alpha", MIB);
    bench.put(IQN, &[(1, &unit)]);
    bench.login(IQN);
    let open = File::open(bench.device(IQN, 1).unwrap()).unwrap();
    bench.check(&format!("-m node -T {IQN} -u"), 0);
    assert_eq!(bench.disk(IQN, 1), None);
    assert_eq!(bench.loops().len(), 1);
    // A new login meanwhile gets another device.
    bench.check(&format!("-m node -T {IQN} -l"), 0);
    assert_eq!(bench.loops().len(), 2);
    bench.check("-m session -u", 0);
    drop(open);
    until("the loop device is gone", || bench.loops().is_empty());
}

#[test]
fn a_login_that_cannot_attach_leaves_nothing() {
    let Some(bench) = Bench::new("a_login_that_cannot_attach_leaves_nothing") else {
        return;
    };
    let (one, mut gone) = (bench.lun("alpha", MIB), bench.lun("beta", MIB));
    gone.file = bench.path("missing.img");
    bench.put(IQN, &[(1, &one), (2, &gone)]);
    bench.check(&format!("-m node -T {IQN} -p 127.0.0.1 -o new"), 0);
    bench.check(&format!("-m node -T {IQN} -l"), 9);
    bench.assert_clean();
}

#[test]
fn eight_logins_at_once() {
    let Some(bench) = Bench::new("eight_logins_at_once") else {
        return;
    };
    let iqns: Vec<String> = (0..8).map(|number| format!("iqn.t{number}")).collect();
    for iqn in &iqns {
        bench.put(iqn, &[(1, &bench.lun(&iqn[4..], MIB))]);
        bench.check(&format!("-m node -T {iqn} -p 127.0.0.1 -o new"), 0);
    }
    let all = |line: &str| -> Vec<Option<i32>> {
        let running: Vec<Child> = iqns
            .iter()
            .map(|iqn| bench.iscsiadm(&line.replace("IQN", iqn)).spawn().unwrap())
            .collect();
        running
            .into_iter()
            .map(|child| child.wait_with_output().unwrap().status.code())
            .collect()
    };
    assert_eq!(all("-m node -T IQN --login"), [Some(0); 8]);
    for iqn in &iqns {
        assert_eq!(label(&bench.device(iqn, 1).unwrap()), iqn[4..]);
    }
    assert_eq!(all("-m node -T IQN --rescan"), [Some(0); 8]);
    assert_eq!(all("-m node -T IQN --logout"), [Some(0); 8]);
    bench.assert_clean();

    // Eight logins at the same target: one succeeds.
    let mut codes = all("-m node -T iqn.t3 --login");
    codes.sort();
    assert_eq!(codes, [[Some(0)].as_slice(), &[Some(15); 7]].concat());
    assert_eq!(bench.loops().len(), 1);
}

#[test]
fn two_host_roots_attach_the_same_lun_and_keep_to_their_own() {
    let Some(bench) = Bench::new("two_host_roots_attach_the_same_lun_and_keep_to_their_own") else {
        return;
    };
    let Some(mut other) = Bench::new("two_host_roots_attach_the_same_lun_and_keep_to_their_own")
    else {
        return;
    };
    other.targets = bench.targets.clone();
    let targets = bench.targets.dir().display().to_string();
    node_sim(&[
        "init",
        "--root",
        &other.root().display().to_string(),
        "--targets",
        &targets,
    ]);
    let unit = bench.lun("alpha", MIB);
    bench.put(IQN, &[(1, &unit)]);
    thread::scope(|scope| {
        scope.spawn(|| bench.login(IQN));
        scope.spawn(|| other.login(IQN));
    });
    assert_ne!(bench.device(IQN, 1), other.device(IQN, 1));
    assert_eq!(bench.targets.sessions(IQN).unwrap().len(), 2);
    assert!(other.cleanup().status.success());
    assert_eq!(label(&bench.device(IQN, 1).unwrap()), "alpha");
    assert_eq!(bench.targets.sessions(IQN).unwrap().len(), 1);
    bench.check("-m session -u", 0);
}

#[test]
fn kill_9_at_any_moment_leaks_no_loop_device() {
    let Some(bench) = Bench::new("kill_9_at_any_moment_leaks_no_loop_device") else {
        return;
    };
    let (one, two) = (bench.lun("alpha", MIB), bench.lun("beta", MIB));
    bench.put(IQN, &[(1, &one), (2, &two)]);
    bench.check(&format!("-m node -T {IQN} -p 127.0.0.1 -o new"), 0);
    bench.check(
        &format!("-m node -T {IQN} -o update -n node.session.scan -v manual"),
        0,
    );
    let login = format!("-m node -T {IQN} --login");
    let (mut half_made, mut undone) = (0, 0);
    for round in 0..60_u64 {
        // Login with scan, rescan that attaches, logout: each is killed after a different time in every round.
        let scan = if round % 2 == 0 { "auto" } else { "manual" };
        bench.check(
            &format!("-m node -T {IQN} -o update -n node.session.scan -v {scan}"),
            0,
        );
        let after = Duration::from_micros(700 * (round / 2));
        kill_after(bench.iscsiadm(&login).spawn().unwrap(), after);
        half_made += usize::from(bench.status()["sessions"][0]["state"] == "half-made");
        if round % 2 == 1 {
            // The next login finds a complete session or none, never a half-made one.
            let code = bench.iscsiadm(&login).output().unwrap().status.code();
            assert!(matches!(code, Some(0 | 15)), "{code:?}");
            kill_after(
                bench.iscsiadm("-m session --rescan").spawn().unwrap(),
                after,
            );
            bench.check("-m session --rescan", 0);
            assert_eq!(label(&bench.device(IQN, 1).unwrap()), "alpha");
            assert_eq!(label(&bench.device(IQN, 2).unwrap()), "beta");
            assert_eq!(bench.loops().len(), 2);
            kill_after(
                bench.iscsiadm("-m session --logout").spawn().unwrap(),
                after,
            );
        }
        undone += usize::from(!bench.loops().is_empty());
        assert!(bench.cleanup().status.success());
        bench.assert_clean();
    }
    // Otherwise the kills came too early or too late to test anything.
    assert!(
        half_made > 0 && undone > 0,
        "half-made: {half_made}, undone: {undone}"
    );
}

#[test]
fn cleanup_twice_and_a_status_for_humans() {
    let Some(bench) = Bench::new("cleanup_twice_and_a_status_for_humans") else {
        return;
    };
    let unit = bench.lun("alpha", 16 * MIB);
    bench.put(IQN, &[(1, &unit)]);
    let root = bench.root().display().to_string();
    let table = |args: &[&str]| String::from_utf8(node_sim(args).stdout).unwrap();
    assert_eq!(
        table(&["status", "--root", &root]),
        "No sessions, no node records.\n"
    );
    bench.login(IQN);
    let shown = table(&["status", "--root", &root]);
    for part in [IQN, "logged in", "16 MiB", "serial-alpha", "/dev/loop"] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    assert_eq!(
        table(&["cleanup", "--root", &root]),
        "1 session logged out.\n"
    );
    bench.assert_clean();
    assert_eq!(
        table(&["cleanup", "--root", &root]),
        "Nothing to clean up.\n"
    );
    bench.check("-m node", 0);
}

fn kill_after(mut child: Child, after: Duration) {
    thread::park_timeout(after);
    child.kill().unwrap();
    child.wait().unwrap();
}
