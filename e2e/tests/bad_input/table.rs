//! The table: its rows, how they are checked, and the state that a refused call must not change.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use e2e::harness::plugin::Plugin;
use e2e::harness::process;
use e2e::harness::test_cluster::TestCluster;
use serde_json::Value;
use tonic::Code;

use crate::call::{Answer, Call};

/// A call with the expected code and words of the response; it must change nothing.
pub(crate) struct Row {
    name: &'static str,
    call: Call,
    code: Code,
    says: Vec<String>,
}

/// A row. The message must contain each of `says`: the field, its value, and the remedy.
pub(crate) fn row<S: AsRef<str>>(
    name: &'static str,
    call: impl Into<Call>,
    code: Code,
    says: impl IntoIterator<Item = S>,
) -> Row {
    Row {
        name,
        call: call.into(),
        code,
        says: says
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect(),
    }
}

/// A row for a no-op: the response is OK, and nothing changes.
pub(crate) fn nothing_to_do(name: &'static str, call: impl Into<Call>) -> Row {
    row::<&str>(name, call, Code::Ok, [])
}

/// Counts rows, and collects failures.
#[derive(Default)]
pub(crate) struct Tally {
    rows: BTreeMap<&'static str, usize>,
    failures: Vec<String>,
}

impl Tally {
    /// Makes each call and checks the code, the words, and that NAS and node have not changed.
    pub(crate) async fn refused(&mut self, cluster: &TestCluster, rows: Vec<Row>) {
        for row in rows {
            self.refused_but(cluster, row, &[]).await;
        }
    }

    /// The same for one call, after which state whose name starts with one of `may_change` may differ.
    pub(crate) async fn refused_but(
        &mut self,
        cluster: &TestCluster,
        row: Row,
        may_change: &[&str],
    ) {
        let Row {
            name,
            call,
            code,
            says,
        } = row;
        let before = state(cluster).await.unwrap();
        let answer = call.send(&cluster.plugin).await;
        let after = state(cluster).await.unwrap();
        let (got, message) = match &answer {
            Ok(answer) => (Code::Ok, answer.unconfirmed().unwrap_or_default()),
            Err(status) => (status.code(), status.message()),
        };
        self.count(call.rpc());
        let mut failures = changes(&before, &after);
        failures.retain(|what| !may_change.iter().any(|free| what.starts_with(free)));
        if got != code {
            failures.push(format!("answered {got:?}, not {code:?}"));
        }
        let lacks = |word: &&String| !message.contains(word.as_str());
        failures.extend(
            says.iter()
                .filter(lacks)
                .map(|word| format!("the message lacks {word:?}")),
        );
        // Every password in these tables starts with "planted".
        if message.contains("planted") {
            failures.push("the message contains a secret".to_owned());
        }
        self.check(failures.is_empty(), || {
            format!(
                "{}, {name}: {}; it says {message:?}",
                call.rpc(),
                failures.join("; ")
            )
        });
    }

    /// Makes the call twice: both must return the same response, and the second must change nothing.
    pub(crate) async fn twice(
        &mut self,
        cluster: &TestCluster,
        name: &'static str,
        call: impl Into<Call>,
    ) -> Option<Answer> {
        self.twice_by(cluster, &cluster.plugin, name, call.into())
            .await
    }

    /// The same with another driver.
    pub(crate) async fn twice_by(
        &mut self,
        cluster: &TestCluster,
        plugin: &Plugin,
        name: &'static str,
        call: Call,
    ) -> Option<Answer> {
        self.count(call.rpc());
        let first = call.send(plugin).await;
        let before = state(cluster).await.unwrap();
        let second = call.send(plugin).await;
        let after = state(cluster).await.unwrap();
        match (first, second) {
            (Ok(first), Ok(second)) => {
                self.check(first == second, || {
                    format!("{}, {name}: first {first:?}, then {second:?}", call.rpc())
                });
                let changes = changes(&before, &after);
                self.check(changes.is_empty(), || {
                    format!(
                        "{}, {name}, the second time: {}",
                        call.rpc(),
                        changes.join("; ")
                    )
                });
                Some(first)
            }
            (first, second) => {
                self.failures.push(format!(
                    "{}, {name}: first {first:?}, then {second:?}",
                    call.rpc()
                ));
                None
            }
        }
    }

