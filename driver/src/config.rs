//! Command-line flags and the configuration file: read once at startup; unknown keys are errors. The environment is not read.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use url::{Host, Url};

use crate::chap::Method;
use crate::chap::keys::{self, Key, Keys};
use crate::dsm::client::Password;
use crate::dsm::trust::{self, CertificateFileError, Pin, Trust};
use crate::host::linux::nsenter::Namespaces;
use crate::min_free::MinFreeSpace;
use crate::owner_tag::Cluster;
use crate::publication::Portal;
use crate::telemetry::LogFormat;
use crate::volume::NasName;

/// A CSI driver for Synology NAS: expandable block volumes (iSCSI LUNs).
#[derive(Clone, Debug, Parser)]
#[command(name = "synology-csi", version)]
pub struct Args {
    /// CSI endpoint: a unix socket that the driver creates, as unix:///path or a bare path.
    #[arg(long, value_parser = socket_path)]
    pub endpoint: PathBuf,
    /// Which CSI services to serve: the controller service talks to the NAS, the node service to this machine's kernel.
    #[arg(long, value_enum, default_value_t = Mode::All)]
    pub mode: Mode,
    /// Configuration file with the NASes (YAML). Required for the controller service only.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's name, usually spec.nodeName. Required for the node service.
    #[arg(long, value_name = "NAME")]
    pub node_id: Option<String>,
    /// Where the host's /sys and /etc/iscsi are mounted, if not at /.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub host_root: PathBuf,
    /// The mount and network namespaces in which to run iscsiadm and the multipath tools if the driver runs in a container.
    #[arg(long, value_enum, default_value_t = Namespaces::Own)]
    pub host_namespaces: Namespaces,
    /// The kubelet's root directory: volume paths must be below it, and not leave it through symbolic links. Default: any path.
    #[arg(long, value_name = "DIR", value_parser = kubelet_dir)]
    pub kubelet_dir: Option<String>,
    /// How long I/O waits for an unreachable NAS before it fails: 30s, 2m. Applies to volumes that are staged afterwards.
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = replacement_timeout)]
    pub replacement_timeout: Duration,
    /// How often to look for missing paths of multipath volumes, and to log in to their portals: 60s, 5m; 0s: never.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = path_interval)]
    pub path_interval: Duration,
    /// Maximum number of volumes that the CO may attach to this node; 0 leaves it to the CO. Linux itself has no low limit, and
    /// the limits of a NAS apply to all nodes together.
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true, value_parser = max_volumes)]
    pub max_volumes_per_node: u32,
    /// Address for Prometheus metrics, at /metrics over plain HTTP. Default: not served.
    #[arg(long, value_name = "ADDR:PORT", value_parser = metrics_address)]
    pub metrics_address: Option<SocketAddr>,
    /// The CSI driver name (provisioner), which is also part of each LUN's owner tag: never change it if a NAS has volumes.
    #[arg(long, value_name = "NAME", default_value = "csi.synology.com", value_parser = driver_name)]
    pub driver_name: String,
    /// Log level: error, warn, info, debug, trace, or a filter such as info,driver::dsm=trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// Log format.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Which CSI services a process serves. The identity service is always included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// The controller service only.
    Controller,
    /// The node service only.
    Node,
    /// Both.
    All,
}

impl Mode {
    /// The controller service is included.
    pub fn controller(self) -> bool {
        matches!(self, Self::Controller | Self::All)
    }

    /// The node service is included.
    pub fn node(self) -> bool {
        matches!(self, Self::Node | Self::All)
    }
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = text
        .strip_prefix("unix://")
        .or_else(|| text.strip_prefix("unix:"))
        .unwrap_or(text);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(
            "give a unix socket with an absolute path, for instance unix:///csi/csi.sock"
                .to_owned(),
        )
    }
}

fn kubelet_dir(text: &str) -> Result<String, String> {
    let plain = text.trim_end_matches('/');
    if plain.starts_with('/') && !plain.split('/').any(|part| part == "..") {
        Ok(plain.to_owned())
    } else {
        Err("give an absolute path, for instance /var/lib/kubelet".to_owned())
    }
}

