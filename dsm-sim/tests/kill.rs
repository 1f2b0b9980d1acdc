//! The real program, killed again and again while a client works: every answer that was given holds, nothing half-made
//! is left, and the LUNs' data survives. Behaviour 30 of dsm-api.md section 11: uuids, names, target ids and mapping
//! indexes are kept.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{AUTH, LUN, TARGET, client, endpoints, program};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const KILLS: u64 = 30;
const SEED: u64 = 20_240_607;
const MIB: u64 = 1 << 20;

/// A program that is running.
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

    /// The answer, or `None` when it never came.
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

/// What the client knows of a LUN.
#[derive(Clone, Debug)]
struct Known {
    uuid: String,
    /// The size that was acknowledged last, and one that was asked for without an answer.
    size: u64,
    maybe: Option<u64>,
    /// Whether it is mapped; `None` = asked for without an answer.
    mapped: Option<bool>,
}

/// What the client knows of the NAS, by name: only what was acknowledged, and what may have happened.
#[derive(Debug, Default)]
struct Book {
    luns: BTreeMap<String, Known>,
    /// Creates and deletes without an answer: both outcomes are right.
    unsure: Vec<String>,
    made: u64,
}

impl Book {
    async fn act(&mut self, program: &Program, rng: &mut StdRng) -> Option<()> {
        let names: Vec<String> = self.luns.keys().cloned().collect();
        let pick = names.get(rng.random_range(0..names.len().max(1))).cloned();
        match (rng.random_range(0..10), pick) {
            (0..4, _) | (_, None) => self.create(program, rng).await,
            (4..7, Some(name)) => self.grow(program, &name, rng).await,
            (7..9, Some(name)) => self.map(program, &name).await,
            (_, Some(name)) => self.delete(program, &name).await,
        }
    }

    async fn create(&mut self, program: &Program, rng: &mut StdRng) -> Option<()> {
        if self.luns.len() >= 12 {
            return Some(());
        }
        self.made += 1;
        let (name, size) = (format!("lun-{}", self.made), rng.random_range(1..64) * MIB);
        self.unsure.push(name.clone());
        let params = [
            ("name", &*name),
            ("type", "BLUN"),
            ("location", "/volume1"),
            ("size", &*size.to_string()),
        ];
        let reply = program.call(LUN, "create", &params).await?;
        let uuid = reply["data"]["uuid"]
            .as_str()
            .unwrap_or_else(|| panic!("{reply}"))
            .to_owned();
        self.unsure.pop();
        self.luns.insert(
            name,
            Known {
                uuid,
                size,
                maybe: None,
                mapped: Some(false),
            },
        );
        Some(())
    }

    async fn grow(&mut self, program: &Program, name: &str, rng: &mut StdRng) -> Option<()> {
        let lun = self.luns.get_mut(name)?;
        let size = lun.size + rng.random_range(1..64) * MIB;
        lun.maybe = Some(size);
        let reply = program
            .call(
                LUN,
                "set",
                &[("uuid", &*lun.uuid), ("new_size", &*size.to_string())],
            )
            .await?;
        assert_eq!(reply, json!({"success": true}));
        (lun.size, lun.maybe) = (size, None);
        Some(())
    }

    async fn map(&mut self, program: &Program, name: &str) -> Option<()> {
        let lun = self.luns.get_mut(name)?;
        let map = lun.mapped == Some(false);
        lun.mapped = None;
        let method = if map { "map_target" } else { "unmap_target" };
        let reply = program
            .call(LUN, method, &[("uuid", &*lun.uuid), ("target_ids", "[1]")])
            .await?;
        assert_eq!(reply, json!({"success": true}));
        lun.mapped = Some(map);
        Some(())
    }

    async fn delete(&mut self, program: &Program, name: &str) -> Option<()> {
        let lun = self.luns.remove(name)?;
        self.unsure.push(name.to_owned());
        let reply = program.call(LUN, "delete", &[("uuid", &*lun.uuid)]).await?;
        assert_eq!(reply, json!({"success": true}));
        self.unsure.pop();
        Some(())
    }

