//! Tests on the real machine, without privileges.

use super::command::OUTPUT_LIMIT;
use super::*;
use crate::error::Error;
use crate::in_flight::InFlight;

fn host() -> Linux {
    Linux::new(PathBuf::from("/"))
}

#[tokio::test]
async fn a_command_gives_its_output_and_its_status() {
    let exit = host()
        .run(Cmd::new("sh", 5).args(["-c", "echo $LC_ALL; echo oops >&2; exit 7"]))
        .await
        .unwrap();
    assert_eq!(
        exit,
        Exit {
            status: 7,
            stdout: "C.UTF-8\n".to_owned(),
            stderr: "oops\n".to_owned()
        }
    );
}

/// design.md#host-commands
#[tokio::test]
async fn a_command_does_not_inherit_the_environment() {
    assert!(
        std::env::vars_os().count() > 2,
        "the driver itself has more variables"
    );
    let output = host().run(Cmd::new("env", 5)).await.unwrap().stdout;
    let mut names: Vec<&str> = output
        .lines()
        .filter_map(|it| it.split('=').next())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["LC_ALL", "PATH"], "{output}");
}

#[tokio::test]
async fn standard_input_is_empty_and_output_is_capped() {
    let exit = host()
        .run(Cmd::new("sh", 20).args(["-c", "cat; head -c 3000000 /dev/zero"]))
        .await
        .unwrap();
    assert_eq!((exit.status, exit.stdout.len()), (0, OUTPUT_LIMIT));
}

#[tokio::test]
async fn the_error_names_a_missing_program() {
    let error = host()
        .run(Cmd::new("no-such-program-anywhere", 5))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            HostError::NotStarted {
                program: "no-such-program-anywhere",
                ..
            }
        ),
        "{error}"
    );
}

/// design.md#host-commands
#[tokio::test]
async fn a_command_is_killed_at_its_deadline_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("marker");
    let script = format!("(sleep 2; touch {}) & sleep 60", marker.display());
    let error = host()
        .run(Cmd::new("sh", 1).args(["-c", &script]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, HostError::DeadlineExceeded { .. }),
        "{error}"
    );
    // sleep: the child would create the file 2 s after the start, 1 s of which has passed.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!marker.exists(), "the script's child outlived it");
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn an_overrun_keeps_its_lock_until_it_ends_and_blocks_no_worker() {
    let in_flight = InFlight::default();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let slow = in_flight
        .run("v", async move {
            let hung = move || {
                let _ = released.recv();
                Ok(())
            };
            let read = blocking::in_own_thread("reading", "/p", Duration::from_millis(20), hung);
            read.await.map_err(|source| Error::Host {
                doing: "d".to_owned(),
                source,
            })
        })
        .await;
    assert_eq!(slow.unwrap_err().code(), tonic::Code::Aborted);
    let second = in_flight.run("v", async { Ok(()) }).await;
    assert!(
        matches!(second, Err(Error::Busy { .. })),
        "the read still runs"
    );
    release.send(()).unwrap();
    in_flight.idle().await;
    assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
}

/// design.md#host-commands
#[tokio::test]
async fn only_sys_and_etc_iscsi_are_below_the_host_root() {
    let root = tempfile::tempdir().unwrap();
    let host = Linux::new(root.path().to_owned());
    for path in [
        "/sys/class/x",
        "/etc/iscsi/initiatorname.iscsi",
        crate::host::record::LOCK,
    ] {
        assert_eq!(
            host.locate(path).await.unwrap().path,
            root.path().join(&path[1..])
        );
    }
    for path in [
        "/proc/self/mountinfo",
        "/dev/sda",
        "/system",
        "/etc/iscsid",
        "/var/lib/kubelet/x",
    ] {
        assert_eq!(host.locate(path).await.unwrap().path, PathBuf::from(path));
    }
}

#[tokio::test]
async fn a_file_that_is_linked_again_counts_as_touched() {
    let dir = tempfile::tempdir().unwrap();
    let host = host();
    let path = format!("{}/lock.write", dir.path().display());
    let absent = host.file_stamp(&path).await;
    assert!(matches!(absent, Err(HostError::Absent { .. })));
    let lock = dir.path().join("lock");
    fs::write(&lock, "").unwrap();
    fs::hard_link(&lock, &path).unwrap();
    let first = host.file_stamp(&path).await.unwrap();
    assert_eq!(host.file_stamp(&path).await.unwrap(), first);
    host.remove_file(&path).await.unwrap();
    // sleep: the kernel's file time stamps have a granularity of some milliseconds.
    tokio::time::sleep(Duration::from_millis(20)).await;
    fs::hard_link(&lock, &path).unwrap();
    let second = host.file_stamp(&path).await.unwrap();
    assert_eq!(second.inode, first.inode, "it is the same file");
    assert_ne!(second, first);
}

