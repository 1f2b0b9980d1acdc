//! A kind cluster: creating it, loading our images, exporting its logs, and deleting it.

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
    run::Cmd,
};

/// The name of the kind cluster.
const NAME: &str = "synology-csi";

/// Options for creating a cluster.
#[derive(Debug)]
pub(super) struct ClusterOptions<'a> {
    /// The node image; kind's default if `None`.
    pub(super) image: Option<&'a str>,
    /// The base image for our images; the default if `None`.
    pub(super) base: Option<&'a str>,
    /// The node image supports cgroup v1.
    pub(super) cgroup_v1: bool,
    /// Use kind's newest release instead of the pinned one.
    pub(super) newest: bool,
    /// Do not delete the cluster afterwards.
    pub(super) keep: bool,
}

/// A running cluster.
pub(super) struct Cluster<'a> {
    context: &'a Context,
    kind: PathBuf,
    folder: PathBuf,
    keep: bool,
    before: Devices,
}

impl<'a> Cluster<'a> {
    /// Creates a cluster with our images on its nodes. Call [`check_engine`] first.
    ///
    /// # Errors
    /// When a cluster of that name exists that this checkout has not created, or a command fails.
    pub(super) fn create(
        context: &'a Context,
        go: &Go,
        options: &ClusterOptions<'_>,
    ) -> Result<Self> {
        let kind = if options.newest {
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
            keep: options.keep,
            before: Devices::of(Path::new("/dev"))?,
        };
        cluster.delete_stale()?;
        let images = Images::with_base(options.base);
        images::run(context, &images)?;
        empty_nas(context, images.base())?;
        if let Err(error) = cluster.make(options) {
            cluster.export_logs_after_failure();
            cluster.finish_or_report();
            return Err(error);
        }
        Ok(cluster)
    }

    /// The cluster that an earlier run with `--keep` has left.
    ///
    /// # Errors
    /// When kind cannot be built.
    pub(super) fn existing(context: &'a Context, go: &Go) -> Result<Self> {
        Ok(Self {
            context,
            kind: go.install(context, &nodes::KIND)?,
            folder: context.target.join("k8s"),
            keep: true,
            before: Devices::of(Path::new("/dev"))?,
        })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// Saves the logs of its nodes: kubelet, containerd, containers.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub(super) fn export_logs(&self) -> Result<()> {
        let logs = self.folder.join("logs");
        remove(&logs, |it| fs::remove_dir_all(it))?;
        self.kind("export logs")
            .arg(&logs)
            .args(&["--name", NAME])
            .run_quietly(&format!("Saving the node logs in {}", logs.display()))?;
        chown_all_to_caller(self.context.caller, &logs)
    }

    /// Saves the node logs after a failure. If that fails too, only prints the error.
    pub(super) fn export_logs_after_failure(&self) {
        if let Err(error) = self.export_logs() {
            println!("The node logs could not be saved: {error:#}");
        }
    }

    /// Deletes the cluster, unless it is to be kept. Checks that the host's device files are unchanged.
    ///
    /// # Errors
    /// When it cannot be deleted, or a device file has changed.
    pub(super) fn finish(self) -> Result<()> {
        let unchanged = Devices::of(Path::new("/dev")).and_then(|now| now.must_equal(&self.before));
        if self.keep {
            println!("{}", keep_message(&self.kubeconfig(), &self.kind));
        } else {
            self.delete()?;
        }
        unchanged
    }

    fn finish_or_report(self) {
        if let Err(error) = self.finish() {
            println!("{error:#}");
        }
    }

    /// Deletes a cluster that an earlier run has left. Never deletes one that this checkout has not created.
    fn delete_stale(&self) -> Result<()> {
        let nodes_present = nodes_of_that_name(self.context)?;
        let recorded = fs::read_to_string(self.record()).unwrap_or_default();
        match owner_of(&nodes_present, &recorded) {
            Owner::None => Ok(()),
            Owner::Ours => {
                println!("Deleting the cluster {NAME} that an earlier run has left.");
                self.delete()
            }
            Owner::Other => bail!(
                "there is already a kind cluster {NAME}, which this checkout has not created. To delete it: {}",
                delete_command(&self.kubeconfig(), &self.kind)
            ),
        }
    }

