//! Where the images are tried: a network, a folder that stands for a node's disks and for the volumes of pods, and what runs there.
//! Nothing of it is left when it is dropped; behind a test that is killed `cargo ci containers` sweeps.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use e2e::harness::janitor::Janitor;
use e2e::harness::skip::{can_grow_mounted_ext4, skip};
use tempfile::TempDir;
use testcontainers::core::Mount as Mounted;
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt as _};

use crate::chart::{Container, Privileges, Volume};

/// The chart's node: what `spec.nodeName` says.
pub(crate) const NODE: &str = "worker-1";
/// As many lines of what a container said are shown.
const LAST_LINES: usize = 30;

/// Where the images are tried.
#[derive(Debug)]
pub(crate) struct Scene {
    /// How its network and its containers are called, or begin to be.
    name: String,
    folder: PathBuf,
    _janitor: Janitor,
}

/// A container that runs, or has run.
pub(crate) type Running = ContainerAsync<GenericImage>;

impl Scene {
    /// Makes one for a test; `None` when no engine and no images are at hand: `cargo ci containers` sees to both.
    ///
    /// # Errors
    /// Its folder cannot be made.
    pub(crate) fn set(test: &str) -> Result<Option<Self>> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        #[expect(
            clippy::disallowed_methods,
            reason = "the variable that cargo ci hands to these tests"
        )]
        let Ok(run) = std::env::var("CONTAINERS_RUN") else {
            skip(test, "needs images and an engine: cargo ci containers");
            return Ok(None);
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a unix socket has at most 107 bytes.
        let folder = TempDir::with_prefix("csi-")?.keep();
        // The users of containers pass through it.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        Ok(Some(Self {
            name: format!("synology-csi-tests-{run}-{number}"),
            _janitor: Janitor::start(&folder)?,
            folder,
        }))
    }

    /// The name by which other containers of the scene find the container `part`.
    pub(crate) fn name_of(&self, part: &str) -> String {
        format!("{}-{part}", self.name)
    }

    /// The node's directory that a pod knows by `path`.
    pub(crate) fn host(&self, path: &str) -> PathBuf {
        let last = path.rsplit('/').next().unwrap_or_default();
        self.folder.join("host").join(last)
    }

    /// The directory of a pod's volume.
    pub(crate) fn volume(&self, pod: &str, volume: &str) -> PathBuf {
        self.folder.join(pod).join(volume)
    }

    /// Writes a file of a pod's ConfigMap or Secret: for the pod's own group, as the chart has it.
    pub(crate) fn file(&self, pod: &str, volume: &str, path: &str, text: &str) -> Result<()> {
        let file = self.volume(pod, volume).join(path);
        fs::create_dir_all(file.parent().context("below the volume")?)?;
        fs::write(&file, text)?;
        fs::set_permissions(&file, Permissions::from_mode(0o440))?;
        Ok(chown(&file, None, Some(GROUP))?)
    }

    /// Starts a container of `pod` as the chart does, with `more` arguments.
    ///
    /// # Errors
    /// It does not start; with its last words.
    pub(crate) async fn start(
        &self,
        pod: &str,
        container: &Container,
        more: &[String],
    ) -> Result<Running> {
        let started = self.request(pod, container, more)?.start().await;
        started.with_context(|| format!("{} does not start", container.image))
    }

    fn request(
        &self,
        pod: &str,
        container: &Container,
        more: &[String],
    ) -> Result<ContainerRequest<GenericImage>> {
        let (image, tag) = container.image.rsplit_once(':').context("NAME:TAG")?;
        let args = container.args.iter().chain(more);
        let args = args.map(|arg| arg.replace("$(NODE_NAME)", NODE));
        let network = if container.host_network {
            "host"
        } else {
            &self.name
        };
        let mut request = GenericImage::new(image, tag)
            .with_container_name(self.name_of(pod))
            .with_network(network)
            .with_cmd(args)
            .with_user(&container.user)
            .with_readonly_rootfs(container.read_only);
        request = with(request, &container.privileges);
        for (name, value) in &container.env {
            request = request.with_env_var(name, value);
        }
        for mount in &container.mounts {
            let source = match &mount.volume {
                Volume::Memory => None,
                Volume::Host(path) if path == "/dev" => Some(path.into()),
                Volume::Host(path) => Some(self.host(path)),
                Volume::Empty(name) | Volume::Files(name) => Some(self.volume(pod, name)),
            };
            if let Some(folder) = source.as_ref().filter(|folder| !folder.exists()) {
                make(folder, &mount.volume)?;
            }
            let mounted = source.map_or_else(
                || Mounted::tmpfs_mount(&mount.path),
                |folder| Mounted::bind_mount(folder.display().to_string(), &mount.path),
            );
            request = request.with_mount(if mount.read_only {
                mounted.with_access_mode(testcontainers::core::AccessMode::ReadOnly)
            } else {
                mounted
            });
        }
        Ok(request)
    }
}

fn with(
    mut request: ContainerRequest<GenericImage>,
    privileges: &Privileges,
) -> ContainerRequest<GenericImage> {
    match privileges {
        Privileges::All => privileged(request),
        Privileges::Fewer { drop, escalation } => {
            for capability in drop {
                request = request.with_cap_drop(capability);
            }
            if *escalation {
                request
            } else {
                request.with_security_opt("no-new-privileges")
            }
        }
    }
}

/// Gives all rights, or where the machine has not all of them, those that it has: an engine cannot start a privileged container there.
fn privileged(request: ContainerRequest<GenericImage>) -> ContainerRequest<GenericImage> {
    if can_grow_mounted_ext4() {
        return request.with_privileged(true);
    }
    request
        .with_cap_add("ALL")
        .with_cap_drop("SYS_RESOURCE")
        .with_security_opt("seccomp=unconfined")
        .with_security_opt("apparmor=unconfined")
        .with_host_config_modifier(|host| {
            host.device_cgroup_rules = Some(vec!["a *:* rwm".to_owned()]);
        })
}

/// The group of the controller's pod.
const GROUP: u32 = 65532;

/// A directory that lives as long as its pod is for the pod's group, as the kubelet makes it for `fsGroup`.
fn make(folder: &Path, volume: &Volume) -> Result<()> {
    fs::create_dir_all(folder)?;
    if matches!(volume, Volume::Empty(_)) {
        chown(folder, None, Some(GROUP))?;
        fs::set_permissions(folder, Permissions::from_mode(0o2770))?;
    }
    Ok(())
}

/// Fails, with its last words, when a container has ended.
///
/// # Errors
/// It has.
pub(crate) async fn check(container: &Running) -> Result<()> {
    if container.is_running().await? {
        return Ok(());
    }
    bail!("it has ended; its last words:\n{}", words(container).await?)
}

/// What a container has said last.
///
/// # Errors
/// The engine does not tell.
pub(crate) async fn words(container: &Running) -> Result<String> {
    let said = [
        container.stdout_to_vec().await?,
        container.stderr_to_vec().await?,
    ];
    let text = String::from_utf8_lossy(&said.concat()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"))
}
