//! Whether a Docker engine can be kind's: its nodes want loop devices, mounts and a folder of this machine. Text in, a verdict out.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::run::Output;

/// From this minor release on a kubelet refuses cgroup v1, unless it is told `failCgroupV1: false`.
const WITHOUT_CGROUP_V1: u32 = 35;

/// What `docker info --format '{{json .}}'` says of an engine, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    /// Empty when the client has not reached an engine.
    server_version: String,
    operating_system: String,
    /// `null` where there is none.
    security_options: Option<Vec<String>>,
    cgroup_version: String,
    server_errors: Option<Vec<String>>,
}

/// What is known of an engine and of what it shall do.
#[derive(Debug)]
pub(super) struct Engine<'a> {
    /// What `docker info --format '{{json .}}'` said.
    pub(super) info: &'a Output,
    /// Where the client finds it: `unix:///…`, `ssh://…`, `tcp://…`.
    pub(super) host: &'a str,
    /// The image of kind's nodes.
    pub(super) image: &'a str,
    /// That image, and its kubelet, take cgroup v1: somebody says so.
    pub(super) cgroup_v1: bool,
}

impl Engine<'_> {
    /// Whether kind can make its nodes in it.
    ///
    /// # Errors
    /// What stands against that, and what to do.
    pub(super) fn must_do(&self) -> Result<()> {
        ensure!(
            self.host.is_empty() || self.host.starts_with("unix://"),
            "the Docker engine at {} is on another machine: its nodes would see that machine's /dev and folders. \
             Unset DOCKER_HOST, or `docker context use default`, where an engine runs on this machine",
            self.host
        );
        let info: Info = serde_json::from_str(self.info.stdout.trim()).unwrap_or_default();
        let errors = info.server_errors.unwrap_or_default();
        if !self.info.success || info.server_version.is_empty() || !errors.is_empty() {
            return self.unreached(&errors.join(" "));
        }
        let options = info.security_options.unwrap_or_default();
        ensure!(
            !info.operating_system.contains("Docker Desktop"),
            "Docker Desktop runs its containers in a virtual machine, which has neither this machine's /dev nor the modules for iSCSI's \
             stand-in: use a Docker engine on Linux itself (docker context use default), or a cluster of your own"
        );
        let has = |name: &str| {
            let mut options = options.iter();
            options.any(|option| option.split(',').any(|part| part == format!("name={name}")))
        };
        ensure!(
            !has("rootless"),
            "a rootless Docker engine may make neither loop devices nor mounts of block devices: use the system's engine \
             (docker context use default)"
        );
        ensure!(
            !has("userns"),
            "an engine with userns-remap may make neither loop devices nor mounts of block devices: use one without"
        );
        self.cgroups(&info.cgroup_version)
    }

    /// kind's own nodes are a Debian 13, whose systemd refuses cgroup v1 itself.
    fn cgroups(&self, version: &str) -> Result<()> {
        match version {
            "2" => Ok(()),
            "1" if self.cgroup_v1 => Ok(()),
            "1" => {
                let minor = minor(self.image);
                let kubelet = match minor {
                    Some(minor) if minor < WITHOUT_CGROUP_V1 => String::new(),
                    Some(minor) => format!(", and the kubelet of Kubernetes 1.{minor} refuses it"),
                    None => {
                        format!(", and kubelets refuse it from Kubernetes 1.{WITHOUT_CGROUP_V1} on")
                    }
                };
                bail!(
                    "this machine has cgroup v1: systemd in the nodes of kind's newer releases does not start with it{kubelet}. Boot with \
                     systemd.unified_cgroup_hierarchy=1, or name a --node-image that was made for cgroup v1 and say --cgroup-v1"
                )
            }
            other => bail!("docker info says CgroupVersion {other:?}, which is neither 1 nor 2"),
        }
    }

    fn unreached(&self, errors: &str) -> Result<()> {
        let said = format!("{} {errors}", self.info.stderr.trim());
        let said = said.trim();
        ensure!(
            !said.contains("permission denied"),
            "you may not use the Docker engine: {said}. As root, or with yourself in the group docker (usermod --append --groups docker \
             NAME, then log in anew)"
        );
        bail!(
            "kind makes its nodes in a Docker engine, and none runs here ({said}): install docker.io or docker-ce, and start it"
        )
    }
}

