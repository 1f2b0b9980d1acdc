//! The images of the three programs: built by a local Docker engine, each tried, and looked through.

pub(crate) mod engine;
mod scan;

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    run::Step,
    table,
    testing::build_programs,
};
use engine::{Engine, Network};
use scan::Content;

/// What the Dockerfiles begin with unless told otherwise.
const BASE: &str = "debian:bookworm-slim";
/// The same, made here.
const SUITE: &str = "bookworm";
/// How long a registry may take to send the base.
const PULL: Duration = Duration::from_secs(60);

/// Arguments of the images.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Only this image: synology-csi, dsm-sim or node-sim
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// What they are built upon: a Debian with a C library that is as new as this machine's
    #[arg(long, value_name = "IMAGE", default_value = BASE)]
    base: String,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            only: None,
            base: BASE.to_owned(),
        }
    }
}

/// An image.
struct Image {
    /// Its name, which is its program's.
    name: &'static str,
    /// Where its Dockerfile is.
    folder: &'static str,
    /// The most that its files may have together, MB.
    limit: u64,
    /// Programs that must start in it, and how each says its version.
    programs: &'static [(&'static str, &'static str)],
}

const IMAGES: [Image; 3] = [
    Image {
        name: "synology-csi",
        folder: "driver",
        limit: 60,
        programs: &[
            ("synology-csi", "--version"),
            ("blkid", "-V"),
            ("blockdev", "-V"),
            ("btrfs", "--version"),
            ("e2fsck", "-V"),
            ("losetup", "-V"),
            ("mkfs.btrfs", "--version"),
            ("mkfs.ext4", "-V"),
            ("mkfs.xfs", "-V"),
            ("mount", "-V"),
            ("resize2fs", ""),
            ("umount", "-V"),
            ("xfs_growfs", "-V"),
            ("xfs_spaceman", "-V"),
        ],
    },
    Image {
        name: "dsm-sim",
        folder: "dsm-sim",
        limit: 25,
        programs: &[("dsm-sim", "--version")],
    },
    Image {
        name: "node-sim",
        folder: "node-sim",
        limit: 25,
        programs: &[
            ("node-sim", "--version"),
            ("blockdev", "-V"),
            ("losetup", "-V"),
        ],
    },
];

/// The image's full name: of this machine, and of this version.
fn tag(name: &str) -> String {
    format!("localhost/{name}:{}", env!("CARGO_PKG_VERSION"))
}

/// The full names of all of them, here.
pub(crate) fn tags() -> impl Iterator<Item = String> {
    names().map(tag)
}

/// The names of all of them: each is its program's, too.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    IMAGES.iter().map(|image| image.name)
}

/// The cargo package of an image's program.
pub(crate) fn package(name: &str) -> &'static str {
    let found = IMAGES.iter().find(|image| image.name == name);
    found.map_or("", |image| image.folder)
}

/// Builds them, starts each program in them, and tells what is inside.
///
/// # Errors
/// When one cannot be built, is too large, holds a program that does not start, a shell, or a file that gives its user
/// another's rights.
pub(crate) fn run(context: &Context, images: &Images) -> Result<()> {
    make(context, images, None)
}

/// [`run()`], and leaves each image in `folder` as an archive, with a list of its packages beside it: `NAME.tar`, `NAME.packages`.
///
/// # Errors
/// As [`run()`]; or an archive cannot be written.
pub(crate) fn save(context: &Context, images: &Images, folder: &Path) -> Result<()> {
    make(context, images, Some(folder))
}

