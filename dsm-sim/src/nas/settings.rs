//! Runtime settings: switches of a NAS administrator, switches for behavior that is not known of DSM, and malformed rows in
//! lists. `docs/knobs.md` lists them all.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::nas::code::Code;

/// How DSM reacts to a requested value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttribPolicy {
    /// The value is set.
    Granted,
    /// The old value stays, without an error.
    Ignored,
    /// The call is refused.
    Refused,
}

/// Switches of DSM's security page, and switches for what is not known of DSM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Settings {
    /// Refuse calls without the login's SynoToken (105).
    pub csrf_protection: bool,
    /// Let a session be used from any address.
    pub skip_ip_checking: bool,
    /// Idle minutes after which a session ends.
    pub timeout_minutes: u64,
    /// Block addresses after three failed logins.
    pub auto_block: bool,
    /// Accept `_sid` in a form body, too. jt measured that DSM 7.1.1 does not; other clients depend on it.
    pub sid_in_form: bool,
    /// Accept target names, not only numbers, in calls that change a target.
    pub target_names_in_changes: bool,
    /// Accept target names, not only numbers, in `Target.get`; otherwise a name is refused with 18990710.
    pub target_get_takes_names: bool,
    /// Keep the sessions of a deleted target until they end by themselves or the NAS restarts; new logins are rejected.
    pub deleted_targets_keep_sessions: bool,
    /// Continue a compound with `stop_when_error` after a failed call.
    pub compounds_go_on: bool,
    /// After a stop, put the skipped calls into a compound's `result`, each refused with 112.
    pub compound_fills_stopped: bool,
    /// Let other requests run between the calls of a compound.
    pub compounds_interleave: bool,
    /// The code for an unknown LUN, requested by a well-formed uuid: 18990531, or 18990505 as Cinder expects.
    pub missing_lun_code: u32,
    /// The code for an unknown LUN, requested by a name or any other string that is not a uuid.
    pub unknown_lun_name_code: u32,
    /// The code for a `new_size` below the current size.
    pub shrink_code: u32,
    /// Refuse to grow a thin LUN by more than its volume has free (18990002), as for thick ones.
    pub thin_growth_needs_space: bool,
    /// Create ADV LUNs with `can_snapshot` on.
    pub adv_can_snapshot: bool,
    /// Maximum snapshots of a LUN: 256, or 128 according to DSM's other limit.
    pub snapshots_per_lun: usize,
    /// Refuse a second-factor code that was used before (404).
    pub otp_codes_once: bool,
    /// With CSRF protection, return the SynoToken even to clients that do not ask for it.
    pub token_unasked: bool,
    /// Keep a deleted LUN in `LUN.list`, and its name taken, while DSM works on the delete (see the latency). Off: it is removed
    /// at once.
    pub deleted_luns_stay_listed: bool,
    /// With `deleted_luns_stay_listed`, let `LUN.get` find the LUN for as long.
    pub deleted_luns_answer_get: bool,
    /// On DSM 7.0, refuse to map ADV LUNs (18990570).
    pub adv_unmappable_on_7_0: bool,
    /// Refuse to create a CINDER LUN on btrfs (18991205) instead of making it a CINDER_BLUN.
    pub cinder_on_btrfs_refused: bool,
    /// The effect of `can_snapshot` 1 on a THIN LUN.
    pub thin_can_snapshot: AttribPolicy,
    /// The `status` of healthy LUNs.
    pub lun_status: String,
    /// Also list foreign LUNs, targets and volumes whose rows fit no client's types, but have a name, IQN or path.
    pub odd_rows: bool,
    /// Also list rows without a name, IQN or path.
    pub nameless_rows: bool,
    /// Leave fields that clients need out of the rows of LUNs (`size`) and targets (`mapped_luns`).
    pub cut_rows: bool,
    /// Include the uptime in `SYNO.Core.System info`.
    pub up_time_shown: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            csrf_protection: false,
            skip_ip_checking: false,
            timeout_minutes: 15,
            auto_block: true,
            // ASSUMED: accepted; measurements disagree, so it can be switched off.
            sid_in_form: true,
            target_names_in_changes: false,
            // ASSUMED: accepted; the official driver looks up a target this way right after creating it, but the answer was not
            // recorded.
            target_get_takes_names: true,
            // ASSUMED: live sessions are dropped and the call succeeds; the initiator's side was not observed.
            deleted_targets_keep_sessions: false,
            // ASSUMED: stop_when_error stops, as its name says; no compound with an error was ever recorded.
            compounds_go_on: false,
            // ASSUMED: the calls after the failed one are left out of `result`.
            compound_fills_stopped: false,
            // ASSUMED: they run whenever a call waits; DSM's own page shows no sign of a lock, and a client that is correct here
            // is also correct on a NAS that holds other requests back.
            compounds_interleave: true,
            missing_lun_code: Code::NoSuchLun as u32,
            // ASSUMED: a name counts as a bad uuid. The recorded 18990531 were for uuids. 18990505 was measured for a string that
            // is as long as a uuid but is not one, and Cinder expects it when it asks by name.
            unknown_lun_name_code: Code::BadLunUuid as u32,
            // ASSUMED: 18990502; every driver refuses to shrink, so DSM's own answer was not recorded.
            shrink_code: Code::BadSize as u32,
            // ASSUMED: growing a thin LUN needs no free space.
            thin_growth_needs_space: false,
            // ASSUMED: on; one report confirms it, another contradicts it (official #23, #22).
            adv_can_snapshot: true,
            // ASSUMED: 256, as `max_snapshot_per_lun` says; `max_snapshot_per_lun_v2` says 128, and it is not known which of them
            // applies.
            snapshots_per_lun: 256,
            // ASSUMED: refused, as pvulgaris measured within 30 s on DSM 7.
            otp_codes_once: true,
            // ASSUMED: only clients that ask get it. Fixtures of pysyno, which does not ask, contain one anyway.
            token_unasked: false,
            // ASSUMED: neither lags. jt calls `get` right away, on the same model that this timing was measured on, and would
            // fail if it still found the LUN; that `list` lags is known only from democratic and N4S4, which poll it.
            deleted_luns_stay_listed: false,
            deleted_luns_answer_get: false,
            // ASSUMED: off; it was a single user's NAS (official #23), whose LUN was in "load fail" for another reason.
            adv_unmappable_on_7_0: false,
            // ASSUMED: off; Cinder sends `CINDER` for any volume, and is used on btrfs, so it becomes the btrfs type.
            cinder_on_btrfs_refused: false,
            // ASSUMED: ignored; LUNs of this type were seen without snapshots (official #83), a refusal was never seen.
            thin_can_snapshot: AttribPolicy::Ignored,
            // ASSUMED: `normal` is the only status that was ever recorded; SAN Manager's own script knows a dozen more.
            lun_status: "normal".to_owned(),
            odd_rows: false,
            nameless_rows: false,
            cut_rows: false,
            up_time_shown: true,
        }
    }
}

