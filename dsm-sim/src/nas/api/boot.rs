//! The time after a start in which DSM has not loaded all of its LUNs and targets yet.
// ASSUMED: all of it; known is only that a NAS answers before it is whole. What a careful client can tell it by is how long the
// NAS has been up. What volumes say meanwhile nobody has written down: they say what they always do, or a word that is asked for.
// (`background` is none of a boot's own: it is a disk check or scrubbing on a NAS that runs.)

use crate::nas::state::boot::Boot;
use crate::nas::state::boot::Loading;

use crate::nas::Nas;
use crate::nas::call::Call;
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};

impl Nas {
    /// Goes through a restart: nobody is logged in any more, the NAS has just come up, and LUNs and targets come back only at
    /// that moment.
    pub(crate) fn boot(&mut self, now: Millis, boot: Boot) {
        self.auth.forget_sessions();
        self.drop_all_lingering();
        self.set_uptime(now, 0);
        self.boot = Some(boot);
    }

    pub(crate) fn tick_boot(&mut self, now: Millis) {
        self.boot.take_if(|boot| boot.until <= now);
    }

    /// The word that volumes say while the NAS boots, if they have one for that.
    pub(crate) fn boot_word(&self) -> Option<&String> {
        self.boot.as_ref()?.status.as_ref()
    }

    fn loading(&self) -> Option<Loading> {
        self.boot.as_ref().map(|boot| boot.loading)
    }

    /// Whether a LUN or target of this number is loaded.
    pub(crate) fn is_loaded(&self, number: u32) -> bool {
        match self.loading() {
            None | Some(Loading::Busy) => true,
            Some(Loading::Partial) => number % 2 == 1,
            Some(Loading::Absent) => false,
        }
    }

    /// Refuses what cannot be done while loading: a new name or number could be one that is not loaded.
    pub(crate) fn check_booted(&self, call: &Call) -> Result<(), Refusal> {
        let makes = matches!(call.method.as_str(), "create" | "clone" | "clone_snapshot");
        match self.loading() {
            Some(Loading::Busy) => Err(Code::Busy.because("LUNs and targets are being loaded")),
            Some(Loading::Partial | Loading::Absent) if makes => {
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

    /// A NAS with two LUNs and two targets, that boots like this; and the uuids.
    fn booting(loading: Loading) -> (NasFixture, Vec<String>) {
        let mut bench = NasFixture::new();
        let uuids = vec![bench.lun("a", "BLUN", GIB), bench.lun("b", "BLUN", GIB)];
        for name in ["t", "u"] {
            let iqn = format!("iqn.2000-01.com.synology:{name}");
            bench.ok(TARGET, "create", &[("name", name), ("iqn", &iqn)]);
        }
        let boot = Boot {
            loading,
            until: bench.now + 5_000,
            status: None,
        };
        bench.nas.boot(bench.now, boot);
        let old = bench.caller.query_sid.clone();
        assert_eq!(bench.code(LUN, "list", &[]), 119, "a restart ends sessions");
        bench.log_in();
        assert_ne!(bench.caller.query_sid, old);
        (bench, uuids)
    }

    fn listed(bench: &mut NasFixture, api: &str, rows: &str) -> usize {
        bench.ok(api, "list", &[])[rows].as_array().unwrap().len()
    }

    fn volume(bench: &mut NasFixture) -> Value {
        let api = "SYNO.Core.Storage.Volume";
        bench.ok(api, "get", &[("volume_path", "/volume1")])["volume"]["status"].take()
    }

    #[test]
    fn a_busy_nas_answers_for_no_lun() {
        let (mut bench, uuids) = booting(Loading::Busy);
        for (api, method, params) in [
            (LUN, "list", vec![]),
            (LUN, "get", vec![("uuid", &*uuids[0])]),
            (LUN, "delete", vec![("uuid", &*uuids[0])]),
            (TARGET, "list", vec![]),
        ] {
            assert_eq!(bench.code(api, method, &params), 117, "{api} {method}");
        }
        bench.now += 5_000;
        assert_eq!(listed(&mut bench, LUN, "luns"), 2);
    }

    #[test]
    fn a_boot_shows_in_how_long_the_nas_is_up_and_in_no_volume() {
        let mut bench = NasFixture::new();
        let up = |bench: &mut NasFixture| {
            let long = bench.ok("SYNO.Core.System", "info", &[])["up_time"].take();
            let short = bench.call("SYNO.DSM.Info", 2, "getinfo", &[]).answer;
            (long, short.unwrap().unwrap()["uptime"].clone())
        };
        bench.nas.set_uptime(bench.now, 360_000_000);
        assert_eq!(up(&mut bench), ("100:0:0".into(), 360_000.into()));
        let (mut bench, _) = booting(Loading::Absent);
        assert_eq!(up(&mut bench), ("0:0:0".into(), 0.into()));
        assert_eq!(volume(&mut bench), "normal");
        bench.nas.boot.as_mut().unwrap().status = Some("background".to_owned());
        assert_eq!(volume(&mut bench), "background");
        bench.now += 4_000_000;
        bench.log_in();
        assert_eq!(up(&mut bench), ("1:6:40".into(), 4_000.into()));
        assert_eq!(volume(&mut bench), "normal");
        bench.nas.settings.up_time_shown = false;
        assert_eq!(up(&mut bench), (Value::Null, 4_000.into()));
    }

    #[test]
    fn what_is_not_loaded_seems_not_to_exist_and_is_not_lost() {
        for (loading, seen) in [(Loading::Partial, 1), (Loading::Absent, 0)] {
            let (mut bench, uuids) = booting(loading);
            assert_eq!(listed(&mut bench, LUN, "luns"), seen, "{loading:?}");
            assert_eq!(listed(&mut bench, TARGET, "targets"), seen, "{loading:?}");
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
                    bench.code(api, method, &params),
                    code,
                    "{loading:?} {api} {method}"
                );
            }
            bench.now += 5_000;
            assert_eq!(listed(&mut bench, LUN, "luns"), 2, "{loading:?}");
            assert_eq!(listed(&mut bench, TARGET, "targets"), 2, "{loading:?}");
        }
    }
}