/// open-iscsi takes whole seconds; 0 would fail I/O at each hiccup, and with a timeout of days a failure would never be noticed.
fn replacement_timeout(text: &str) -> Result<Duration, String> {
    let usage = "give whole seconds from 1s to 1day, for instance 120s or 2m";
    let time = humantime::parse_duration(text).map_err(|_| usage.to_owned())?;
    let sound = time.subsec_nanos() == 0 && (1..=86_400).contains(&time.as_secs());
    if sound {
        Ok(time)
    } else {
        Err(usage.to_owned())
    }
}

fn path_interval(text: &str) -> Result<Duration, String> {
    let usage = "give a time from 1s to 1day, for instance 60s or 5m, or 0s for never";
    let time = humantime::parse_duration(text).map_err(|_| usage.to_owned())?;
    if time.is_zero() || (1..=86_400).contains(&time.as_secs()) {
        Ok(time)
    } else {
        Err(usage.to_owned())
    }
}

/// Brackets around an IPv6 address are optional: the pod IP from the downward API comes without them.
fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let parse = || {
        let (address, port) = text.rsplit_once(':')?;
        let inside = address
            .strip_prefix('[')
            .and_then(|it| it.strip_suffix(']'));
        let address: IpAddr = inside.unwrap_or(address).parse().ok()?;
        Some(SocketAddr::new(address, port.parse().ok()?))
    };
    parse().ok_or_else(|| {
        "give an address and a port, for instance 127.0.0.1:9810 or [::]:9810".to_owned()
    })
}

/// CSI v1.12, `NodeGetInfo`: not negative. Kubernetes stores the number as a signed 32-bit integer.
fn max_volumes(text: &str) -> Result<u32, String> {
    let usage = "give a whole number from 1 to 2147483647, or 0 to leave it to the CO";
    let number = text.parse::<i32>().ok();
    number
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| usage.to_owned())
}

/// CSI v1.12, `GetPluginInfo`: a domain name, 63 characters or less.
fn driver_name(text: &str) -> Result<String, String> {
    let well_formed = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    if well_formed {
        Ok(text.to_owned())
    } else {
        Err("give a domain name of at most 63 characters".to_owned())
    }
}

/// The configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The NASes; at least one.
    pub nas: Vec<NasConfig>,
    /// Which side authenticates itself at an iSCSI login: both, the initiator only, or neither.
    #[serde(default)]
    pub chap: ChapMode,
    /// The key from which the CHAP credentials of each publication are derived: the same for all controllers, and otherwise
    /// secret.
    pub chap_key_file: Option<PathBuf>,
    /// Former keys. Publications that were created with them remain valid.
    #[serde(default)]
    pub chap_former_key_files: Vec<PathBuf>,
    /// The name of this cluster, if several share NASes and driver name. Volumes of other clusters are not touched; volumes that
    /// were created before it was set belong to this one.
    #[serde(default, deserialize_with = "optional_parsed")]
    pub cluster: Option<Cluster>,
    /// Where to remember refused credentials across restarts. Without it they are kept in memory only.
    pub state_file: Option<PathBuf>,
}

/// `chap` in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChapMode {
    /// Initiator and target authenticate themselves (mutual CHAP).
    #[default]
    Mutual,
    /// Only the initiator does.
    OneWay,
    /// No CHAP: any host that reaches the portal may log in.
    Off,
}

