//! Entry points of the NAS: dispatches calls to the API handlers, advances time, restores the state after a restart.

use crate::nas::Nas;
use crate::nas::api::info::Api;
use crate::nas::api::{auth, info, node_host, share};
use crate::nas::call::Answer;
use crate::nas::call::Call;
use crate::nas::call::Reply;
use crate::nas::clock::Millis;
use crate::nas::code::Code;
use crate::nas::code::Refusal;
use crate::nas::effect::Effect;
use crate::nas::effect::Environment;
use crate::nas::state::lun::Lun;
use crate::nas::state::snapshot::Snapshot;
use crate::nas::state::table::Row;
use crate::nas::state::target::Target;
use crate::nas::state::volume::Volume;
use crate::nas::state::volume::VolumeSpec;
use std::collections::BTreeSet;

use serde_json::{Value, json};

impl Nas {
    /// Answers one call.
    pub(crate) fn apply(&mut self, now: Millis, call: &Call, env: &dyn Environment) -> Reply {
        self.refresh_allocation(env);
        self.tick(now);
        self.end_lingering(env);
        let mut cookie = None;
        let answer = self.answer(now, call, env, &mut cookie);
        Reply {
            answer,
            cookie,
            effects: self.take_effects(),
        }
    }

    /// Advances to `now`: completes the background work of DSM that is due.
    pub(crate) fn tick(&mut self, now: Millis) {
        self.tick_volumes(now);
        self.tick_boot(now);
        while let Some((at, uuid)) = self.timers.first().filter(|row| row.0 <= now).cloned() {
            self.finish(&uuid, at);
            self.timers.remove(&(at, uuid));
        }
    }

    /// Schedules the completion of a LUN's delete or clone.
    pub(crate) fn finish_at(&mut self, at: Millis, uuid: &str) {
        self.timers.insert((at, uuid.to_owned()));
    }

    fn finish(&mut self, uuid: &str, at: Millis) {
        let Some(mut lun) = self.state.luns.get(&uuid.to_owned()).cloned() else {
            return;
        };
        if lun.deleting_until == Some(at) {
            self.remove_lun(uuid);
        } else if lun.half_done_until == Some(at) {
            lun.half_done_until = None;
            self.state.luns.put(lun);
        }
    }

    /// Restores the NAS after a restart: completes pending deletes, removes unfinished clones, and sets up the volumes that are
    /// now configured. The caller must then align files and exports with the state.
    ///
    /// # Errors
    /// The name of a LUN whose volume is not configured, and that volume.
    // ASSUMED: nothing is left of a clone that a restart has interrupted; not tried on a NAS.
    pub(crate) fn restore(
        &mut self,
        now: Millis,
        volumes: &[VolumeSpec],
    ) -> Result<(), (String, String)> {
        let unfinished = |lun: &&Lun| lun.deleting_until.is_some() || lun.is_cloning(now);
        let unfinished: Vec<String> = self
            .state
            .luns
            .values()
            .filter(unfinished)
            .map(Row::key)
            .collect();
        for uuid in unfinished {
            self.remove_lun(&uuid);
        }
        let old: Vec<Volume> = self.state.volumes.values().cloned().collect();
        for volume in &old {
            self.state.volumes.remove(&volume.path);
        }
        for spec in volumes {
            let mut volume: Volume = spec.clone().into();
            if let Some(old) = old.iter().find(|old| old.path == volume.path) {
                volume = Volume {
                    status: spec.status.clone().unwrap_or_else(|| old.status.clone()),
                    fs: volume.fs,
                    size: volume.size,
                    ..old.clone()
                };
            }
            self.state.volumes.put(volume);
        }
        let without_volume = |lun: &&Lun| self.volume_of(lun).is_none();
        if let Some(lun) = self.state.luns.values().find(without_volume) {
            return Err((lun.name.clone(), lun.location.clone()));
        }
        self.take_effects();
        Ok(())
    }

    /// Sets the uptime, in milliseconds.
    pub(crate) fn set_uptime(&mut self, now: Millis, up: Millis) {
        let signed = |millis| i64::try_from(millis).unwrap_or(i64::MAX);
        self.booted = signed(now).saturating_sub(signed(up));
    }

    /// Seconds since the last boot.
    pub(crate) fn uptime(&self, now: Millis) -> u64 {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        u64::try_from(now.saturating_sub(self.booted)).unwrap_or(0) / 1_000
    }

