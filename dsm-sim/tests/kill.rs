//! Crash test: kills the program again and again while a client works. Every acknowledged change must survive, no partial
//! objects may remain, and the LUNs' data must survive. Behaviour 30 of dsm-web-api.md section 11: uuids, names, target ids and
//! mapping indexes are kept.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{AUTH, LUN, TARGET, client, endpoints, program};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const KILLS: u64 = 200;
const SEED: u64 = 20_240_607;
const MIB: u64 = 1 << 20;

/// A running dsm-sim.
struct Program {
    child: Child,
    api: String,
    control: String,
    http: reqwest::Client,
    sid: String,
}

impl Program {
    async fn start(dir: &Path) -> Self {
        let ports = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--control",
            "127.0.0.1:0",
        ];
        let mut command = program(&ports);
        command
            .args(["--export", "loop", "--log-level", "warn", "--state-dir"])
            .arg(dir);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let endpoints = endpoints(&mut child, dir).await;
        let text = |name: &str| endpoints[name].as_str().unwrap().to_owned();
        let http = client().build().unwrap();
        let mut program = Self {
            child,
            api: text("api"),
            control: text("control"),
            http,
            sid: String::new(),
        };
        let login = [
            ("api", AUTH),
            ("version", "6"),
            ("method", "login"),
            ("account", "admin"),
            ("passwd", "admin"),
            ("format", "sid"),
        ];
        let login = program.form(&login).await.unwrap();
        login["data"]["sid"]
            .as_str()
            .unwrap()
            .clone_into(&mut program.sid);
        program
    }

    async fn form(&self, pairs: &[(&str, &str)]) -> Option<Value> {
        let reply = self
            .http
            .post(format!("{}/webapi/entry.cgi", self.api))
            .form(pairs)
            .send()
            .await
            .ok()?;
        serde_json::from_str(&reply.text().await.ok()?).ok()
    }

    /// The reply, or `None` if none came.
    async fn call(&self, api: &str, method: &str, params: &[(&str, &str)]) -> Option<Value> {
        let mut pairs = vec![
            ("api", api),
            ("version", "1"),
            ("method", method),
            ("_sid", &*self.sid),
        ];
        pairs.extend_from_slice(params);
        self.form(&pairs).await
    }

    async fn state(&self) -> Value {
        let reply = self
            .http
            .get(format!("{}/state", self.control))
            .send()
            .await
            .unwrap();
        serde_json::from_str(&reply.text().await.unwrap()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The client's model of a LUN.
#[derive(Clone, Debug)]
struct Known {
    uuid: String,
    /// The last acknowledged size, and a requested one without a reply.
    size: u64,
    pending_size: Option<u64>,
    /// Whether it is mapped; `None` = a change without a reply.
    mapped: Option<bool>,
    /// Its first bytes.
    data: Data,
    /// Its snapshots with their first bytes.
    snapshots: BTreeMap<String, Data>,
    /// A snapshot whose delete had no reply.
    deleting_snapshot: Option<String>,
    /// First bytes of a snapshot whose creation had no reply.
    pending_snapshot: Option<Data>,
}

impl Known {
    fn new(uuid: String, size: u64, data: Data) -> Self {
        Self {
            uuid,
            size,
            pending_size: None,
            mapped: Some(false),
            data,
            snapshots: BTreeMap::new(),
            deleting_snapshot: None,
            pending_snapshot: None,
        }
    }
}

/// The possible first bytes of an image: a uuid, or empty. More than one after a restore without a reply.
type Data = BTreeSet<String>;

fn blank() -> Data {
    BTreeSet::from([String::new()])
}

/// The client's model of the NAS: acknowledged changes, and those without a reply.
#[derive(Debug, Default)]
struct Expected {
    luns: BTreeMap<String, Known>,
    /// LUNs whose create, clone or delete had no reply, with their data: both outcomes are correct.
    unsure: BTreeMap<String, Data>,
    created: u64,
    /// Number of acknowledged calls, by method.
    acknowledged: BTreeMap<&'static str, u64>,
}

impl Expected {
    async fn random_call(&mut self, program: &Program, rng: &mut StdRng) -> Option<()> {
        let names: Vec<String> = self.luns.keys().cloned().collect();
        let pick = names.get(rng.random_range(0..names.len().max(1))).cloned();
        let (what, done) = match (rng.random_range(0..14), pick) {
            (0..3, _) | (_, None) => ("create", self.create(program, rng).await),
            (3..5, Some(name)) => ("grow", self.grow(program, &name, rng).await),
            (5..7, Some(name)) => ("map", self.map(program, &name).await),
            (7..9, Some(name)) => ("take_snapshot", self.take_snapshot(program, &name).await),
            (9, Some(name)) => (
                "delete_snapshot",
                self.delete_snapshot(program, &name).await,
            ),
            (10, Some(name)) => ("restore", self.restore(program, &name).await),
            (11, Some(name)) => ("clone_snapshot", self.clone(program, &name, true).await),
            (12, Some(name)) => ("clone", self.clone(program, &name, false).await),
            (_, Some(name)) => ("delete", self.delete(program, &name).await),
        };
        if done? {
            *self.acknowledged.entry(what).or_default() += 1;
        }
        Some(())
    }

    fn is_full(&self) -> bool {
        self.luns.len() >= 12
    }

    async fn create(&mut self, program: &Program, rng: &mut StdRng) -> Option<bool> {
        if self.is_full() {
            return Some(false);
        }
        self.created += 1;
        let (name, size) = (
            format!("lun-{}", self.created),
            rng.random_range(1..64) * MIB,
        );
        self.unsure.insert(name.clone(), blank());
        let size_text = size.to_string();
        let params = [
            ("name", &*name),
            ("type", "BLUN"),
            ("location", "/volume1"),
            ("size", &*size_text),
        ];
        let uuid = new_uuid(&program.call(LUN, "create", &params).await?, "uuid");
        self.unsure.remove(&name);
        self.luns.insert(name, Known::new(uuid, size, blank()));
        Some(true)
    }

    async fn clone(&mut self, program: &Program, name: &str, snapshot: bool) -> Option<bool> {
        let source = self.luns.get(name)?.clone();
        let taken = source.snapshots.first_key_value();
        if self.is_full() || (snapshot && taken.is_none()) {
            return Some(false);
        }
        self.created += 1;
        let clone = format!("clone-{}", self.created);
        let (method, key, data, more) = match taken.filter(|_| snapshot) {
            Some((uuid, data)) => (
                "clone_snapshot",
                "cloned_lun_uuid",
                data,
                vec![("cloned_lun_name", &*clone), ("snapshot_uuid", &**uuid)],
            ),
            None => (
                "clone",
                "dst_lun_uuid",
                &source.data,
                vec![("dst_lun_name", &*clone)],
            ),
        };
        let params = [vec![("src_lun_uuid", &*source.uuid)], more].concat();
        self.unsure.insert(clone.clone(), data.clone());
        let uuid = new_uuid(&program.call(LUN, method, &params).await?, key);
        let lun = program.call(LUN, "get", &[("uuid", &*uuid)]).await?;
        self.unsure.remove(&clone);
        let size = lun["data"]["lun"]["size"].as_u64().unwrap();
        self.luns
            .insert(clone, Known::new(uuid, size, data.clone()));
        Some(true)
    }

    async fn take_snapshot(&mut self, program: &Program, name: &str) -> Option<bool> {
        let lun = self.luns.get_mut(name)?;
        if lun.snapshots.len() >= 3 {
            return Some(false);
        }
        lun.pending_snapshot = Some(lun.data.clone());
        let take = [("src_lun_uuid", &*lun.uuid)];
        let uuid = new_uuid(
            &program.call(LUN, "take_snapshot", &take).await?,
            "snapshot_uuid",
        );
        lun.snapshots.insert(uuid, lun.pending_snapshot.take()?);
        Some(true)
    }

    async fn delete_snapshot(&mut self, program: &Program, name: &str) -> Option<bool> {
        let lun = self.luns.get_mut(name)?;
        let Some((uuid, _)) = lun.snapshots.pop_first() else {
            return Some(false);
        };
        lun.deleting_snapshot = Some(uuid.clone());
        assert_success(
            &program
                .call(LUN, "delete_snapshot", &[("snapshot_uuid", &uuid)])
                .await?,
        );
        lun.deleting_snapshot = None;
        Some(true)
    }

    /// A restore also changes the size, so the old and the new LUN are both correct until the reply has arrived.
    async fn restore(&mut self, program: &Program, name: &str) -> Option<bool> {
        let lun = self.luns.get_mut(name)?;
        let Some((uuid, data)) = lun.snapshots.last_key_value() else {
            return Some(false);
        };
        let list = [("src_lun_uuid", &*lun.uuid)];
        let listed = program.call(LUN, "list_snapshot", &list).await?;
        let rows = listed["data"]["snapshots"].as_array().unwrap();
        let row = rows.iter().find(|row| row["uuid"] == **uuid).unwrap();
        let size = row["total_size"].as_u64().unwrap();
        lun.pending_size = Some(size);
        let data = data.clone();
        lun.data.extend(data.iter().cloned());
        let params = [("src_lun_uuid", &*lun.uuid), ("snapshot_uuid", uuid)];
        assert_success(&program.call(LUN, "restore_snapshot", &params).await?);
        (lun.size, lun.pending_size, lun.data) = (size, None, data);
        Some(true)
    }

    async fn grow(&mut self, program: &Program, name: &str, rng: &mut StdRng) -> Option<bool> {
        let lun = self.luns.get_mut(name)?;
        let size = lun.size + rng.random_range(1..64) * MIB;
        lun.pending_size = Some(size);
        let params = [("uuid", &*lun.uuid), ("new_size", &*size.to_string())];
        assert_success(&program.call(LUN, "set", &params).await?);
        (lun.size, lun.pending_size) = (size, None);
        Some(true)
    }

    async fn map(&mut self, program: &Program, name: &str) -> Option<bool> {
        let lun = self.luns.get_mut(name)?;
        let map = lun.mapped == Some(false);
        lun.mapped = None;
        let method = if map { "map_target" } else { "unmap_target" };
        let params = [("uuid", &*lun.uuid), ("target_ids", "[1]")];
        assert_success(&program.call(LUN, method, &params).await?);
        lun.mapped = Some(map);
        Some(true)
    }

    async fn delete(&mut self, program: &Program, name: &str) -> Option<bool> {
        let lun = self.luns.remove(name)?;
        self.unsure.insert(name.to_owned(), lun.data);
        assert_success(&program.call(LUN, "delete", &[("uuid", &*lun.uuid)]).await?);
        self.unsure.remove(name);
        Some(true)
    }

    /// Compares the model with the state after a restart, and adopts the outcome of calls without a reply.
    fn reconcile(&mut self, state: &Value, dir: &Path) {
        let luns = state["luns"].as_array().unwrap();
        let by_name: BTreeMap<&str, &Value> = luns
            .iter()
            .map(|lun| (lun["name"].as_str().unwrap(), lun))
            .collect();
        let mapped: Vec<&Value> = state["targets"][0]["mapped_luns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| &row["lun_uuid"])
            .collect();
        for (name, known) in &mut self.luns {
            let lun = by_name
                .get(name.as_str())
                .unwrap_or_else(|| panic!("{name} was acknowledged and is missing"));
            assert_eq!(lun["uuid"], *known.uuid);
            let size = lun["size"].as_u64().unwrap();
            assert!(
                size == known.size || Some(size) == known.pending_size,
                "{name}: {size} is neither {} nor {:?}",
                known.size,
                known.pending_size
            );
            (known.size, known.pending_size) = (size, None);
            let is_mapped = mapped.contains(&&lun["uuid"]);
            assert!(
                known.mapped.is_none_or(|before| before == is_mapped),
                "{name}: an acknowledged mapping is lost"
            );
            known.mapped = Some(is_mapped);
            known.data = check_data(&dir.join("luns"), &known.uuid, &known.data);
        }
        for (name, lun) in by_name {
            if self.luns.contains_key(name) {
                continue;
            }
            let data = self
                .unsure
                .get(name)
                .unwrap_or_else(|| panic!("{name} was deleted and still exists"));
            let uuid = lun["uuid"].as_str().unwrap().to_owned();
            let data = check_data(&dir.join("luns"), &uuid, data);
            let known = Known {
                mapped: Some(mapped.contains(&&lun["uuid"])),
                ..Known::new(uuid, lun["size"].as_u64().unwrap(), data)
            };
            self.luns.insert(name.to_owned(), known);
        }
        self.unsure.clear();
        for known in self.luns.values_mut() {
            known.reconcile_snapshots(state, dir);
        }
    }
}

impl Known {
    fn reconcile_snapshots(&mut self, state: &Value, dir: &Path) {
        let rows = state["snapshots"].as_array().unwrap().iter();
        let found: Vec<String> = rows
            .filter(|row| row["parent"] == *self.uuid)
            .map(|row| row["uuid"].as_str().unwrap().to_owned())
            .collect();
        for uuid in self.snapshots.keys() {
            assert!(
                found.contains(uuid),
                "snapshot {uuid} was acknowledged and is missing"
            );
        }
        let mut taken = self.pending_snapshot.take();
        for uuid in found {
            let known = self.snapshots.get(&uuid).cloned();
            let deleting = self.deleting_snapshot.as_ref() == Some(&uuid);
            // A snapshot that is not in the model belongs to an unsure LUN, or its creation had no reply. The data of
            // one whose delete had no reply is no longer in the model.
            let data = known.or_else(|| taken.take()).filter(|_| !deleting);
            let dir = dir.join("snapshots");
            let data = match data {
                Some(data) => check_data(&dir, &uuid, &data),
                None => BTreeSet::from([first_bytes(&dir, &uuid)]),
            };
            self.snapshots.insert(uuid, data);
        }
        self.deleting_snapshot = None;
    }
}

fn new_uuid(reply: &Value, key: &str) -> String {
    let uuid = reply["data"][key].as_str();
    uuid.unwrap_or_else(|| panic!("{reply}")).to_owned()
}

fn assert_success(reply: &Value) {
    assert_eq!(*reply, json!({"success": true}));
}

/// Checks that every LUN and snapshot has its file of the exact size, that there are no other files, and that the exports match
/// the state.
fn check_files(dir: &Path, state: &Value) {
    for kind in ["luns", "snapshots"] {
        let want: BTreeMap<String, u64> = state[kind]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| (row["uuid"].as_str().unwrap(), row["size"].as_u64().unwrap()))
            .map(|(uuid, size)| (format!("{uuid}.img"), size))
            .collect();
        let found: BTreeMap<String, u64> = std::fs::read_dir(dir.join(kind))
            .unwrap()
            .map(Result::unwrap)
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    entry.metadata().unwrap().len(),
                )
            })
            .collect();
        assert_eq!(found, want, "{kind}");
    }
    let exported = node_sim::target::loopdev::Targets::open(&dir.join("targets"))
        .unwrap()
        .list()
        .unwrap();
    assert_eq!(exported.len(), 1);
    let units: Vec<(u64, String)> = exported[0]
        .luns
        .iter()
        .map(|(index, unit)| (u64::from(*index), unit.serial.clone()))
        .collect();
    let mappings = state["targets"][0]["mapped_luns"]
        .as_array()
        .unwrap()
        .iter();
    let mapped: Vec<(u64, String)> = mappings
        .map(|row| {
            (
                row["mapping_index"].as_u64().unwrap(),
                row["lun_uuid"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    assert_eq!(units, mapped);
}

/// Writes the LUN's uuid as its first bytes, as an initiator would.
fn write_data(dir: &Path, uuid: &str) {
    let path = dir.join(format!("luns/{uuid}.img"));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, uuid.as_bytes(), 0).unwrap();
}

/// The first bytes of an image, up to the length of a uuid, without trailing zeros.
fn first_bytes(dir: &Path, uuid: &str) -> String {
    let file = std::fs::File::open(dir.join(format!("{uuid}.img"))).unwrap();
    let mut text = vec![0; uuid.len()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0).unwrap();
    String::from_utf8(text)
        .unwrap()
        .trim_end_matches('\0')
        .to_owned()
}

/// Checks that the first bytes of an image are expected, and returns them.
fn check_data(dir: &Path, uuid: &str, want: &Data) -> Data {
    let data = first_bytes(dir, uuid);
    assert!(
        want.contains(&data),
        "{uuid} holds {data:?}, not one of {want:?}"
    );
    BTreeSet::from([data])
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "shows the number of calls")]
async fn acknowledged_changes_survive_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut model = Expected::default();
    for round in 0..KILLS {
        let mut program = Program::start(dir.path()).await;
        if round == 0 {
            let target = [
                ("name", "t"),
                ("iqn", "iqn.2000-01.com.synology:t"),
                ("max_sessions", "0"),
            ];
            assert_eq!(
                program.call(TARGET, "create", &target).await.unwrap()["data"]["target_id"],
                1
            );
        }
        let state = program.state().await;
        check_files(dir.path(), &state);
        model.reconcile(&state, dir.path());
        for lun in model.luns.values_mut() {
            write_data(dir.path(), &lun.uuid);
            lun.data = BTreeSet::from([lun.uuid.clone()]);
        }
        for _ in 0..rng.random_range(0..12) {
            model
                .random_call(&program, &mut rng)
                .await
                .expect("it has not been killed yet");
        }
        // Kill it at a random moment of the next call, whose reply is then never read. A call takes a few milliseconds, most
        // of them between its effects.
        let until_kill = Duration::from_micros(rng.random_range(100..15_000));
        let work = async { while model.random_call(&program, &mut rng).await.is_some() {} };
        let _ = tokio::time::timeout(until_kill, work).await;
        program.child.kill().unwrap();
        program.child.wait().unwrap();
    }
    eprintln!(
        "seed {SEED}, {KILLS} kills, acknowledged: {:?}",
        model.acknowledged
    );
    assert!(
        model.acknowledged.len() == 9
            && model
                .acknowledged
                .values()
                .all(|&count| count >= KILLS / 20),
        "seed {SEED}: {:?}",
        model.acknowledged
    );
    let program = Program::start(dir.path()).await;
    let state = program.state().await;
    check_files(dir.path(), &state);
    model.reconcile(&state, dir.path());
}