#[tokio::test]
async fn without_host_namespaces_there_are_no_host_daemons() {
    let none = host()
        .is_running("no-such-daemon", ProcessScope::Host)
        .await;
    assert!(!none.unwrap());
}

#[tokio::test]
async fn creating_and_removing_paths_is_idempotent() {
    let dir = tempfile::tempdir().unwrap();
    let host = host();
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    for _ in 0..2 {
        host.create_dir(&at("d")).await.unwrap();
        host.create_file(&at("f")).await.unwrap();
    }
    assert_eq!(host.stat(&at("d")).await.unwrap(), Stat::Directory);
    assert_eq!(host.stat(&at("f")).await.unwrap(), Stat::File(0));
    assert!(host.create_dir(&at("f")).await.is_err());
    assert_eq!(host.list(&at("")).await.unwrap(), ["d", "f"]);
    for _ in 0..2 {
        host.remove_dir(&at("d")).await.unwrap();
        host.remove_file(&at("f")).await.unwrap();
    }
    assert!(matches!(
        host.stat(&at("d")).await,
        Err(HostError::Absent { .. })
    ));
}

#[tokio::test]
async fn a_path_is_resolved_except_for_its_last_part() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    fs::create_dir(real.join("real")).unwrap();
    std::os::unix::fs::symlink("real", real.join("link")).unwrap();
    let resolved = host()
        .resolve(&format!("{}/link/target", real.display()))
        .await
        .unwrap();
    assert_eq!(resolved, format!("{}/real/target", real.display()));
    assert_eq!(
        host()
            .resolve(&format!("{}/link", real.display()))
            .await
            .unwrap(),
        format!("{}/link", real.display())
    );
    assert!(matches!(
        host().resolve(&format!("{}/none/x", real.display())).await,
        Err(HostError::Absent { .. })
    ));
}

#[tokio::test]
async fn devices_are_read_and_written_at_the_right_offset() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path().to_str().unwrap();
    host()
        .write_device(path, 8192, vec![7; 4096])
        .await
        .unwrap();
    for via in [ReadMode::Disk, ReadMode::Cache] {
        let seen = host()
            .read_device(
                path,
                Span {
                    offset: 4096,
                    length: 12288,
                },
                via,
            )
            .await
            .unwrap();
        assert_eq!(seen, [vec![0; 4096], vec![7; 4096], vec![0; 4096]].concat());
    }
    let beyond = host()
        .read_device(
            path,
            Span {
                offset: 1 << 20,
                length: 4096,
            },
            ReadMode::Disk,
        )
        .await;
    assert!(
        matches!(beyond, Err(HostError::Io { .. })),
        "a short read is an error, never zeros"
    );
}

#[tokio::test]
async fn a_secret_file_is_replaced_atomically() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let host = Linux::new(root.path().to_owned());
    let database = root.path().join("etc/iscsi");
    let record = database.join("nodes/iqn.x/10.0.0.5,3260");
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    fs::write(&record, "old").unwrap();
    // Left behind by a crash, world-readable.
    fs::write(database.join(".temp"), "left over").unwrap();
    let (path, temp) = ("/etc/iscsi/nodes/iqn.x/10.0.0.5,3260", "/etc/iscsi/.temp");
    host.replace_file(path, temp, "new\n".into()).await.unwrap();
    assert_eq!(fs::read_to_string(&record).unwrap(), "new\n");
    assert_eq!(
        fs::metadata(&record).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(!database.join(".temp").exists());

    fs::remove_dir_all(database.join("nodes/iqn.x")).unwrap();
    let gone = host.replace_file(path, temp, "new\n".into()).await;
    assert!(matches!(gone, Err(HostError::Absent { .. })), "{gone:?}");
    assert!(!database.join(".temp").exists(), "nothing is left");
}

#[tokio::test]
async fn an_attribute_is_written_but_never_created() {
    let root = tempfile::tempdir().unwrap();
    let host = Linux::new(root.path().to_owned());
    let scan = root.path().join("sys/scan");
    let absent = host.write_attribute("/sys/scan", "0 0 1").await;
    assert!(
        matches!(absent, Err(HostError::Absent { .. })),
        "{absent:?}"
    );
    fs::create_dir_all(scan.parent().unwrap()).unwrap();
    fs::write(&scan, "").unwrap();
    host.write_attribute("/sys/scan", "0 0 1").await.unwrap();
    assert_eq!(fs::read_to_string(&scan).unwrap(), "0 0 1");
}

