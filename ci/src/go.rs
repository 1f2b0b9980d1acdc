//! Builds pinned Go programs (csi-sanity, helm, kind, the official driver, …), and compares our csi.proto with the
//! specification's.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{context::Context, doctor::machine::GoVersion, run::Cmd};

/// A program that `go install` builds, at a pinned version.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// The file name in the tools directory.
    pub(crate) name: &'static str,
    pub(crate) module: &'static str,
    /// The program's folder in the module; empty for its root.
    pub(crate) folder: &'static str,
    /// The module's version.
    pub(crate) version: &'static str,
}

impl Pinned {
    /// The argument of `go install`. Go does not accept a path such as `module/.`.
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
/// The newest version that the module proxy serves.
const OFFICIAL_VERSION: &str = "v1.3.1";

/// The oldest Go that builds all of them.
const MIN_VERSION: GoVersion = GoVersion(1, 26);
/// Since this release, Go downloads a newer toolchain by itself if a module requires one.
const AUTO_TOOLCHAIN_SINCE: GoVersion = GoVersion(1, 21);
/// The toolchain to fetch with an older Go. Go releases are also published as this module.
const TOOLCHAIN: &str = "golang.org/toolchain@v0.0.1-go1.25.5.linux";

/// The installed Go.
#[derive(Debug, Clone)]
pub(crate) struct Go {
    program: PathBuf,
    version: GoVersion,
}

impl Go {
    /// The first one on the search path.
    pub(crate) fn find(context: &Context) -> Option<Self> {
        let program = context.find("go")?;
        let cmd = Cmd::new(context, &program.to_string_lossy())
            .arg("env")
            .arg("GOVERSION");
        let output = cmd.env("GOTOOLCHAIN", "local").output().ok()?;
        let version = GoVersion::parse(output.stdout.trim())?;
        Some(Self { program, version })
    }

    /// Path and version, for doctor's table.
    pub(crate) fn describe(&self) -> String {
        let GoVersion(major, minor) = self.version;
        let own = format!("{} {major}.{minor}", self.program.display());
        if self.version >= MIN_VERSION {
            own
        } else {
            format!(
                "{own}; fetches {}.{} when needed",
                MIN_VERSION.0, MIN_VERSION.1
            )
        }
    }

    /// Builds the pinned csi-sanity into the tools directory.
    ///
    /// # Errors
    /// When it cannot be fetched or built.
    pub(crate) fn install_sanity(&self, context: &Context) -> Result<()> {
        self.install(context, &SANITY).map(drop)
    }

    /// Builds a program into the tools directory, unless this version is already there.
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
            let cmd = self
                .cmd(context)?
                .arg("install")
                .arg(pinned.package(version))
                .env("GOBIN", context.tools());
            cmd.run_quietly(&format!("Installing {name} {version}"))?;
        }
        Ok(program)
    }

    /// Builds the newest release of a program instead of the pinned one, into a separate folder.
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
        // Outside of any module, whose go.mod would apply.
        let cmd = self.cmd(context)?.current_dir(&tools);
        let mut cmd = cmd
            .args(&["mod", "download", "-json"])
            .arg(format!("{module}@latest"));
        let newest = download(&mut cmd, &format!("Looking for the newest {name}"))?.version;
        println!("{name}: {newest}, pinned is {version}");
        let cmd = self.cmd(context)?.arg("install");
        cmd.arg(pinned.package(&newest))
            .env("GOBIN", &tools)
            .run_quietly(&format!("Installing {name} {newest}"))?;
        Ok(tools.join(name))
    }

    /// The folder with a module's files, downloaded if missing.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub(crate) fn module(&self, context: &Context, module: &str, version: &str) -> Result<PathBuf> {
        let cmd = self.cmd(context)?;
        let mut cmd = cmd
            .args(&["mod", "download", "-json"])
            .arg(format!("{module}@{version}"));
        download_dir(&mut cmd, &format!("Fetching {module} {version}"))
    }

    /// Builds the official driver, unmodified, into the tools directory. Returns its path and version.
    ///
    /// # Errors
    /// When it cannot be fetched or built.
    pub(crate) fn install_official(&self, context: &Context) -> Result<(PathBuf, &'static str)> {
        let program = context.tools().join("official-synology-csi");
        if self.is_built_from(context, &program, OFFICIAL_MODULE, OFFICIAL_VERSION) {
            return Ok((program, OFFICIAL_VERSION));
        }
        // `go install module@version` requests the list of versions, which not every proxy serves. Building it as a requirement
        // of another module does not.
        let folder = context.target.join("peers");
        fs::create_dir_all(&folder)?;
        let module =
            format!("module peers\n\ngo 1.25\n\nrequire {OFFICIAL_MODULE} {OFFICIAL_VERSION}\n");
        fs::write(folder.join("go.mod"), module)?;
        let cmd = self.cmd(context)?.current_dir(&folder);
        cmd.args(&["build", "-mod=mod", "-o"])
            .arg(&program)
            .arg(OFFICIAL_MODULE)
            .run_quietly(&format!("Building the official driver {OFFICIAL_VERSION}"))?;
        Ok((program, OFFICIAL_VERSION))
    }

    fn is_built_from(&self, context: &Context, file: &Path, module: &str, version: &str) -> bool {
        let cmd = Cmd::new(context, &self.program.to_string_lossy())
            .arg("version")
            .arg("-m")
            .arg(file);
        let output = cmd.env("GOTOOLCHAIN", "local").output();
        file.is_file()
            && output.is_ok_and(|output| build_info_matches(&output.stdout, module, version))
    }

    /// A command that runs a recent enough Go.
    ///
    /// # Errors
    /// When a newer one is needed and cannot be fetched.
    pub(crate) fn cmd(&self, context: &Context) -> Result<Cmd> {
        let program = if self.version < AUTO_TOOLCHAIN_SINCE {
            self.fetch_newer(context)?
        } else {
            self.program.clone()
        };
        let cmd = Cmd::new(context, &program.to_string_lossy());
        // Distributions may set GOTOOLCHAIN=local. Override it if the local Go is too old.
        Ok(if self.version < MIN_VERSION {
            cmd.env("GOTOOLCHAIN", "auto")
        } else {
            cmd
        })
    }

    /// Does what a newer Go does by itself: downloads a toolchain as a module (with checksum verification, like any module), and
    /// makes its programs executable, because files of modules never are.
    fn fetch_newer(&self, context: &Context) -> Result<PathBuf> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => bail!(
                "no Go {}.{} known for {other}; install it by hand",
                MIN_VERSION.0,
                MIN_VERSION.1
            ),
        };
        let cmd = Cmd::new(context, &self.program.to_string_lossy());
        let mut cmd = cmd
            .arg("mod")
            .arg("download")
            .arg("-json")
            .arg(format!("{TOOLCHAIN}-{architecture}"));
        let folder = download_dir(&mut cmd, "Fetching a newer Go")?;
        for directory in ["bin", "pkg/tool"] {
            make_executable(&folder.join(directory))?;
        }
        Ok(folder.join("bin/go"))
    }
}

