//! A boot in progress, during which DSM has not yet loaded all of its LUNs and targets.
// ASSUMED: all of it; it is known only that a NAS answers before it is fully up. A careful client can detect it by the uptime.
// The status of volumes meanwhile is not documented: it is the usual one, or one that a test sets. (`background` does not
// indicate a boot: it is a disk check or scrubbing on a running NAS.)

use crate::nas::state::boot::Boot;
use crate::nas::state::boot::Loading;

use crate::nas::Nas;
use crate::nas::call::Call;
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};

impl Nas {
    /// Simulates a restart: all sessions end, the uptime starts at 0, and LUNs and targets are loaded only when `boot` ends.
    pub(crate) fn boot(&mut self, now: Millis, boot: Boot) {
        self.auth.forget_sessions();
        self.drop_all_lingering();
        self.set_uptime(now, 0);
        self.boot = Some(boot);
    }

    pub(crate) fn tick_boot(&mut self, now: Millis) {
        self.boot.take_if(|boot| boot.until <= now);
    }

    /// The status of all volumes during a boot, if a test has set one.
    pub(crate) fn boot_status(&self) -> Option<&String> {
        self.boot.as_ref()?.status.as_ref()
    }

    fn loading(&self) -> Option<Loading> {
        self.boot.as_ref().map(|boot| boot.loading)
    }

    /// Whether the LUN or target with this number is loaded.
    pub(crate) fn is_loaded(&self, number: u32) -> bool {
        match self.loading() {
            None | Some(Loading::Busy) => true,
            Some(Loading::Partial) => number % 2 == 1,
            Some(Loading::Absent) => false,
        }
    }

    /// Refuses what cannot be done during a boot: a new name or number might belong to an object that is not loaded.
    pub(crate) fn check_booted(&self, call: &Call) -> Result<(), Refusal> {
        let creates = matches!(call.method.as_str(), "create" | "clone" | "clone_snapshot");
        match self.loading() {
            Some(Loading::Busy) => Err(Code::Busy.because("LUNs and targets are being loaded")),
            Some(Loading::Partial | Loading::Absent) if creates => {
                Err(Code::Busy
                    .because("nothing can be made while LUNs and targets are being loaded"))
            }
            Some(Loading::Partial | Loading::Absent) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::nas::tests::{GIB, LUN, NasFixture, TARGET};

    /// A NAS with two LUNs and two targets that is booting. Returns the LUNs' uuids, too.
    fn booting(loading: Loading) -> (NasFixture, Vec<String>) {
        let mut sim = NasFixture::new();
        let uuids = vec![sim.lun("a", "BLUN", GIB), sim.lun("b", "BLUN", GIB)];
        for name in ["t", "u"] {
            let iqn = format!("iqn.2000-01.com.synology:{name}");
            sim.ok(TARGET, "create", &[("name", name), ("iqn", &iqn)]);
        }
        let boot = Boot {
            loading,
            until: sim.now + 5_000,
            status: None,
        };
        sim.nas.boot(sim.now, boot);
        let old = sim.caller.query_sid.clone();
        assert_eq!(sim.code(LUN, "list", &[]), 119, "a restart ends sessions");
        sim.log_in();
        assert_ne!(sim.caller.query_sid, old);
        (sim, uuids)
    }

    fn listed(sim: &mut NasFixture, api: &str, rows: &str) -> usize {
        sim.ok(api, "list", &[])[rows].as_array().unwrap().len()
    }

    fn volume_status(sim: &mut NasFixture) -> Value {
        let api = "SYNO.Core.Storage.Volume";
        sim.ok(api, "get", &[("volume_path", "/volume1")])["volume"]["status"].take()
    }

    #[test]
    fn a_busy_nas_refuses_all_lun_and_target_calls() {
        let (mut sim, uuids) = booting(Loading::Busy);
        for (api, method, params) in [
            (LUN, "list", vec![]),
            (LUN, "get", vec![("uuid", &*uuids[0])]),
            (LUN, "delete", vec![("uuid", &*uuids[0])]),
            (TARGET, "list", vec![]),
        ] {
            assert_eq!(sim.code(api, method, &params), 117, "{api} {method}");
        }
        sim.now += 5_000;
        assert_eq!(listed(&mut sim, LUN, "luns"), 2);
    }

    #[test]
    fn a_boot_shows_in_the_uptime_and_not_in_the_volume_status() {
        let mut sim = NasFixture::new();
        let up = |sim: &mut NasFixture| {
            let long = sim.ok("SYNO.Core.System", "info", &[])["up_time"].take();
            let short = sim.call("SYNO.DSM.Info", 2, "getinfo", &[]).answer;
            (long, short.unwrap().unwrap()["uptime"].clone())
        };
        sim.nas.set_uptime(sim.now, 360_000_000);
        assert_eq!(up(&mut sim), ("100:0:0".into(), 360_000.into()));
        let (mut sim, _) = booting(Loading::Absent);
        assert_eq!(up(&mut sim), ("0:0:0".into(), 0.into()));
        assert_eq!(volume_status(&mut sim), "normal");
        sim.nas.boot.as_mut().unwrap().status = Some("background".to_owned());
        assert_eq!(volume_status(&mut sim), "background");
        sim.now += 4_000_000;
        sim.log_in();
        assert_eq!(up(&mut sim), ("1:6:40".into(), 4_000.into()));
        assert_eq!(volume_status(&mut sim), "normal");
        sim.nas.settings.up_time_shown = false;
        assert_eq!(up(&mut sim), (Value::Null, 4_000.into()));
    }

    #[test]
    fn unloaded_objects_seem_not_to_exist_but_are_not_lost() {
        for (loading, seen) in [(Loading::Partial, 1), (Loading::Absent, 0)] {
            let (mut sim, uuids) = booting(loading);
            assert_eq!(listed(&mut sim, LUN, "luns"), seen, "{loading:?}");
            assert_eq!(listed(&mut sim, TARGET, "targets"), seen, "{loading:?}");
            for (api, method, params, code) in [
                (LUN, "get", vec![("uuid", &*uuids[1])], 18_990_531),
                (LUN, "get", vec![("uuid", "b")], 18_990_505),
                (LUN, "delete", vec![("uuid", &*uuids[1])], 18_990_531),
                (
                    LUN,
                    "set",
                    vec![("uuid", &*uuids[1]), ("new_size", "2147483648")],
                    18_990_531,
                ),
                (
                    LUN,
                    "map_target",
                    vec![("uuid", &*uuids[1]), ("target_ids", "[1]")],
                    18_990_531,
                ),
                (
                    LUN,
                    "list_snapshot",
                    vec![("src_lun_uuid", &*uuids[1])],
                    18_990_531,
                ),
                (TARGET, "get", vec![("target_id", "\"2\"")], 18_990_710),
                (TARGET, "delete", vec![("target_id", "\"2\"")], 18_990_710),
                (LUN, "create", vec![("name", "b")], 117),
                (TARGET, "create", vec![("name", "t")], 117),
            ] {
                assert_eq!(
                    sim.code(api, method, &params),
                    code,
                    "{loading:?} {api} {method}"
                );
            }
            sim.now += 5_000;
            assert_eq!(listed(&mut sim, LUN, "luns"), 2, "{loading:?}");
            assert_eq!(listed(&mut sim, TARGET, "targets"), 2, "{loading:?}");
        }
    }
}