/// The minor release of Kubernetes in the name of an image of kind's nodes: `kindest/node:v1.36.4@sha256:…`.
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

/// The engine that the client speaks with: DOCKER_HOST's, else that of its context, whose description `docker context inspect` prints.
///
/// # Errors
/// The description is none.
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

    fn told(stdout: &str, stderr: &str, host: &str, image: &str, cgroup_v1: bool) -> String {
        let info = Output {
            success: stderr.is_empty(),
            code: Some(i32::from(!stderr.is_empty())),
            overran: false,
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
            .must_do()
            .err()
            .map_or_else(String::new, |refusal| refusal.to_string())
    }

    const NEW: &str = "kindest/node:v1.36.4@sha256:09";

    #[track_caller]
    fn refused(from: &str, to: &str, says: &[&str]) {
        let info = GOOD.replace(from, to);
        assert_ne!(info, GOOD, "{from} is not there");
        let told = told(&info, "", "", NEW, false);
        for says in says {
            assert!(told.contains(says), "{told}");
        }
    }

    #[test]
    fn an_engine_on_this_machine_does() {
        assert_eq!(
            told(GOOD, "", "unix:///var/run/docker.sock", NEW, false),
            ""
        );
        assert_eq!(told(GOOD, "", "", NEW, false), "");
        let bare = r#"{"ServerVersion":"20.10","OperatingSystem":"x","CgroupVersion":"2","SecurityOptions":null,"ServerErrors":null}"#;
        assert_eq!(told(bare, "", "", NEW, false), "");
    }

    #[test]
    fn engines_that_cannot_do_it_are_refused_by_name() {
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
    fn engines_elsewhere_are_refused_with_their_place() {
        for host in [
            "tcp://10.0.0.5:2375",
            "ssh://me@nas.example",
            "npipe:////./pipe/x",
        ] {
            let told = told(GOOD, "", host, NEW, false);
            assert!(
                told.contains(host) && told.contains("DOCKER_HOST"),
                "{told}"
            );
        }
    }

    #[test]
    fn who_may_not_use_it_is_told_so_and_who_has_none_too() {
        let denied = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock";
        let first = told("", denied, "", NEW, false);
        assert!(
            first.contains(denied) && first.contains("group docker"),
            "{first}"
        );
        // Newer clients end with 0 and say it among their fields.
        let errors = format!(r#"{{"ServerErrors":["{denied}"]}}"#);
        let second = told(&errors, "", "", NEW, false);
        assert!(
            second.contains(denied) && second.contains("group docker"),
            "{second}"
        );
        let none = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?";
        let third = told("", none, "", NEW, false);
        assert!(
            third.contains(none) && third.contains("none runs here"),
            "{third}"
        );
    }

    #[test]
    fn cgroup_v1_is_for_images_that_were_made_for_it() {
        let old = GOOD.replace(r#""CgroupVersion":"2""#, r#""CgroupVersion":"1""#);
        assert_eq!(told(&old, "", "", NEW, true), "");
        assert!(told(&old, "", "", "kindest/node:v1.34.0", false).contains("systemd"));
        assert!(!told(&old, "", "", "kindest/node:v1.34.0", false).contains("kubelet of"));
        assert!(told(&old, "", "", "mine", false).contains("from Kubernetes 1.35 on"));
    }

    #[test]
    fn the_release_is_read_from_the_images_name() {
        assert_eq!(minor(NEW), Some(36));
        assert_eq!(minor("registry.example:5000/node:v1.37.0"), Some(37));
        assert_eq!(minor("node@sha256:09"), None);
        assert_eq!(minor("node:latest"), None);
    }

    #[test]
    fn the_environment_goes_before_the_context() {
        let context =
            r#"[{"Name":"default","Endpoints":{"docker":{"Host":"unix:///run/docker.sock"}}}]"#;
        assert_eq!(host(None, context).unwrap(), "unix:///run/docker.sock");
        assert_eq!(host(Some(""), context).unwrap(), "unix:///run/docker.sock");
        assert_eq!(host(Some("ssh://x"), context).unwrap(), "ssh://x");
        assert!(host(None, "none").is_err());
    }
}
