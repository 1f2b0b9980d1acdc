//! The NAS with its image files, exports and saved state, which follow every change. One call at a time, and each is durable
//! before it is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::nas::Nas;
use crate::nas::call::refused;
use crate::nas::call::{Call, Reply};
use crate::nas::clock::Millis;
use crate::nas::code::Code;
use crate::nas::effect::{Effect, Environment, Image};
use crate::nas::state::table::IndexKey;
use crate::nas::state::target::Target;
use crate::storage::backstore::Backstore;
use crate::storage::export::Export;
use crate::storage::store::Store;

/// The state machine with its files, exports and saved state.
#[derive(Debug)]
pub(crate) struct DurableNas {
    pub(crate) nas: Nas,
    pub(crate) store: Store,
    pub(crate) backstore: Backstore,
    pub(crate) export: Export,
}

/// Deleted targets that keep their sessions, by IQN.
type Lingering = BTreeMap<String, Target>;

struct LiveEnvironment<'a> {
    backstore: &'a Backstore,
    export: &'a Export,
}

impl Environment for LiveEnvironment<'_> {
    fn allocated(&self, image: &Image) -> u64 {
        self.backstore.allocated(image)
    }

    fn sessions(&self, iqn: &str) -> Vec<node_sim::target::Session> {
        self.export.sessions(iqn)
    }

    fn may_be_in_use(&self, iqn: &str) -> bool {
        self.export.may_be_in_use(iqn)
    }
}

impl DurableNas {
    /// Answers a call. The changes that the answer confirms are done, and survive a kill.
    pub(crate) fn apply(&mut self, now: Millis, call: &Call) -> Reply {
        let env = LiveEnvironment {
            backstore: &self.backstore,
            export: &self.export,
        };
        let before = self.nas.lingering.clone();
        let mut reply = self.nas.apply(now, call, &env);
        if let Err(error) = self.commit(&std::mem::take(&mut reply.effects), before) {
            return refused(
                code_of(&error).because(format!("the simulator could not do it: {error}")),
            );
        }
        reply
    }

    /// Changes the NAS other than through the Web API.
    pub(crate) fn change<T>(
        &mut self,
        now: Millis,
        change: impl FnOnce(&mut Nas, &dyn Environment) -> T,
    ) -> io::Result<T> {
        let env = LiveEnvironment {
            backstore: &self.backstore,
            export: &self.export,
        };
        let before = self.nas.lingering.clone();
        self.nas.refresh_allocation(&env);
        self.nas.tick(now);
        self.nas.end_lingering(&env);
        let result = change(&mut self.nas, &env);
        let effects = self.nas.take_effects();
        self.commit(&effects, before).map(|()| result)
    }

    // In this order a kill at any point is harmless: a file exists before the state references it, an export changes only after
    // the state, and files are deleted last. After a restart, whatever is missing is derived from the state.
    fn commit(&mut self, effects: &BTreeSet<Effect>, before: Lingering) -> io::Result<()> {
        let result = self.apply_effects(effects);
        if let Err(error) = &result {
            tracing::error!(%error, "an effect failed; rolling back");
            self.nas.lingering = before;
            self.roll_back(effects)?;
        }
        self.nas.state.commit();
        result
    }

    fn apply_effects(&mut self, effects: &BTreeSet<Effect>) -> io::Result<()> {
        let state = &self.nas.state;
        for effect in effects {
            match effect {
                Effect::File(uuid) => {
                    if let Some(lun) = state.luns.get(uuid) {
                        self.backstore.ensure_size(uuid, lun.size)?;
                    }
                }
                Effect::Copy { from, to } => self.copy(from, to)?,
                Effect::Unexport(_)
                | Effect::Linger(_)
                | Effect::Export(_)
                | Effect::Discard(_) => {}
            }
        }
        self.store.append(state)?;
        for effect in effects {
            if let Effect::Unexport(iqn) = effect {
                self.export.remove(iqn)?;
            }
        }
        for effect in effects {
            if let Effect::Linger(iqn) = effect {
                self.linger(iqn)?;
            }
        }
        for effect in effects {
            if let Effect::Export(id) = effect
                && let Some(target) = state.targets.get(id)
            {
                self.export.put(target, state, &self.backstore)?;
            }
        }
        for effect in effects {
            if let Effect::Discard(image) = effect {
                self.backstore.discard(image)?;
            }
        }
        Ok(())
    }

