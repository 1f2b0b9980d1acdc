//! A cluster that kind makes, and what is left of it.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;

use super::{
    devices::Devices,
    engine::{self, Engine},
    nodes,
};
use crate::{
    context::Context,
    doctor,
    go::Go,
    images::{self, Images},
    run::Step,
};

/// Its name.
const NAME: &str = "synology-csi";

/// How it is made.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The image of its nodes; kind's own choice when there is none.
    pub(super) image: Option<&'a str>,
    /// What our images are built upon; the usual one when there is none.
    pub(super) base: Option<&'a str>,
    /// Its nodes take cgroup v1.
    pub(super) cgroup_v1: bool,
    /// kind's newest release, and not the one that is pinned.
    pub(super) newest: bool,
    /// It stays.
    pub(super) keep: bool,
}

/// One that is there.
pub(super) struct Cluster<'a> {
    context: &'a Context,
    kind: PathBuf,
    folder: PathBuf,
    keep: bool,
    before: Devices,
}

impl<'a> Cluster<'a> {
    /// Makes one, with our images on its nodes, in an engine that [`judge`] has found fit.
    ///
    /// # Errors
    /// Somebody else's cluster has the name, or something is not made.
    pub(super) fn create(context: &'a Context, go: &Go, wanted: &Wanted<'_>) -> Result<Self> {
        let kind = if wanted.newest {
            go.install_newest(context, &nodes::KIND)?
        } else {
            go.install(context, &nodes::KIND)?
        };
        let folder = context.target.join("k8s");
        fs::create_dir_all(&folder)?;
        let mut cluster = Self {
            context,
            kind,
            folder,
            keep: wanted.keep,
            before: Devices::of(Path::new("/dev"))?,
        };
        cluster.make_room()?;
        let images = Images::upon(wanted.base);
        images::run(context, &images)?;
        empty_nas(context, images.base())?;
        if let Err(error) = cluster.make(wanted) {
            cluster.failed();
            cluster.end();
            return Err(error);
        }
        Ok(cluster)
    }

    /// Finds the one that an earlier call with `--keep` has left.
    ///
    /// # Errors
    /// kind cannot be built.
    pub(super) fn left(context: &'a Context, go: &Go) -> Result<Self> {
        Ok(Self {
            context,
            kind: go.install(context, &nodes::KIND)?,
            folder: context.target.join("k8s"),
            keep: true,
            before: Devices::of(Path::new("/dev"))?,
        })
    }

    /// Whoever talks to it.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// Writes down what its nodes logged: kubelet, containerd, containers.
    ///
    /// # Errors
    /// There is no such cluster.
    pub(super) fn export_logs(&self) -> Result<()> {
        let logs = self.folder.join("logs");
        remove(&logs, |it| fs::remove_dir_all(it))?;
        self.kind("export logs")
            .arg(&logs)
            .args(&["--name", NAME])
            .quiet(&format!("Keeping the nodes' logs in {}", logs.display()))?;
        give_all(self.context.caller, &logs)
    }

    /// After a failure: keeps what tells why.
    pub(super) fn failed(&self) {
        if let Err(error) = self.export_logs() {
            println!("The nodes' logs could not be kept: {error:#}");
        }
    }

    /// Ends it, unless it is to stay. This machine's devices must be as they were.
    ///
    /// # Errors
    /// It cannot be deleted, or a device is not as it was.
    pub(super) fn finish(self) -> Result<()> {
        let seen = Devices::of(Path::new("/dev")).and_then(|now| now.must_equal(&self.before));
        if self.keep {
            println!("{}", stays(&self.kubeconfig(), &self.kind));
        } else {
            self.delete()?;
        }
        seen
    }

    fn end(self) {
        if let Err(error) = self.finish() {
            println!("{error:#}");
        }
    }

    /// Deletes the one that we have made before; one of somebody else stays.
    fn make_room(&self) -> Result<()> {
        let there = nodes_of_that_name(self.context)?;
        let recorded = fs::read_to_string(self.record()).unwrap_or_default();
        match whose(&there, &recorded) {
            Whose::Nobodys => Ok(()),
            Whose::Ours => {
                println!("Deleting the cluster {NAME} that an earlier run has left.");
                self.delete()
            }
            Whose::Others => bail!(
                "there is a kind cluster {NAME} already, and this checkout has not made it. If it may go: {}",
                deletes(&self.kubeconfig(), &self.kind)
            ),
        }
    }

