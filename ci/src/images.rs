//! The images of the three programs: built by a local Docker engine, each tried, and looked through.

mod broken;
pub(crate) mod engine;
mod program;
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
#[derive(Debug, Clone, Args)]
pub(crate) struct Images {
    /// Only this image: synology-csi, dsm-sim or node-sim
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// The Debian whose file system tools they hold
    #[arg(long, value_name = "IMAGE", default_value = BASE)]
    base: String,
}

impl Images {
    /// All of them, upon this base or the usual one.
    pub(crate) fn upon(base: Option<&str>) -> Self {
        Self {
            only: None,
            base: base.unwrap_or(BASE).to_owned(),
        }
    }

    /// What they are built upon.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }
}

impl Default for Images {
    fn default() -> Self {
        Self::upon(None)
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
    /// Programs that must start in it, how each says its version, and what it ends with then.
    programs: &'static [(&'static str, &'static str, i32)],
}

const IMAGES: [Image; 3] = [
    Image {
        name: "synology-csi",
        folder: "driver",
        limit: 60,
        programs: &[
            ("synology-csi", "--version", 0),
            ("blkid", "-V", 0),
            ("blockdev", "-V", 0),
            ("btrfs", "--version", 0),
            ("e2fsck", "-V", 0),
            ("losetup", "-V", 0),
            ("mkfs.btrfs", "--version", 0),
            ("mkfs.ext4", "-V", 0),
            ("mkfs.xfs", "-V", 0),
            ("mount", "-V", 0),
            ("resize2fs", "", 1),
            ("umount", "-V", 0),
            ("xfs_growfs", "-V", 0),
            ("xfs_spaceman", "-V", 0),
        ],
    },
    Image {
        name: "dsm-sim",
        folder: "dsm-sim",
        limit: 25,
        programs: &[("dsm-sim", "--version", 0)],
    },
    Image {
        name: "node-sim",
        folder: "node-sim",
        limit: 25,
        programs: &[
            ("node-sim", "--version", 0),
            ("blockdev", "-V", 0),
            ("losetup", "-V", 0),
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
    make(context, images, Then::Nothing)
}

/// [`run()`] for all of them; and an image that is broken on purpose must be refused.
///
/// # Errors
/// As [`run()`]; or it is not refused.
pub(crate) fn prove(context: &Context) -> Result<()> {
    make(context, &Images::default(), Then::RefuseABrokenOne)
}

/// [`run()`], and leaves each image in `folder` as an archive, with a list of its packages beside it: `NAME.tar`, `NAME.packages`.
///
/// # Errors
/// As [`run()`]; or an archive cannot be written.
pub(crate) fn save(context: &Context, images: &Images, folder: &Path) -> Result<()> {
    make(context, images, Then::Archive(folder))
}

/// What is done with images that are as they should be.
#[derive(Debug, Clone, Copy)]
enum Then<'a> {
    Nothing,
    Archive(&'a Path),
    RefuseABrokenOne,
}

fn make(context: &Context, images: &Images, then: Then<'_>) -> Result<()> {
    let meant = |image: &&Image| images.only.as_deref().is_none_or(|only| only == image.name);
    let chosen: Vec<&Image> = IMAGES.iter().filter(meant).collect();
    ensure!(
        !chosen.is_empty(),
        "there is no such image: synology-csi, dsm-sim or node-sim"
    );
    doctor::ready(context, Layer::Images)?;
    let programs: Vec<&str> = chosen.iter().map(|image| image.name).collect();
    let programs = program::build(context, &programs)?;
    let engine = Engine::reach(context, Network::Machine)?;
    let base = &images.base;
    provide_base(context, &engine, base)?;
    let mut contents = Vec::new();
    for image in &chosen {
        build(context, &engine, image, base, &programs)?;
        try_programs(&engine, image, &tag(image.name))?;
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
    }
    match then {
        Then::Nothing => Ok(()),
        Then::RefuseABrokenOne => broken::must_be_refused(context, &engine),
        Then::Archive(folder) => chosen
            .iter()
            .zip(&contents)
            .try_for_each(|(image, content)| archive(context, &engine, image, content, folder)),
    }
}

fn archive(
    context: &Context,
    engine: &Engine<'_>,
    image: &Image,
    made_of: &Content,
    folder: &Path,
) -> Result<()> {
    fs::create_dir_all(folder)?;
    let linked = program::c_library(context)?;
    let packages = format!("{}\n{linked}\n", made_of.packages.join("\n"));
    fs::write(folder.join(format!("{}.packages", image.name)), packages)?;
    let archive = folder.join(format!("{}.tar", image.name));
    engine
        .step("save --output")
        .arg(&archive)
        .arg(tag(image.name))
        .quiet(&format!("Writing the archive of {}", image.name))?;
    // Docker writes it for its owner alone, and root hands it on to others.
    fs::set_permissions(&archive, Permissions::from_mode(0o644))?;
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
    doctor::provide(context, "mmdebstrap", "mmdebstrap")?;
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

fn build(
    context: &Context,
    engine: &Engine<'_>,
    image: &Image,
    base: &str,
    programs: &Path,
) -> Result<()> {
    // Nothing of the workspace but these goes to the engine.
    let folder = context.target.join("images").join(image.name);
    fs::create_dir_all(&folder)?;
    let copy = |from: &Path, name: &str| {
        let copied = fs::copy(from, folder.join(name));
        copied.with_context(|| from.display().to_string())
    };
    copy(&context.root.join("ci/images/collect"), "collect")?;
    copy(&programs.join(image.name), image.name)?;
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

/// Each as its chart starts it: it can write nothing, may nothing, and knows no network. `name` is the image's full name.
fn try_programs(engine: &Engine<'_>, image: &Image, name: &str) -> Result<()> {
    for (program, version, code) in image.programs {
        let mut step = engine
            .step("run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges")
            .args(&["--user", "65532:65532", "--entrypoint", program])
            .arg(name);
        if !version.is_empty() {
            step = step.arg(version);
        }
        program::has_started(&step.output()?, *code)
            .with_context(|| format!("{program} does not start in {name}"))?;
    }
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