    fn make(&mut self, options: &ClusterOptions<'_>) -> Result<()> {
        // Relative host paths of mounts start at kind's working directory, which is the workspace's root.
        let written = fs::read_to_string(self.context.root.join("e2e/k8s/kind.yaml"))?;
        let configuration = self.folder.join("kind.yaml");
        fs::write(
            &configuration,
            nodes::configuration(&written, options.cgroup_v1)?,
        )?;
        let mut create = self
            .on_cluster("create")
            .args(&["--retain", "--wait", "180s", "--config"])
            .arg(&configuration);
        if let Some(image) = options.image {
            create = create.arg("--image").arg(image);
        }
        let made = create.run();
        // Also record the nodes of a cluster that did not come up, because it is ours, too.
        let nodes_present = nodes_of_that_name(self.context)?;
        fs::write(self.record(), nodes_present.join("\n"))?;
        made?;
        chown_to_caller(self.context.caller, &[&self.folder, &self.kubeconfig()])?;
        images::tags().try_for_each(|image| self.load(&image))
    }

    /// The file with the container IDs of the nodes that we have created.
    fn record(&self) -> PathBuf {
        self.folder.join("nodes")
    }

    fn kind(&self, what: &str) -> Cmd {
        Cmd::new(self.context, &self.kind.to_string_lossy())
            .args(&what.split(' ').collect::<Vec<_>>())
    }

    fn on_cluster(&self, what: &str) -> Cmd {
        self.kind(what)
            .args(&["cluster", "--name", NAME, "--kubeconfig"])
            .arg(self.kubeconfig())
    }

    fn load(&self, image: &str) -> Result<()> {
        self.kind("load docker-image")
            .arg(image)
            .args(&["--name", NAME])
            .run_quietly(&format!("Loading {image}"))
    }

    fn delete(&self) -> Result<()> {
        self.on_cluster("delete")
            .run_quietly("Deleting the cluster")?;
        remove(&self.record(), |it| fs::remove_file(it))
    }
}

/// Checks whether kind can create such a cluster in the local Docker engine.
///
/// # Errors
/// The reason why not, and the remedy.
pub(super) fn check_engine(context: &Context, options: &ClusterOptions<'_>) -> Result<()> {
    doctor::provide(context, "docker.io", "docker")?;
    let info = Cmd::new(context, "docker info --format")
        .arg("{{json .}}")
        .output()?;
    let described = Cmd::new(context, "docker context inspect").output()?;
    let host = engine::host(context.docker_host.as_deref(), &described.stdout)?;
    let engine = Engine {
        info: &info,
        host: &host,
        image: options.image.unwrap_or(nodes::DEFAULT),
        cgroup_v1: options.cgroup_v1,
    };
    engine.check()
}

/// The container IDs of the nodes of a kind cluster with our name.
fn nodes_of_that_name(context: &Context) -> Result<Vec<String>> {
    let listed = Cmd::new(context, "docker ps --all --no-trunc --quiet --filter")
        .arg(format!("label=io.x-k8s.kind.cluster={NAME}"))
        .output()?;
    ensure!(listed.success, "{}", listed.stderr.trim());
    Ok(listed.stdout.lines().map(str::to_owned).collect())
}

#[derive(Debug, PartialEq, Eq)]
enum Owner {
    None,
    Ours,
    Other,
}

/// Who created a cluster with these nodes. It is ours if each of its nodes was recorded when we created it.
fn owner_of(nodes_present: &[String], recorded: &str) -> Owner {
    let ours = |node: &String| recorded.lines().any(|line| line == node);
    match nodes_present {
        [] => Owner::None,
        nodes if nodes.iter().all(ours) => Owner::Ours,
        _ => Owner::Other,
    }
}

/// Empties the folder of dsm-sim, which may contain LUNs of an earlier cluster. Its files belong to root: without root, they are
/// deleted in a container.
fn empty_nas(context: &Context, base: &str) -> Result<()> {
    // The same path is in the nodes' mounts in e2e/k8s/kind.yaml.
    let nas = context.root.join("target/k8s/nas");
    fs::create_dir_all(&nas)?;
    let within = |title: &str, program: &str, arguments: &[&str]| {
        Cmd::new(context, "docker run --rm --network none --volume")
            .arg(format!("{}:/nas", nas.display()))
            .args(&["--entrypoint", program, base])
            .args(arguments)
            .run_quietly(title)
    };
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    match fs::remove_dir_all(&nas) {
        Err(error) if refused(&error) => {
            let all = ["/nas", "-mindepth", "1", "-delete"];
            within("Emptying the folder of the previous NAS", "find", &all)?;
        }
        emptied => emptied?,
    }
    fs::create_dir_all(&nas)?;
    if has_other_owner(&nas, ROOT)? {
        let root = ["0:0", "/nas"];
        within(
            "Changing the owner of the NAS folder to root",
            "chown",
            &root,
        )?;
    }
    Ok(())
}