    /// Records a failure unless `right`.
    pub(crate) fn check(&mut self, right: bool, what: impl FnOnce() -> String) {
        if !right {
            self.failures.push(what());
        }
    }

    fn count(&mut self, rpc: &'static str) {
        *self.rows.entry(rpc).or_default() += 1;
    }

    /// Prints the number of rows. Panics if a check failed, or if there are fewer rows than `at_least`.
    pub(crate) fn finish(self, title: &str, at_least: usize) {
        let rows: usize = self.rows.values().sum();
        let by_rpc: Vec<String> = self
            .rows
            .iter()
            .map(|(rpc, rows)| format!("{rpc} {rows}"))
            .collect();
        eprintln!("{title}: {rows} rows ({})", by_rpc.join(", "));
        assert!(
            self.failures.is_empty(),
            "{} of {rows} rows are wrong:\n{}",
            self.failures.len(),
            self.failures.join("\n")
        );
        assert!(
            rows >= at_least,
            "{title}: only {rows} rows, at least {at_least} are expected"
        );
    }
}

/// All state that a refused call must not change, by name.
type State = Vec<(String, String)>;

async fn state(cluster: &TestCluster) -> Result<State> {
    let state = cluster.nas.state().await?;
    let parts = state.as_object().into_iter().flatten();
    let mut state: State = parts
        .map(|(part, value)| (format!("{part} on the NAS"), lines(value)))
        .collect();
    if let Some(initiator) = &cluster.initiator {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let folder = cluster.folder().to_string_lossy().into_owned();
        let is_ours = |text: String| {
            text.lines()
                .filter(|line| line.contains(&folder))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let mut see = |what: &str, text: String| state.push((what.to_owned(), text));
        see("the node's sessions", initiator.status()?.to_string());
        see(
            "the node's records",
            tree(&initiator.root().join("etc/iscsi"))?.join("\n"),
        );
        see(
            "the node's tree",
            tree(&initiator.root().join("sys"))?.join("\n"),
        );
        see("the mount table", is_ours(mounts));
        see(
            "the loop devices",
            is_ours(process::run(
                "losetup",
                [
                    "--list",
                    "--noheadings",
                    "--output",
                    "NAME,SIZELIMIT,RO,BACK-FILE",
                ],
            )?),
        );
        see(
            "the kubelet's folder",
            tree(&cluster.folder().join("kubelet"))?.join("\n"),
        );
    }
    Ok(state)
}

fn changes(before: &State, after: &State) -> Vec<String> {
    let pairs = before.iter().zip(after).filter(|(was, is)| was != is);
    pairs
        .map(|((what, was), (_, is))| {
            format!(
                "{what} changed: gone {:?}, new {:?}",
                missing_lines(was, is),
                missing_lines(is, was)
            )
        })
        .collect()
}

/// The lines of `text` that are not in `other`.
fn missing_lines<'a>(text: &'a str, other: &str) -> Vec<&'a str> {
    text.lines()
        .filter(|line| !other.lines().any(|there| there == *line))
        .collect()
}

/// A JSON list with one line per row.
fn lines(value: &Value) -> String {
    match value.as_array() {
        Some(rows) => rows
            .iter()
            .map(Value::to_string)
            .collect::<Vec<_>>()
            .join("\n"),
        None => value.to_string(),
    }
}

/// The sorted names below a folder, without the contents of mounts.
fn tree(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let text = process::run(
        "find",
        [
            folder.as_os_str(),
            "-xdev".as_ref(),
            "-printf".as_ref(),
            "%p %y %s %l\\n".as_ref(),
        ],
    )?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    Ok(lines)
}