    /// Compares with what the NAS says after a restart, and takes over what was unsure.
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
                .unwrap_or_else(|| panic!("{name} was acknowledged and is gone"));
            assert_eq!(lun["uuid"], *known.uuid);
            let size = lun["size"].as_u64().unwrap();
            assert!(
                size == known.size || Some(size) == known.maybe,
                "{name}: {size} is neither {} nor {:?}",
                known.size,
                known.maybe
            );
            (known.size, known.maybe) = (size, None);
            let is_mapped = mapped.contains(&&lun["uuid"]);
            assert!(
                known.mapped.is_none_or(|before| before == is_mapped),
                "{name}: an acknowledged mapping is lost"
            );
            known.mapped = Some(is_mapped);
            check_data(dir, &known.uuid);
        }
        for (name, lun) in by_name {
            if !self.luns.contains_key(name) {
                assert!(
                    self.unsure.iter().any(|unsure| unsure == name),
                    "{name} was deleted and is back"
                );
                let (uuid, size) = (
                    lun["uuid"].as_str().unwrap().to_owned(),
                    lun["size"].as_u64().unwrap(),
                );
                let is_mapped = mapped.contains(&&lun["uuid"]);
                self.luns.insert(
                    name.to_owned(),
                    Known {
                        uuid,
                        size,
                        maybe: None,
                        mapped: Some(is_mapped),
                    },
                );
            }
        }
        self.unsure.clear();
    }
}

/// Every LUN has its file of the exact size, and no file is left over; exports follow the state.
fn check_files(dir: &Path, state: &Value) {
    let want: BTreeMap<String, u64> = state["luns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lun| {
            (
                format!("{}.img", lun["uuid"].as_str().unwrap()),
                lun["size"].as_u64().unwrap(),
            )
        })
        .collect();
    let found: BTreeMap<String, u64> = std::fs::read_dir(dir.join("luns"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().len(),
            )
        })
        .collect();
    assert_eq!(found, want);
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

/// What an initiator wrote: the LUN's own uuid, at its start.
fn write_data(dir: &Path, uuid: &str) {
    let file = std::fs::File::options()
        .write(true)
        .open(dir.join(format!("luns/{uuid}.img")))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, uuid.as_bytes(), 0).unwrap();
}

fn check_data(dir: &Path, uuid: &str) {
    let file = std::fs::File::open(dir.join(format!("luns/{uuid}.img"))).unwrap();
    let mut content = vec![0; uuid.len()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut content, 0).unwrap();
    let content = String::from_utf8(content).unwrap();
    assert!(
        content == uuid || content.chars().all(|c| c == '\0'),
        "the data of {uuid} is {content:?}"
    );
}

#[tokio::test]
async fn every_answer_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut book = Book::default();
    let mut written: Vec<String> = Vec::new();
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
        book.reconcile(&state, dir.path());
        for uuid in written
            .drain(..)
            .filter(|uuid| book.luns.values().any(|lun| lun.uuid == *uuid))
        {
            let mut start = vec![0; uuid.len()];
            let file = std::fs::File::open(dir.path().join(format!("luns/{uuid}.img"))).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut start, 0).unwrap();
            assert_eq!(
                start,
                uuid.as_bytes(),
                "seed {SEED}, round {round}: the data of {uuid} is lost"
            );
        }
        for lun in book.luns.values() {
            write_data(dir.path(), &lun.uuid);
            written.push(lun.uuid.clone());
        }
        for _ in 0..rng.random_range(0..12) {
            book.act(&program, &mut rng)
                .await
                .expect("nobody has killed it yet");
        }
        // The kill comes at a random moment of the next call, whose answer is then never read: a call takes a few
        // milliseconds, most of them between its effects.
        let lives = Duration::from_micros(rng.random_range(100..15_000));
        let work = async { while book.act(&program, &mut rng).await.is_some() {} };
        let _ = tokio::time::timeout(lives, work).await;
        program.child.kill().unwrap();
        program.child.wait().unwrap();
    }
    assert!(
        book.made > 20,
        "seed {SEED}: only {} LUNs were made",
        book.made
    );
    let program = Program::start(dir.path()).await;
    let state = program.state().await;
    check_files(dir.path(), &state);
    book.reconcile(&state, dir.path());
}
