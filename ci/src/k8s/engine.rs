//! Checks whether kind can use a Docker engine: its nodes need loop devices, mounts and a folder of this machine. No I/O.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::run::Output;

/// From this minor release on, a kubelet refuses cgroup v1 unless configured with `failCgroupV1: false`.
const NO_CGROUP_V1_SINCE: u32 = 35;

/// The relevant part of the output of `docker info --format '{{json .}}'`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    /// Empty if the client could not reach an engine.
    server_version: String,
    operating_system: String,
    /// `null` if there are none.
    security_options: Option<Vec<String>>,
    cgroup_version: String,
    server_errors: Option<Vec<String>>,
}

/// An engine, and the cluster that kind should create in it.
#[derive(Debug)]
pub(super) struct Engine<'a> {
    /// The output of `docker info --format '{{json .}}'`.
    pub(super) info: &'a Output,
    /// Its address: `unix:///…`, `ssh://…`, `tcp://…`.
    pub(super) host: &'a str,
    /// The image of kind's nodes.
    pub(super) image: &'a str,
    /// The user says that the image and its kubelet support cgroup v1.
    pub(super) cgroup_v1: bool,
}

impl Engine<'_> {
    /// Checks whether kind can create its nodes in it.
    ///
    /// # Errors
    /// The reason why not, and the remedy.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.host.is_empty() || self.host.starts_with("unix://"),
            "the Docker engine at {} is on another machine: kind's nodes would see that machine's /dev and folders. \
             If an engine runs on this machine, unset DOCKER_HOST or run `docker context use default`",
            self.host
        );
        let info: Info = serde_json::from_str(self.info.stdout.trim()).unwrap_or_default();
        let errors = info.server_errors.unwrap_or_default();
        if !self.info.success || info.server_version.is_empty() || !errors.is_empty() {
            return self.unreachable(&errors.join(" "));
        }
        let options = info.security_options.unwrap_or_default();
        ensure!(
            !info.operating_system.contains("Docker Desktop"),
            "Docker Desktop runs its containers in a virtual machine, which has neither this machine's /dev nor the kernel modules for \
             node-sim: use a Docker engine on Linux itself (docker context use default), or a cluster of your own"
        );
        let has = |name: &str| {
            let mut options = options.iter();
            options.any(|option| option.split(',').any(|part| part == format!("name={name}")))
        };
        ensure!(
            !has("rootless"),
            "a rootless Docker engine can neither set up loop devices nor mount block devices: use the system's engine \
             (docker context use default)"
        );
        ensure!(
            !has("userns"),
            "an engine with userns-remap can neither set up loop devices nor mount block devices: use one without"
        );
        self.cgroups(&info.cgroup_version)
    }

    /// kind's default node images are Debian 13, whose systemd does not support cgroup v1.
    fn cgroups(&self, version: &str) -> Result<()> {
        match version {
            "2" => Ok(()),
            "1" if self.cgroup_v1 => Ok(()),
            "1" => {
                let minor = minor(self.image);
                let kubelet = match minor {
                    Some(minor) if minor < NO_CGROUP_V1_SINCE => String::new(),
                    Some(minor) => format!(", and the kubelet of Kubernetes 1.{minor} refuses it"),
                    None => {
                        format!(
                            ", and kubelets refuse it from Kubernetes 1.{NO_CGROUP_V1_SINCE} on"
                        )
                    }
                };
                bail!(
                    "this machine has cgroup v1: systemd in the nodes of kind's newer releases does not start with it{kubelet}. Boot with \
                     systemd.unified_cgroup_hierarchy=1, or use --cgroup-v1 and a --node-image that supports cgroup v1"
                )
            }
            other => bail!("docker info says CgroupVersion {other:?}, which is neither 1 nor 2"),
        }
    }

    fn unreachable(&self, errors: &str) -> Result<()> {
        let details = format!("{} {errors}", self.info.stderr.trim());
        let details = details.trim();
        ensure!(
            !details.contains("permission denied"),
            "no permission to use the Docker engine: {details}. Run it as root, or add your user to the group docker (usermod --append \
             --groups docker NAME, then log in again)"
        );
        bail!(
            "kind needs a Docker engine, and none runs here ({details}): install docker.io or docker-ce, and start it"
        )
    }
}