    /// Exports a deleted target so that its sessions go on and new logins are rejected.
    fn linger(&self, iqn: &str) -> io::Result<()> {
        let Some(target) = self.nas.lingering.get(iqn) else {
            return Ok(());
        };
        let closed = Target {
            enabled: false,
            ..target.clone()
        };
        self.export.put(&closed, &self.nas.state, &self.backstore)
    }

    /// Copies an image over another. Initiators lose a LUN whose data is replaced, until it is exported again.
    fn copy(&self, from: &Image, to: &Image) -> io::Result<()> {
        let state = &self.nas.state;
        let size = match to {
            Image::Lun(uuid) => {
                for target in state.targets.find(&IndexKey::Lun(uuid.clone())) {
                    self.export.remove(&target.iqn)?;
                }
                // These are not exported again: the next check finds them without a session.
                for target in self.nas.lingering.values().filter(|it| it.maps(uuid)) {
                    self.export.remove(&target.iqn)?;
                }
                state.luns.get(uuid).map(|lun| lun.size)
            }
            Image::Snapshot(uuid) => state.snapshots.get(uuid).map(|snapshot| snapshot.size),
        };
        size.map_or(Ok(()), |size| self.backstore.copy(from, to, size))
    }

    /// Reverts the state, and makes all files and exports match it that the effects may have touched.
    fn roll_back(&mut self, effects: &BTreeSet<Effect>) -> io::Result<()> {
        let mut touched = BTreeSet::new();
        for effect in effects {
            match effect {
                Effect::Unexport(iqn) | Effect::Linger(iqn) => {
                    touched.insert(iqn.clone());
                }
                Effect::Export(id) => {
                    touched.extend(self.nas.state.targets.get(id).map(|it| it.iqn.clone()));
                }
                Effect::File(_) | Effect::Copy { .. } | Effect::Discard(_) => {}
            }
        }
        self.nas.state.undo();
        self.store.append(&self.nas.state)?;
        let state = &self.nas.state;
        for effect in effects {
            match effect {
                Effect::File(uuid) => match state.luns.get(uuid) {
                    Some(lun) => self.backstore.ensure_size(uuid, lun.size)?,
                    None => self.backstore.discard(&Image::Lun(uuid.clone()))?,
                },
                // A failed restore has replaced the data completely or not at all.
                Effect::Copy { to, .. } if !state.has(to) => self.backstore.discard(to)?,
                Effect::Export(id) => {
                    touched.extend(state.targets.get(id).map(|it| it.iqn.clone()));
                }
                Effect::Copy { .. }
                | Effect::Discard(_)
                | Effect::Unexport(_)
                | Effect::Linger(_) => {}
            }
        }
        for iqn in touched {
            match state.targets.find(&IndexKey::Iqn(iqn.clone())).next() {
                Some(target) => self.export.put(target, state, &self.backstore)?,
                None if self.nas.lingering.contains_key(&iqn) => self.linger(&iqn)?,
                None => self.export.remove(&iqn)?,
            }
        }
        Ok(())
    }
}

