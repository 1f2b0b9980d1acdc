use crate::nas::call::Call;
use crate::nas::call::Caller;
use crate::nas::call::Reply;
use crate::nas::effect::Effect;
use crate::nas::effect::Environment;
use crate::nas::effect::Image;
use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::nas::state::lun::Lun;
use crate::nas::state::volume::VolumeSpec;
use serde_json::{Value, json};

pub(crate) const LUN: &str = "SYNO.Core.ISCSI.LUN";
pub(crate) const TARGET: &str = "SYNO.Core.ISCSI.Target";
pub(crate) const GIB: u64 = 1 << 30;

/// A fake environment: how much is written in images, and which targets have sessions.
#[derive(Debug, Default)]
pub(crate) struct FakeEnvironment {
    /// Bytes in every image.
    default_bytes: u64,
    /// Bytes in these LUNs, by uuid.
    by_lun: BTreeMap<String, u64>,
    in_use: BTreeSet<String>,
    /// How often the NAS has queried what is written.
    lookups: Cell<usize>,
}

impl Environment for FakeEnvironment {
    fn allocated(&self, image: &Image) -> u64 {
        self.lookups.set(self.lookups.get() + 1);
        match image {
            Image::Lun(uuid) => self.by_lun.get(uuid).copied(),
            Image::Snapshot(_) => None,
        }
        .unwrap_or(self.default_bytes)
    }

    fn may_be_in_use(&self, iqn: &str) -> bool {
        self.in_use.contains(iqn)
    }

    fn sessions(&self, _iqn: &str) -> Vec<node_sim::target::Session> {
        Vec::new()
    }
}

/// A NAS with an open session, and a clock that tests move.
pub(crate) struct NasFixture {
    pub(crate) nas: Nas,
    pub(crate) now: Millis,
    pub(crate) caller: Caller,
    /// Bytes in every image. Writes to LUNs that no target maps are noticed only when the LUN changes next.
    pub(crate) written: u64,
    /// Bytes in these LUNs, by uuid.
    pub(crate) by_lun: BTreeMap<String, u64>,
    /// How often the last call queried what is written.
    pub(crate) lookups: usize,
    /// The IQNs of targets that have sessions.
    pub(crate) in_use: BTreeSet<String>,
}

impl NasFixture {
    pub(crate) fn new() -> Self {
        Self::with(Timing::default(), Generation::Seven)
    }

    pub(crate) fn with(timing: Timing, dsm: Generation) -> Self {
        let config = Config {
            dsm: Dsm::default(),
            generation: dsm,
            model: "DS423".parse().unwrap(),
            timing,
            portal: ([192, 0, 2, 5], 3261).into(),
        };
        let volume = |text: &str| text.parse::<VolumeSpec>().unwrap().into();
        let volumes = ["/volume1=btrfs:100GiB", "/volume2=ext4:100GiB"].map(volume);
        let state = State {
            volumes: volumes.into_iter().collect(),
            ..State::default()
        };
        let accounts = vec![Account::new("admin", "secret")];
        let nas = Nas::new(
            config,
            Settings::default(),
            state,
            accounts,
            StdRng::seed_from_u64(1),
        );
        let mut sim = Self {
            nas,
            now: 1_000_000,
            caller: caller([127, 0, 0, 1]),
            written: 0,
            by_lun: BTreeMap::new(),
            lookups: 0,
            in_use: BTreeSet::new(),
        };
        sim.log_in();
        sim
    }

    pub(crate) fn log_in(&mut self) {
        let login = [
            ("account", "admin"),
            ("passwd", "secret"),
            ("format", "sid"),
        ];
        let reply = self.call("SYNO.API.Auth", 6, "login", &login);
        let data = reply.answer.unwrap().unwrap();
        self.caller.query_sid = data["sid"].as_str().map(str::to_owned);
    }

    pub(crate) fn call(
        &mut self,
        api: &str,
        version: u32,
        method: &str,
        params: &[(&str, &str)],
    ) -> Reply {
        let call = Call {
            api: api.to_owned(),
            method: method.to_owned(),
            version,
            params: params.iter().copied().collect(),
            caller: self.caller.clone(),
        };
        let env = self.environment();
        let reply = self.nas.apply(self.now, &call, &env);
        self.lookups = env.lookups.get();
        reply
    }

    pub(crate) fn environment(&self) -> FakeEnvironment {
        FakeEnvironment {
            default_bytes: self.written,
            by_lun: self.by_lun.clone(),
            in_use: self.in_use.clone(),
            lookups: Cell::default(),
        }
    }

    /// The data of a call that must succeed.
    #[track_caller]
    pub(crate) fn ok(&mut self, api: &str, method: &str, params: &[(&str, &str)]) -> Value {
        self.call(api, 1, method, params)
            .answer
            .unwrap()
            .unwrap_or_default()
    }

