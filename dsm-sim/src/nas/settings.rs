//! Switches: what an administrator of the NAS can turn, what is not known of DSM and can be played either way, and how odd
//! the simulated world is. `docs/knobs.md` has them all.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::nas::code::Code;

/// What DSM does with a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// It is as wished.
    Granted,
    /// It is as it was, and that is no error.
    Ignored,
    /// The call is refused.
    Refused,
}

/// What an administrator can switch on the security page, and switches for what is not known of DSM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "these are switches, each on its own"
)]
pub struct Settings {
    /// Refuse calls without the login's token (105).
    pub csrf_protection: bool,
    /// Let a session be used from any address.
    pub skip_ip_checking: bool,
    /// Idle minutes after which a session ends.
    pub timeout_minutes: u64,
    /// Lock addresses out after three failed logins.
    pub auto_block: bool,
    /// Take `_sid` from a form body too. jt measured that DSM 7.1.1 does not; other clients depend on it.
    pub sid_in_form: bool,
    /// Take target names, not only numbers, in calls that change a target.
    pub target_names_in_changes: bool,
    /// Take target names, not only numbers, in `Target.get`; else a name answers 18990710.
    pub target_get_takes_names: bool,
    /// Let sessions go on when their target is deleted, until they end by themselves or the NAS restarts; new logins are
    /// turned away.
    pub deleted_targets_keep_sessions: bool,
    /// Carry a compound with `stop_when_error` on after a failing call all the same.
    pub compounds_go_on: bool,
    /// After a stop, put the calls that were not made into a compound's `result`, each refused with 112.
    pub compound_fills_stopped: bool,
    /// Let other requests get in between the calls of a compound.
    pub compounds_interleave: bool,
    /// The code for a LUN that is not there, asked for by a well-formed uuid: 18990531, or 18990505 as Cinder expects.
    pub missing_lun_code: u32,
    /// The code for a LUN that is not there, asked for by a name or any other string that is no uuid.
    pub unknown_lun_name_code: u32,
    /// The code for a `new_size` below the present size.
    pub shrink_code: u32,
    /// Refuse to grow a thin LUN beyond what its volume has free (18990002), as is done for thick ones.
    pub thin_growth_needs_space: bool,
    /// Let ADV LUNs start with `can_snapshot` on.
    pub adv_can_snapshot: bool,
    /// Snapshots that a LUN may have: 256, or 128 as DSM's other figure says.
    pub snapshots_per_lun: usize,
    /// Refuse a code of the second factor that was used before (404).
    pub otp_codes_once: bool,
    /// Under CSRF protection, give the login's token to clients that do not ask for it, too.
    pub token_unasked: bool,
    /// Let `LUN.list` show a deleted LUN, and its name be taken, for as long as DSM works on it (see the latency); off, it is gone
    /// at once.
    pub deleted_luns_stay_listed: bool,
    /// Where it does, let `LUN.get` find it so long, too.
    pub deleted_luns_answer_get: bool,
    /// On DSM 7.0, refuse to map ADV LUNs (18990570).
    pub adv_unmappable_on_7_0: bool,
    /// Refuse to create a CINDER LUN on btrfs (18991205) instead of making it a CINDER_BLUN.
    pub cinder_on_btrfs_refused: bool,
    /// What becomes of `can_snapshot` 1 on a THIN LUN.
    pub thin_can_snapshot: Asked,
    /// The `status` of LUNs that nothing is the matter with.
    pub lun_status: String,
    /// List LUNs, targets and volumes of others besides, whose rows fit no client's types but tell whose they are.
    pub odd_rows: bool,
    /// List rows besides that do not even tell whose they are.
    pub nameless_rows: bool,
    /// Leave out of the rows of LUNs and targets what no client can do without: their size, what they export.
    pub cut_rows: bool,
    /// Say in `SYNO.Core.System info` how long the NAS has been up.
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
            // ASSUMED: taken; the official driver asks so for what it has just made, but nobody recorded the answer.
            target_get_takes_names: true,
            // ASSUMED: live sessions are dropped and the call succeeds; nobody has looked at the initiator's end.
            deleted_targets_keep_sessions: false,
            // ASSUMED: stop_when_error stops, as its name says; nobody recorded a compound that had an error inside.
            compounds_go_on: false,
            // ASSUMED: the calls after the failing one are left out of `result`.
            compound_fills_stopped: false,
            // ASSUMED: they get in, wherever a call waits; DSM's own page shows no sign of a lock, and a client that is
            // right here is right on a NAS that holds the others back, too.
            compounds_interleave: true,
            missing_lun_code: Code::NoSuchLun as u32,
            // ASSUMED: a name counts as a bad uuid. Recorded 18990531 were for uuids, and 18990505 was measured for a string
            // of a uuid's length that is none, and is what Cinder expects where it asks by name.
            unknown_lun_name_code: Code::BadLunUuid as u32,
            // ASSUMED: 18990502; every driver refuses to shrink, nobody recorded DSM's own answer.
            shrink_code: Code::BadSize as u32,
            // ASSUMED: growing a thin LUN needs no free space.
            thin_growth_needs_space: false,
            // ASSUMED: on; one report says so, another the contrary (official #23, #22).
            adv_can_snapshot: true,
            // ASSUMED: 256, as `max_snapshot_per_lun` says; `max_snapshot_per_lun_v2` says 128, and nobody has found out
            // which of them binds.
            snapshots_per_lun: 256,
            // ASSUMED: refused, as pvulgaris measured within 30 s on DSM 7.
            otp_codes_once: true,
            // ASSUMED: only who asks gets it. Fixtures of pysyno, which does not ask, have one all the same.
            token_unasked: false,
            // ASSUMED: neither lags. jt asks with `get` at once, on the very model that this timing is of, and would fail if it
            // still found the LUN; that `list` lags is known only from democratic and N4S4, which poll it.
            deleted_luns_stay_listed: false,
            deleted_luns_answer_get: false,
            // ASSUMED: off; it was one user's box (official #23), whose LUN was in "load fail" for a reason of its own.
            adv_unmappable_on_7_0: false,
            // ASSUMED: off; Cinder sends `CINDER` whatever the volume is, and is used on btrfs, so it becomes the btrfs type.
            cinder_on_btrfs_refused: false,
            // ASSUMED: ignored; LUNs of this type were seen without snapshots (official #83), a refusal was not.
            thin_can_snapshot: Asked::Ignored,
            // ASSUMED: `normal` is the only word that was ever recorded; SAN Manager's own script knows a dozen more.
            lun_status: "normal".to_owned(),
            odd_rows: false,
            nameless_rows: false,
            cut_rows: false,
            up_time_shown: true,
        }
    }
}

