//! Kernel, modules and initramfs from Debian packages, unpacked once below `target/vm`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cpio::newc::{Builder, trailer};

use super::archive::{Package, Suite, only_entry};
use crate::harness::process::run;

/// Debian 12's standard kernel: the cloud kernel has no 9p.
const KERNEL: Package = Package {
    name: "linux-image-6.1.0-56-amd64",
    version: "6.1.192-2",
    series: Some(SERIES),
};
/// The metapackage of the newest kernel of a suite.
const SERIES: &str = "linux-image-amd64";
/// A static shell for the initramfs.
const BUSYBOX: Package = Package {
    name: "busybox-static",
    version: "1:1.35.0-4+deb12u1+b1",
    series: None,
};
/// Modules that the initramfs loads before the guest can mount the host's files.
const EARLY: [&str; 6] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_net",
    "virtio_blk",
];

/// Kernel and initramfs to boot a machine with.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The folder to bind-mount on the guest's `/lib/modules`.
    pub modules: PathBuf,
    /// The kernel's release, for instance `6.1.0-56-amd64`.
    pub release: String,
}

impl Image {
    /// The image in `folder`, made there if missing: with the pinned kernel, with the newest one of another Debian suite (for
    /// instance `trixie`), or with an unpacked kernel package, if `kernel` is a path.
    ///
    /// # Errors
    /// A package cannot be downloaded or unpacked.
    pub fn ready(folder: &Path, kernel: Option<&str>) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let kernel = match kernel {
            None => KERNEL.unpacked(folder)?,
            Some(path) if path.contains('/') => {
                fs::canonicalize(path).with_context(|| path.to_owned())?
            }
            Some(suite) => Suite::ready(folder, suite)?.newest(folder, SERIES)?,
        };
        let busybox = BUSYBOX.unpacked(folder)?;
        // Since Debian 13 modules are in /usr/lib; depmod and modprobe of Debian 12 look in /lib.
        if !kernel.join("lib").exists() {
            symlink("usr/lib", kernel.join("lib"))?;
        }
        let modules = kernel.join("lib/modules");
        let release = only_entry(&modules)?;
        let image = Self {
            kernel: uncompressed(&kernel.join(format!("boot/vmlinuz-{release}")))?,
            initramfs: kernel.join("initramfs.cpio"),
            modules,
            release,
        };
        if !kernel
            .join("lib/modules")
            .join(&image.release)
            .join("modules.dep")
            .exists()
        {
            run(
                "depmod",
                ["-b".as_ref(), kernel.as_os_str(), image.release.as_ref()],
            )?;
        }
        // Cheap, so always rewritten to match this file.
        image.write_initramfs(&kernel, &busybox.join("bin/busybox"))?;
        Ok(image)
    }

    fn write_initramfs(&self, kernel: &Path, busybox: &Path) -> Result<()> {
        let temporary = self.initramfs.with_extension("new");
        let mut archive = Archive(File::create(&temporary)?);
        for directory in ["bin", "dev", "host", "modules", "own", "proc", "sys"] {
            archive.add(directory, 0o040_755, &[])?;
        }
        archive.add("bin/busybox", 0o100_755, &fs::read(busybox)?)?;
        for (at, module) in self.early_modules(kernel)?.iter().enumerate() {
            archive.add(
                &format!("modules/{at:02}.ko"),
                0o100_644,
                &module_file(module)?,
            )?;
        }
        archive.add("init", 0o100_755, INIT.as_bytes())?;
        trailer(archive.0)?;
        // A machine that is booting has opened either the old file or the new one.
        fs::rename(temporary, &self.initramfs)?;
        Ok(())
    }

    /// Files of the early modules and their dependencies, in load order.
    fn early_modules(&self, kernel: &Path) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = Vec::new();
        for module in EARLY {
            let output = run(
                "modprobe",
                [
                    "-d".as_ref(),
                    kernel.as_os_str(),
                    "-S".as_ref(),
                    self.release.as_ref(),
                    "--show-depends".as_ref(),
                    module.as_ref(),
                ],
            )?;
            let wanted = output
                .lines()
                .filter_map(|line| line.strip_prefix("insmod "))
                .map(|file| PathBuf::from(file.trim()));
            for file in wanted {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        ensure!(!files.is_empty(), "modprobe lists no modules");
        Ok(files)
    }
}

/// A kernel module, uncompressed. Newer Debian releases compress modules with xz, Ubuntu with zstd.
fn module_file(file: &Path) -> Result<Vec<u8>> {
    let ending = file.extension().and_then(|ending| ending.to_str());
    let program = match ending {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(file)?),
    };
    let folder = tempfile::TempDir::with_prefix("module-")?;
    let packed = folder
        .path()
        .join(file.file_name().context("no file name")?);
    fs::copy(file, &packed)?;
    run(
        program,
        [
            "--decompress".as_ref(),
            "--quiet".as_ref(),
            packed.as_os_str(),
        ],
    )?;
    Ok(fs::read(packed.with_extension(""))?)
}

/// The uncompressed kernel, in a file next to it: QEMU boots that too, in half the time without KVM. The header has its offset
/// (kernel documentation, x86 boot protocol).
fn uncompressed(kernel: &Path) -> Result<PathBuf> {
    let unpacked = kernel.with_file_name("vmlinux");
    if unpacked.exists() {
        return Ok(unpacked);
    }
    let image = fs::read(kernel).with_context(|| kernel.display().to_string())?;
    let number = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let sectors = usize::from(*image.get(0x1f1).context("not a kernel image")?);
    let (offset, length) = number(0x248)
        .zip(number(0x24c))
        .context("not a kernel image")?;
    let start = (sectors + 1) * 512 + offset;
    let payload = image
        .get(start..start + length)
        .context("the kernel image is truncated")?;
    if !payload.starts_with(b"\xfd7zXZ\0") {
        return Ok(kernel.to_owned());
    }
    // Write to another name and rename: an interrupted xz must not look complete.
    let temporary = unpacked.with_extension("new");
    let packed = unpacked.with_extension("new.xz");
    fs::write(&packed, payload)?;
    // The payload's last four bytes are its size.
    run(
        "xz",
        [
            "--decompress".as_ref(),
            "--force".as_ref(),
            "--single-stream".as_ref(),
            packed.as_os_str(),
        ],
    )?;
    fs::rename(temporary, &unpacked)?;
    Ok(unpacked)
}

/// The guest's init until the host's files are mounted. `program` comes from the kernel's command line.
const INIT: &str = "#!/bin/busybox sh
set -e
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do $b insmod $module; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
$b mount -t tmpfs -o size=80% tmpfs /own
$b mkdir /own/upper /own/work /own/new
$b mount -t overlay -o lowerdir=/host,upperdir=/own/upper,workdir=/own/work overlay /own/new
for at in proc sys dev; do $b mount --move /$at /own/new/$at; done
exec $b switch_root /own/new $program first
";

/// A cpio archive in the kernel's initramfs format.
struct Archive(File);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).context("too large for an initramfs")?;
        let mut entry = Builder::new(name).mode(mode).write(&mut self.0, size);
        io::Write::write_all(&mut entry, content)?;
        entry.finish()?;
        Ok(())
    }
}
