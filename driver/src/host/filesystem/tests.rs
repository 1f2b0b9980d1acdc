use super::*;

const EXT4: &str = "mkfs.ext4 -F -q -E nodiscard,lazy_itable_init=1,lazy_journal_init=0";

fn options(fs: FsType, text: &str) -> FormatOptions {
    FormatOptions::parse(fs, text).unwrap()
}

fn exited(status: i32, stdout: &str) -> Exit {
    Exit {
        status,
        stdout: stdout.to_owned(),
        stderr: String::new(),
    }
}

/// design.md#mkfs-defaults
#[test]
fn features_are_pinned_and_nothing_is_discarded() {
    let default = FormatOptions::default();
    assert_eq!(
        make(FsType::Ext4, "/dev/sdb", &default).to_string(),
        format!(
            "{EXT4} -b 4096 -I 256 -m 0 -O none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum /dev/sdb"
        )
    );
    assert_eq!(
        make(FsType::Xfs, "/dev/sdb", &default).to_string(),
        "mkfs.xfs -f -q -K -m crc=1,finobt=1,rmapbt=0,reflink=0,bigtime=0,inobtcount=0 -i sparse=1,nrext64=0 -n ftype=1 /dev/sdb"
    );
    assert_eq!(
        make(FsType::Btrfs, "/dev/sdb", &default).to_string(),
        "mkfs.btrfs -f -q -K --csum crc32c -n 16384 -s 4096 -d single -m dup -O extref,skinny-metadata,no-holes /dev/sdb"
    );
}

/// design.md#mkfs-defaults
#[test]
fn format_options_are_added_to_the_pinned_features() {
    let ext4 = options(
        FsType::Ext4,
        " -m 5  -O ^has_journal,quota -E stride=16,stripe_width=64 -b 1024 ",
    );
    assert_eq!(
        make(FsType::Ext4, "/dev/sdb", &ext4).to_string(),
        format!(
            "{EXT4},stride=16,stripe_width=64 -I 256 -O none,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,^has_journal,quota -m 5 -b 1024 /dev/sdb"
        )
    );
    let xfs = options(
        FsType::Xfs,
        "-m reflink=1 -d su=64k,sw=4 -l size=64m -i size=1024 -m rmapbt=1",
    );
    assert_eq!(
        make(FsType::Xfs, "/dev/sdb", &xfs).to_string(),
        "mkfs.xfs -f -q -K -m crc=1,finobt=1,bigtime=0,inobtcount=0,reflink=1,rmapbt=1 -i sparse=1,nrext64=0,size=1024 -n ftype=1 -d su=64k,sw=4 -l size=64m /dev/sdb"
    );
    let btrfs = options(FsType::Btrfs, "--checksum xxhash -O ^no-holes -L reports");
    assert_eq!(
        make(FsType::Btrfs, "/dev/sdb", &btrfs).to_string(),
        "mkfs.btrfs -f -q -K -n 16384 -s 4096 -d single -m dup -O extref,skinny-metadata,^no-holes --checksum xxhash -L reports /dev/sdb"
    );
    assert_eq!(options(FsType::Btrfs, "  "), FormatOptions::default());
    // Flags that the driver sets anyway are ignored, as the official driver's classes have them.
    for text in ["--nodiscard", "-K", " -f  --nodiscard "] {
        for fs in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
            assert_eq!(options(fs, text), FormatOptions::default(), "{text}");
        }
    }
    let with_ignored_flag = options(FsType::Xfs, "-K -m reflink=1");
    assert_eq!(with_ignored_flag, options(FsType::Xfs, "-m reflink=1"));
}

