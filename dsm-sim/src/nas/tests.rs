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

/// What is written in images, and which targets have sessions.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Bytes in every image.
    everywhere: u64,
    /// Bytes in these LUNs, by uuid.
    by_lun: BTreeMap<String, u64>,
    in_use: BTreeSet<String>,
    /// How often somebody has asked for what is written.
    looks: Cell<usize>,
}

impl Environment for Written {
    fn allocated(&self, image: &Image) -> u64 {
        self.looks.set(self.looks.get() + 1);
        match image {
            Image::Lun(uuid) => self.by_lun.get(uuid).copied(),
            Image::Snapshot(_) => None,
        }
        .unwrap_or(self.everywhere)
    }

    fn may_be_in_use(&self, iqn: &str) -> bool {
        self.in_use.contains(iqn)
    }

    fn sessions(&self, _iqn: &str) -> Vec<node_sim::target::Session> {
        Vec::new()
    }
}

/// A NAS, somebody logged in, and a clock that tests move.
pub(crate) struct NasFixture {
    pub(crate) nas: Nas,
    pub(crate) now: Millis,
    pub(crate) caller: Caller,
    /// Bytes in every image. What is written to LUNs that no target maps is noticed with their next change.
    pub(crate) written: u64,
    /// Bytes in these LUNs, by uuid.
    pub(crate) by_lun: BTreeMap<String, u64>,
    /// How often the last call looked up what is written.
    pub(crate) looks: usize,
    /// The IQNs of targets that somebody is logged in to.
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
        let mut bench = Self {
            nas,
            now: 1_000_000,
            caller: caller([127, 0, 0, 1]),
            written: 0,
            by_lun: BTreeMap::new(),
            looks: 0,
            in_use: BTreeSet::new(),
        };
        bench.log_in();
        bench
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
        let outside = self.outside();
        let reply = self.nas.apply(self.now, &call, &outside);
        self.looks = outside.looks.get();
        reply
    }

    pub(crate) fn outside(&self) -> Written {
        Written {
            everywhere: self.written,
            by_lun: self.by_lun.clone(),
            in_use: self.in_use.clone(),
            looks: Cell::default(),
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
fn a_lun_that_was_never_imported_says_so() {
    // Code 18990593 is no error: what `import_errno` is without an import.
    let mut bench = NasFixture::new();
    let uuid = bench.lun("a", "BLUN", GIB);
    let get = [("uuid", &*uuid), ("additional", "[\"import_status\"]")];
    let data = bench.ok(LUN, "get", &get);
    assert_eq!(data["import_errno"], 18_990_593);
    assert_eq!(
        (&data["import_done"], &data["import_total"]),
        (&json!(0), &json!(0))
    );
}

#[test]
fn what_is_not_there_is_named() {
    let mut bench = NasFixture::new();
    for (api, version, method, code) in [
        ("SYNO.FileStation.List", 1, "list", 102),
        (LUN, 2, "list", 104),
        (LUN, 0, "list", 104),
        (LUN, 1, "revert_snapshot", 103),
        ("SYNO.DSM.Info", 1, "getinfo", 104),
        ("SYNO.Entry.Request", 1, "request", 113),
    ] {
        let refusal = bench.call(api, version, method, &[]).answer.unwrap_err();
        assert_eq!(refusal.code, code, "{api} {version} {method}");
    }
    // A simulator gap is an error that names the missing call.
    let refusal = bench.call(LUN, 1, "import", &[]).answer.unwrap_err();
    assert_eq!(
        refusal.why,
        "simulator gap: SYNO.Core.ISCSI.LUN v1 import is not simulated"
    );
}

#[test]
fn changes_are_saved_and_reads_are_not() {
    let mut bench = NasFixture::new();
    let create = [
        ("name", "a"),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "5"),
    ];
    let effects = bench.call(LUN, 1, "create", &create).effects;
    assert!(
        effects
            .iter()
            .all(|effect| matches!(effect, Effect::File(_)))
    );
    assert!(!bench.nas.state.changes().is_empty());
    bench.nas.state.commit();
    assert!(bench.call(LUN, 1, "list", &[]).effects.is_empty());
    let same = [("uuid", "a"), ("new_size", "5")];
    assert!(bench.call(LUN, 1, "set", &same).effects.is_empty());
    assert!(bench.nas.state.changes().is_empty());
}

/// What a client may do, in any order.
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
    Copy(Copying),
    /// An initiator writes, if a target lets it.
    Write {
        name: u8,
        mib: u64,
    },
    /// A delete whose effects fail.
    Fail {
        name: u8,
    },
    /// Sessions of these targets begin, and others end.
    Sessions {
        even: bool,
    },
    Wait,
}