    /// The code of a call, 0 for a success.
    pub(crate) fn code(&mut self, api: &str, method: &str, params: &[(&str, &str)]) -> u32 {
        self.call(api, 1, method, params)
            .answer
            .map_or_else(|refusal| refusal.code, |_| 0)
    }

    #[track_caller]
    pub(crate) fn lun(&mut self, name: &str, kind: &str, size: u64) -> String {
        let size = size.to_string();
        let data = self.ok(
            LUN,
            "create",
            &[
                ("name", name),
                ("type", kind),
                ("location", "/volume1"),
                ("size", &size),
            ],
        );
        data["uuid"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn target(&mut self, name: &str) -> u32 {
        let iqn = format!("iqn.2000-01.com.synology:{name}");
        let data = self.ok(TARGET, "create", &[("name", name), ("iqn", &iqn)]);
        u32::try_from(data["target_id"].as_u64().unwrap()).unwrap()
    }

    /// One LUN as `get` shows it with these extra fields.
    #[track_caller]
    pub(crate) fn get(&mut self, uuid: &str, additional: &str) -> Value {
        self.ok(LUN, "get", &[("uuid", uuid), ("additional", additional)])["lun"].clone()
    }
}

pub(crate) fn caller(address: [u8; 4]) -> Caller {
    Caller {
        client: address.into(),
        query_sid: None,
        form_sid: None,
        cookie_sid: None,
        token: None,
    }
}

#[test]
fn import_errno_is_set_without_an_import() {
    // 18990593 is not an error, but the value of `import_errno` without an import.
    let mut sim = NasFixture::new();
    let uuid = sim.lun("a", "BLUN", GIB);
    let get = [("uuid", &*uuid), ("additional", "[\"import_status\"]")];
    let data = sim.ok(LUN, "get", &get);
    assert_eq!(data["import_errno"], 18_990_593);
    assert_eq!(
        (&data["import_done"], &data["import_total"]),
        (&json!(0), &json!(0))
    );
}

#[test]
fn the_refusal_of_an_unknown_call_names_it() {
    let mut sim = NasFixture::new();
    for (api, version, method, code) in [
        ("SYNO.FileStation.List", 1, "list", 102),
        (LUN, 2, "list", 104),
        (LUN, 0, "list", 104),
        (LUN, 1, "revert_snapshot", 103),
        ("SYNO.DSM.Info", 1, "getinfo", 104),
        ("SYNO.Entry.Request", 1, "request", 113),
    ] {
        let refusal = sim.call(api, version, method, &[]).answer.unwrap_err();
        assert_eq!(refusal.code, code, "{api} {version} {method}");
    }
    // A simulator gap is an error that names the missing call.
    let refusal = sim.call(LUN, 1, "import", &[]).answer.unwrap_err();
    assert_eq!(
        refusal.why,
        "simulator gap: SYNO.Core.ISCSI.LUN v1 import is not simulated"
    );
}

#[test]
fn changes_are_saved_and_reads_are_not() {
    let mut sim = NasFixture::new();
    let create = [
        ("name", "a"),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "5"),
    ];
    let effects = sim.call(LUN, 1, "create", &create).effects;
    assert!(
        effects
            .iter()
            .all(|effect| matches!(effect, Effect::File(_)))
    );
    assert!(!sim.nas.state.changes().is_empty());
    sim.nas.state.commit();
    assert!(sim.call(LUN, 1, "list", &[]).effects.is_empty());
    let same = [("uuid", "a"), ("new_size", "5")];
    assert!(sim.call(LUN, 1, "set", &same).effects.is_empty());
    assert!(sim.nas.state.changes().is_empty());
}

/// Steps of clients and initiators, in any order.
#[derive(Clone, Debug)]
enum Step {
    Create {
        name: u8,
        thick: bool,
        gib: u64,
    },
    Set {
        name: u8,
        gib: u64,
    },
    Rename {
        from: u8,
        to: u8,
    },
    Delete {
        name: u8,
    },
    MakeTarget {
        name: u8,
    },
    DropTarget {
        id: u32,
    },
    Map {
        name: u8,
        id: u32,
    },
    Unmap {
        name: u8,
        id: u32,
    },
    Copy(CopyStep),
    /// An initiator writes to a LUN, if a target maps it.
    Write {
        name: u8,
        mib: u64,
    },
    /// A delete whose effects fail.
    Fail {
        name: u8,
    },
    /// Sessions of targets with even or with odd names begin, all others end.
    Sessions {
        even: bool,
    },
    Wait,
}

/// Steps with snapshots and clones.
#[derive(Clone, Debug)]
enum CopyStep {
    Snapshot { name: u8 },
    DropSnapshot { name: u8 },
    Clone { from: u8, to: u8, of_snapshot: bool },
    Stop { name: u8 },
    Restore { name: u8 },
}

fn copy_step() -> impl Strategy<Value = CopyStep> {
    let name = 0..4_u8;
    prop_oneof![
        name.clone().prop_map(|name| CopyStep::Snapshot { name }),
        name.clone()
            .prop_map(|name| CopyStep::DropSnapshot { name }),
        (name.clone(), name.clone(), any::<bool>()).prop_map(|(from, to, of_snapshot)| {
            CopyStep::Clone {
                from,
                to,
                of_snapshot,
            }
        }),
        name.clone().prop_map(|name| CopyStep::Stop { name }),
        name.prop_map(|name| CopyStep::Restore { name }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let (name, id, gib) = (0..4_u8, 1..4_u32, 1..60_u64);
    prop_oneof![
        (name.clone(), any::<bool>(), gib.clone()).prop_map(|(name, thick, gib)| Step::Create {
            name,
            thick,
            gib
        }),
        (name.clone(), gib).prop_map(|(name, gib)| Step::Set { name, gib }),
        (name.clone(), name.clone()).prop_map(|(from, to)| Step::Rename { from, to }),
        name.clone().prop_map(|name| Step::Delete { name }),
        name.clone().prop_map(|name| Step::MakeTarget { name }),
        id.clone().prop_map(|id| Step::DropTarget { id }),
        (name.clone(), id.clone()).prop_map(|(name, id)| Step::Map { name, id }),
        (name.clone(), id).prop_map(|(name, id)| Step::Unmap { name, id }),
        copy_step().prop_map(Step::Copy),
        (name.clone(), 0..4_000_u64).prop_map(|(name, mib)| Step::Write { name, mib }),
        name.prop_map(|name| Step::Fail { name }),
        any::<bool>().prop_map(|even| Step::Sessions { even }),
        Just(Step::Wait),
    ]
}

fn apply_step(sim: &mut NasFixture, step: &Step) {
    let uuid_of = |sim: &NasFixture, name: u8| {
        sim.nas
            .find_lun(&format!("l{name}"))
            .map(|lun| lun.uuid.clone())
            .unwrap_or_default()
    };
    // Refusals are fine: only the resulting state matters.
    match *step {
        Step::Create { name, thick, gib } => {
            let kind = if thick { "BLUN_THICK" } else { "BLUN" };
            let (name, size) = (format!("l{name}"), (gib * GIB).to_string());
            sim.code(
                LUN,
                "create",
                &[
                    ("name", &name),
                    ("type", kind),
                    ("location", "/volume1"),
                    ("size", &size),
                ],
            );
        }
        Step::Set { name, gib } => {
            sim.code(
                LUN,
                "set",
                &[
                    ("uuid", &format!("l{name}")),
                    ("new_size", &(gib * GIB).to_string()),
                ],
            );
        }
        Step::Rename { from, to } => {
            sim.code(
                LUN,
                "set",
                &[
                    ("uuid", &format!("l{from}")),
                    ("new_name", &format!("l{to}")),
                ],
            );
        }
        Step::Delete { name } => {
            let uuid = uuid_of(sim, name);
            sim.code(LUN, "delete", &[("uuid", &uuid)]);
        }
        Step::MakeTarget { name } => {
            sim.code(
                TARGET,
                "create",
                &[
                    ("name", &format!("t{name}")),
                    ("iqn", &format!("iqn.2000-01.x:{name}")),
                ],
            );
        }
        Step::DropTarget { id } => {
            sim.code(TARGET, "delete", &[("target_id", &format!("\"{id}\""))]);
        }
        Step::Map { name, id } => {
            let uuid = uuid_of(sim, name);
            sim.code(
                LUN,
                "map_target",
                &[("uuid", &uuid), ("target_ids", &format!("[{id}]"))],
            );
        }
        Step::Unmap { name, id } => {
            let uuid = uuid_of(sim, name);
            sim.code(
                TARGET,
                "unmap_lun",
                &[
                    ("target_id", &format!("\"{id}\"")),
                    ("lun_uuids", &format!("[\"{uuid}\"]")),
                ],
            );
        }
        Step::Write { name, mib } => {
            let uuid = uuid_of(sim, name);
            if sim.nas.may_be_written(&uuid) {
                sim.by_lun.insert(uuid, mib << 20);
            }
        }
        Step::Fail { name } => {
            let uuid = uuid_of(sim, name);
            sim.code(LUN, "delete", &[("uuid", &uuid)]);
            sim.nas.state.undo();
        }
        Step::Sessions { even } => {
            let in_use = (0..4_u8).filter(|name| (name % 2 == 0) == even);
            sim.in_use = in_use.map(|name| format!("iqn.2000-01.x:{name}")).collect();
        }
        Step::Wait => sim.now += 1_500,
        Step::Copy(ref step) => apply_copy_step(sim, step),
    }
}

/// Applies a step with snapshots and clones.
fn apply_copy_step(sim: &mut NasFixture, step: &CopyStep) {
    match *step {
        CopyStep::Snapshot { name } => {
            let source = format!("l{name}");
            sim.code(LUN, "take_snapshot", &[("src_lun_uuid", &source)]);
        }
        CopyStep::DropSnapshot { name } => {
            let snapshot = newest(sim, name);
            sim.code(LUN, "delete_snapshot", &[("snapshot_uuid", &snapshot)]);
        }
        CopyStep::Clone {
            from,
            to,
            of_snapshot,
        } => {
            let (source, name) = (format!("l{from}"), format!("l{to}"));
            let snapshot = newest(sim, from);
            if of_snapshot {
                let params = [
                    ("src_lun_uuid", &*source),
                    ("snapshot_uuid", &snapshot),
                    ("cloned_lun_name", &name),
                ];
                sim.code(LUN, "clone_snapshot", &params);
            } else {
                let params = [("src_lun_uuid", &*source), ("dst_lun_name", &name)];
                sim.code(LUN, "clone", &params);
            }
        }
        CopyStep::Stop { name } => {
            let source = format!("l{name}");
            sim.code(LUN, "stop_clone", &[("src_lun_uuid", &source)]);
        }
        CopyStep::Restore { name } => {
            let (source, snapshot) = (format!("l{name}"), newest(sim, name));
            let params = [("src_lun_uuid", &*source), ("snapshot_uuid", &snapshot)];
            sim.code(LUN, "restore_snapshot", &params);
        }
    }
}

/// The uuid of a LUN's newest snapshot, or an invalid one.
fn newest(sim: &NasFixture, name: u8) -> String {
    let lun = sim.nas.find_lun(&format!("l{name}"));
    lun.ok()
        .and_then(|lun| sim.nas.snapshots_of(&lun.uuid).last())
        .map_or("none".to_owned(), |snapshot| snapshot.uuid.clone())
}

fn assert_consistent(sim: &NasFixture) {
    let state = &sim.nas.state;
    let mut names: Vec<&str> = state.luns.values().map(|lun| lun.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), state.luns.len(), "names are unique");
    assert!(
        state.luns.len() <= sim.nas.config.model.max_luns
            && state.targets.len() <= sim.nas.config.model.max_targets
    );
    for target in state.targets.values() {
        for (index, uuid) in &target.luns {
            let lun = state.luns.get(uuid).expect("a mapping refers to a LUN");
            assert!(lun.deleting_until.is_none() && *index >= 1, "{target:?}");
        }
    }
    for snapshot in state.snapshots.values() {
        assert!(state.luns.get(&snapshot.parent).is_some(), "{snapshot:?}");
    }
    let (volume, env) = (
        state.volumes.get(&"/volume1".to_owned()).unwrap(),
        sim.environment(),
    );
    let sum =
        |luns: &mut dyn Iterator<Item = &Lun>| luns.map(|lun| lun.used_bytes(&env)).sum::<u64>();
    let mut thick = state.luns.values().filter(|lun| !lun.kind.is_thin());
    assert!(
        sum(&mut thick) <= volume.size,
        "thick LUNs have their space"
    );
    assert_eq!(
        sim.nas.used_by_luns(volume, &env),
        sum(&mut state.luns.values()),
        "the cached sums are right"
    );
}

proptest! {
    #[test]
    fn any_order_of_calls_leaves_a_consistent_nas(steps in prop::collection::vec(step(), 1..60), slow: bool, keep: bool) {
        let timing = if slow { crate::Latency::Ds918.timing() } else { Timing::default() };
        let mut sim = NasFixture::with(timing, Generation::Seven);
        sim.written = GIB;
        sim.nas.settings.deleted_targets_keep_sessions = keep;
        for step in &steps {
            let sizes: BTreeMap<String, u64> = sim.nas.state.luns.values().map(|lun| (lun.uuid.clone(), lun.size)).collect();
            apply_step(&mut sim, step);
            assert_consistent(&sim);
            sim.nas.state.commit();
            for lun in sim.nas.state.luns.values() {
                let restored = matches!(step, Step::Copy(CopyStep::Restore { .. }));
                prop_assert!(restored || sizes.get(&lun.uuid).is_none_or(|&before| lun.size >= before), "{} shrank", lun.name);
            }
        }
    }
}