// ASSUMED: a size that no file can have is a bad size, and a full disk under the simulator is a full volume.
fn code_of(error: &io::Error) -> Code {
    if error.kind() == io::ErrorKind::FileTooLarge {
        Code::BadSize
    } else if error.kind() == io::ErrorKind::StorageFull {
        Code::NoSpace
    } else {
        Code::Busy
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use node_sim::target::{Session, Target as Exported, TargetBackend};
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::json;

    use super::*;
    use crate::nas::call::Call;
    use crate::nas::model::{Dsm, Model};
    use crate::nas::settings::Settings;
    use crate::nas::state::State;
    use crate::nas::state::account::Account;
    use crate::nas::timing::Latency;
    use crate::nas::{Config, tests::caller};

    /// Fails to export one target, and remembers which it exports.
    #[derive(Debug, Default)]
    struct FailingExport(Arc<Mutex<BTreeSet<String>>>);

    impl TargetBackend for FailingExport {
        fn reconcile(&self, targets: &[Exported]) -> io::Result<()> {
            targets.iter().try_for_each(|target| self.put(target))
        }

        fn put(&self, target: &Exported) -> io::Result<()> {
            self.0.lock().unwrap().insert(target.iqn.clone());
            if target.iqn == "iqn.refused" {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Ok(())
        }

        fn remove(&self, iqn: &str) -> io::Result<()> {
            self.0.lock().unwrap().remove(iqn);
            Ok(())
        }

        fn sessions(&self, _: &str) -> io::Result<Vec<Session>> {
            Ok(Vec::new())
        }

        fn close(&self) -> io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }
    }

    fn open_nas(dir: &Path, backend: FailingExport) -> DurableNas {
        let config = Config {
            dsm: Dsm::default(),
            generation: Dsm::default().generation,
            model: Model::default(),
            timing: Latency::Instant.timing(),
            portal: ([127, 0, 0, 1], 3260).into(),
        };
        let accounts = vec![Account::new("admin", "admin")];
        let rng = StdRng::seed_from_u64(1);
        let (store, state) = Store::open(dir).unwrap();
        DurableNas {
            nas: Nas::new(config, Settings::default(), state, accounts, rng),
            store,
            backstore: Backstore::open(dir).unwrap(),
            export: Export::with_backend(Box::new(backend)),
        }
    }

    fn target(id: u32, iqn: &str) -> Target {
        serde_json::from_value(json!({
            "target_id": id, "name": iqn, "iqn": iqn, "auth_type": 0, "user": "", "password": "", "mutual_user": "",
            "mutual_password": "", "max_sessions": 0, "has_header_checksum": false, "has_data_checksum": false,
            "max_recv_seg_bytes": 4096, "max_send_seg_bytes": 4096, "enabled": true, "luns": {}
        }))
        .unwrap()
    }

    #[test]
    fn a_target_that_cannot_be_exported_is_rolled_back_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let exported = Arc::default();
        let mut durable = open_nas(dir.path(), FailingExport(Arc::clone(&exported)));
        for (id, iqn) in [(1, "iqn.fine"), (2, "iqn.refused")] {
            let change = |nas: &mut Nas, _: &dyn Environment| {
                nas.state.targets.put(target(id, iqn));
                nas.effect(Effect::Export(id));
            };
            assert_eq!(durable.change(Millis::default(), change).is_ok(), id == 1);
        }
        let names = |state: &State| -> Vec<String> {
            let targets = state.targets.values();
            targets.map(|target| target.iqn.clone()).collect()
        };
        assert_eq!(names(&durable.nas.state), ["iqn.fine"]);
        assert_eq!(names(&Store::open(dir.path()).unwrap().1), ["iqn.fine"]);
        let still_exported = exported.lock().unwrap().clone();
        assert_eq!(still_exported, BTreeSet::from(["iqn.fine".to_owned()]));
        drop(durable);
        assert!(exported.lock().unwrap().is_empty(), "closed on drop");
    }

    #[test]
    fn a_device_token_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let login = |params: &[(&str, &str)], code: &str| {
            let mut durable = open_nas(dir.path(), FailingExport::default());
            durable.nas.auth.put_account(Account {
                otp_secret: Some("JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP".to_owned()),
                ..Account::new("admin", "admin")
            });
            let credentials = [
                ("account", "admin"),
                ("passwd", "admin"),
                ("otp_code", code),
            ];
            let call = Call {
                api: "SYNO.API.Auth".to_owned(),
                method: "login".to_owned(),
                version: 6,
                params: credentials.iter().chain(params).copied().collect(),
                caller: caller([127, 0, 0, 1]),
            };
            durable.apply(0, &call).answer
        };
        // The code for that secret in 1970, computed with Python's hmac.
        let otp = "702218";
        let data = login(&[("enable_device_token", "yes")], otp)
            .unwrap()
            .unwrap();
        let token = data["did"].as_str().unwrap();
        assert_eq!(login(&[], "").unwrap_err().code, 403);
        assert!(login(&[("device_id", token)], "").is_ok());
    }
}
