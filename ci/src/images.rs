//! `cargo ci images`: builds the images of the three programs with a local Docker engine, starts the programs in them, and checks
//! their contents.

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
    run::Cmd,
    table,
};
use engine::{Engine, Network};
use scan::Content;

/// The default base image of the Dockerfiles.
const BASE: &str = "debian:bookworm-slim";
/// The Debian suite of [`BASE`], for mmdebstrap.
const SUITE: &str = "bookworm";
/// Timeout for pulling the base image.
const PULL_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of the images.
#[derive(Debug, Clone, Args)]
pub(crate) struct Images {
    /// Only this image: synology-csi, dsm-sim or node-sim
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// The Debian base image, whose file system tools are copied into the images
    #[arg(long, value_name = "IMAGE", default_value = BASE)]
    base: String,
}

impl Images {
    /// All images, with this base image or the default one.
    pub(crate) fn with_base(base: Option<&str>) -> Self {
        Self {
            only: None,
            base: base.unwrap_or(BASE).to_owned(),
        }
    }

    /// The base image.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }
}

impl Default for Images {
    fn default() -> Self {
        Self::with_base(None)
    }
}

/// An image.
struct Image {
    /// The name of the image and of its program.
    name: &'static str,
    /// The folder of its Dockerfile.
    folder: &'static str,
    /// Maximum size of all its files, MB.
    limit: u64,
    /// Programs that must start in it: name, version option, and exit code.
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

/// The full name of a local image, with the workspace's version.
fn tag(name: &str) -> String {
    format!("localhost/{name}:{}", env!("CARGO_PKG_VERSION"))
}

/// The full names of all local images.
pub(crate) fn tags() -> impl Iterator<Item = String> {
    names().map(tag)
}

/// The names of all images, which are also the names of their programs.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    IMAGES.iter().map(|image| image.name)
}

/// The cargo package of an image's program.
pub(crate) fn package(name: &str) -> &'static str {
    let found = IMAGES.iter().find(|image| image.name == name);
    found.map_or("", |image| image.folder)
}

/// Builds the images, starts each program in them, and prints their contents.
///
/// # Errors
/// When an image cannot be built, is too large, or has a program that does not start, a shell, or a setuid file.
pub(crate) fn run(context: &Context, images: &Images) -> Result<()> {
    build_all(context, images, Action::None)
}

/// [`run()`] for all images, and a negative test: an image that is broken on purpose must fail.
///
/// # Errors
/// As [`run()`], or when the broken image does not fail.
pub(crate) fn run_with_broken_image(context: &Context) -> Result<()> {
    build_all(context, &Images::default(), Action::RejectBroken)
}

/// [`run()`], and saves each image and the list of its packages in `folder`: `NAME.tar`, `NAME.packages`.
///
/// # Errors
/// As [`run()`], or when an archive cannot be written.
pub(crate) fn save(context: &Context, images: &Images, folder: &Path) -> Result<()> {
    build_all(context, images, Action::Archive(folder))
}

/// What to do after all checks passed.
#[derive(Debug, Clone, Copy)]
enum Action<'a> {
    None,
    Archive(&'a Path),
    RejectBroken,
}

fn build_all(context: &Context, images: &Images, action: Action<'_>) -> Result<()> {
    let selected = |image: &&Image| images.only.as_deref().is_none_or(|only| only == image.name);
    let chosen: Vec<&Image> = IMAGES.iter().filter(selected).collect();
    ensure!(
        !chosen.is_empty(),
        "no such image; there are synology-csi, dsm-sim and node-sim"
    );
    doctor::ready(context, Layer::Images)?;
    let programs: Vec<&str> = chosen.iter().map(|image| image.name).collect();
    let programs = program::build(context, &programs)?;
    let engine = Engine::connect_or_start(context, Network::Host)?;
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
        println!(
            "packages of {}: {}",
            image.name,
            content.packages.join(", ")
        );
    }
    for (image, content) in chosen.iter().zip(&contents) {
        check_content(image, content)?;
    }
    match action {
        Action::None => Ok(()),
        Action::RejectBroken => broken::must_be_refused(context, &engine),
        Action::Archive(folder) => chosen
            .iter()
            .zip(&contents)
            .try_for_each(|(image, content)| archive(context, &engine, image, content, folder)),
    }
}

fn archive(
    context: &Context,
    engine: &Engine<'_>,
    image: &Image,
    listed: &Content,
    folder: &Path,
) -> Result<()> {
    fs::create_dir_all(folder)?;
    let linked = program::c_library(context)?;
    let packages = format!("{}\n{linked}\n", listed.packages.join("\n"));
    fs::write(folder.join(format!("{}.packages", image.name)), packages)?;
    let archive = folder.join(format!("{}.tar", image.name));
    engine
        .docker("save --output")
        .arg(&archive)
        .arg(tag(image.name))
        .run_quietly(&format!("Writing the archive of {}", image.name))?;
    // Docker makes it readable only by root.
    fs::set_permissions(&archive, Permissions::from_mode(0o644))?;
    Ok(())
}

/// Makes the base image available: the engine's own, pulled from a registry, or built with mmdebstrap.
fn provide_base(context: &Context, engine: &Engine<'_>, base: &str) -> Result<()> {
    if engine.docker("image inspect").arg(base).output()?.success {
        return Ok(());
    }
    let mut pull = engine
        .docker("pull --quiet")
        .arg(base)
        .timeout(PULL_TIMEOUT);
    if pull
        .output_with_progress(&format!("Pulling {base}"))?
        .success
    {
        return Ok(());
    }
    ensure!(
        base == BASE,
        "{base} cannot be pulled, and only {BASE} can be built here"
    );
    let folder = context.target.join("images");
    fs::create_dir_all(&folder)?;
    let file = folder.join("base.tar");
    doctor::provide(context, "mmdebstrap", "mmdebstrap")?;
    Cmd::new(context, "mmdebstrap --quiet --variant=minbase")
        .arg(SUITE)
        .arg(&file)
        .run_quietly("No registry is reachable: building a Debian with mmdebstrap")?;
    engine
        .docker("import")
        .arg(&file)
        .arg(base)
        .run_quietly("Importing it")?;
    Ok(fs::remove_file(file)?)
}

fn build(
    context: &Context,
    engine: &Engine<'_>,
    image: &Image,
    base: &str,
    programs: &Path,
) -> Result<()> {
    // The build context contains only these two files.
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
        .run_quietly(&format!("Building the image of {}", image.name))
}

/// Starts each program as restricted as possible: read-only, without capabilities or network. `name` is the image's full name.
fn try_programs(engine: &Engine<'_>, image: &Image, name: &str) -> Result<()> {
    for (program, version, code) in image.programs {
        let mut cmd = engine
            .docker("run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges")
            .args(&["--user", "65532:65532", "--entrypoint", program])
            .arg(name);
        if !version.is_empty() {
            cmd = cmd.arg(version);
        }
        program::has_started(&cmd.output()?, *code)
            .with_context(|| format!("{program} does not start in {name}"))?;
    }
    Ok(())
}

fn check_content(image: &Image, content: &Content) -> Result<()> {
    let (name, limit) = (image.name, image.limit);
    ensure!(
        content.bytes <= limit * 1_000_000,
        "{name} has {} bytes, more than its limit of {limit} MB",
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
