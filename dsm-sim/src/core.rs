//! The state machine with everything that must follow it: files, exports, the saved state. One call at a time, and each
//! is durable before it is answered.

use std::io;

use crate::backstore::Backstore;
use crate::clock::Millis;
use crate::code::Code;
use crate::export::Export;
use crate::nas::{Call, Effect, Nas, Outside, Reply};
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
        let result = self.make(effects);
        if let Err(error) = &result {
            tracing::error!(%error, "an effect failed; going back to the saved state");
            self.go_back(effects)?;
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

    /// Returns to the state that is saved, and makes everything follow it that the effects may have touched.
    fn go_back(&mut self, effects: &[Effect]) -> io::Result<()> {
        self.nas.state = self.store.load()?;
        let state = &self.nas.state;
        for effect in effects {
            match effect {
                Effect::File(uuid) | Effect::Discard(uuid) => match state.luns.get(uuid) {
                    Some(lun) => self.backstore.size(uuid, lun.size)?,
                    None => self.backstore.discard(uuid)?,
                },
                Effect::Unexport(iqn)
                    if state.targets.values().all(|target| target.iqn != *iqn) =>
                {
                    self.export.remove(iqn)?;
                }
                Effect::Save | Effect::Unexport(_) | Effect::Export(_) => {}
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