/// What a client may do with snapshots and clones.
#[derive(Clone, Debug)]
enum Copying {
    Snapshot { name: u8 },
    DropSnapshot { name: u8 },
    Clone { from: u8, to: u8, of_snapshot: bool },
    Stop { name: u8 },
    Restore { name: u8 },
}

fn copying() -> impl Strategy<Value = Copying> {
    let name = 0..4_u8;
    prop_oneof![
        name.clone().prop_map(|name| Copying::Snapshot { name }),
        name.clone().prop_map(|name| Copying::DropSnapshot { name }),
        (name.clone(), name.clone(), any::<bool>()).prop_map(|(from, to, of_snapshot)| {
            Copying::Clone {
                from,
                to,
                of_snapshot,
            }
        }),
        name.clone().prop_map(|name| Copying::Stop { name }),
        name.prop_map(|name| Copying::Restore { name }),
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
        copying().prop_map(Step::Copy),
        (name.clone(), 0..4_000_u64).prop_map(|(name, mib)| Step::Write { name, mib }),
        name.prop_map(|name| Step::Fail { name }),
        any::<bool>().prop_map(|even| Step::Sessions { even }),
        Just(Step::Wait),
    ]
}

fn take(bench: &mut NasFixture, step: &Step) {
    let uuid_of = |bench: &NasFixture, name: u8| {
        bench
            .nas
            .find_lun(&format!("l{name}"))
            .map(|lun| lun.uuid.clone())
            .unwrap_or_default()
    };
    // Refusals are as good as successes here: only what is left behind matters.
    match *step {
        Step::Create { name, thick, gib } => {
            let kind = if thick { "BLUN_THICK" } else { "BLUN" };
            let (name, size) = (format!("l{name}"), (gib * GIB).to_string());
            bench.code(
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
            bench.code(
                LUN,
                "set",
                &[
                    ("uuid", &format!("l{name}")),
                    ("new_size", &(gib * GIB).to_string()),
                ],
            );
        }
        Step::Rename { from, to } => {
            bench.code(
                LUN,
                "set",
                &[
                    ("uuid", &format!("l{from}")),
                    ("new_name", &format!("l{to}")),
                ],
            );
        }
        Step::Delete { name } => {
            let uuid = uuid_of(bench, name);
            bench.code(LUN, "delete", &[("uuid", &uuid)]);
        }
        Step::MakeTarget { name } => {
            bench.code(
                TARGET,
                "create",
                &[
                    ("name", &format!("t{name}")),
                    ("iqn", &format!("iqn.2000-01.x:{name}")),
                ],
            );
        }
        Step::DropTarget { id } => {
            bench.code(TARGET, "delete", &[("target_id", &format!("\"{id}\""))]);
        }
        Step::Map { name, id } => {
            let uuid = uuid_of(bench, name);
            bench.code(
                LUN,
                "map_target",
                &[("uuid", &uuid), ("target_ids", &format!("[{id}]"))],
            );
        }
        Step::Unmap { name, id } => {
            let uuid = uuid_of(bench, name);
            bench.code(
                TARGET,
                "unmap_lun",
                &[
                    ("target_id", &format!("\"{id}\"")),
                    ("lun_uuids", &format!("[\"{uuid}\"]")),
                ],
            );
        }
        Step::Write { name, mib } => {
            let uuid = uuid_of(bench, name);
            if bench.nas.may_be_written(&uuid) {
                bench.by_lun.insert(uuid, mib << 20);
            }
        }
        Step::Fail { name } => {
            let uuid = uuid_of(bench, name);
            bench.code(LUN, "delete", &[("uuid", &uuid)]);
            bench.nas.state.undo();
        }
        Step::Sessions { even } => {
            let in_use = (0..4_u8).filter(|name| (name % 2 == 0) == even);
            bench.in_use = in_use.map(|name| format!("iqn.2000-01.x:{name}")).collect();
        }
        Step::Wait => bench.now += 1_500,
        Step::Copy(ref copying) => copy(bench, copying),
    }
}

/// The steps about snapshots and clones.
fn copy(bench: &mut NasFixture, copying: &Copying) {
    match *copying {
        Copying::Snapshot { name } => {
            let source = format!("l{name}");
            bench.code(LUN, "take_snapshot", &[("src_lun_uuid", &source)]);
        }
        Copying::DropSnapshot { name } => {
            let snapshot = newest(bench, name);
            bench.code(LUN, "delete_snapshot", &[("snapshot_uuid", &snapshot)]);
        }
        Copying::Clone {
            from,
            to,
            of_snapshot,
        } => {
            let (source, name) = (format!("l{from}"), format!("l{to}"));
            let snapshot = newest(bench, from);
            if of_snapshot {
                let params = [
                    ("src_lun_uuid", &*source),
                    ("snapshot_uuid", &snapshot),
                    ("cloned_lun_name", &name),
                ];
                bench.code(LUN, "clone_snapshot", &params);
            } else {
                let params = [("src_lun_uuid", &*source), ("dst_lun_name", &name)];
                bench.code(LUN, "clone", &params);
            }
        }
        Copying::Stop { name } => {
            let source = format!("l{name}");
            bench.code(LUN, "stop_clone", &[("src_lun_uuid", &source)]);
        }
        Copying::Restore { name } => {
            let (source, snapshot) = (format!("l{name}"), newest(bench, name));
            let params = [("src_lun_uuid", &*source), ("snapshot_uuid", &snapshot)];
            bench.code(LUN, "restore_snapshot", &params);
        }
    }
}

/// The uuid of a LUN's newest snapshot, or nothing that is one.
fn newest(bench: &NasFixture, name: u8) -> String {
    let lun = bench.nas.find_lun(&format!("l{name}"));
    lun.ok()
        .and_then(|lun| bench.nas.snapshots_of(&lun.uuid).last())
        .map_or("none".to_owned(), |snapshot| snapshot.uuid.clone())
}

fn sound(bench: &NasFixture) {
    let state = &bench.nas.state;
    let mut names: Vec<&str> = state.luns.values().map(|lun| lun.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), state.luns.len(), "names are unique");
    assert!(
        state.luns.len() <= bench.nas.config.model.max_luns
            && state.targets.len() <= bench.nas.config.model.max_targets
    );
    for target in state.targets.values() {
        for (index, uuid) in &target.luns {
            let lun = state.luns.get(uuid).expect("a mapping leads to a LUN");
            assert!(lun.deleting_until.is_none() && *index >= 1, "{target:?}");
        }
    }
    for snapshot in state.snapshots.values() {
        assert!(state.luns.get(&snapshot.parent).is_some(), "{snapshot:?}");
    }
    let (volume, outside) = (
        state.volumes.get(&"/volume1".to_owned()).unwrap(),
        bench.outside(),
    );
    let sum =
        |luns: &mut dyn Iterator<Item = &Lun>| luns.map(|lun| lun.uses(&outside)).sum::<u64>();
    let mut thick = state.luns.values().filter(|lun| !lun.kind.is_thin());
    assert!(
        sum(&mut thick) <= volume.size,
        "thick LUNs have their space"
    );
    assert_eq!(
        bench.nas.used_by_luns(volume, &outside),
        sum(&mut state.luns.values()),
        "what is added up is what is there"
    );
}

proptest! {
    #[test]
    fn any_order_of_calls_leaves_a_sound_nas(steps in prop::collection::vec(step(), 1..60), slow: bool, keep: bool) {
        let timing = if slow { crate::Latency::Ds918.timing() } else { Timing::default() };
        let mut bench = NasFixture::with(timing, Generation::Seven);
        bench.written = GIB;
        bench.nas.settings.deleted_targets_keep_sessions = keep;
        for step in &steps {
            let sizes: BTreeMap<String, u64> = bench.nas.state.luns.values().map(|lun| (lun.uuid.clone(), lun.size)).collect();
            take(&mut bench, step);
            sound(&bench);
            bench.nas.state.commit();
            for lun in bench.nas.state.luns.values() {
                let restored = matches!(step, Step::Copy(Copying::Restore { .. }));
                prop_assert!(restored || sizes.get(&lun.uuid).is_none_or(|&before| lun.size >= before), "{} shrank", lun.name);
            }
        }
    }
}