/// One NAS.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NasConfig {
    /// Its permanent name: part of every volume id.
    #[serde(deserialize_with = "parsed")]
    pub name: NasName,
    /// Its former names.
    #[serde(default, deserialize_with = "all_parsed")]
    pub aliases: Vec<NasName>,
    /// URL of DSM: `http://` or `https://`, host and port.
    pub url: Url,
    /// An administrator account without a second factor.
    pub username: String,
    password: Option<SecretString>,
    password_file: Option<PathBuf>,
    /// A PEM file with the CA that signed the NAS's certificate, or with that certificate itself.
    pub ca_file: Option<PathBuf>,
    /// The host name that the NAS's certificate must be valid for, if not the host of `url`.
    #[serde(default, deserialize_with = "server_name")]
    pub tls_server_name: Option<ServerName<'static>>,
    /// Pinned public keys for the NAS's certificate: with pins, neither its issuer nor its name is checked.
    #[serde(default, deserialize_with = "all_parsed")]
    pub tls_pins: Vec<Pin>,
    /// Allows `http://` although the password can be intercepted.
    #[serde(default)]
    pub plain_http: bool,
    /// The portals of the NAS's targets; default: the NAS's address, port 3260.
    #[serde(default, deserialize_with = "all_parsed")]
    pub portals: Vec<Portal>,
    /// Minimum free space on each of its volumes when a LUN is created or expanded, unless the StorageClass sets another.
    /// Default: 1 GiB.
    #[serde(default, deserialize_with = "floor")]
    pub min_free_space: MinFreeSpace,
}

/// Why a configuration is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("the configuration {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not YAML, or a missing, unknown or mistyped key.
    #[error("the configuration does not have the right shape")]
    Shape(#[source] serde_yaml_ng::Error),
    /// An invalid value.
    #[error("nas {nas:?}: {problem}")]
    Value {
        /// The NAS.
        nas: String,
        /// What is wrong, and the remedy.
        problem: String,
    },
    /// No NAS.
    #[error("the configuration names no nas: add at least one")]
    Empty,
    /// No key, although CHAP is on.
    #[error(
        "chap_key_file is missing: without it any host that reaches port 3260 could log in to published volumes. Create a key once, for all controllers (head -c 32 /dev/urandom > FILE; the chart creates one), or set chap: off"
    )]
    NoKey,
    /// A key that is too short, and could be guessed.
    #[error(
        "the key {path} has {bytes} bytes, and the minimum is {}: head -c 32 /dev/urandom > FILE creates one",
        keys::MIN_LEN
    )]
    ShortKey {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// A flag that this mode requires is missing.
    #[error("--{flag} is needed in mode {mode:?}")]
    FlagMissing {
        /// The flag.
        flag: &'static str,
        /// The mode.
        mode: Mode,
    },
    /// TLS, the state file or the metrics endpoint cannot be set up.
    #[error("{what}")]
    SetUp {
        /// What could not be set up.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Config {
    /// Parses and validates the text of a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the NAS and the key.
    pub fn read(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_yaml_ng::from_str(text).map_err(ConfigError::Shape)?;
        if config.nas.is_empty() {
            return Err(ConfigError::Empty);
        }
        let mut names = HashSet::new();
        for nas in &config.nas {
            nas.check()?;
            if let Some(twice) = std::iter::once(&nas.name)
                .chain(&nas.aliases)
                .find(|name| !names.insert((*name).clone()))
            {
                return Err(nas.problem(&format!(
                    "the name {twice} is given twice: names and aliases must be unique"
                )));
            }
        }
        Ok(config)
    }
}

impl Config {
    /// The CHAP keys, read from their files.
    ///
    /// # Errors
    /// A file cannot be read or is too short; no key although CHAP is on.
    pub fn keys(&self) -> Result<Keys, ConfigError> {
        let former = self.chap_former_key_files.iter().map(|path| key(path));
        let former = former.collect::<Result<_, _>>()?;
        let method = match self.chap {
            ChapMode::Off => return Ok(Keys::off(former)),
            ChapMode::OneWay => Method::Chap,
            ChapMode::Mutual => Method::Mutual,
        };
        let path = self.chap_key_file.as_ref().ok_or(ConfigError::NoKey)?;
        Ok(Keys::new(method, key(path)?, former))
    }
}

fn key(path: &Path) -> Result<Key, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    Key::read(&bytes).ok_or_else(|| ConfigError::ShortKey {
        path: path.to_owned(),
        bytes: bytes.len(),
    })
}

