use super::*;

const EXT4: &str = "mkfs.ext4 -F -q -E nodiscard,lazy_itable_init=1,lazy_journal_init=0";

fn options(fs: FsType, text: &str) -> FormatOptions {
    FormatOptions::parse(fs, text).unwrap()
}

fn said(status: i32, stdout: &str) -> Exit {
    Exit {
        status,
        stdout: stdout.to_owned(),
        stderr: String::new(),
    }
}

#[test]
fn choice_11_features_are_pinned_and_nothing_is_discarded() {
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

#[test]
fn choice_11_format_options_take_the_place_of_the_pinned_ones() {
    let ext4 = options(
        FsType::Ext4,
        " -m 5  -O ^has_journal -E stride=16,stripe_width=64 ",
    );
    assert_eq!(
        make(FsType::Ext4, "/dev/sdb", &ext4).to_string(),
        format!("{EXT4},stride=16,stripe_width=64 -m 5 -O ^has_journal /dev/sdb")
    );
    let xfs = options(FsType::Xfs, "-m reflink=1 -d su=64k,sw=4 -l size=64m");
    assert_eq!(
        make(FsType::Xfs, "/dev/sdb", &xfs).to_string(),
        "mkfs.xfs -f -q -K -m reflink=1 -d su=64k,sw=4 -l size=64m /dev/sdb"
    );
    assert_eq!(
        options(FsType::Btrfs, "--csum xxhash").0,
        ["--csum", "xxhash"]
    );
    assert_eq!(options(FsType::Btrfs, "  "), FormatOptions::default());
}

#[test]
fn format_options_name_no_device_and_force_nothing() {
    for (fs, text, word) in [
        (FsType::Ext4, "/dev/sda", "/dev/sda"),
        (FsType::Ext4, "-F", "-F"),
        (FsType::Ext4, "-m 1 /dev/sda", "/dev/sda"),
        (FsType::Ext4, "-J device=/dev/sda", "device=/dev/sda"),
        (FsType::Ext4, "-J device=UUID=x", "device=UUID=x"),
        (FsType::Ext4, "-E offset=1024", "offset=1024"),
        (FsType::Ext4, "-E nodiscard,discard", "nodiscard,discard"),
        (FsType::Ext4, "-d /etc", "-d"),
        (FsType::Ext4, "-O -F", "-F"),
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

#[test]
fn choice_9_a_failed_probe_is_never_blank() {
    assert_eq!(read_probe(said(2, "")).unwrap(), Probe::Nothing);
    assert_eq!(read_probe(said(8, "")).unwrap(), Probe::Several);
    assert_eq!(
        read_probe(said(
            0,
            "DEVNAME=/dev/sdb\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n"
        ))
        .unwrap(),
        Probe::Found("ext4".to_owned())
    );
    assert_eq!(
        read_probe(said(0, "DEVNAME=/dev/sdb\nPTTYPE=gpt\n")).unwrap(),
        Probe::Found("gpt partition table".to_owned())
    );
    assert_eq!(
        read_probe(said(0, "TYPE=swap\nPTTYPE=dos\n")).unwrap(),
        Probe::Several
    );
    for failed in [
        said(1, ""),
        said(4, ""),
        said(137, ""),
        said(0, ""),
        said(0, "DEVNAME=/dev/sdb\n"),
    ] {
        assert!(read_probe(failed.clone()).is_err(), "{failed:?}");
    }
    let complaint = Exit {
        stderr: "error: /dev/sdb: Input/output error".to_owned(),
        ..said(2, "")
    };
    assert!(read_probe(complaint).is_err());
    assert_eq!(probe("/dev/sdb").to_string(), "blkid -p -o export /dev/sdb");
}

#[test]
fn growing_is_one_command_each() {
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
    assert_eq!(check("/dev/sdb").to_string(), "e2fsck -f -p /dev/sdb");
    assert!(
        read_check(said(0, "")).is_ok()
            && read_check(said(1, "")).is_ok()
            && read_check(said(4, "")).is_err()
    );
}

#[test]
fn choice_14_a_missing_capability_is_recognised() {
    let stderr =
        "resize2fs 1.47.0 (5-Feb-2023)\nresize2fs: Permission denied to resize filesystem\n"
            .to_owned();
    assert!(lacks_capability(&Exit {
        status: 1,
        stderr,
        ..Exit::default()
    }));
    assert!(!lacks_capability(&Exit {
        status: 1,
        stderr: "resize2fs: Device or resource busy".to_owned(),
        ..Exit::default()
    }));
}

#[test]
fn choice_12_mounted_file_systems_are_asked() {
    let xfs = "\
meta-data=/dev/loop0             isize=512    agcount=6, agsize=65536 blks
         =                       sectsz=512   attr=2, projid32bit=1
data     =                       bsize=4096   blocks=332800, imaxpct=25
naming   =version 2              bsize=4096   ascii-ci=0, ftype=1
log      =internal log           bsize=4096   blocks=16384, version=2
realtime =none                   extsz=4096   blocks=0, rtextents=0
";
    let geometry = read_xfs_geometry(said(0, xfs)).unwrap();
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
        read_btrfs_geometry(said(0, btrfs)).unwrap().size(),
        Bytes::GIB
    );
    let two = format!("{btrfs}\tdevid    2 size 1073741824 used 1 path /dev/loop2\n");
    for garbled in ["", "nonsense", &two] {
        assert!(read_btrfs_geometry(said(0, garbled)).is_err());
        assert!(read_xfs_geometry(said(0, garbled)).is_err());
    }
    assert!(
        read_xfs_geometry(said(1, xfs)).is_err() && read_btrfs_geometry(said(1, btrfs)).is_err()
    );
}