impl Settings {
    /// These settings, with the fields of a JSON object applied on top.
    ///
    /// # Errors
    /// `patch` is not an object, a field is unknown, or a value has the wrong type.
    pub fn patched(&self, patch: Value) -> serde_json::Result<Self> {
        let mut fields = serde_json::from_value::<Map<String, Value>>(json!(self))?;
        fields.extend(serde_json::from_value::<Map<String, Value>>(patch)?);
        serde_json::from_value(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use crate::Latency;
    use crate::nas::model::Generation;
    use crate::nas::tests::{GIB, LUN, NasFixture, TARGET};

    /// Creates a LUN of this type. Returns its uuid.
    #[track_caller]
    fn create_lun(sim: &mut NasFixture, kind: &str, volume: &str) -> String {
        let create = [
            ("name", "a"),
            ("type", kind),
            ("location", volume),
            ("size", "1073741824"),
        ];
        let data = sim.ok(LUN, "create", &create);
        data["uuid"].as_str().unwrap().to_owned()
    }

    #[test]
    fn adv_luns_can_be_mapped_unless_dsm_7_0_refuses_them() {
        // dsm-web-api.md 11.1.
        for (dsm, refused, code) in [
            ("7.0", false, 0),
            ("7.0", true, 18_990_570),
            ("7.2", true, 0),
            ("6.2", true, 0),
        ] {
            let mut sim = NasFixture::new();
            sim.nas.config.dsm = dsm.parse().unwrap();
            sim.nas.settings.adv_unmappable_on_7_0 = refused;
            let uuid = create_lun(&mut sim, "ADV", "/volume2");
            sim.target("t");
            let map = [("uuid", &*uuid), ("target_ids", "[1]")];
            assert_eq!(sim.code(LUN, "map_target", &map), code, "{dsm}");
            let uuids = format!("[\"{uuid}\"]");
            let map = [("target_id", "\"1\""), ("lun_uuids", &*uuids)];
            assert_eq!(sim.code(TARGET, "map_lun", &map), code, "{dsm}");
            assert_eq!(sim.code(TARGET, "unmap_lun", &map), 0, "{dsm}");
        }
    }

    #[test]
    fn unknown_behavior_can_be_switched() {
        // dsm-web-api.md 15, and 4.2 for ADV.
        let mut sim = NasFixture::new();
        let thin = sim.lun("thin", "BLUN", GIB);
        let shrink = [("uuid", &*thin), ("new_size", "1")];
        let grow = [("uuid", &*thin), ("new_size", "1099511627776")];
        assert_eq!(sim.code(LUN, "set", &shrink), 18_990_502);
        assert_eq!(sim.code(LUN, "set", &grow), 0, "beyond its volume");
        sim.nas.settings.shrink_code = 120;
        sim.nas.settings.thin_growth_needs_space = true;
        assert_eq!(sim.code(LUN, "set", &shrink), 120);
        let more = [("uuid", &*thin), ("new_size", "2199023255552")];
        assert_eq!(sim.code(LUN, "set", &more), 18_990_002);
        for (can, code) in [(true, 0), (false, 18_990_500)] {
            sim.nas.settings.adv_can_snapshot = can;
            let name = format!("adv-{can}");
            let create = [
                ("name", &*name),
                ("type", "ADV"),
                ("location", "/volume2"),
                ("size", "1073741824"),
            ];
            let data = sim.ok(LUN, "create", &create);
            let take = [("src_lun_uuid", data["uuid"].as_str().unwrap())];
            assert_eq!(sim.code(LUN, "take_snapshot", &take), code);
        }
    }

    #[test]
    fn a_cinder_lun_gets_the_type_for_its_file_system() {
        for (volume, refused, want) in [
            ("/volume1", false, Ok(391)),
            ("/volume1", true, Err(18_991_205)),
            ("/volume2", true, Ok(143)),
            ("/volume2", false, Ok(143)),
        ] {
            let mut sim = NasFixture::new();
            sim.nas.settings.cinder_on_btrfs_refused = refused;
            let create = [
                ("name", "a"),
                ("type", "CINDER"),
                ("location", volume),
                ("size", "1073741824"),
            ];
            let created = match sim.code(LUN, "create", &create) {
                0 => Ok(sim.get("a", "[]")["type"].as_u64().unwrap()),
                code => Err(code),
            };
            assert_eq!(created, want, "{volume} {refused}");
        }
    }

    #[test]
    fn a_deleted_lun_lags_in_the_list_and_nowhere_else() {
        for (listed, got) in [(true, false), (false, false), (true, true)] {
            let mut sim = NasFixture::with(Latency::Ds918.timing(), Generation::Seven);
            sim.nas.settings.deleted_luns_stay_listed = listed;
            sim.nas.settings.deleted_luns_answer_get = got;
            let uuid = sim.lun("a", "BLUN", GIB);
            assert_eq!(sim.code(LUN, "delete", &[("uuid", &uuid)]), 0);
            let rows = sim.ok(LUN, "list", &[])["luns"].take();
            assert_eq!(rows.as_array().unwrap().len(), usize::from(listed));
            assert_eq!(sim.nas.state.luns.len(), usize::from(listed));
            for key in [&*uuid, "a"] {
                let code = sim.code(LUN, "get", &[("uuid", key)]);
                assert_eq!(code == 0, got, "{key}: {code}");
            }
        }
    }
}