/// The output of `go mod download -json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    #[serde(default)]
    dir: PathBuf,
    #[serde(default)]
    version: String,
    error: Option<String>,
}

/// Runs `go mod download -json` for one module, and returns the folder with its files.
fn download_dir(cmd: &mut Cmd, title: &str) -> Result<PathBuf> {
    Ok(download(cmd, title)?.dir)
}

/// Runs `go mod download -json` for one module, and returns its output.
fn download(cmd: &mut Cmd, title: &str) -> Result<Downloaded> {
    let output = cmd.output_with_progress(title)?;
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

/// csi-sanity in the tools directory, if it is the pinned version.
pub(crate) fn installed_sanity(context: &Context) -> Option<PathBuf> {
    installed(context, &SANITY)
}

/// A program in the tools directory, if it is the pinned version.
pub(crate) fn installed(context: &Context, pinned: &Pinned) -> Option<PathBuf> {
    let file = context.tools().join(pinned.name);
    if !file.is_file() {
        return None;
    }
    let go = Go::find(context)?;
    go.is_built_from(context, &file, pinned.module, pinned.version)
        .then_some(file)
}

/// Checks the output of `go version -m`: its `path` line names the package that was built, a `mod` or `dep` line the package's
/// module.
fn build_info_matches(build_information: &str, module: &str, version: &str) -> bool {
    let lines = || {
        build_information
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
    };
    let is_of = |path: &str| path == module || path.starts_with(&format!("{module}/"));
    lines().any(|words| matches!(words.as_slice(), ["path", path] if is_of(path)))
        && lines().any(|words| matches!(words.as_slice(), ["mod" | "dep", name, built, ..] if *name == module && *built == version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_built_as_a_dependency_of_another_module_is_recognized() {
        let output = format!(
            "official: go1.26.8\n\tpath\t{OFFICIAL_MODULE}\n\tdep\t{OFFICIAL_MODULE}\t{OFFICIAL_VERSION}\th1:abc=\n"
        );
        assert!(build_info_matches(
            &output,
            OFFICIAL_MODULE,
            OFFICIAL_VERSION
        ));
        assert!(!build_info_matches(&output, OFFICIAL_MODULE, "v1.0.0"));
    }

    #[test]
    fn package_paths_are_clean_with_and_without_a_folder() {
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
        let is_pinned = |text: &str| build_info_matches(text, SANITY.module, SANITY.version);
        assert!(!is_pinned(other));
        let pinned = other.replace("v5.4.0", "v5.5.0");
        assert!(is_pinned(&pinned));
        // A program that only depends on the module does not count.
        assert!(!is_pinned(&pinned.replace(
            "path\tgithub.com/kubernetes-csi",
            "path\texample.org"
        )));
    }
}