    fn make(&mut self, wanted: &Wanted<'_>) -> Result<()> {
        // Mounts of paths begin where kind is started: at the workspace's root, as always.
        let written = fs::read_to_string(self.context.root.join("e2e/k8s/kind.yaml"))?;
        let configuration = self.folder.join("kind.yaml");
        fs::write(
            &configuration,
            nodes::configuration(&written, wanted.cgroup_v1)?,
        )?;
        let mut create = self
            .on_cluster("create")
            .args(&["--retain", "--wait", "180s", "--config"])
            .arg(&configuration);
        if let Some(image) = wanted.image {
            create = create.arg("--image").arg(image);
        }
        let made = create.show();
        // Also of one that did not come up: it is ours.
        let there = nodes_of_that_name(self.context)?;
        fs::write(self.record(), there.join("\n"))?;
        made?;
        give(self.context.caller, &[&self.folder, &self.kubeconfig()])?;
        images::tags().try_for_each(|image| self.load(&image))
    }

    /// Where the numbers of its nodes' containers are written down.
    fn record(&self) -> PathBuf {
        self.folder.join("nodes")
    }

    fn kind(&self, what: &str) -> Step {
        Step::new(self.context, &self.kind.to_string_lossy())
            .args(&what.split(' ').collect::<Vec<_>>())
    }

    fn on_cluster(&self, what: &str) -> Step {
        self.kind(what)
            .args(&["cluster", "--name", NAME, "--kubeconfig"])
            .arg(self.kubeconfig())
    }

    fn load(&self, image: &str) -> Result<()> {
        self.kind("load docker-image")
            .arg(image)
            .args(&["--name", NAME])
            .quiet(&format!("Loading {image}"))
    }

    fn delete(&self) -> Result<()> {
        self.on_cluster("delete").quiet("Deleting the cluster")?;
        remove(&self.record(), |it| fs::remove_file(it))
    }
}

/// Whether kind can make what is wanted in the engine that runs here.
///
/// # Errors
/// What stands against that, and what to do.
pub(super) fn judge(context: &Context, wanted: &Wanted<'_>) -> Result<()> {
    doctor::provide(context, "docker.io", "docker")?;
    let info = Step::new(context, "docker info --format")
        .arg("{{json .}}")
        .output()?;
    let described = Step::new(context, "docker context inspect").output()?;
    let host = engine::host(context.docker_host.as_deref(), &described.stdout)?;
    let engine = Engine {
        info: &info,
        host: &host,
        image: wanted.image.unwrap_or(nodes::DEFAULT),
        cgroup_v1: wanted.cgroup_v1,
    };
    engine.must_do()
}

/// The containers of a kind cluster with our name, each by its number.
fn nodes_of_that_name(context: &Context) -> Result<Vec<String>> {
    let listed = Step::new(context, "docker ps --all --no-trunc --quiet --filter")
        .arg(format!("label=io.x-k8s.kind.cluster={NAME}"))
        .output()?;
    ensure!(listed.success, "{}", listed.stderr.trim());
    Ok(listed.stdout.lines().map(str::to_owned).collect())
}

#[derive(Debug, PartialEq, Eq)]
enum Whose {
    Nobodys,
    Ours,
    Others,
}

/// Whose a cluster is whose nodes are `there`: ours, when each of them was written down as we made it.
fn whose(there: &[String], recorded: &str) -> Whose {
    let ours = |node: &String| recorded.lines().any(|line| line == node);
    match there {
        [] => Whose::Nobodys,
        nodes if nodes.iter().all(ours) => Whose::Ours,
        _ => Whose::Others,
    }
}

/// The NAS of a cluster before has LUNs that nobody knows, and its files are root's: whoever may use the engine is root in a container.
fn empty_nas(context: &Context, base: &str) -> Result<()> {
    // As its nodes' mounts say in e2e/k8s/kind.yaml.
    let nas = context.root.join("target/k8s/nas");
    fs::create_dir_all(&nas)?;
    let within = |title: &str, program: &str, arguments: &[&str]| {
        Step::new(context, "docker run --rm --network none --volume")
            .arg(format!("{}:/nas", nas.display()))
            .args(&["--entrypoint", program, base])
            .args(arguments)
            .quiet(title)
    };
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    match fs::remove_dir_all(&nas) {
        Err(error) if refused(&error) => {
            let all = ["/nas", "-mindepth", "1", "-delete"];
            within("Emptying the folder of the NAS before", "find", &all)?;
        }
        emptied => emptied?,
    }
    fs::create_dir_all(&nas)?;
    if is_anothers(&nas, ROOT)? {
        let root = ["0:0", "/nas"];
        within("Giving the folder of the NAS to root", "chown", &root)?;
    }
    Ok(())
}

