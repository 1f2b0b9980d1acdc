//! The NAS as a state machine: a call and a moment go in, an answer and the effects still to be made come out.
//! No clock, no sockets, no files.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{self, Api};
use crate::auth::{self, Account, Auth, Settings};
use crate::clock::Millis;
use crate::code::{Code, Refusal};
use crate::decode::Params;
use crate::latency::Timing;
use crate::lun::Lun;
use crate::model::{Dsm, Model};
use crate::target::Target;
use crate::volume::Volume;

/// One call of one API method.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) api: String,
    pub(crate) method: String,
    pub(crate) version: u32,
    pub(crate) params: Params,
    pub(crate) caller: Caller,
}

/// Who calls, and what they show for it.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) client: IpAddr,
    pub(crate) query_sid: Option<String>,
    pub(crate) form_sid: Option<String>,
    pub(crate) cookie_sid: Option<String>,
    pub(crate) token: Option<String>,
}

impl Caller {
    /// The session id that counts.
    // ASSUMED: a parameter outranks the cookie when both are there.
    pub(crate) fn sid(&self, in_form: bool) -> Option<&str> {
        let form = self.form_sid.as_ref().filter(|_| in_form);
        self.query_sid
            .as_ref()
            .or(form)
            .or(self.cookie_sid.as_ref())
            .map(String::as_str)
    }
}

/// `data` of the answer, if it has any, or the refusal.
pub(crate) type Answer = Result<Option<Value>, Refusal>;

/// What comes of a call.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    /// A `Set-Cookie` value.
    pub(crate) cookie: Option<String>,
    /// To be made, in this order of kinds, before the answer is sent.
    pub(crate) effects: Vec<Effect>,
}

/// Something outside of the state that must follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The LUN's file is to have the LUN's size.
    File(String),
    /// The state is to be saved.
    Save,
    /// The target of this IQN is to be exported no more.
    Unexport(String),
    /// The target of this number is to be exported as it is now.
    Export(u32),
    /// The file of a LUN that is gone is to go.
    Discard(String),
}

/// What the state machine may look up outside of itself.
pub(crate) trait Outside {
    /// Bytes that a LUN's data takes on disk.
    fn allocated(&self, uuid: &str) -> u64;
    /// Who is logged in to a target.
    fn sessions(&self, iqn: &str) -> Vec<node_sim::target::Session>;
}

/// All that survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// By uuid.
    pub(crate) luns: BTreeMap<String, Lun>,
    /// By number.
    pub(crate) targets: BTreeMap<u32, Target>,
    /// By path.
    pub(crate) volumes: BTreeMap<String, Volume>,
}

/// What does not change while the NAS runs.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) dsm: Dsm,
    pub(crate) model: Model,
    pub(crate) timing: Timing,
    /// The port that targets say they listen on.
    pub(crate) portal_port: u16,
}

/// A NAS.
#[derive(Debug)]
pub(crate) struct Nas {
    pub(crate) config: Config,
    pub(crate) settings: Settings,
    pub(crate) state: State,
    pub(crate) auth: Auth,
    pub(crate) rng: StdRng,
    effects: Vec<Effect>,
}

impl Nas {
    pub(crate) fn new(
        config: Config,
        settings: Settings,
        state: State,
        account: Account,
        rng: StdRng,
    ) -> Self {
        Self {
            config,
            settings,
            state,
            auth: Auth::new(account),
            rng,
            effects: Vec::new(),
        }
    }

    /// Answers one call.
    pub(crate) fn apply(&mut self, now: Millis, call: &Call, outside: &dyn Outside) -> Reply {
        self.tick(now);
        let mut cookie = None;
        let answer = self.answer(now, call, outside, &mut cookie);
        Reply {
            answer,
            cookie,
            effects: self.take_effects(),
        }
    }

    /// Lets time pass: what DSM finishes on its own is finished.
    pub(crate) fn tick(&mut self, now: Millis) {
        let dead: Vec<String> = self
            .state
            .luns
            .values()
            .filter(|lun| lun.dying.is_some_and(|at| at <= now))
            .map(|lun| lun.uuid.clone())
            .collect();
        for uuid in dead {
            self.bury(&uuid);
        }
        for volume in self.state.volumes.values_mut() {
            volume.returning.retain(|&(at, _)| now < at);
        }
    }

    /// The effects that are still to be made.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Notes an effect. Every change of the state is saved.
    pub(crate) fn effect(&mut self, effect: Effect) {
        for effect in [Effect::Save, effect] {
            if !self.effects.contains(&effect) {
                self.effects.push(effect);
            }
        }
    }

    /// Who may call at all: the checks before any parameter is read.
    // ASSUMED: in this order: API, version, method, session.
    pub(crate) fn admit(&mut self, now: Millis, call: &Call) -> Result<(), Refusal> {
        let name = format!("{} v{} {}", call.api, call.version, call.method);
        let api = Api::named(&call.api).ok_or_else(|| Code::NoSuchApi.gap(&name))?;
        if !api.has_version(call.version, self.config.dsm) {
            return Err(Code::BadVersion.because(format!("{name}: no such version")));
        }
        if !api.methods.contains(&call.method.as_str()) {
            return Err(Code::NoSuchMethod.gap(&name));
        }
        if api.session {
            self.auth
                .check(now, &call.caller, self.config.dsm, &self.settings)
        } else {
            Ok(())
        }
    }

    fn answer(
        &mut self,
        now: Millis,
        call: &Call,
        outside: &dyn Outside,
        cookie: &mut Option<String>,
    ) -> Answer {
        self.admit(now, call)?;
        match call.api.as_str() {
            "SYNO.API.Info" => api::query(call, self.config.dsm),
            "SYNO.API.Auth" if call.method == "login" => {
                let login =
                    self.auth
                        .login(now, call, self.config.dsm, &self.settings, &mut self.rng)?;
                *cookie = login.cookie;
                Ok(Some(login.data))
            }
            "SYNO.API.Auth" => {
                self.auth.logout(&call.caller, &self.settings);
                Ok(None)
            }
            "SYNO.Core.Security.DSM" => Ok(Some(auth::security(&self.settings))),
            "SYNO.Core.ISCSI.LUN" => self.lun_call(now, call, outside),
            "SYNO.Core.ISCSI.Target" => self.target_call(call, outside),
            "SYNO.Core.Storage.Volume" => self.volume_call(call, outside),
            "SYNO.Core.System" | "SYNO.DSM.Info" => self.system_call(now, call),
            // The calls inside are taken out and applied one by one by the shell, so it never comes here.
            _ => Err(Code::BadCompound.because("a compound inside a compound")),
        }
    }

    /// Everything that persists, as the control port shows it: equal JSON means that nothing has changed.
    pub(crate) fn dump(&self, now: Millis) -> Value {
        json!({
            "luns": self.luns_by_number().map(|lun| lun.dump(now)).collect::<Vec<_>>(),
            "targets": self.state.targets.values().map(Target::dump).collect::<Vec<_>>(),
            "volumes": self.state.volumes.values().collect::<Vec<_>>(),
            "sessions": self.auth.sessions(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