fn make(context: &Context, images: &Images, archives: Option<&Path>) -> Result<()> {
    let meant = |image: &&Image| images.only.as_deref().is_none_or(|only| only == image.name);
    let chosen: Vec<&Image> = IMAGES.iter().filter(meant).collect();
    ensure!(
        !chosen.is_empty(),
        "there is no such image: synology-csi, dsm-sim or node-sim"
    );
    doctor::ready(context, Layer::Images)?;
    build_programs(context, &["--release"])?;
    let engine = Engine::reach(context, Network::Machine)?;
    let base = &images.base;
    provide_base(context, &engine, base)?;
    let mut contents = Vec::new();
    for image in &chosen {
        build(context, &engine, image, base)?;
        for (program, version) in image.programs {
            try_program(&engine, image, program, version)?;
        }
        contents.push(Content::of(context, &engine, &tag(image.name))?);
    }
    let rows: Vec<[String; 6]> = chosen
        .iter()
        .zip(&contents)
        .map(|(image, content)| row(image, content))
        .collect();
    let header = ["image", "MB", "of", "files", "setuid", "shells"];
    println!("{}", table::render(header, &rows));
    for (image, content) in chosen.iter().zip(&contents) {
        println!("{} is made of: {}", image.name, content.packages.join(", "));
    }
    for (image, content) in chosen.iter().zip(&contents) {
        judge(image, content)?;
        if let Some(folder) = archives {
            fs::create_dir_all(folder)?;
            let packages = content.packages.join("\n") + "\n";
            fs::write(folder.join(format!("{}.packages", image.name)), packages)?;
            let archive = folder.join(format!("{}.tar", image.name));
            engine
                .step("save --output")
                .arg(&archive)
                .arg(tag(image.name))
                .quiet(&format!("Writing the archive of {}", image.name))?;
            // Docker writes it for its owner alone, and root hands it on to others.
            fs::set_permissions(&archive, Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

/// The base under the name that the Dockerfiles ask for: what the engine has, a registry's, or a fresh Debian.
fn provide_base(context: &Context, engine: &Engine<'_>, base: &str) -> Result<()> {
    if engine.step("image inspect").arg(base).output()?.success {
        return Ok(());
    }
    let mut pull = engine.step("pull --quiet").arg(base).within(PULL);
    if pull.watch(&format!("Pulling {base}"))?.success {
        return Ok(());
    }
    ensure!(
        base == BASE,
        "{base} cannot be pulled, and only {BASE} can be made here"
    );
    let folder = context.target.join("images");
    fs::create_dir_all(&folder)?;
    let file = folder.join("base.tar");
    Step::new(context, "mmdebstrap --quiet --variant=minbase")
        .arg(SUITE)
        .arg(&file)
        .quiet("No registry is in reach: making a Debian with mmdebstrap")?;
    engine
        .step("import")
        .arg(&file)
        .arg(base)
        .quiet("Importing it")?;
    Ok(fs::remove_file(file)?)
}

fn build(context: &Context, engine: &Engine<'_>, image: &Image, base: &str) -> Result<()> {
    // Nothing of the workspace but these goes to the engine.
    let folder = context.target.join("images").join(image.name);
    fs::create_dir_all(&folder)?;
    let copy = |from: &Path, name: &str| {
        let copied = fs::copy(from, folder.join(name));
        copied.with_context(|| from.display().to_string())
    };
    copy(&context.root.join("ci/images/collect"), "collect")?;
    let program = context.target.join("release").join(image.name);
    copy(&program, image.name)?;
    engine
        .build()?
        .arg("--file")
        .arg(context.root.join(image.folder).join("Dockerfile"))
        .arg("--build-arg")
        .arg(format!("BASE={base}"))
        .arg("--tag")
        .arg(tag(image.name))
        .arg(&folder)
        .quiet(&format!("Building the image of {}", image.name))
}

/// As its chart starts it: it can write nothing, may nothing, and knows no network.
fn try_program(engine: &Engine<'_>, image: &Image, program: &str, version: &str) -> Result<()> {
    let mut step = engine
        .step("run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges")
        .args(&["--user", "65532:65532", "--entrypoint", program])
        .arg(tag(image.name));
    if !version.is_empty() {
        step = step.arg(version);
    }
    let said = step.output()?;
    // Codes of the engine, and of a loader that lacks a library.
    let started = !matches!(said.code, None | Some(125..=127));
    ensure!(
        started,
        "{program} does not start in the image of {}: {}{}",
        image.name,
        said.stdout,
        said.stderr
    );
    Ok(())
}

fn judge(image: &Image, content: &Content) -> Result<()> {
    let (name, limit) = (image.name, image.limit);
    ensure!(
        content.bytes <= limit * 1_000_000,
        "{name} has {} bytes, and may have {limit} MB",
        content.bytes
    );
    ensure!(
        content.setuid.is_empty(),
        "{name} has setuid or setgid files: {}",
        content.setuid.join(", ")
    );
    ensure!(
        content.shells.is_empty(),
        "{name} has shells: {}",
        content.shells.join(", ")
    );
    Ok(())
}

fn row(image: &Image, content: &Content) -> [String; 6] {
    let whole = |number: usize| number.to_string();
    [
        image.name.to_owned(),
        format!(
            "{}.{}",
            content.bytes / 1_000_000,
            content.bytes / 100_000 % 10
        ),
        image.limit.to_string(),
        whole(content.files),
        whole(content.setuid.len()),
        whole(content.shells.len()),
    ]
}