impl NasConfig {
    /// The source of the password; [`Config::read`] has checked that there is exactly one.
    pub fn password(&self) -> Password {
        match (&self.password, &self.password_file) {
            (Some(password), _) => Password::Given(password.clone()),
            (None, file) => Password::File(file.clone().unwrap_or_default()),
        }
    }

    /// Which TLS certificates to accept for the NAS.
    ///
    /// # Errors
    /// `ca_file` cannot be read, or holds no valid certificate.
    pub fn trust(&self) -> Result<Trust, CertificateFileError> {
        let certificates = self
            .ca_file
            .as_deref()
            .map(trust::certificates)
            .transpose()?;
        Ok(Trust {
            certificates: certificates.unwrap_or_default(),
            server_name: self.tls_server_name.clone(),
            pins: self.tls_pins.clone(),
        })
    }

    /// The password would be sent unencrypted over a network; loopback does not count.
    pub fn sends_password_in_clear(&self) -> bool {
        let is_loopback = match self.url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        self.url.scheme() == "http" && !is_loopback
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !matches!(self.url.scheme(), "http" | "https") || self.url.host().is_none() {
            return Err(self.problem("url must be http://HOST:PORT or https://HOST:PORT"));
        }
        if !self.url.username().is_empty() || self.url.password().is_some() {
            return Err(self
                .problem("url must not hold a user or password: give username and password_file"));
        }
        if self.sends_password_in_clear() && !self.plain_http {
            return Err(self.problem(&format!(
                "url: {} would send the administrator's password and the CHAP secrets of all volumes in the clear: write https:// (port 5001; driver/docs/tls.md), or add plain_http: true (plainHttp in the chart's values)",
                self.url
            )));
        }
        if self.url.scheme() == "http"
            && (self.tls_server_name.is_some() || !self.tls_pins.is_empty())
        {
            return Err(self.problem(
                "tls_server_name and tls_pins apply only over https://, and url is http://",
            ));
        }
        if !self.tls_pins.is_empty() && (self.tls_server_name.is_some() || self.ca_file.is_some()) {
            return Err(self.problem(
                "tls_pins takes the place of ca_file and tls_server_name: give one or the other",
            ));
        }
        if !matches!(self.url.path(), "" | "/") || self.url.query().is_some() {
            return Err(self.problem("url must end after the port"));
        }
        if self.password.is_some() == self.password_file.is_some() {
            return Err(self.problem("give either password or password_file"));
        }
        let empty = |password: &SecretString| password.expose_secret().is_empty();
        if self.password.as_ref().is_some_and(empty) {
            return Err(self.problem("password is empty"));
        }
        if self.username.is_empty() {
            return Err(self.problem("username is empty"));
        }
        if self.portals.len() > 16 {
            return Err(self.problem("more than 16 portals"));
        }
        Ok(())
    }

    fn problem(&self, problem: &str) -> ConfigError {
        ConfigError::Value {
            nas: self.name.to_string(),
            problem: problem.to_owned(),
        }
    }
}

fn server_name<'de, D>(deserializer: D) -> Result<Option<ServerName<'static>>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let name = String::deserialize(deserializer)?;
    let invalid = || {
        serde::de::Error::custom(format!(
            "tls_server_name {name:?}: give a host name or an address, for instance synology"
        ))
    };
    ServerName::try_from(name.clone())
        .map(Some)
        .map_err(|_| invalid())
}

/// In YAML a bare 0 is a number.
fn floor<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<MinFreeSpace, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Number(u64),
        Text(String),
    }
    let text = match Value::deserialize(deserializer)? {
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text,
    };
    let invalid = |error| serde::de::Error::custom(format!("min_free_space {text:?}: {error}"));
    text.parse().map_err(invalid)
}

fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse()
        .map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
}

fn optional_parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    parsed(deserializer).map(Some)
}

fn all_parsed<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: String| {
        text.parse()
            .map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
    };
    texts.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests;