/// dsm-sim runs as root without `CAP_DAC_OVERRIDE`, so its folder must belong to root.
const ROOT: u32 = 0;

/// Whether a folder belongs to another user.
fn has_other_owner(folder: &Path, user: u32) -> Result<bool> {
    let metadata = fs::metadata(folder).with_context(|| folder.display().to_string())?;
    Ok(metadata.uid() != user)
}

/// Gives files to the user who called sudo, who will use them.
fn chown_to_caller(caller: Option<(u32, u32)>, files: &[&Path]) -> Result<()> {
    let Some((user, group)) = caller.filter(|_| geteuid().is_root()) else {
        return Ok(());
    };
    for file in files {
        chown(file, Some(user), Some(group)).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// [`chown_to_caller`] for a folder and everything in it.
fn chown_all_to_caller(caller: Option<(u32, u32)>, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            chown_all_to_caller(caller, &path)?;
        } else if !path.is_symlink() {
            chown_to_caller(caller, &[&path])?;
        }
    }
    chown_to_caller(caller, &[folder])
}

/// How to use and how to delete a cluster that is kept.
fn keep_message(kubeconfig: &Path, kind: &Path) -> String {
    format!(
        "The cluster is kept. To use it:\n  export KUBECONFIG={}\nTo delete it:\n  {}",
        quoted(kubeconfig),
        delete_command(kubeconfig, kind)
    )
}

fn delete_command(kubeconfig: &Path, kind: &Path) -> String {
    let (kind, kubeconfig) = (quoted(kind), quoted(kubeconfig));
    format!("{kind} delete cluster --name {NAME} --kubeconfig {kubeconfig}")
}

/// A path, quoted for a shell if needed.
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
    fn a_cluster_is_ours_only_if_every_node_is_recorded() {
        assert_eq!(owner_of(&[], ""), Owner::None);
        assert_eq!(owner_of(&[], "a\nb"), Owner::None);
        assert_eq!(owner_of(&nodes(&["a", "b"]), "a\nb\nc"), Owner::Ours);
        // Another cluster with the same name has been created since.
        assert_eq!(owner_of(&nodes(&["a", "d"]), "a\nb"), Owner::Other);
        assert_eq!(owner_of(&nodes(&["a"]), ""), Owner::Other);
        assert_eq!(owner_of(&nodes(&["a"]), "ab"), Owner::Other);
    }

    /// Without root, the folder first belongs to the user, and dsm-sim could not write there.
    #[test]
    fn a_folder_of_another_user_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let own = geteuid().as_raw();
        assert!(!has_other_owner(folder.path(), own).unwrap());
        assert!(has_other_owner(folder.path(), own + 1).unwrap());
        assert!(has_other_owner(&folder.path().join("none"), own).is_err());
    }

    #[test]
    fn files_are_given_to_the_caller_of_sudo() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let owner = || {
            let metadata = file.path().metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        let before = owner();
        chown_to_caller(None, &[file.path()]).unwrap();
        assert_eq!(owner(), before);
        // Without root, SUDO_UID is ignored, because chown would fail.
        let options = if before.0 == 0 {
            (65532, 65533)
        } else {
            before
        };
        chown_to_caller(Some((65532, 65533)), &[file.path()]).unwrap();
        assert_eq!(owner(), options);
    }

    /// The printed commands must work as they are, in any shell and any folder.
    #[test]
    fn the_commands_printed_for_a_kept_cluster_work() {
        let folder = tempfile::tempdir().unwrap();
        let tools = folder.path().join("it's a folder");
        fs::create_dir_all(&tools).unwrap();
        let (kind, unchanged) = (tools.join("kind"), folder.path().join("seen"));
        let script = "#!/bin/sh\nprintf '%s|' \"$KUBECONFIG\" \"$@\" > \"$SEEN\"\n";
        fs::write(&kind, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&kind, mode).unwrap();
        let kubeconfig = tools.join("kubeconfig");
        let message = keep_message(&kubeconfig, &kind);
        let typed: Vec<&str> = message
            .lines()
            .filter_map(|it| it.strip_prefix("  "))
            .collect();
        let context = Context::read().unwrap();
        Cmd::new(&context, "sh -c")
            .arg(typed.join("\n"))
            .current_dir(Path::new("/"))
            .env("SEEN", &unchanged)
            .run()
            .unwrap();
        let path = kubeconfig.display();
        assert_eq!(
            fs::read_to_string(unchanged).unwrap(),
            format!("{path}|delete|cluster|--name|{NAME}|--kubeconfig|{path}|")
        );
    }
}
