//! Deleted targets that keep their live sessions, if `deleted_targets_keep_sessions` is on.
//!
//! The Web API does not show them. Initiators see a target that rejects new logins until its last session ends, the NAS restarts,
//! or a new target takes over its IQN along with its sessions.

use crate::nas::Nas;
use crate::nas::effect::{Effect, Environment};
use crate::nas::state::target::Target;

impl Nas {
    /// Deletes a target. The LUNs that it maps stay.
    pub(crate) fn delete_target(&mut self, id: u32, env: &dyn Environment) {
        let Some(target) = self.state.targets.remove(&id) else {
            return;
        };
        if self.settings.deleted_targets_keep_sessions && env.may_be_in_use(&target.iqn) {
            self.effect(Effect::Linger(target.iqn.clone()));
            self.lingering.insert(target.iqn.clone(), target);
        } else {
            self.effect(Effect::Unexport(target.iqn));
        }
    }

    /// Drops the lingering targets whose last session has ended.
    pub(crate) fn end_lingering(&mut self, env: &dyn Environment) {
        let ended = |iqn: &&String| !env.may_be_in_use(iqn);
        let ended: Vec<String> = self.lingering.keys().filter(ended).cloned().collect();
        for iqn in ended {
            self.drop_lingering(&iqn);
        }
    }

    /// Drops a lingering target and its sessions. Returns whether it existed.
    pub(crate) fn drop_lingering(&mut self, iqn: &str) -> bool {
        let existed = self.lingering.remove(iqn).is_some();
        if existed {
            self.effect(Effect::Unexport(iqn.to_owned()));
        }
        existed
    }

    /// Drops all lingering targets, as a restart of the NAS does.
    pub(crate) fn drop_all_lingering(&mut self) {
        for iqn in std::mem::take(&mut self.lingering).into_keys() {
            self.effect(Effect::Unexport(iqn));
        }
    }

    /// Removes a deleted LUN from the lingering targets.
    pub(crate) fn unmap_lingering(&mut self, uuid: &str) {
        let maps = |target: &&mut Target| target.maps(uuid);
        let mut changed = Vec::new();
        for target in self.lingering.values_mut().filter(maps) {
            target.luns.retain(|_, mapped| mapped != uuid);
            changed.push(target.iqn.clone());
        }
        for iqn in changed {
            self.effect(Effect::Linger(iqn));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::nas::state::boot::{Boot, Loading};
    use crate::nas::tests::{GIB, LUN, NasFixture, TARGET};

    const T: &str = "iqn.2000-01.com.synology:t";

    /// A NAS that keeps sessions of deleted targets, with a target that maps a LUN. Returns the LUN's uuid, too.
    fn mapped() -> (NasFixture, String) {
        let mut sim = NasFixture::new();
        sim.nas.settings.deleted_targets_keep_sessions = true;
        sim.target("t");
        let uuid = sim.lun("a", "BLUN", GIB);
        sim.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
        (sim, uuid)
    }

    fn delete(sim: &mut NasFixture) -> BTreeSet<Effect> {
        sim.call(TARGET, 1, "delete", &[("target_id", "\"1\"")])
            .effects
    }

    fn lingering(sim: &NasFixture) -> Value {
        sim.nas.dump(sim.now)["lingering_targets"].take()
    }

    #[test]
    fn a_target_with_a_session_lingers_and_no_answer_shows_it() {
        let (mut sim, uuid) = mapped();
        sim.in_use.insert(T.to_owned());
        assert_eq!(
            delete(&mut sim),
            BTreeSet::from([Effect::Linger(T.to_owned())])
        );
        let rows = lingering(&sim);
        assert_eq!(rows[0]["iqn"], T);
        assert_eq!(
            rows[0]["mapped_luns"],
            json!([{"lun_uuid": uuid, "mapping_index": 1}])
        );
        assert_eq!(sim.ok(TARGET, "list", &[])["targets"], json!([]));
        for id in ["\"1\"", "\"t\""] {
            assert_eq!(sim.code(TARGET, "get", &[("target_id", id)]), 18_990_710);
        }
        assert_eq!(sim.get(&uuid, "[\"is_mapped\"]")["is_mapped"], false);
        let load = sim.ok("SYNO.Storage.CGI.Storage", "load_info", &[]);
        assert_eq!(load["iscsiTargets"], json!([]));
    }

    #[test]
    fn without_a_session_or_the_setting_no_target_lingers() {
        let unexported = BTreeSet::from([Effect::Unexport(T.to_owned())]);
        let (mut sim, _) = mapped();
        assert_eq!(delete(&mut sim), unexported);
        assert_eq!(lingering(&sim), json!([]));
        let (mut sim, _) = mapped();
        sim.nas.settings.deleted_targets_keep_sessions = false;
        sim.in_use.insert(T.to_owned());
        assert_eq!(delete(&mut sim), unexported);
        assert_eq!(lingering(&sim), json!([]));
    }

    #[test]
    fn it_ends_with_its_last_session_or_a_restart() {
        let (mut sim, _) = mapped();
        sim.in_use.insert(T.to_owned());
        delete(&mut sim);
        let effects_of_next_call = |sim: &mut NasFixture| sim.call(LUN, 1, "list", &[]).effects;
        assert_eq!(effects_of_next_call(&mut sim), BTreeSet::new());
        sim.in_use.clear();
        let unexported = BTreeSet::from([Effect::Unexport(T.to_owned())]);
        assert_eq!(effects_of_next_call(&mut sim), unexported);
        assert_eq!(lingering(&sim), json!([]));

        let (mut sim, _) = mapped();
        sim.in_use.insert(T.to_owned());
        delete(&mut sim);
        let boot = Boot {
            loading: Loading::Absent,
            until: sim.now,
            status: None,
        };
        sim.nas.boot(sim.now, boot);
        assert_eq!(sim.nas.take_effects(), unexported);
        assert_eq!(lingering(&sim), json!([]));
    }

    #[test]
    fn a_new_target_takes_the_iqn_and_its_sessions() {
        let (mut sim, _) = mapped();
        sim.in_use.insert(T.to_owned());
        delete(&mut sim);
        let params = [("name", "t"), ("iqn", T)];
        let effects = sim.call(TARGET, 1, "create", &params).effects;
        assert_eq!(effects, BTreeSet::from([Effect::Export(1)]));
        assert_eq!(lingering(&sim), json!([]));
    }

    #[test]
    fn a_deleted_lun_is_unmapped_from_it() {
        let (mut sim, uuid) = mapped();
        sim.in_use.insert(T.to_owned());
        delete(&mut sim);
        let uuid = json!(uuid).to_string();
        let effects = sim.call(LUN, 1, "delete", &[("uuid", &uuid)]).effects;
        assert!(
            effects.contains(&Effect::Linger(T.to_owned())),
            "{effects:?}"
        );
        assert_eq!(lingering(&sim)[0]["mapped_luns"], json!([]));
    }
}
