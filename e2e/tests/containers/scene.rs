//! The fixture of the image tests: a network, a folder for a node's disks and the pods' volumes, and the containers.
//! Everything is removed on drop; if a test is killed, `cargo ci containers` cleans up.

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

/// The node name in the chart (`spec.nodeName`).
pub(crate) const NODE: &str = "worker-1";
/// How many lines of a container's log are shown.
const LAST_LINES: usize = 30;

/// A network and a folder for containers.
#[derive(Debug)]
pub(crate) struct Scene {
    /// The name of its network, and the prefix of its containers' names.
    name: String,
    folder: PathBuf,
    _janitor: Janitor,
}

/// A container that runs or has ended.
pub(crate) type Running = ContainerAsync<GenericImage>;

impl Scene {
    /// Creates one for a test; `None` without engine and images: `cargo ci containers` provides both.
    ///
    /// # Errors
    /// Its folder cannot be created.
    pub(crate) fn create(test: &str) -> Result<Option<Self>> {
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
        // A short path: that of a unix socket has at most 107 bytes.
        let folder = TempDir::with_prefix("csi-")?.keep();
        // The containers' users must be able to traverse it.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        Ok(Some(Self {
            name: format!("synology-csi-tests-{run}-{number}"),
            _janitor: Janitor::start(&folder)?,
            folder,
        }))
    }

    /// The host name of the container `part` for other containers of this fixture.
    pub(crate) fn name_of(&self, part: &str) -> String {
        format!("{}-{part}", self.name)
    }

    /// The node's directory for `path` in a pod.
    pub(crate) fn host(&self, path: &str) -> PathBuf {
        let last = path.rsplit('/').next().unwrap_or_default();
        self.folder.join("host").join(last)
    }

    /// The directory of a pod's volume.
    pub(crate) fn volume(&self, pod: &str, volume: &str) -> PathBuf {
        self.folder.join(pod).join(volume)
    }

    /// Writes a file of a pod's ConfigMap or Secret, with the pod's group, like the chart.
    pub(crate) fn file(&self, pod: &str, volume: &str, path: &str, text: &str) -> Result<()> {
        let file = self.volume(pod, volume).join(path);
        fs::create_dir_all(file.parent().context("below the volume")?)?;
        fs::write(&file, text)?;
        fs::set_permissions(&file, Permissions::from_mode(0o440))?;
        Ok(chown(&file, None, Some(GROUP))?)
    }

    /// Starts a container of `pod` like the chart, with additional arguments.
    ///
    /// # Errors
    /// It does not start; includes the end of its log.
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
                create_volume(folder, &mount.volume)?;
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

/// Makes it privileged, or if this machine lacks capabilities, adds those that it has: there an engine cannot start a privileged
/// container.
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

/// The group of the controller's pod (`fsGroup`).
const GROUP: u32 = 65532;

/// Creates a pod's volume directory, owned by the pod's group, as the kubelet does for `fsGroup`.
fn create_volume(folder: &Path, volume: &Volume) -> Result<()> {
    fs::create_dir_all(folder)?;
    if matches!(volume, Volume::Empty(_)) {
        chown(folder, None, Some(GROUP))?;
        fs::set_permissions(folder, Permissions::from_mode(0o2770))?;
    }
    Ok(())
}

/// Checks that a container is still running.
///
/// # Errors
/// It has ended; includes the end of its log.
pub(crate) async fn check(container: &Running) -> Result<()> {
    if container.is_running().await? {
        return Ok(());
    }
    bail!(
        "it has ended; the end of its log:\n{}",
        log_tail(container).await?
    )
}

/// The end of a container's log.
///
/// # Errors
/// The engine does not return it.
pub(crate) async fn log_tail(container: &Running) -> Result<String> {
    let output = [
        container.stdout_to_vec().await?,
        container.stderr_to_vec().await?,
    ];
    let text = String::from_utf8_lossy(&output.concat()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"))
}