impl Settings {
    /// These settings with the fields of a JSON object laid over them.
    ///
    /// # Errors
    /// It is no object, a field is unknown, or a value is of the wrong type.
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

    /// The uuid of a new LUN of this type.
    #[track_caller]
    fn made(bench: &mut NasFixture, kind: &str, volume: &str) -> String {
        let create = [
            ("name", "a"),
            ("type", kind),
            ("location", volume),
            ("size", "1073741824"),
        ];
        let data = bench.ok(LUN, "create", &create);
        data["uuid"].as_str().unwrap().to_owned()
    }

    #[test]
    fn adv_luns_can_be_mapped_and_on_dsm_7_0_they_need_not_be() {
        // dsm-web-api.md 11.1.
        for (dsm, refused, code) in [
            ("7.0", false, 0),
            ("7.0", true, 18_990_570),
            ("7.2", true, 0),
            ("6.2", true, 0),
        ] {
            let mut bench = NasFixture::new();
            bench.nas.config.dsm = dsm.parse().unwrap();
            bench.nas.settings.adv_unmappable_on_7_0 = refused;
            let uuid = made(&mut bench, "ADV", "/volume2");
            bench.target("t");
            let map = [("uuid", &*uuid), ("target_ids", "[1]")];
            assert_eq!(bench.code(LUN, "map_target", &map), code, "{dsm}");
            let uuids = format!("[\"{uuid}\"]");
            let map = [("target_id", "\"1\""), ("lun_uuids", &*uuids)];
            assert_eq!(bench.code(TARGET, "map_lun", &map), code, "{dsm}");
            assert_eq!(bench.code(TARGET, "unmap_lun", &map), 0, "{dsm}");
        }
    }