/// Refused for a new volume: features that not every node can mount, that prevent growth, or that all volumes of a class would
/// share. An existing volume with such options must still be staged.
/// design.md#mkfs-defaults
#[test]
fn options_that_would_break_new_volumes_are_refused() {
    for (fs, text, word) in [
        (FsType::Ext4, "-O bigalloc -C 65536", "-O bigalloc"),
        (FsType::Ext4, "-C 65536", "-C 65536"),
        (FsType::Ext4, "-O quota,^resize_inode", "-O ^resize_inode"),
        (
            FsType::Ext4,
            "-E stride=4,resize=300000",
            "-E resize=300000",
        ),
        (FsType::Ext4, "-O meta_bg", "-O meta_bg"),
        (FsType::Ext4, "-O sparse_super2", "-O sparse_super2"),
        (FsType::Ext4, "-O ^extent", "-O ^extent"),
        (FsType::Ext4, "-O ^extents", "-O ^extents"),
        (FsType::Ext4, "-O journal_dev", "-O journal_dev"),
        (FsType::Ext4, "-O none", "-O none"),
        (FsType::Ext4, "-b 65536", "-b 65536"),
        (FsType::Ext4, "-b 64k", "-b 64k"),
        (FsType::Ext4, "-e panic", "-e panic"),
        (
            FsType::Ext4,
            "-U 3c6a9c1e-54b0-4a7a-8d3c-1d8a1f9b3a11",
            "-U 3c6a9c1e-54b0-4a7a-8d3c-1d8a1f9b3a11",
        ),
        (
            FsType::Xfs,
            "-m reflink=1,uuid=3c6a9c1e",
            "-m uuid=3c6a9c1e",
        ),
        (FsType::Xfs, "-m crc=0", "-m crc=0"),
        (FsType::Xfs, "-n ftype=0", "-n ftype=0"),
        (FsType::Xfs, "-b size=65536", "-b size=65536"),
        (FsType::Xfs, "-b size=16k", "-b size=16k"),
        (FsType::Xfs, "-b log=16", "-b log=16"),
        (FsType::Xfs, "-s size=8192", "-s size=8192"),
        (FsType::Xfs, "-l internal=0", "-l internal=0"),
        (FsType::Btrfs, "-U 3c6a9c1e", "-U 3c6a9c1e"),
        (FsType::Btrfs, "-s 65536", "-s 65536"),
        (FsType::Btrfs, "-m raid1", "-m raid1"),
        (FsType::Btrfs, "-O zoned", "-O zoned"),
    ] {
        let bad = FormatOptions::accept(fs, text).unwrap_err();
        assert_eq!(bad.word, word, "{text}");
        assert!(bad.remedy.ends_with("leave it out"), "{bad:?}");
        FormatOptions::parse(fs, text).unwrap();
    }
    for (fs, text) in [
        (
            FsType::Ext4,
            "-O quota,project,^metadata_csum,metadata_csum_seed",
        ),
        (FsType::Ext4, "-b 1024 -e remount-ro -i 8192 -T largefile"),
        (
            FsType::Xfs,
            "-m reflink=1,rmapbt=1,bigtime=1 -b size=4k -d agcount=8",
        ),
        (FsType::Xfs, "-s size=4096 -l size=64m,internal=1 -b log=12"),
        (
            FsType::Btrfs,
            "-m single -d DUP --csum sha256 -s 4096 -n 32768",
        ),
        (FsType::Btrfs, "-O block-group-tree -R free-space-tree"),
    ] {
        assert!(FormatOptions::accept(fs, text).is_ok(), "{text}");
    }
}

#[test]
fn format_options_cannot_name_a_device_or_force() {
    for (fs, text, word) in [
        (FsType::Ext4, "/dev/sda", "/dev/sda"),
        (FsType::Ext4, "-S", "-S"),
        (FsType::Ext4, "-m 1 /dev/sda", "/dev/sda"),
        (FsType::Ext4, "-J device=/dev/sda", "device=/dev/sda"),
        (FsType::Ext4, "-J device=UUID=x", "device=UUID=x"),
        (FsType::Ext4, "-E offset=1024", "offset=1024"),
        (FsType::Ext4, "-E nodiscard,discard", "nodiscard,discard"),
        (FsType::Ext4, "-d /etc", "-d"),
        (FsType::Ext4, "-O -S", "-S"),
        (FsType::Ext4, "-m 1; reboot", "1;"),
        (FsType::Ext4, "-z /undo", "-z"),
        (FsType::Ext4, "-n yes", "-n"),
        (FsType::Xfs, "-d name=/dev/sda", "name=/dev/sda"),
        (FsType::Xfs, "-d file=1", "file=1"),
        (FsType::Xfs, "-d size=100m", "size=100m"),
        (FsType::Xfs, "-l logdev=sda", "logdev=sda"),
        (FsType::Xfs, "-r rtdev=sda", "-r"),
        (FsType::Xfs, "-c options=x", "-c"),
        (FsType::Xfs, "-p file", "-p"),
        (FsType::Xfs, "-N x", "-N"),
        (FsType::Btrfs, "-r /etc", "-r"),
        (FsType::Btrfs, "-b 100", "-b"),
        (FsType::Btrfs, "-M", "-M"),
    ] {
        assert_eq!(
            FormatOptions::parse(fs, text).unwrap_err().word,
            word,
            "{text}"
        );
    }
}

