//! Targets as initiators find them, through node-sim's target side.

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

/// How LUNs become block devices for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportKind {
    /// Not at all: only the Web API.
    #[default]
    None,
    /// As loop devices on this machine, through node-sim's `iscsiadm`.
    Loop,
    /// Over iSCSI by a `tgtd` of our own, in user space.
    Tgt,
    /// Over iSCSI by the kernel of this machine.
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

/// The exporting side. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Export {
    side: Option<Arc<dyn TargetBackend>>,
    portals: Vec<SocketAddr>,
}

impl Export {
    /// Opens the exporting side and makes it export the state and nothing beyond, whatever an earlier life has left.
    ///
    /// # Errors
    /// This machine lacks what it takes, or a target could not be made or removed.
    pub(crate) fn open(
        kind: ExportKind,
        state_dir: &Path,
        portals: Vec<SocketAddr>,
        state: &State,
        backstore: &Backstore,
    ) -> io::Result<Self> {
        let side: Option<Arc<dyn TargetBackend>> = match kind {
            ExportKind::None => None,
            ExportKind::Loop => Some(Arc::new(Targets::open(&state_dir.join("targets"))?)),
            ExportKind::Tgt => Some(Arc::new(Tgt::open(
                &state_dir.join("tgt"),
                portals.clone(),
            )?)),
            ExportKind::Lio => Some(Arc::new(Lio::open(&state_dir.join("lio"))?)),
        };
        let export = Self { side, portals };
        if let Some(side) = &export.side {
            let targets: Vec<_> = state
                .targets
                .values()
                .map(|target| export.described(target, state, backstore))
                .collect();
            side.align(&targets)?;
        }
        Ok(export)
    }

    /// An export through a side that a test made.
    #[cfg(test)]
    pub(crate) fn through(side: Box<dyn TargetBackend>) -> Self {
        Self {
            side: Some(side.into()),
            portals: Vec::new(),
        }
    }

    /// Ends the exporting side; nothing is exported from now on, whoever asks.
    pub(crate) fn close(&mut self) {
        if let Some(side) = self.side.take()
            && let Err(error) = side.close()
        {
            tracing::error!(%error, "something of the export is left");
        }
    }

    /// Exports a target as it is now. It is up when this returns.
    ///
    /// # Errors
    /// The export could not be made.
    pub(crate) fn put(
        &self,
        target: &Target,
        state: &State,
        backstore: &Backstore,
    ) -> io::Result<()> {
        self.side.as_ref().map_or(Ok(()), |side| {
            side.put(&self.described(target, state, backstore))
        })
    }

    /// Exports a target no more, and drops its sessions.
    ///
    /// # Errors
    /// The export could not be removed.
    pub(crate) fn remove(&self, iqn: &str) -> io::Result<()> {
        self.side.as_ref().map_or(Ok(()), |side| side.remove(iqn))
    }

    /// Who is logged in.
    pub(crate) fn sessions(&self, iqn: &str) -> Vec<Session> {
        let sessions = self
            .side
            .as_ref()
            .map_or(Ok(Vec::new()), |side| side.sessions(iqn));
        sessions.unwrap_or_else(|error| {
            tracing::warn!(%error, iqn, "the sessions of a target cannot be read");
            Vec::new()
        })
    }

    /// Whether somebody is logged in. Without an exporting side others play the initiators, and only they know.
    pub(crate) fn may_be_in_use(&self, iqn: &str) -> bool {
        let sessions = self.side.as_ref().map(|side| side.sessions(iqn));
        match sessions {
            None | Some(Err(_)) => true,
            Some(Ok(sessions)) => !sessions.is_empty(),
        }
    }

    /// Looks at sessions later, when the NAS is free for others.
    pub(crate) fn watch(&self) -> Watch {
        Watch(self.side.clone())
    }

    fn described(
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

/// Looks at sessions; nothing waits for it but who looks.
#[derive(Debug)]
pub(crate) struct Watch(Option<Arc<dyn TargetBackend>>);

impl Watch {
    /// Who is logged in to each of these targets. What cannot be read is empty.
    pub(crate) fn of(&self, iqns: &[String]) -> Vec<Vec<Session>> {
        let sessions = self.0.as_ref().map(|side| side.sessions_of(iqns));
        sessions
            .transpose()
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "sessions cannot be read");
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

/// What SCSI INQUIRY says of a LUN, measured by jt: dsm-web-api.md 4.11.
fn logical_unit(uuid: &str, lun: Option<&Lun>, backstore: &Backstore) -> LogicalUnit {
    LogicalUnit {
        file: backstore.path(&Image::Lun(uuid.to_owned())),
        serial: uuid.to_owned(),
        naa: naa(uuid),
        vendor: "SYNOLOGY".to_owned(),
        product: "Storage".to_owned(),
        revision: "4.0".to_owned(),
        unmap: lun.is_some_and(Lun::takes_unmap),
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
    fn the_wwid_is_made_by_synologys_rule() {
        assert_eq!(
            format!("3{}", naa("13a3cd1e-f296-4d4b-b712-a85c139f9dac")),
            "3600140513a3cd1edf296d4d4bdb712da"
        );
    }
}
