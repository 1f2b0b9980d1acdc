//! What is built with Go: csi-sanity, the official driver, and the comparison of our csi.proto with the specification's.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{
    context::Context,
    doctor::{self, machine::GoVersion, need::Layer},
    run::Step,
};

/// A program that one `go install` builds.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// As it is called in the tools directory.
    pub(crate) name: &'static str,
    /// The module that it is of.
    pub(crate) module: &'static str,
    /// The folder of the program in the module; empty for the module's own.
    pub(crate) folder: &'static str,
    /// The module's version.
    pub(crate) version: &'static str,
}

impl Pinned {
    /// What `go install` is told of this version or another. Go takes no path with a dot in it.
    fn package(&self, version: &str) -> String {
        let Self { module, folder, .. } = self;
        let between = if folder.is_empty() { "" } else { "/" };
        format!("{module}{between}{folder}@{version}")
    }
}

const SANITY: Pinned = Pinned {
    name: "csi-sanity",
    module: "github.com/kubernetes-csi/csi-test/v5",
    folder: "cmd/csi-sanity",
    version: "v5.5.0",
};

const OFFICIAL_MODULE: &str = "github.com/SynologyOpenSource/synology-csi";
/// The newest one that the module proxy serves.
const OFFICIAL_VERSION: &str = "v1.3.1";

/// The least Go that builds them all.
const NEEDED: GoVersion = GoVersion(1, 26);
/// From here on Go fetches a newer release of itself when a module asks for one.
const SWITCHES: GoVersion = GoVersion(1, 21);
/// The release that an older Go fetches for us, as the module that Go releases are published as.
const TOOLCHAIN: &str = "golang.org/toolchain@v0.0.1-go1.25.5.linux";

/// A Go on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Go {
    program: PathBuf,
    version: GoVersion,
}

impl Go {
    /// The first one on the search path.
    pub(crate) fn find(context: &Context) -> Option<Self> {
        let program = context.find("go")?;
        let asked = Step::new(context, &program.to_string_lossy())
            .arg("env")
            .arg("GOVERSION");
        let output = asked.env("GOTOOLCHAIN", "local").output().ok()?;
        let version = GoVersion::parse(output.stdout.trim())?;
        Some(Self { program, version })
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let GoVersion(major, minor) = self.version;
        let own = format!("{} {major}.{minor}", self.program.display());
        if self.version >= NEEDED {
            own
        } else {
            format!("{own}; fetches {}.{} when needed", NEEDED.0, NEEDED.1)
        }
    }

    /// Builds the pinned csi-sanity into the tools directory.
    ///
    /// # Errors
    /// When it cannot be fetched or built.
    pub(crate) fn install_sanity(&self, context: &Context) -> Result<()> {
        self.install(context, &SANITY).map(drop)
    }

    /// Builds a program into the tools directory, unless it is there in this version.
    ///
    /// # Errors
    /// When it cannot be fetched or built.
    pub(crate) fn install(&self, context: &Context, pinned: &Pinned) -> Result<PathBuf> {
        let Pinned {
            name,
            module,
            version,
            ..
        } = pinned;
        let program = context.tools().join(name);
        if !self.is_built_from(context, &program, module, version) {
            let step = self
                .step(context)?
                .arg("install")
                .arg(pinned.package(version))
                .env("GOBIN", context.tools());
            step.quiet(&format!("Installing {name} {version}"))?;
        }
        Ok(program)
    }

    /// Builds the newest release of a program, whatever is pinned, into a folder of its own.
    ///
    /// # Errors
    /// When it cannot be fetched or built.
    pub(crate) fn install_newest(&self, context: &Context, pinned: &Pinned) -> Result<PathBuf> {
        let Pinned {
            name,
            module,
            version,
            ..
        } = pinned;
        let tools = context.tools().join("newest");
        fs::create_dir_all(&tools)?;
        // Outside of any module, whose go.mod would have a say.
        let asked = self.step(context)?.directory(&tools);
        let mut asked = asked
            .args(&["mod", "download", "-json"])
            .arg(format!("{module}@latest"));
        let newest = fetched(&mut asked, &format!("Looking for the newest {name}"))?.version;
        println!("{name}: {newest}, pinned is {version}");
        let step = self.step(context)?.arg("install");
        step.arg(pinned.package(&newest))
            .env("GOBIN", &tools)
            .quiet(&format!("Installing {name} {newest}"))?;
        Ok(tools.join(name))
    }

