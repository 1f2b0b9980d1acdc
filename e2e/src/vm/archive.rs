//! Debian packages: downloaded by apt, which checks signatures, and unpacked without being installed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::harness::process::{run, run_in};

/// The keyring for all suites of Debian.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package of this machine's Debian release at a pinned version.
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// The metapackage that depends on the newest version, for when the pinned one has left the archive.
    pub(super) series: Option<&'static str>,
}

impl Package {
    /// The folder into which it is unpacked; downloaded if missing.
    pub(super) fn unpacked(&self, folder: &Path) -> Result<PathBuf> {
        let name = format!("{}_{}", self.name, self.version.replace(':', "%3a"));
        unpacked(folder, &name, |path| self.download(path))
    }

    fn download(&self, folder: &Path) -> Result<()> {
        let own = Suite::default();
        let pinned = format!("{}={}", self.name, self.version);
        if own.download(folder, &pinned).is_ok() {
            return Ok(());
        }
        if nix::unistd::geteuid().is_root() {
            // A fresh container has no package lists.
            run("apt-get", ["update", "-q"])?;
        }
        let Err(refused) = own.download(folder, &pinned) else {
            return Ok(());
        };
        let newest = match self.series {
            Some(series) => own
                .newest_of(series)
                .with_context(|| format!("{refused:#}"))?,
            None => self.name.to_owned(),
        };
        eprintln!("vm: {pinned} is not available ({refused}); using the present {newest}");
        own.download(folder, &newest)
            .with_context(|| format!("is this Debian 12, and was apt-get update run? {refused:#}"))
    }
}

/// A suite of Debian with its own package lists; nothing is installed from it. Without options, it is this machine's suite.
#[derive(Debug, Default)]
pub(super) struct Suite {
    options: Vec<OsString>,
}

impl Suite {
    /// Downloads the package lists of the suite of this name, from this machine's mirror.
    ///
    /// # Errors
    /// There is no such suite.
    pub(super) fn ready(folder: &Path, name: &str) -> Result<Self> {
        let is_allowed = |letter: char| letter.is_ascii_lowercase() || letter == '-';
        ensure!(
            !name.is_empty() && name.chars().all(is_allowed),
            "{name:?} is not a suite of Debian: use for instance trixie or bookworm-backports"
        );
        let sites = run(
            "apt-get",
            ["indextargets", "--format", "$(SITE) $(CODENAME)"],
        )?;
        let site = sites
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, codename)| *codename == "bookworm")
            .context(
                "apt has no lists of Debian 12: is this Debian 12, and was apt-get update run?",
            )?
            .0;
        let own = folder.join(format!("apt-{name}"));
        fs::create_dir_all(own.join("lists/partial"))?;
        fs::create_dir_all(own.join("cache"))?;
        let sources = own.join("sources.list");
        fs::write(
            &sources,
            format!("deb [signed-by={KEYS}] {site} {name} main\n"),
        )?;
        let option = |name: &str, value: &Path| {
            let mut option = OsString::from(format!("--option={name}="));
            option.push(value);
            option
        };
        let lists = Self {
            options: vec![
                option("Dir::Etc::SourceList", &sources),
                option("Dir::Etc::SourceParts", Path::new("/dev/null")),
                option("Dir::State::Lists", &own.join("lists")),
                option("Dir::Cache", &own.join("cache")),
            ],
        };
        let updated = run(
            "apt-get",
            lists.arguments(["update", "-q", "--error-on=any"]),
        );
        updated.with_context(|| format!("cannot download the package lists of {name}"))?;
        Ok(lists)
    }

    /// The folder into which the newest package that `series` depends on is unpacked; downloaded if missing.
    ///
    /// # Errors
    /// The download fails.
    pub(super) fn newest(&self, folder: &Path, series: &str) -> Result<PathBuf> {
        let name = self.newest_of(series)?;
        unpacked(folder, &name, |path| self.download(path, &name))
    }

    /// Downloads a package. apt verifies it by the signature of the package lists.
    fn download(&self, folder: &Path, what: &str) -> Result<()> {
        run_in(folder, "apt-get", self.arguments(["download", "-q", what])).map(drop)
    }

    /// The package that the metapackage `series` depends on: the newest kernel.
    fn newest_of(&self, series: &str) -> Result<String> {
        let output = run("apt-cache", self.arguments(["depends", series]))?;
        let name = output
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        match name {
            Some(rest) => Ok(format!("linux-image-{rest}")),
            None => bail!("{series} depends on no kernel"),
        }
    }

    fn arguments<'a>(&'a self, more: impl IntoIterator<Item = &'a str>) -> Vec<&'a OsStr> {
        let own = self.options.iter().map(OsString::as_os_str);
        own.chain(more.into_iter().map(OsStr::new)).collect()
    }
}

/// Downloads and unpacks into a temporary folder and renames that, so that an interrupted download does not look complete.
fn unpacked(
    folder: &Path,
    name: &str,
    download: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let path = folder.join(name);
    if path.exists() {
        return Ok(path);
    }
    let fetch = tempfile::TempDir::with_prefix_in("fetch-", folder)?;
    download(fetch.path())?;
    let archive = fetch.path().join(only_entry(fetch.path())?);
    let tree = tempfile::TempDir::with_prefix_in("unpack-", folder)?;
    run(
        "dpkg-deb",
        ["-x".as_ref(), archive.as_os_str(), tree.path().as_os_str()],
    )?;
    fs::rename(tree.keep(), &path)?;
    Ok(path)
}

/// The name of the only entry of a folder.
pub(super) fn only_entry(folder: &Path) -> Result<String> {
    let entry = fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .next()
        .with_context(|| format!("{} is empty", folder.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}
