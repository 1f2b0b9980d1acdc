//! Targets that were deleted under live sessions, where DSM lets those go on: `deleted_targets_keep_sessions`.
//!
//! The API knows nothing of them. Initiators see a target that turns new logins away, until its last session ends, the NAS
//! restarts, or a new target takes its IQN, and the old sessions with it.

use crate::nas::Nas;
use crate::nas::effect::{Effect, Environment};
use crate::nas::state::target::Target;

impl Nas {
    /// Deletes a target; LUNs that it maps stay.
    pub(crate) fn delete_target(&mut self, id: u32, outside: &dyn Environment) {
        let Some(target) = self.state.targets.remove(&id) else {
            return;
        };
        if self.settings.deleted_targets_keep_sessions && outside.may_be_in_use(&target.iqn) {
            self.effect(Effect::Linger(target.iqn.clone()));
            self.lingering.insert(target.iqn.clone(), target);
        } else {
            self.effect(Effect::Unexport(target.iqn));
        }
    }

    /// Lets go of those whose last session has ended.
    pub(crate) fn end_lingering(&mut self, outside: &dyn Environment) {
        let over = |iqn: &&String| !outside.may_be_in_use(iqn);
        let over: Vec<String> = self.lingering.keys().filter(over).cloned().collect();
        for iqn in over {
            self.drop_lingering(&iqn);
        }
    }

    /// Ends one, and its sessions; whether it was there.
    pub(crate) fn drop_lingering(&mut self, iqn: &str) -> bool {
        let was_there = self.lingering.remove(iqn).is_some();
        if was_there {
            self.effect(Effect::Unexport(iqn.to_owned()));
        }
        was_there
    }

    /// Ends all of them, as a restart of the NAS does.
    pub(crate) fn drop_all_lingering(&mut self) {
        for iqn in std::mem::take(&mut self.lingering).into_keys() {
            self.effect(Effect::Unexport(iqn));
        }
    }

    /// A LUN that is gone is gone for lingering sessions, too.
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

    /// A NAS that keeps sessions, with a target that maps a LUN; and the LUN's uuid.
    fn mapped() -> (NasFixture, String) {
        let mut bench = NasFixture::new();
        bench.nas.settings.deleted_targets_keep_sessions = true;
        bench.target("t");
        let uuid = bench.lun("a", "BLUN", GIB);
        bench.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
        (bench, uuid)
    }

    fn delete(bench: &mut NasFixture) -> BTreeSet<Effect> {
        bench
            .call(TARGET, 1, "delete", &[("target_id", "\"1\"")])
            .effects
    }

    fn lingering(bench: &NasFixture) -> Value {
        bench.nas.dump(bench.now)["lingering_targets"].take()
    }

    #[test]
    fn a_target_with_a_session_lingers_and_no_answer_tells() {
        let (mut bench, uuid) = mapped();
        bench.in_use.insert(T.to_owned());
        assert_eq!(
            delete(&mut bench),
            BTreeSet::from([Effect::Linger(T.to_owned())])
        );
        let rows = lingering(&bench);
        assert_eq!(rows[0]["iqn"], T);
        assert_eq!(
            rows[0]["mapped_luns"],
            json!([{"lun_uuid": uuid, "mapping_index": 1}])
        );
        assert_eq!(bench.ok(TARGET, "list", &[])["targets"], json!([]));
        for id in ["\"1\"", "\"t\""] {
            assert_eq!(bench.code(TARGET, "get", &[("target_id", id)]), 18_990_710);
        }
        assert_eq!(bench.get(&uuid, "[\"is_mapped\"]")["is_mapped"], false);
        let load = bench.ok("SYNO.Storage.CGI.Storage", "load_info", &[]);
        assert_eq!(load["iscsiTargets"], json!([]));
    }

    #[test]
    fn without_a_session_or_the_switch_it_is_gone() {
        let gone = BTreeSet::from([Effect::Unexport(T.to_owned())]);
        let (mut bench, _) = mapped();
        assert_eq!(delete(&mut bench), gone);
        assert_eq!(lingering(&bench), json!([]));
        let (mut bench, _) = mapped();
        bench.nas.settings.deleted_targets_keep_sessions = false;
        bench.in_use.insert(T.to_owned());
        assert_eq!(delete(&mut bench), gone);
        assert_eq!(lingering(&bench), json!([]));
    }

    #[test]
    fn it_goes_with_its_last_session_or_a_restart() {
        let (mut bench, _) = mapped();
        bench.in_use.insert(T.to_owned());
        delete(&mut bench);
        let look = |bench: &mut NasFixture| bench.call(LUN, 1, "list", &[]).effects;
        assert_eq!(look(&mut bench), BTreeSet::new());
        bench.in_use.clear();
        let gone = BTreeSet::from([Effect::Unexport(T.to_owned())]);
        assert_eq!(look(&mut bench), gone);
        assert_eq!(lingering(&bench), json!([]));

        let (mut bench, _) = mapped();
        bench.in_use.insert(T.to_owned());
        delete(&mut bench);
        let boot = Boot {
            loading: Loading::Absent,
            until: bench.now,
            status: None,
        };
        bench.nas.boot(bench.now, boot);
        assert_eq!(bench.nas.take_effects(), gone);
        assert_eq!(lingering(&bench), json!([]));
    }

    #[test]
    fn a_new_target_takes_the_iqn_and_its_sessions() {
        let (mut bench, _) = mapped();
        bench.in_use.insert(T.to_owned());
        delete(&mut bench);
        let params = [("name", "t"), ("iqn", T)];
        let effects = bench.call(TARGET, 1, "create", &params).effects;
        assert_eq!(effects, BTreeSet::from([Effect::Export(1)]));
        assert_eq!(lingering(&bench), json!([]));
    }

    #[test]
    fn a_deleted_lun_is_gone_from_it() {
        let (mut bench, uuid) = mapped();
        bench.in_use.insert(T.to_owned());
        delete(&mut bench);
        let uuid = json!(uuid).to_string();
        let effects = bench.call(LUN, 1, "delete", &[("uuid", &uuid)]).effects;
        assert!(
            effects.contains(&Effect::Linger(T.to_owned())),
            "{effects:?}"
        );
        assert_eq!(lingering(&bench)[0]["mapped_luns"], json!([]));
    }
}