    /// Takes the pending effects.
    pub(crate) fn take_effects(&mut self) -> BTreeSet<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Records an effect. Saving the state needs none.
    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.insert(effect);
    }

    /// The checks before any parameter is read: API, version, method and session.
    // ASSUMED: they are checked in this order: API, version, method, session.
    pub(crate) fn check_call(&mut self, now: Millis, call: &Call) -> Result<(), Refusal> {
        let name = format!("{} v{} {}", call.api, call.version, call.method);
        let api = Api::named(&call.api, self.config.generation)
            .ok_or_else(|| Code::NoSuchApi.unsupported(&name))?;
        if !api.has_version(call.version, self.config.generation) {
            return Err(Code::BadVersion.because(format!("{name}: no such version")));
        }
        if !api.methods.contains(&call.method.as_str()) {
            return Err(Code::NoSuchMethod.unsupported(&name));
        }
        if api.needs_session() {
            self.auth
                .check(now, &call.caller, self.config.generation, &self.settings)
        } else {
            Ok(())
        }
    }

    fn answer(
        &mut self,
        now: Millis,
        call: &Call,
        env: &dyn Environment,
        cookie: &mut Option<String>,
    ) -> Answer {
        self.check_call(now, call)?;
        if matches!(
            call.api.as_str(),
            "SYNO.Core.ISCSI.LUN" | "SYNO.Core.ISCSI.Target"
        ) {
            self.check_booted(call)?;
        }
        if let Some(answer) = self.monitoring_call(call) {
            return answer;
        }
        match call.api.as_str() {
            "SYNO.API.Info" => Ok(Some(info::query(call, self.config.generation))),
            "SYNO.API.Auth" if call.method == "login" => {
                let login = self.auth.login(
                    now,
                    call,
                    self.config.generation,
                    &self.settings,
                    &mut self.state.devices,
                    &mut self.rng,
                )?;
                *cookie = login.cookie;
                Ok(Some(login.data))
            }
            // ASSUMED: the empty answer; N4S4 reads only the cookie.
            "SYNO.API.Auth.UIConfig" => {
                *cookie = Some(auth::login_page_cookie(&mut self.rng));
                Ok(Some(json!({})))
            }
            "SYNO.API.Auth" => {
                self.auth.logout(&call.caller, &self.settings);
                Ok(None)
            }
            "SYNO.API.Encryption" => self.auth.encryption(now, &mut self.rng).map(Some),
            "SYNO.Core.Security.DSM" => Ok(Some(auth::security(&self.settings))),
            "SYNO.Core.ISCSI.LUN" => self.lun_call(now, call, env),
            "SYNO.Core.ISCSI.Target" => self.target_call(call, env),
            "SYNO.Core.Storage.Volume" => self.volume_call(call, env),
            "SYNO.Core.ISCSI.Node" | "SYNO.Core.ISCSI.Host" => node_host::call(call),
            "SYNO.Core.System" | "SYNO.DSM.Info" => self.system_call(now, call),
            "SYNO.Core.System.Utilization" => Ok(Some(self.utilization(now))),
            "SYNO.Storage.CGI.Storage" => Ok(Some(self.load_info(env))),
            "SYNO.Core.Network.Interface" => Ok(Some(self.interfaces())),
            "SYNO.DSM.Network" => Ok(Some(self.network())),
            name if name.starts_with("SYNO.Core.Share")
                || name.starts_with("SYNO.Core.FileServ") =>
            {
                share::call(call)
            }
            // The server unpacks a compound and applies its calls one by one, so this can only be a nested compound.
            _ => Err(Code::BadCompound.because("a compound inside a compound")),
        }
    }

    /// The state as JSON, for the control port. Equal JSON means that nothing has changed.
    pub(crate) fn dump(&self, now: Millis) -> Value {
        json!({
            "luns": self.luns_by_number().map(|lun| lun.dump(now)).collect::<Vec<_>>(),
            "snapshots": self.state.snapshots.values().map(Snapshot::dump).collect::<Vec<_>>(),
            "targets": self.state.targets.values().map(Target::dump).collect::<Vec<_>>(),
            "lingering_targets": self.lingering.values().map(Target::dump).collect::<Vec<_>>(),
            "volumes": self.state.volumes.values().collect::<Vec<_>>(),
            "sessions": self.auth.sessions(),
        })
    }
}
