//! CHAP: who knows the secret gets in, who does not is refused once and told why. Behaviour 22 of dsm-api.md section 11.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::life::{Content, Life};
use serde_json::Value;
use tonic::Code;

use crate::scene::{PORTALS, Scene};
use crate::worker::Worker;

const PASSWORD: &str = "planted-chap-1";
const MUTUAL: &str = "planted-chap-2";
const WRONG: &str = "planted-wrong-3";

fn secret(password: &str, mutual: Option<&str>) -> HashMap<String, String> {
    let mut secret = vec![("username", "csi"), ("password", password)];
    if let Some(mutual) = mutual {
        secret.extend([("username_in", "nas"), ("password_in", mutual)]);
    }
    let field =
        |(name, value): (&str, &str)| (format!("node.session.auth.{name}"), value.to_owned());
    secret.into_iter().map(field).collect()
}

pub(crate) async fn secrets(scene: &mut Scene) -> Result<String> {
    let watch = Watch::start();
    for (name, mutual) in [("one-way", None), ("mutual", Some(MUTUAL))] {
        let mut volume = Life::create(
            &scene.world,
            &format!("pvc-{name}"),
            GIB,
            Content::Fs("ext4"),
        )
        .await?;
        volume.secrets = secret(PASSWORD, mutual);
        let world = &scene.world;
        volume
            .attach(world)
            .await
            .with_context(|| format!("{name}: the right secret"))?;
        let data = Scene::write(&volume, 3)?;
        let level = scene
            .world
            .nas
            .targets_now()
            .await?
            .first()
            .map(|target| target["auth_type"].clone());
        ensure!(
            level == Some(Value::from(if mutual.is_some() { 2 } else { 1 })),
            "{name}: auth_type is {level:?}"
        );
        // A session that lives is not asked again; a new one is.
        volume.node_unpublish(world).await?;
        volume.unstage(world).await?;
        refused(
            &volume,
            secret(WRONG, mutual),
            scene,
            (name, Code::Unauthenticated, "CHAP name and password"),
        )
        .await?;
        if mutual.is_some() {
            // open-iscsi has no word of its own for a target that proves itself wrongly.
            let own = (
                "the NAS's own",
                Code::FailedPrecondition,
                "secrets[node.session.auth.password_in]",
            );
            refused(&volume, secret(PASSWORD, Some(WRONG)), scene, own).await?;
        }
        volume
            .stage(world)
            .await
            .with_context(|| format!("{name}: the right secret after the wrong one"))?;
        volume.node_publish(world).await?;
        Scene::must_hold(&data)?;
        volume.detach(world).await?;
        volume.delete(world).await?;
    }
    let seen = watch.stop()?;
    let log = std::fs::read_to_string(scene.world.folder().join("driver.log"))?;
    for word in [PASSWORD, MUTUAL, WRONG] {
        ensure!(
            !seen.iter().any(|line| line.contains(word)),
            "a secret on a command line: {seen:?}"
        );
        ensure!(!log.contains(word), "a secret in the driver's log");
    }
    Ok(format!(
        "one-way and mutual: right in, wrong refused after one login; no secret in {} command lines nor in the log",
        seen.len()
    ))
}

/// The wrong secret: a clear answer, one login, and nothing left.
async fn refused(
    volume: &Life,
    wrong: HashMap<String, String>,
    scene: &Scene,
    (what, code, words): (&str, Code, &str),
) -> Result<()> {
    let volume = Life {
        secrets: wrong,
        ..volume.clone()
    };
    let before = connections()?;
    let Err(status) = volume.stage(&scene.world).await else {
        anyhow::bail!("{what}: a wrong secret was let in");
    };
    let tried = connections()? - before;
    ensure!(tried <= 2, "{what}: {tried} connections for one call");
    ensure!(
        status.code() == code && status.message().contains(words),
        "{what}: {status}"
    );
    let left = scene.world.initiator()?;
    ensure!(
        left.count("sys/class/iscsi_session")? == 0 && left.count("etc/iscsi/nodes")? == 0,
        "{what}: a session or record is left"
    );
    Ok(())
}

/// TCP connections that this machine has opened since it is up.
fn connections() -> Result<u64> {
    let table = std::fs::read_to_string("/proc/net/snmp")?;
    let mut tcp = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().context("Tcp")?, tcp.next().context("Tcp")?);
    let at = names
        .split(' ')
        .position(|name| name == "ActiveOpens")
        .context("ActiveOpens")?;
    Ok(values.split(' ').nth(at).context("ActiveOpens")?.parse()?)
}

/// An initiator that has learned the target's name, but not its secret.
pub(crate) async fn stranger(scene: &mut Scene) -> Result<String> {
    let worker = Worker::start(&[]).await?;
    let world = &scene.world;
    let mut volume = Life::create(world, "pvc-1", GIB, Content::Fs("xfs")).await?;
    volume.secrets = secret(PASSWORD, None);
    volume.attach(world).await?;
    let iqn = volume.publish_context.get("iqn").context("iqn")?.clone();
    let node = ["iscsiadm", "-m", "node", "-T", &iqn, "-p", PORTALS[0]];
    let on = |more: &[&'static str]| [node.as_slice(), more].concat();
    let update = |name, value| on(&["-o", "update", "-n", name, "-v", value]);
    worker.run(&on(&["-o", "new"])).await?;
    let mut answers = Vec::new();
    for proof in [None, Some(WRONG)] {
        if let Some(password) = proof {
            worker
                .run(&update("node.session.auth.authmethod", "CHAP"))
                .await?;
            worker
                .run(&update("node.session.auth.username", "csi"))
                .await?;
            worker
                .run(&update("node.session.auth.password", password))
                .await?;
        }
        let login = worker.run(&on(&["--login"])).await;
        let Err(refusal) = login else {
            anyhow::bail!(
                "a stranger was let in ({})",
                if proof.is_some() {
                    "wrong secret"
                } else {
                    "no secret"
                }
            );
        };
        answers.push(
            format!("{refusal:#}")
                .lines()
                .last()
                .unwrap_or_default()
                .to_owned(),
        );
    }
    worker.run(&on(&["-o", "delete"])).await?;
    volume.detach(world).await?;
    volume.delete(world).await?;
    worker.strike().await?;
    Ok(format!(
        "refused without a secret and with a wrong one ({})",
        answers.join("; ")
    ))
}

/// Looks at every command line of the machine, as often as it can.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Watch {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                look(&mut seen);
            }
            seen
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<BTreeSet<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        ensure!(
            seen.iter().any(|line| line.starts_with("iscsiadm")),
            "the watch has missed iscsiadm"
        );
        Ok(seen)
    }
}

fn look(seen: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // tgtadm takes secrets on its command line and nowhere else: the simulated NAS's side, not the driver's.
        if !line.is_empty() && !line.contains("tgtadm") {
            seen.insert(line);
        }
    }
}