/// As on NixOS: `/etc/iscsi` and the files in it are absolute links, which must be resolved below the host's root.
/// design.md#host-commands
#[tokio::test]
async fn links_below_another_root_stay_below_it() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let host = Linux::new(root.path().to_owned());
    let inside = |path: &str| root.path().join(path);
    for folder in ["etc", "nix/store/x", "var/state/iscsi/nodes/iqn.x"] {
        fs::create_dir_all(inside(folder)).unwrap();
    }
    symlink("/var/state/iscsi", inside("etc/iscsi")).unwrap();
    fs::write(inside("nix/store/x/name"), "InitiatorName=iqn.a\n").unwrap();
    symlink(
        "/nix/store/x/name",
        inside("var/state/iscsi/initiatorname.iscsi"),
    )
    .unwrap();
    let name = host.read("/etc/iscsi/initiatorname.iscsi").await.unwrap();
    assert_eq!(name, b"InitiatorName=iqn.a\n");
    assert_eq!(host.list("/etc/iscsi/nodes").await.unwrap(), ["iqn.x"]);

    let record = "/etc/iscsi/nodes/iqn.x/10.0.0.5,3260";
    host.replace_file(record, "/etc/iscsi/.temp", "new\n".into())
        .await
        .unwrap();
    let real = inside("var/state/iscsi/nodes/iqn.x/10.0.0.5,3260");
    assert_eq!(fs::read_to_string(&real).unwrap(), "new\n");
    host.remove_file(record).await.unwrap();
    host.remove_dir("/etc/iscsi/nodes/iqn.x").await.unwrap();
    assert_eq!(host.list("/etc/iscsi/nodes").await.unwrap(), [""; 0]);

    // A link cannot leave the root, and removing a link does not remove its target.
    let secret = tempfile::NamedTempFile::new().unwrap();
    let link = inside("var/state/iscsi/out");
    symlink(secret.path(), &link).unwrap();
    let escaped = host.read("/etc/iscsi/out").await;
    assert!(
        matches!(escaped, Err(HostError::Absent { .. })),
        "{escaped:?}"
    );
    host.remove_file("/etc/iscsi/out").await.unwrap();
    assert!(fs::symlink_metadata(&link).is_err() && secret.path().exists());
    symlink("../../../../../../../../nix/store/x/name", &link).unwrap();
    assert_eq!(host.read("/etc/iscsi/out").await.unwrap(), name);
    assert!(host.read("/etc/iscsi/absent/x").await.is_err());
}

#[tokio::test]
async fn mount_points_are_recognized_without_the_mount_table() {
    let host = host();
    // Linux before 5.8 cannot tell.
    let is = async |path| host.is_mount_point(path).await.unwrap();
    assert_ne!(is("/proc").await, Some(false));
    for path in ["/proc/self", "/proc/self/no-such-file", "/proc/version/x"] {
        assert_ne!(is(path).await, Some(true), "{path}");
    }
}

#[tokio::test]
async fn directory_entries_have_inode_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    std::fs::write(folder.path().join("b"), "").unwrap();
    std::fs::write(folder.path().join("a"), "").unwrap();
    let host = host();
    let look = host.blocking("listing", move |files| files.entries(&path));
    let entries = look.await.unwrap();
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    for entry in entries {
        let inode = std::fs::metadata(folder.path().join(entry.name))
            .unwrap()
            .ino();
        assert_eq!(entry.inode, inode);
    }
}

/// Each span has its own deadline, and spans after the first with data are not read.
#[tokio::test]
async fn spans_are_read_up_to_the_first_with_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut disk = vec![0; 3 << 16];
    disk[(2 << 16) + 5] = 1;
    std::fs::write(&path, disk).unwrap();
    let part = |number: u64| Span {
        offset: number << 16,
        length: 1 << 16,
    };
    let find = async |spans: Vec<Span>| host().find_data(path.to_str().unwrap(), spans).await;
    assert_eq!(find(vec![part(0), part(1)]).await.unwrap(), None);
    assert_eq!(
        find((0..3).map(part).collect()).await.unwrap(),
        Some(part(2))
    );
    // A span beyond the end of the disk is no error if an earlier one has data.
    assert_eq!(find(vec![part(2), part(9)]).await.unwrap(), Some(part(2)));
    assert!(find(vec![part(0), part(9)]).await.is_err());
    assert_eq!(find(vec![]).await.unwrap(), None);
}
