//! The state machine with everything that must follow it: files, exports, the saved state. One call at a time, and each
//! is durable before it is answered.

use std::io;

use crate::backstore::Backstore;
use crate::clock::Millis;
use crate::code::Code;
use crate::export::Export;
use crate::nas::{Call, Effect, Nas, Outside, Reply, State};
use crate::server::refused;
use crate::store::Store;

/// The state machine and everything that must follow it.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) nas: Nas,
    pub(crate) store: Store,
    pub(crate) backstore: Backstore,
    pub(crate) export: Export,
}

struct Seen<'a> {
    backstore: &'a Backstore,
    export: &'a Export,
}

impl Outside for Seen<'_> {
    fn allocated(&self, uuid: &str) -> u64 {
        self.backstore.allocated(uuid)
    }

    fn sessions(&self, iqn: &str) -> Vec<node_sim::target::Session> {
        self.export.sessions(iqn)
    }
}

impl Core {
    /// Answers a call. What the answer promises has happened, and survives a kill.
    pub(crate) fn apply(&mut self, now: Millis, call: &Call) -> Reply {
        let outside = Seen {
            backstore: &self.backstore,
            export: &self.export,
        };
        let mut reply = self.nas.apply(now, call, &outside);
        if let Err(error) = self.settle(&std::mem::take(&mut reply.effects)) {
            return refused(
                code_of(&error).because(format!("the simulator could not do it: {error}")),
            );
        }
        reply
    }

    /// Changes the NAS from outside of the Web API.
    pub(crate) fn change<T>(
        &mut self,
        now: Millis,
        change: impl FnOnce(&mut Nas, &dyn Outside) -> T,
    ) -> io::Result<T> {
        let outside = Seen {
            backstore: &self.backstore,
            export: &self.export,
        };
        self.nas.tick(now);
        let result = change(&mut self.nas, &outside);
        let effects = self.nas.take_effects();
        self.settle(&effects).map(|()| result)
    }

    // The order makes a kill at any point harmless: a file is there before the state names it, an export changes only
    // after the state has, and a file goes last. Whatever is missing after a restart follows from the state.
    fn settle(&mut self, effects: &[Effect]) -> io::Result<()> {
        let exports = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Export(_) | Effect::Unexport(_)));
        // An export may be refused after the new state is saved, and then the old one is saved again.
        let old = exports.then(|| self.store.load()).transpose()?;
        let result = self.make(effects);
        if let Err(error) = &result {
            tracing::error!(%error, "an effect failed; going back to the saved state");
            self.go_back(effects, old)?;
        }
        result
    }

    fn make(&self, effects: &[Effect]) -> io::Result<()> {
        let state = &self.nas.state;
        for effect in effects {
            if let Effect::File(uuid) = effect
                && let Some(lun) = state.luns.get(uuid)
            {
                self.backstore.size(uuid, lun.size)?;
            }
        }
        if effects.contains(&Effect::Save) {
            self.store.save(state)?;
        }
        for effect in effects {
            if let Effect::Unexport(iqn) = effect {
                self.export.remove(iqn)?;
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
            if let Effect::Discard(uuid) = effect {
                self.backstore.discard(uuid)?;
            }
        }
        Ok(())
    }

    /// Returns to the state that was saved before, and makes everything follow it that the effects may have touched.
    fn go_back(&mut self, effects: &[Effect], old: Option<State>) -> io::Result<()> {
        let touched: Vec<String> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Export(id) => Some(self.nas.state.targets.get(id)?.iqn.clone()),
                Effect::Unexport(iqn) => Some(iqn.clone()),
                Effect::File(_) | Effect::Discard(_) | Effect::Save => None,
            })
            .collect();
        if let Some(old) = old {
            self.store.save(&old)?;
        }
        self.nas.state = self.store.load()?;
        let state = &self.nas.state;
        for effect in effects {
            match effect {
                Effect::File(uuid) | Effect::Discard(uuid) => match state.luns.get(uuid) {
                    Some(lun) => self.backstore.size(uuid, lun.size)?,
                    None => self.backstore.discard(uuid)?,
                },
                Effect::Save | Effect::Unexport(_) | Effect::Export(_) => {}
            }
        }
        for iqn in touched {
            if state.targets.values().all(|target| target.iqn != iqn) {
                self.export.remove(&iqn)?;
            }
        }
        state
            .targets
            .values()
            .try_for_each(|target| self.export.put(target, state, &self.backstore))
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
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use node_sim::target::{Session, Target, TargetSide};
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::json;

    use super::*;
    use crate::auth::{Account, Settings};
    use crate::latency::Latency;
    use crate::model::{Dsm, Model};
    use crate::nas::Config;

    /// Exports all but one target, and knows which it exports.
    #[derive(Debug, Default)]
    struct Picky(Arc<Mutex<BTreeSet<String>>>);

    impl TargetSide for Picky {
        fn align(&self, targets: &[Target]) -> io::Result<()> {
            targets.iter().try_for_each(|target| self.put(target))
        }

        fn put(&self, target: &Target) -> io::Result<()> {
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

    fn core(dir: &Path, side: Picky) -> Core {
        let config = Config {
            dsm: Dsm::default(),
            model: Model::default(),
            timing: Latency::None.timing(),
            portal_port: 3260,
        };
        let account = Account {
            name: "admin".into(),
            password: "admin".into(),
        };
        let rng = StdRng::seed_from_u64(1);
        Core {
            nas: Nas::new(config, Settings::default(), State::default(), account, rng),
            store: Store::new(dir),
            backstore: Backstore::open(dir).unwrap(),
            export: Export::through(Box::new(side)),
        }
    }

    fn target(id: u32, iqn: &str) -> crate::target::Target {
        serde_json::from_value(json!({
            "target_id": id, "name": iqn, "iqn": iqn, "auth_type": 0, "user": "", "password": "", "mutual_user": "",
            "mutual_password": "", "max_sessions": 0, "has_header_checksum": false, "has_data_checksum": false,
            "max_recv_seg_bytes": 4096, "max_send_seg_bytes": 4096, "enabled": true, "luns": {}
        }))
        .unwrap()
    }

    #[test]
    fn a_target_that_cannot_be_exported_is_not_there_after_a_restart_either() {
        let dir = tempfile::tempdir().unwrap();
        let exported = Arc::default();
        let mut core = core(dir.path(), Picky(Arc::clone(&exported)));
        for (id, iqn) in [(1, "iqn.fine"), (2, "iqn.refused")] {
            let change = |nas: &mut Nas, _: &dyn Outside| {
                nas.state.targets.insert(id, target(id, iqn));
                nas.effect(Effect::Export(id));
            };
            assert_eq!(core.change(Millis::default(), change).is_ok(), id == 1);
        }
        let names = |state: &State| -> Vec<String> {
            let targets = state.targets.values();
            targets.map(|target| target.iqn.clone()).collect()
        };
        assert_eq!(names(&core.nas.state), ["iqn.fine"]);
        assert_eq!(names(&core.store.load().unwrap()), ["iqn.fine"]);
        let left = exported.lock().unwrap().clone();
        assert_eq!(left, BTreeSet::from(["iqn.fine".to_owned()]));
        drop(core);
        assert!(exported.lock().unwrap().is_empty(), "closed with the core");
    }
}