    #[test]
    fn what_is_not_known_can_be_switched() {
        // dsm-web-api.md 15, and 4.2 for ADV.
        let mut bench = NasFixture::new();
        let thin = bench.lun("thin", "BLUN", GIB);
        let shrink = [("uuid", &*thin), ("new_size", "1")];
        let grow = [("uuid", &*thin), ("new_size", "1099511627776")];
        assert_eq!(bench.code(LUN, "set", &shrink), 18_990_502);
        assert_eq!(bench.code(LUN, "set", &grow), 0, "beyond its volume");
        bench.nas.settings.shrink_code = 120;
        bench.nas.settings.thin_growth_needs_space = true;
        assert_eq!(bench.code(LUN, "set", &shrink), 120);
        let more = [("uuid", &*thin), ("new_size", "2199023255552")];
        assert_eq!(bench.code(LUN, "set", &more), 18_990_002);
        for (can, code) in [(true, 0), (false, 18_990_500)] {
            bench.nas.settings.adv_can_snapshot = can;
            let name = format!("adv-{can}");
            let create = [
                ("name", &*name),
                ("type", "ADV"),
                ("location", "/volume2"),
                ("size", "1073741824"),
            ];
            let data = bench.ok(LUN, "create", &create);
            let take = [("src_lun_uuid", data["uuid"].as_str().unwrap())];
            assert_eq!(bench.code(LUN, "take_snapshot", &take), code);
        }
    }

    #[test]
    fn a_cinder_lun_becomes_what_its_volume_has() {
        for (volume, refused, want) in [
            ("/volume1", false, Ok(391)),
            ("/volume1", true, Err(18_991_205)),
            ("/volume2", true, Ok(143)),
            ("/volume2", false, Ok(143)),
        ] {
            let mut bench = NasFixture::new();
            bench.nas.settings.cinder_on_btrfs_refused = refused;
            let create = [
                ("name", "a"),
                ("type", "CINDER"),
                ("location", volume),
                ("size", "1073741824"),
            ];
            let made = match bench.code(LUN, "create", &create) {
                0 => Ok(bench.get("a", "[]")["type"].as_u64().unwrap()),
                code => Err(code),
            };
            assert_eq!(made, want, "{volume} {refused}");
        }
    }

    #[test]
    fn a_deleted_lun_lags_in_the_list_and_nowhere_else() {
        for (listed, got) in [(true, false), (false, false), (true, true)] {
            let mut bench = NasFixture::with(Latency::Ds918.timing(), Generation::Seven);
            bench.nas.settings.deleted_luns_stay_listed = listed;
            bench.nas.settings.deleted_luns_answer_get = got;
            let uuid = bench.lun("a", "BLUN", GIB);
            assert_eq!(bench.code(LUN, "delete", &[("uuid", &uuid)]), 0);
            let rows = bench.ok(LUN, "list", &[])["luns"].take();
            assert_eq!(rows.as_array().unwrap().len(), usize::from(listed));
            assert_eq!(bench.nas.state.luns.len(), usize::from(listed));
            for key in [&*uuid, "a"] {
                let code = bench.code(LUN, "get", &[("uuid", key)]);
                assert_eq!(code == 0, got, "{key}: {code}");
            }
        }
    }
}