    /// The folder with a module's files, which is fetched when it is missing.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub(crate) fn module(&self, context: &Context, module: &str, version: &str) -> Result<PathBuf> {
        let step = self.step(context)?;
        let mut step = step
            .args(&["mod", "download", "-json"])
            .arg(format!("{module}@{version}"));
        downloaded(&mut step, &format!("Fetching {module} {version}"))
    }

    /// Builds the official driver, unmodified, into the tools directory; its version.
    ///
    /// # Errors
    /// When it cannot be fetched or built.
    pub(crate) fn install_official(&self, context: &Context) -> Result<(PathBuf, &'static str)> {
        let program = context.tools().join("official-synology-csi");
        if self.is_built_from(context, &program, OFFICIAL_MODULE, OFFICIAL_VERSION) {
            return Ok((program, OFFICIAL_VERSION));
        }
        // `go install module@version` asks for a list of versions, which not every proxy has; a module that requires it
        // does not.
        let folder = context.target.join("peers");
        fs::create_dir_all(&folder)?;
        let module =
            format!("module peers\n\ngo 1.25\n\nrequire {OFFICIAL_MODULE} {OFFICIAL_VERSION}\n");
        fs::write(folder.join("go.mod"), module)?;
        let step = self.step(context)?.directory(&folder);
        step.args(&["build", "-mod=mod", "-o"])
            .arg(&program)
            .arg(OFFICIAL_MODULE)
            .quiet(&format!("Building the official driver {OFFICIAL_VERSION}"))?;
        Ok((program, OFFICIAL_VERSION))
    }

    fn is_built_from(&self, context: &Context, file: &Path, module: &str, version: &str) -> bool {
        let asked = Step::new(context, &self.program.to_string_lossy())
            .arg("version")
            .arg("-m")
            .arg(file);
        let told = asked.env("GOTOOLCHAIN", "local").output();
        file.is_file() && told.is_ok_and(|told| names(&told.stdout, module, version))
    }

    /// A Go that is new enough.
    ///
    /// # Errors
    /// When a newer one is needed and cannot be fetched.
    pub(crate) fn step(&self, context: &Context) -> Result<Step> {
        let program = if self.version < SWITCHES {
            self.fetch_newer(context)?
        } else {
            self.program.clone()
        };
        let step = Step::new(context, &program.to_string_lossy());
        // Distributions may pin GOTOOLCHAIN to local; where the local one is too old that must not hold.
        Ok(if self.version < NEEDED {
            step.env("GOTOOLCHAIN", "auto")
        } else {
            step
        })
    }

    /// Does by hand what a newer Go does by itself: downloads a release as a module (checked like any module) and makes
    /// its programs executable, which modules never are.
    fn fetch_newer(&self, context: &Context) -> Result<PathBuf> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => bail!(
                "no Go {}.{} known for {other}; install it by hand",
                NEEDED.0,
                NEEDED.1
            ),
        };
        let step = Step::new(context, &self.program.to_string_lossy());
        let mut step = step
            .arg("mod")
            .arg("download")
            .arg("-json")
            .arg(format!("{TOOLCHAIN}-{architecture}"));
        let folder = downloaded(&mut step, "Fetching a newer Go")?;
        for directory in ["bin", "pkg/tool"] {
            make_executable(&folder.join(directory))?;
        }
        Ok(folder.join("bin/go"))
    }
}

/// What `go mod download -json` prints.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    #[serde(default)]
    dir: PathBuf,
    #[serde(default)]
    version: String,
    error: Option<String>,
}

/// Runs `go mod download -json` for one module; the folder with its files.
fn downloaded(step: &mut Step, title: &str) -> Result<PathBuf> {
    Ok(fetched(step, title)?.dir)
}