/// The Kubernetes minor release in the name of a node image: 36 for `kindest/node:v1.36.4@sha256:…`.
fn minor(image: &str) -> Option<u32> {
    let (_, version) = image.rsplit_once(":v1.").or_else(|| {
        let (name, _) = image.split_once('@')?;
        name.rsplit_once(":v1.")
    })?;
    version
        .split(|letter: char| !letter.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// The address of the engine that the docker client uses: `DOCKER_HOST`, else from `context`, the output of `docker context
/// inspect`.
///
/// # Errors
/// When `context` is not JSON.
pub(super) fn host(environment: Option<&str>, context: &str) -> Result<String> {
    if let Some(host) = environment.filter(|host| !host.is_empty()) {
        return Ok(host.to_owned());
    }
    let contexts: serde_json::Value =
        serde_json::from_str(context).context("docker context inspect")?;
    let host = contexts[0]["Endpoints"]["docker"]["Host"].as_str();
    Ok(host.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"ServerVersion":"29.1","OperatingSystem":"Debian GNU/Linux 13","CgroupVersion":"2",
        "SecurityOptions":["name=apparmor","name=seccomp,profile=builtin","name=cgroupns"]}"#;

    fn refusal(stdout: &str, stderr: &str, host: &str, image: &str, cgroup_v1: bool) -> String {
        let info = Output {
            success: stderr.is_empty(),
            code: Some(i32::from(!stderr.is_empty())),
            timed_out: false,
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        };
        let engine = Engine {
            info: &info,
            host,
            image,
            cgroup_v1,
        };
        engine
            .check()
            .err()
            .map_or_else(String::new, |refusal| refusal.to_string())
    }

    const NEW: &str = "kindest/node:v1.36.4@sha256:09";

    #[track_caller]
    fn refused(from: &str, to: &str, parts: &[&str]) {
        let info = GOOD.replace(from, to);
        assert_ne!(info, GOOD, "{from} is not there");
        let refusal = refusal(&info, "", "", NEW, false);
        for parts in parts {
            assert!(refusal.contains(parts), "{refusal}");
        }
    }

    #[test]
    fn an_engine_on_this_machine_is_accepted() {
        assert_eq!(
            refusal(GOOD, "", "unix:///var/run/docker.sock", NEW, false),
            ""
        );
        assert_eq!(refusal(GOOD, "", "", NEW, false), "");
        let bare = r#"{"ServerVersion":"20.10","OperatingSystem":"x","CgroupVersion":"2","SecurityOptions":null,"ServerErrors":null}"#;
        assert_eq!(refusal(bare, "", "", NEW, false), "");
    }

    #[test]
    fn unsuitable_engines_are_refused_with_the_reason() {
        refused(
            "name=cgroupns",
            "name=rootless",
            &["rootless", "docker context use"],
        );
        refused("name=cgroupns", "name=userns", &["userns-remap"]);
        refused(
            "Debian GNU/Linux 13",
            "Docker Desktop",
            &["Docker Desktop", "virtual machine"],
        );
        refused(
            r#""CgroupVersion":"2""#,
            r#""CgroupVersion":"1""#,
            &["cgroup v1", "1.36", "--cgroup-v1"],
        );
        refused(r#""CgroupVersion":"2","#, "", &["neither 1 nor 2"]);
    }

    #[test]
    fn engines_on_other_machines_are_refused_with_their_address() {
        for host in [
            "tcp://10.0.0.5:2375",
            "ssh://me@nas.example",
            "npipe:////./pipe/x",
        ] {
            let refusal = refusal(GOOD, "", host, NEW, false);
            assert!(
                refusal.contains(host) && refusal.contains("DOCKER_HOST"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn missing_permission_and_a_missing_engine_are_told_apart() {
        let denied = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock";
        let first = refusal("", denied, "", NEW, false);
        assert!(
            first.contains(denied) && first.contains("group docker"),
            "{first}"
        );
        // Newer clients exit with 0 and report it in ServerErrors.
        let errors = format!(r#"{{"ServerErrors":["{denied}"]}}"#);
        let second = refusal(&errors, "", "", NEW, false);
        assert!(
            second.contains(denied) && second.contains("group docker"),
            "{second}"
        );
        let none = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?";
        let third = refusal("", none, "", NEW, false);
        assert!(
            third.contains(none) && third.contains("none runs here"),
            "{third}"
        );
    }

    #[test]
    fn cgroup_v1_needs_an_image_that_supports_it() {
        let old = GOOD.replace(r#""CgroupVersion":"2""#, r#""CgroupVersion":"1""#);
        assert_eq!(refusal(&old, "", "", NEW, true), "");
        assert!(refusal(&old, "", "", "kindest/node:v1.34.0", false).contains("systemd"));
        assert!(!refusal(&old, "", "", "kindest/node:v1.34.0", false).contains("kubelet of"));
        assert!(refusal(&old, "", "", "mine", false).contains("from Kubernetes 1.35 on"));
    }

    #[test]
    fn the_release_is_read_from_the_images_name() {
        assert_eq!(minor(NEW), Some(36));
        assert_eq!(minor("registry.example:5000/node:v1.37.0"), Some(37));
        assert_eq!(minor("node@sha256:09"), None);
        assert_eq!(minor("node:latest"), None);
    }

    #[test]
    fn docker_host_takes_precedence_over_the_context() {
        let context =
            r#"[{"Name":"default","Endpoints":{"docker":{"Host":"unix:///run/docker.sock"}}}]"#;
        assert_eq!(host(None, context).unwrap(), "unix:///run/docker.sock");
        assert_eq!(host(Some(""), context).unwrap(), "unix:///run/docker.sock");
        assert_eq!(host(Some("ssh://x"), context).unwrap(), "ssh://x");
        assert!(host(None, "none").is_err());
    }
}