/// dsm-sim runs as root without the right to write where another user may.
const ROOT: u32 = 0;

/// Whether a folder is of another user than this one.
fn is_anothers(folder: &Path, user: u32) -> Result<bool> {
    let metadata = fs::metadata(folder).with_context(|| folder.display().to_string())?;
    Ok(metadata.uid() != user)
}

/// What sudo's caller goes on with is the caller's.
fn give(caller: Option<(u32, u32)>, files: &[&Path]) -> Result<()> {
    let Some((user, group)) = caller.filter(|_| geteuid().is_root()) else {
        return Ok(());
    };
    for file in files {
        chown(file, Some(user), Some(group)).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// The same with a folder and all that is in it.
fn give_all(caller: Option<(u32, u32)>, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            give_all(caller, &path)?;
        } else if !path.is_symlink() {
            give(caller, &[&path])?;
        }
    }
    give(caller, &[folder])
}

/// What one types to go on with a cluster that stays, and to end it.
fn stays(kubeconfig: &Path, kind: &Path) -> String {
    format!(
        "The cluster stays. To use it:\n  export KUBECONFIG={}\nTo end it:\n  {}",
        quoted(kubeconfig),
        deletes(kubeconfig, kind)
    )
}

fn deletes(kubeconfig: &Path, kind: &Path) -> String {
    let (kind, kubeconfig) = (quoted(kind), quoted(kubeconfig));
    format!("{kind} delete cluster --name {NAME} --kubeconfig {kubeconfig}")
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+,:@=".contains(letter);
    if path.chars().all(plain) {
        return path;
    }
    format!("'{}'", path.replace('\'', r"'\''"))
}

fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[&str]) -> Vec<String> {
        list.iter().map(|&node| node.to_owned()).collect()
    }

    #[test]
    fn only_a_cluster_whose_every_node_we_have_made_is_ours() {
        assert_eq!(whose(&[], ""), Whose::Nobodys);
        assert_eq!(whose(&[], "a\nb"), Whose::Nobodys);
        assert_eq!(whose(&nodes(&["a", "b"]), "a\nb\nc"), Whose::Ours);
        // Somebody has made one of the same name since.
        assert_eq!(whose(&nodes(&["a", "d"]), "a\nb"), Whose::Others);
        assert_eq!(whose(&nodes(&["a"]), ""), Whose::Others);
        assert_eq!(whose(&nodes(&["a"]), "ab"), Whose::Others);
    }

    /// Whoever makes the cluster without root owns the folder first, and the NAS could not write there.
    #[test]
    fn a_folder_that_is_not_roots_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let own = geteuid().as_raw();
        assert!(!is_anothers(folder.path(), own).unwrap());
        assert!(is_anothers(folder.path(), own + 1).unwrap());
        assert!(is_anothers(&folder.path().join("none"), own).is_err());
    }

    #[test]
    fn sudos_caller_gets_what_was_made() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let owner = || {
            let metadata = file.path().metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        let before = owner();
        give(None, &[file.path()]).unwrap();
        assert_eq!(owner(), before);
        // Who is not root has not come by sudo, whatever the environment says, and could give nothing away.
        let wanted = if before.0 == 0 {
            (65532, 65533)
        } else {
            before
        };
        give(Some((65532, 65533)), &[file.path()]).unwrap();
        assert_eq!(owner(), wanted);
    }

    /// The words are typed as they are: by a shell that knows nothing of this workspace, in any folder.
    #[test]
    fn what_is_printed_for_a_cluster_that_stays_works() {
        let folder = tempfile::tempdir().unwrap();
        let tools = folder.path().join("it's a folder");
        fs::create_dir_all(&tools).unwrap();
        let (kind, seen) = (tools.join("kind"), folder.path().join("seen"));
        let script = "#!/bin/sh\nprintf '%s|' \"$KUBECONFIG\" \"$@\" > \"$SEEN\"\n";
        fs::write(&kind, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&kind, mode).unwrap();
        let kubeconfig = tools.join("kubeconfig");
        let told = stays(&kubeconfig, &kind);
        let typed: Vec<&str> = told
            .lines()
            .filter_map(|it| it.strip_prefix("  "))
            .collect();
        let context = Context::read().unwrap();
        Step::new(&context, "sh -c")
            .arg(typed.join("\n"))
            .directory(Path::new("/"))
            .env("SEEN", &seen)
            .show()
            .unwrap();
        let path = kubeconfig.display();
        assert_eq!(
            fs::read_to_string(seen).unwrap(),
            format!("{path}|delete|cluster|--name|{NAME}|--kubeconfig|{path}|")
        );
    }
}
