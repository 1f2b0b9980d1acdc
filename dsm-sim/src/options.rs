//! [`Builder`]: the configuration of a simulated NAS.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::nas::model::{Dsm, Model};
use crate::nas::settings::Settings;
use crate::nas::state::account::Account;
use crate::nas::state::volume::{FileSystem, VolumeSpec};
use crate::nas::timing::Latency;
use crate::storage::export::ExportKind;
use crate::tls::Https;

/// Configures a simulated NAS. The default ([`DsmSim::builder`](crate::DsmSim::builder)) is a DS923+ on DSM 7 with one btrfs
/// volume of 2 TiB and the account admin with the password admin, on free ports of 127.0.0.1, in a temporary directory that
/// is removed when the simulator stops.
#[derive(Clone)]
pub struct Builder {
    pub(crate) listen: SocketAddr,
    pub(crate) control: SocketAddr,
    pub(crate) control_names: Vec<String>,
    pub(crate) https: Option<Https>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) volumes: Vec<VolumeSpec>,
    pub(crate) export: ExportKind,
    pub(crate) portals: Vec<SocketAddr>,
    pub(crate) account: String,
    pub(crate) password: String,
    pub(crate) otp_secret: Option<String>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) dsm: Dsm,
    pub(crate) model: Model,
    pub(crate) latency: Latency,
    pub(crate) settings: Settings,
    pub(crate) journal_file: Option<PathBuf>,
    pub(crate) seed: Option<u64>,
    pub(crate) clock: Option<u64>,
    pub(crate) uptime: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            listen: local(0),
            control: local(0),
            control_names: Vec::new(),
            https: None,
            state_dir: None,
            volumes: vec![VolumeSpec {
                path: "/volume1".to_owned(),
                fs: FileSystem::Btrfs,
                size: 2 << 40,
                status: None,
            }],
            export: ExportKind::None,
            portals: vec![local(3260)],
            account: "admin".to_owned(),
            password: "admin".to_owned(),
            otp_secret: None,
            accounts: Vec::new(),
            dsm: Dsm::default(),
            model: Model::default(),
            latency: Latency::Instant,
            settings: Settings::default(),
            journal_file: None,
            seed: None,
            clock: None,
            uptime: Duration::from_secs(360_000),
        }
    }
}

impl Builder {
    /// The first account, then the additional ones.
    pub(crate) fn all_accounts(&self) -> Vec<Account> {
        let first = Account {
            otp_secret: self.otp_secret.clone(),
            ..Account::new(&self.account, &self.password)
        };
        std::iter::once(first)
            .chain(self.accounts.clone())
            .collect()
    }

    /// Listen address of the Web API. Port 0 takes any free port.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Listen address of the control port. Port 0 takes any free port.
    #[must_use]
    pub fn control(mut self, address: SocketAddr) -> Self {
        self.control = address;
        self
    }

    /// Host names that the control port accepts in addition to IP addresses and localhost. It has no login, so accepting any
    /// name would let a web page read it by DNS rebinding.
    #[must_use]
    pub fn control_names(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.control_names = names.into_iter().collect();
        self
    }

    /// Also serves HTTPS. [`Https::default`] takes any free port and a certificate signed by a private CA, which clients must
    /// trust: [`DsmSim::ca_file`](crate::DsmSim::ca_file).
    #[must_use]
    pub fn https(mut self, https: Https) -> Self {
        self.https = Some(https);
        self
    }

    /// Directory for state, LUN files and exports. It is kept for the next start.
    #[must_use]
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(dir.into());
        self
    }

    /// The volumes of the NAS: `"/volume1=btrfs:2TiB".parse()`.
    #[must_use]
    pub fn volumes(mut self, volumes: impl IntoIterator<Item = VolumeSpec>) -> Self {
        self.volumes = volumes.into_iter().collect();
        self
    }

    /// How LUNs become block devices.
    #[must_use]
    pub fn export(mut self, kind: ExportKind) -> Self {
        self.export = kind;
        self
    }

    /// Portals that targets listen on. With [`ExportKind::Loop`] they are only reported.
    #[must_use]
    pub fn portals(mut self, portals: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.portals = portals.into_iter().collect();
        self
    }

    /// Name and password of the first account, an administrator.
    #[must_use]
    pub fn account(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        (self.account, self.password) = (name.into(), password.into());
        self
    }

    /// Base32 TOTP secret of the first account: RFC 6238, 6 digits, 30 s; at least 128 bits.
    #[must_use]
    pub fn otp_secret(mut self, secret: impl Into<String>) -> Self {
        self.otp_secret = Some(secret.into());
        self
    }

    /// Additional accounts.
    #[must_use]
    pub fn accounts(mut self, accounts: impl IntoIterator<Item = Account>) -> Self {
        self.accounts = accounts.into_iter().collect();
        self
    }

    /// DSM release: `"7.2".parse()`.
    #[must_use]
    pub fn dsm(mut self, dsm: Dsm) -> Self {
        self.dsm = dsm;
        self
    }

    /// NAS model, which limits the number of LUNs and targets: `"DS423".parse()`.
    #[must_use]
    pub fn model(mut self, model: Model) -> Self {
        self.model = model;
        self
    }

    /// Latency profile of the calls.
    #[must_use]
    pub fn latency(mut self, latency: Latency) -> Self {
        self.latency = latency;
        self
    }

    /// Initial settings. [`Handle::reset`](crate::Handle::reset) restores them.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Seed for uuids, session ids and the probability of faults, so that the same calls get the same replies. For tests only:
    /// session ids become predictable.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Freezes the NAS's clock at this time, in milliseconds since 1970, until it is advanced.
    #[must_use]
    pub fn clock(mut self, frozen_at: u64) -> Self {
        self.clock = Some(frozen_at);
        self
    }

    /// Uptime of the NAS when the simulator starts. Default: 100 hours.
    #[must_use]
    pub fn uptime(mut self, uptime: Duration) -> Self {
        self.uptime = uptime;
        self
    }

    /// Also appends the journal to this file. At 64 MiB it is rotated: renamed with the suffix `.1`.
    #[must_use]
    pub fn journal_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.journal_file = Some(path.into());
        self
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("listen", &self.listen)
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}