/// design.md#identity-before-action
#[test]
fn a_failed_probe_is_never_blank() {
    assert_eq!(read_probe(exited(2, "")).unwrap(), Probe::Nothing);
    assert_eq!(read_probe(exited(8, "")).unwrap(), Probe::Several);
    assert_eq!(
        read_probe(exited(
            0,
            "DEVNAME=/dev/sdb\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n"
        ))
        .unwrap(),
        Probe::Found("ext4".to_owned())
    );
    assert_eq!(
        read_probe(exited(0, "DEVNAME=/dev/sdb\nPTTYPE=gpt\n")).unwrap(),
        Probe::Found("gpt partition table".to_owned())
    );
    assert_eq!(
        read_probe(exited(0, "TYPE=swap\nPTTYPE=dos\n")).unwrap(),
        Probe::Several
    );
    for failed in [
        exited(1, ""),
        exited(4, ""),
        exited(137, ""),
        exited(0, ""),
        exited(0, "DEVNAME=/dev/sdb\n"),
    ] {
        assert!(read_probe(failed.clone()).is_err(), "{failed:?}");
    }
    let complaint = Exit {
        stderr: "error: /dev/sdb: Input/output error".to_owned(),
        ..exited(2, "")
    };
    assert!(read_probe(complaint).is_err());
    assert_eq!(probe("/dev/sdb").to_string(), "blkid -p -o export /dev/sdb");
}

#[test]
fn each_file_system_is_grown_with_one_command() {
    assert_eq!(
        grow(FsType::Ext4, "/dev/sdb", "/s").to_string(),
        "resize2fs /dev/sdb"
    );
    assert_eq!(
        grow(FsType::Xfs, "/dev/sdb", "/s").to_string(),
        "xfs_growfs -d /s"
    );
    assert_eq!(
        grow(FsType::Btrfs, "/dev/sdb", "/s").to_string(),
        "btrfs filesystem resize max /s"
    );
    assert_eq!(grow_unmounted("/dev/sdb").to_string(), "resize2fs /dev/sdb");
}

/// A command whose run time depends on the disk's size must not be killed half-way: a deadline that suits 1 TiB is too short for
/// 100.
/// design.md#node-expansion-is-always-required
#[test]
fn commands_that_depend_on_the_size_of_the_disk_may_take_hours() {
    let options = FormatOptions::default();
    let made = [FsType::Ext4, FsType::Xfs, FsType::Btrfs].map(|fs| make(fs, "/dev/sdb", &options));
    let others = [check_full("/dev/sdb"), grow_unmounted("/dev/sdb")];
    for cmd in made.into_iter().chain(others) {
        assert!(cmd.deadline.as_secs() >= 6 * 3600, "{cmd}");
    }
}