/// The same; all that it says.
fn fetched(step: &mut Step, title: &str) -> Result<Downloaded> {
    let output = step.watch(title)?;
    let module: Downloaded = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{title}: {}", output.stderr.trim()))?;
    match module.error {
        Some(error) => bail!("{title}: {error}"),
        None => Ok(module),
    }
}

fn make_executable(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            make_executable(&path)?;
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o555))?;
        }
    }
    Ok(())
}

/// csi-sanity in the tools directory, when it is the pinned version.
pub(crate) fn installed_sanity(context: &Context) -> Option<PathBuf> {
    installed(context, &SANITY)
}

/// A program in the tools directory, when it is the pinned version.
pub(crate) fn installed(context: &Context, pinned: &Pinned) -> Option<PathBuf> {
    let file = context.tools().join(pinned.name);
    if !file.is_file() {
        return None;
    }
    let go = Go::find(context)?;
    go.is_built_from(context, &file, pinned.module, pinned.version)
        .then_some(file)
}

/// Reads `go version -m`: its `path` line names the package that was built, a `mod` or `dep` line the module it is of.
fn names(build_information: &str, module: &str, version: &str) -> bool {
    let lines = || {
        build_information
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
    };
    let is_of = |path: &str| path == module || path.starts_with(&format!("{module}/"));
    lines().any(|words| matches!(words.as_slice(), ["path", path] if is_of(path)))
        && lines().any(|words| matches!(words.as_slice(), ["mod" | "dep", name, built, ..] if *name == module && *built == version))
}

/// Compares proto/csi.proto with the specification: first proves that the comparison sees every kind of difference,
/// then runs it.
///
/// # Errors
/// When they differ, when Go is missing, or when a module cannot be fetched.
pub(crate) fn spec(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Spec)?;
    let go = Go::find(context).context("no Go")?;
    let compare = context.root.join("proto/compare");
    let descriptor = context.target.join("csi.binpb");
    // With the whole workspace's features, as everything else is built.
    Step::new(
        context,
        "cargo build --locked --workspace --example descriptor",
    )
    .quiet("Building what compiles proto/csi.proto")?;
    let program = context.target.join("debug/examples/descriptor");
    Step::new(context, &program.to_string_lossy())
        .arg(&descriptor)
        .quiet("Compiling proto/csi.proto")?;
    for command in [["vet", "./..."], ["test", "./..."]] {
        let step = go.step(context)?.directory(&compare);
        step.args(&command)
            .quiet(&format!("go {} proto/compare", command[0]))?;
    }
    let run = go
        .step(context)?
        .directory(&compare)
        .arg("run")
        .arg("-buildvcs=false")
        .arg(".")
        .arg(&descriptor);
    run.show()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_built_through_another_module_is_known() {
        let told = format!(
            "official: go1.26.8\n\tpath\t{OFFICIAL_MODULE}\n\tdep\t{OFFICIAL_MODULE}\t{OFFICIAL_VERSION}\th1:abc=\n"
        );
        assert!(names(&told, OFFICIAL_MODULE, OFFICIAL_VERSION));
        assert!(!names(&told, OFFICIAL_MODULE, "v1.0.0"));
    }

    #[test]
    fn a_package_is_a_clean_path_wherever_its_program_lies() {
        assert_eq!(
            SANITY.package("v5.5.0"),
            "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.5.0"
        );
        assert_eq!(
            crate::k8s::nodes::KIND.package("v0.33.0"),
            "sigs.k8s.io/kind@v0.33.0"
        );
    }

    #[test]
    fn only_the_pinned_sanity_counts() {
        let other = "target/tools/csi-sanity: go1.26.8\n\tpath\tgithub.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity\n\
                     \tmod\tgithub.com/kubernetes-csi/csi-test/v5\tv5.4.0\th1:abc=\n";
        let is_pinned = |text: &str| names(text, SANITY.module, SANITY.version);
        assert!(!is_pinned(other));
        let pinned = other.replace("v5.4.0", "v5.5.0");
        assert!(is_pinned(&pinned));
        // A program that merely uses it is not the program.
        assert!(!is_pinned(&pinned.replace(
            "path\tgithub.com/kubernetes-csi",
            "path\texample.org"
        )));
    }
}
