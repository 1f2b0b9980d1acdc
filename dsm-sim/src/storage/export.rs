//! Exports targets to initiators, through a target backend of node-sim.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use node_sim::target::lio::Lio;
use node_sim::target::loopdev::Targets;
use node_sim::target::tgt::Tgt;
use node_sim::target::{Chap, Credential, LogicalUnit, Session, TargetBackend};

use crate::nas::effect::Image;
use crate::nas::state::State;
use crate::nas::state::lun::Lun;
use crate::nas::state::target::Target;
use crate::storage::backstore::Backstore;

/// How LUNs become block devices for initiators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportKind {
    /// Not at all: only the Web API.
    #[default]
    None,
    /// As loop devices on this machine, through node-sim's `iscsiadm`.
    Loop,
    /// Over iSCSI, by our own `tgtd` in user space.
    Tgt,
    /// Over iSCSI, by the kernel of this machine (LIO).
    Lio,
}

impl FromStr for ExportKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "loop" => Ok(Self::Loop),
            "tgt" => Ok(Self::Tgt),
            "lio" => Ok(Self::Lio),
            _ => Err("say none, loop, tgt or lio".to_owned()),
        }
    }
}

/// The target backend. Dropping this closes it.
#[derive(Debug)]
pub(crate) struct Export {
    backend: Option<Arc<dyn TargetBackend>>,
    portals: Vec<SocketAddr>,
}

impl Export {
    /// Opens the backend, and makes it export the targets of the state and no others, whatever an earlier process left behind.
    ///
    /// # Errors
    /// The backend's requirements are missing on this machine, or a target cannot be created or removed.
    pub(crate) fn open(
        kind: ExportKind,
        state_dir: &Path,
        portals: Vec<SocketAddr>,
        state: &State,
        backstore: &Backstore,
    ) -> io::Result<Self> {
        let backend: Option<Arc<dyn TargetBackend>> = match kind {
            ExportKind::None => None,
            ExportKind::Loop => Some(Arc::new(Targets::open(&state_dir.join("targets"))?)),
            ExportKind::Tgt => Some(Arc::new(Tgt::open(
                &state_dir.join("tgt"),
                portals.clone(),
            )?)),
            ExportKind::Lio => Some(Arc::new(Lio::open(&state_dir.join("lio"))?)),
        };
        let export = Self { backend, portals };
        if let Some(backend) = &export.backend {
            let targets: Vec<_> = state
                .targets
                .values()
                .map(|target| export.backend_target(target, state, backstore))
                .collect();
            backend.reconcile(&targets)?;
        }
        Ok(export)
    }

    /// An export through a backend of a test.
    #[cfg(test)]
    pub(crate) fn with_backend(backend: Box<dyn TargetBackend>) -> Self {
        Self {
            backend: Some(backend.into()),
            portals: Vec::new(),
        }
    }

    /// Closes the backend. Nothing is exported from then on.
    pub(crate) fn close(&mut self) {
        if let Some(backend) = self.backend.take()
            && let Err(error) = backend.close()
        {
            tracing::error!(%error, "could not close the export; some targets may still be exported");
        }
    }

    /// Exports a target as it is now. The export is up when this returns.
    ///
    /// # Errors
    /// The export cannot be created.
    pub(crate) fn put(
        &self,
        target: &Target,
        state: &State,
        backstore: &Backstore,
    ) -> io::Result<()> {
        self.backend.as_ref().map_or(Ok(()), |backend| {
            backend.put(&self.backend_target(target, state, backstore))
        })
    }

    /// Stops exporting a target, and drops its sessions.
    ///
    /// # Errors
    /// The export cannot be removed.
    pub(crate) fn remove(&self, iqn: &str) -> io::Result<()> {
        self.backend
            .as_ref()
            .map_or(Ok(()), |backend| backend.remove(iqn))
    }

    /// The sessions of a target; empty if they cannot be read.
    pub(crate) fn sessions(&self, iqn: &str) -> Vec<Session> {
        let sessions = self
            .backend
            .as_ref()
            .map_or(Ok(Vec::new()), |backend| backend.sessions(iqn));
        sessions.unwrap_or_else(|error| {
            tracing::warn!(%error, iqn, "cannot read the sessions of a target");
            Vec::new()
        })
    }

    /// Whether a target may have sessions. Always true without a backend, where tests act as the initiators and the NAS cannot
    /// know.
    pub(crate) fn may_be_in_use(&self, iqn: &str) -> bool {
        let sessions = self.backend.as_ref().map(|backend| backend.sessions(iqn));
        match sessions {
            None | Some(Err(_)) => true,
            Some(Ok(sessions)) => !sessions.is_empty(),
        }
    }

    /// For reading sessions later, without holding the NAS's lock.
    pub(crate) fn session_reader(&self) -> SessionReader {
        SessionReader(self.backend.clone())
    }

    fn backend_target(
        &self,
        target: &Target,
        state: &State,
        backstore: &Backstore,
    ) -> node_sim::target::Target {
        let unit = |(&index, uuid): (&u16, &String)| {
            let lun = state.luns.get(uuid);
            (index, logical_unit(uuid, lun, backstore))
        };
        node_sim::target::Target {
            iqn: target.iqn.clone(),
            enabled: target.enabled,
            max_sessions: u32::try_from(target.max_sessions).unwrap_or(u32::MAX),
            portals: self.portals.clone(),
            luns: target
                .luns
                .iter()
                .filter(|(_, uuid)| state.luns.get(uuid).is_some())
                .map(unit)
                .collect(),
            chap: (target.auth_type > 0).then(|| Chap {
                user: target.user.clone(),
                password: target.password.clone(),
                mutual: (target.auth_type > 1).then(|| Credential {
                    user: target.mutual_user.clone(),
                    password: target.mutual_password.clone(),
                }),
            }),
        }
    }
}

/// Reads sessions without holding the NAS's lock.
#[derive(Debug)]
pub(crate) struct SessionReader(Option<Arc<dyn TargetBackend>>);

impl SessionReader {
    /// The sessions of each of these targets. All are empty if they cannot be read.
    pub(crate) fn of(&self, iqns: &[String]) -> Vec<Vec<Session>> {
        let sessions = self.0.as_ref().map(|backend| backend.sessions_of(iqns));
        sessions
            .transpose()
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read the sessions of targets");
                None
            })
            .unwrap_or_else(|| vec![Vec::new(); iqns.len()])
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.close();
    }
}

/// The SCSI INQUIRY data of a LUN, measured by jt: dsm-web-api.md 4.11.
fn logical_unit(uuid: &str, lun: Option<&Lun>, backstore: &Backstore) -> LogicalUnit {
    LogicalUnit {
        file: backstore.path(&Image::Lun(uuid.to_owned())),
        serial: uuid.to_owned(),
        naa: naa(uuid),
        vendor: "SYNOLOGY".to_owned(),
        product: "Storage".to_owned(),
        revision: "4.0".to_owned(),
        unmap: lun.is_some_and(Lun::announces_unmap),
        write_cache: lun.is_some_and(Lun::has_write_cache),
    }
}

/// `6001405` and the first 25 characters of the uuid, with each hyphen written `d`.
fn naa(uuid: &str) -> String {
    let tail: String = uuid
        .chars()
        .take(25)
        .map(|c| if c == '-' { 'd' } else { c })
        .collect();
    format!("6001405{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wwid_follows_synologys_rule() {
        assert_eq!(
            format!("3{}", naa("13a3cd1e-f296-4d4b-b712-a85c139f9dac")),
            "3600140513a3cd1edf296d4d4bdb712da"
        );
    }
}