/// design.md#node-expansion-is-always-required
#[test]
fn permanent_resize2fs_failures_are_recognized_by_their_messages() {
    let exit = |status, stdout: &str, stderr: &str| Exit {
        status,
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
    };
    // Seen with e2fsprogs 1.47.0.
    let banner = "resize2fs 1.47.0 (5-Feb-2023)\n";
    for (stdout, stderr, cannot) in [
        (
            "Filesystem at /dev/sdb is mounted on /s; on-line resizing required\n",
            "resize2fs: Permission denied to resize filesystem\n",
            Some(GrowFailure::NotPermitted),
        ),
        (
            "",
            "resize2fs: kernel does not support online resize with sparse_super2\n",
            Some(GrowFailure::OnlyUnmounted),
        ),
        (
            "",
            "resize2fs: Filesystem does not support online resizing\n",
            Some(GrowFailure::OnlyUnmounted),
        ),
        (
            "",
            "resize2fs: Operation not supported While checking for on-line resizing support\n",
            Some(GrowFailure::OnlyUnmounted),
        ),
        (
            "\nResizing bigalloc file systems has not been fully tested.  Proceed at\nyour own risk!  Use the force option if you want to go ahead anyway.\n\n",
            "",
            Some(GrowFailure::Never),
        ),
        (
            "",
            "resize2fs: New size too large to be expressed in 32 bits\n",
            Some(GrowFailure::Never),
        ),
        (
            "",
            "resize2fs: Filesystem has unsupported feature(s) while trying to open /dev/sdb\n",
            Some(GrowFailure::Never),
        ),
        // A retry may succeed.
        ("Please run 'e2fsck -f /dev/sdb' first.\n", "", None),
        ("", "resize2fs: Device or resource busy", None),
        (
            "",
            "resize2fs: Input/output error While checking for on-line resizing support",
            None,
        ),
    ] {
        let exit = exit(1, stdout, &format!("{banner}{stderr}"));
        assert_eq!(cannot_grow(FsType::Ext4, &exit), cannot, "{exit:?}");
        assert_eq!(cannot_grow(FsType::Xfs, &exit), None);
        let succeeded = Exit { status: 0, ..exit };
        assert_eq!(cannot_grow(FsType::Ext4, &succeeded), None);
    }
}

#[test]
fn only_unrepaired_errors_are_damage() {
    let checked = |status| read_check(&exited(status, "what it says"));
    for status in [0, 1, 2, 3] {
        assert_eq!(checked(status).unwrap(), CheckResult::Sound, "{status}");
    }
    for status in [4, 5, 12] {
        let damaged = CheckResult::Damaged("what it says".to_owned());
        assert_eq!(checked(status).unwrap(), damaged, "{status}");
    }
    for status in [8, 16, 32, 128] {
        let unchecked = CheckResult::Unchecked("what it says".to_owned());
        assert_eq!(checked(status).unwrap(), unchecked, "{status}");
    }
    // Killed by a signal: the damage bit may be set, and means nothing.
    for status in [137, 143] {
        assert!(checked(status).is_err(), "{status}");
    }
}

/// design.md#expansion-is-read-back
#[test]
fn the_geometry_of_mounted_file_systems_is_parsed() {
    let xfs = "\
meta-data=/dev/loop0             isize=512    agcount=6, agsize=65536 blks
         =                       sectsz=512   attr=2, projid32bit=1
data     =                       bsize=4096   blocks=332800, imaxpct=25
naming   =version 2              bsize=4096   ascii-ci=0, ftype=1
log      =internal log           bsize=4096   blocks=16384, version=2
realtime =none                   extsz=4096   blocks=0, rtextents=0
";
    let geometry = read_xfs_geometry(exited(0, xfs)).unwrap();
    assert_eq!(
        geometry,
        Geometry::Xfs(Xfs {
            blocks: 332_800,
            block_size: 4096,
            blocks_per_group: 65536
        })
    );
    let btrfs = "Label: none  uuid: 3c15\n\tTotal devices 1 FS bytes used 147456\n\tdevid    1 size 1073741824 used 132513792 path /dev/loop1\n\n";
    assert_eq!(
        read_btrfs_geometry(exited(0, btrfs)).unwrap().size(),
        Bytes::GIB
    );
    let two = format!("{btrfs}\tdevid    2 size 1073741824 used 1 path /dev/loop2\n");
    for garbled in ["", "nonsense", &two] {
        assert!(read_btrfs_geometry(exited(0, garbled)).is_err());
        assert!(read_xfs_geometry(exited(0, garbled)).is_err());
    }
    assert!(
        read_xfs_geometry(exited(1, xfs)).is_err()
            && read_btrfs_geometry(exited(1, btrfs)).is_err()
    );
}
