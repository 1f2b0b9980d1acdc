//! Switches: what an administrator of the NAS can turn, what is not known of DSM and can be played either way, and how odd
//! the simulated world is. `docs/knobs.md` has them all.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::code::Code;

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
    /// The `status` of LUNs that nothing is the matter with.
    pub lun_status: String,
    /// List LUNs, targets and volumes of others besides, whose rows fit no client's types but tell whose they are.
    pub odd_rows: bool,
    /// List rows besides that do not even tell whose they are.
    pub nameless_rows: bool,
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
            // ASSUMED: `normal` is the only word that was ever recorded; SAN Manager's own script knows a dozen more.
            lun_status: "normal".to_owned(),
            odd_rows: false,
            nameless_rows: false,
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
