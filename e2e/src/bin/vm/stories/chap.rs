//! CHAP: who knows the secret gets in, who does not is refused once and told why. Behaviour 22 of dsm-web-api.md section 11.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::GIB;
use e2e::harness::nas::CHAP_KEY;
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::until::until;
use e2e::vm::guest::OUT;
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
        let mut volume = TestVolume::create(
            &scene.cluster,
            &format!("pvc-{name}"),
            GIB,
            Content::Fs("ext4"),
        )
        .await?;
        volume.secrets = secret(PASSWORD, mutual);
        let cluster = &scene.cluster;
        volume
            .attach(cluster)
            .await
            .with_context(|| format!("{name}: the right secret"))?;
        let data = Scene::write(&volume, 3)?;
        let level = scene
            .cluster
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
        volume.node_unpublish(cluster).await?;
        volume.unstage(cluster).await?;
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
            .stage(cluster)
            .await
            .with_context(|| format!("{name}: the right secret after the wrong one"))?;
        volume.node_publish(cluster).await?;
        Scene::must_hold(&data)?;
        volume.detach(cluster).await?;
        volume.delete(cluster).await?;
    }
    let seen = watch.stop()?;
    let log = std::fs::read_to_string(scene.cluster.folder().join("driver.log"))?;
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
    volume: &TestVolume,
    wrong: HashMap<String, String>,
    scene: &Scene,
    (what, code, words): (&str, Code, &str),
) -> Result<()> {
    let volume = TestVolume {
        secrets: wrong,
        ..volume.clone()
    };
    let before = connections()?;
    let Err(status) = volume.stage(&scene.cluster).await else {
        anyhow::bail!("{what}: a wrong secret was let in");
    };
    let tried = connections()? - before;
    ensure!(tried <= 2, "{what}: {tried} connections for one call");
    ensure!(
        status.code() == code && status.message().contains(words),
        "{what}: {status}"
    );
    let left = scene.cluster.initiator()?;
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
    let cluster = &scene.cluster;
    let mut volume = TestVolume::create(cluster, "pvc-1", GIB, Content::Fs("xfs")).await?;
    volume.secrets = secret(PASSWORD, None);
    volume.attach(cluster).await?;
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
    volume.detach(cluster).await?;
    volume.delete(cluster).await?;
    worker.strike().await?;
    Ok(format!(
        "refused without a secret and with a wrong one ({})",
        answers.join("; ")
    ))
}

/// Without a Secret of the class: each publication has proofs of its own, which a node is told and nobody else.
pub(crate) async fn default(scene: &mut Scene) -> Result<String> {
    let watch = Watch::start();
    let worker = Worker::start(&[]).await?;
    let cluster = &scene.cluster;
    let mut volume = TestVolume::create(cluster, "pvc-1", GIB, Content::Fs("ext4")).await?;
    volume.attach(cluster).await?;
    let data = Scene::write(&volume, 3)?;
    let proofs = Proofs::of(&volume)?;
    let level = cluster.nas.targets_now().await?[0]["auth_type"].clone();
    ensure!(level == 2, "auth_type is {level}");

    // It would write records of its own.
    let discovery = "iscsiadm -m discovery -o nonpersistent -t st -p";
    let discovery: Vec<&str> = discovery.split(' ').chain([PORTALS[0]]).collect();
    let listed = worker.run(&discovery).await?;
    let listed = listed.contains(&proofs.iqn);
    must_refuse_strangers(&worker, &proofs).await?;
    worker
        .run(&["rm", "-rf", "/etc/iscsi/send_targets"])
        .await?;
    Scene::must_hold(&data)?;
    must_be_told_to_nobody(scene, &proofs)?;

    // Whoever stands in for the NAS has to know what only the NAS knows.
    volume.node_unpublish(cluster).await?;
    volume.unstage(cluster).await?;
    let mut noticed = Vec::new();
    for (what, mutual) in [
        ("no proof of its own", None),
        ("a wrong proof", Some(WRONG_OF_TARGET)),
    ] {
        let spoof = Spoof::start(&worker, &proofs, mutual).await?;
        let mut elsewhere = volume.clone();
        elsewhere
            .publish_context
            .insert("portals".to_owned(), SPOOF.to_owned());
        let Err(status) = elsewhere.stage(cluster).await else {
            bail!("a target with {what} was taken for the NAS's");
        };
        spoof.stop(&worker).await?;
        let left = cluster.initiator()?;
        ensure!(
            left.count("sys/class/iscsi_session")? == 0 && left.count("etc/iscsi/nodes")? == 0,
            "{what}: a session or record is left"
        );
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let staging = volume.staging.to_string_lossy();
        ensure!(
            !mounts.contains(&*staging),
            "{what}: something is mounted: {mounts}"
        );
        noticed.push(format!("{what}: {:?}", status.code()));
    }
    volume.stage(cluster).await.context("the NAS itself")?;
    volume.node_publish(cluster).await?;
    Scene::must_hold(&data)?;
    must_be_told_to_nobody(scene, &proofs)?;
    volume.detach(cluster).await?;
    volume.delete(cluster).await?;
    worker.strike().await?;
    let seen = watch.stop()?;
    for word in proofs.secrets() {
        ensure!(
            !seen.iter().any(|line| line.contains(word)),
            "a proof on a command line: {seen:?}"
        );
    }
    Ok(format!(
        "discovery {}; strangers refused (24); a spoofed target noticed ({}); no proof in {} command lines, logs or files but the record",
        if listed {
            "lists it"
        } else {
            "does not list it"
        },
        noticed.join(", "),
        seen.len()
    ))
}

/// Logins with wrong proofs or none.
async fn must_refuse_strangers(worker: &Worker, proofs: &Proofs) -> Result<()> {
    let strangers = [
        ("no proofs", Vec::new()),
        (
            "wrong proofs",
            vec![("username", proofs.user.as_str()), ("password", WRONG)],
        ),
        (
            "the target's own",
            vec![
                ("username", &proofs.user_in),
                ("password", &proofs.password_in),
            ],
        ),
    ];
    let record = [
        "iscsiadm",
        "-m",
        "node",
        "-T",
        &proofs.iqn,
        "-p",
        PORTALS[0],
    ];
    let on = async |more: &[&str]| worker.run(&[record.as_slice(), more].concat()).await;
    on(&["-o", "new"]).await?;
    for (what, fields) in strangers {
        if !fields.is_empty() {
            on(&[
                "-o",
                "update",
                "-n",
                "node.session.auth.authmethod",
                "-v",
                "CHAP",
            ])
            .await?;
        }
        for (name, value) in fields {
            let name = format!("node.session.auth.{name}");
            on(&["-o", "update", "-n", &name, "-v", value]).await?;
        }
        let Err(refusal) = on(&["--login"]).await else {
            bail!("a stranger with {what} was let in");
        };
        let refusal = format!("{refusal:#}");
        ensure!(refusal.contains("exit status: 24"), "{what}: {refusal}");
    }
    on(&["-o", "delete"]).await?;
    Ok(())
}

/// Where something stands in for the NAS: the second machine.
const SPOOF: &str = "10.77.0.2:3260";
/// Its `tgtd`'s control port.
const SPOOF_CONTROL: &str = "7";
const WRONG_OF_TARGET: &str = "planted-wrong-4";

/// The proofs of a publication.
struct Proofs {
    iqn: String,
    user: String,
    password: String,
    user_in: String,
    password_in: String,
}

impl Proofs {
    fn of(volume: &TestVolume) -> Result<Self> {
        let told = |key: &str| {
            let value = volume.publish_context.get(key).cloned();
            value.with_context(|| format!("publish_context[{key}]"))
        };
        Ok(Self {
            iqn: told("iqn")?,
            user: told("chap_username")?,
            password: told("chap_password")?,
            user_in: told("chap_username_in")?,
            password_in: told("chap_password_in")?,
        })
    }

    fn secrets(&self) -> [&str; 3] {
        [CHAP_KEY, &self.password, &self.password_in]
    }
}

/// A target with the same name somewhere else, that lets the node in and proves itself by whatever it has.
struct Spoof(u32);

impl Spoof {
    async fn start(worker: &Worker, proofs: &Proofs, mutual: Option<&str>) -> Result<Self> {
        let portal = format!("portal={SPOOF}");
        let words = ["tgtd", "-f", "-C", SPOOF_CONTROL, "--iscsi", &portal];
        let daemon = worker.remote.start(&words, "/run/spoof.log").await?;
        let admin = async |words: &str| {
            let usual = ["tgtadm", "-C", SPOOF_CONTROL, "--lld", "iscsi"];
            let words: Vec<&str> = usual.into_iter().chain(words.split(' ')).collect();
            worker.run(&words).await
        };
        let answers = async || Ok(admin("--op show --mode system").await.is_ok());
        until("the spoofed target's daemon answers", answers, |answers| {
            *answers
        })
        .await?;
        worker
            .run(&["truncate", "-s", "1G", "/run/spoof.img"])
            .await?;
        let Proofs {
            iqn,
            user,
            password,
            user_in,
            ..
        } = proofs;
        admin(&format!(
            "--op new --mode target --tid 1 --targetname {iqn}"
        ))
        .await?;
        admin("--op new --mode logicalunit --tid 1 --lun 1 --backing-store /run/spoof.img").await?;
        admin("--op bind --mode target --tid 1 --initiator-address ALL").await?;
        admin(&format!(
            "--op new --mode account --user {user} --password {password}"
        ))
        .await?;
        admin(&format!("--op bind --mode account --tid 1 --user {user}")).await?;
        if let Some(mutual) = mutual {
            admin(&format!(
                "--op new --mode account --user {user_in} --password {mutual}"
            ))
            .await?;
            admin(&format!(
                "--op bind --mode account --tid 1 --user {user_in} --outgoing"
            ))
            .await?;
        }
        Ok(Self(daemon))
    }

    async fn stop(self, worker: &Worker) -> Result<()> {
        worker.run(&["kill", "-9", &self.0.to_string()]).await?;
        let gone = async || {
            let names = worker.remote.list("/proc").await?;
            Ok(!names.contains(&self.0.to_string()))
        };
        until("the spoofed target is gone", gone, |gone| *gone).await?;
        worker.run(&["rm", "-f", "/run/spoof.img"]).await.map(drop)
    }
}

/// Logs and files of the node and the driver hold no proof, but open-iscsi's own record, which only root may read.
fn must_be_told_to_nobody(scene: &Scene, proofs: &Proofs) -> Result<()> {
    let nas = scene.cluster.nas.folder();
    let kubelet = scene.cluster.folder().join("kubelet");
    let mut folders = vec![
        scene.cluster.folder().to_owned(),
        "/etc/iscsi".into(),
        "/run".into(),
        "/var/lib/iscsi".into(),
    ];
    let mut records = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata()?);
            // The NAS knows its own secrets; a volume's data are its user's; the host's folder has other machines' logs.
            if path == nas || path == kubelet || path == Path::new(OUT) {
                continue;
            }
            if metadata.is_dir() {
                folders.push(path);
                continue;
            }
            if !metadata.is_file() {
                continue;
            }
            let held = std::fs::read(&path)?;
            let tells = |word: &str| held.windows(word.len()).any(|part| part == word.as_bytes());
            if !proofs.secrets().into_iter().any(tells) {
                continue;
            }
            let mode = metadata.permissions().mode() & 0o777;
            let is_record = path
                .to_string_lossy()
                .contains(&format!("nodes/{}/", proofs.iqn));
            ensure!(
                is_record && mode == 0o600 && !tells(CHAP_KEY),
                "{} (mode {mode:o}) tells a proof or the key",
                path.display()
            );
            records += 1;
        }
    }
    ensure!(
        records > 0,
        "no record of the login was found: the look is blind"
    );
    let said = e2e::harness::process::run("dmesg", [""; 0])?;
    for word in proofs.secrets() {
        ensure!(!said.contains(word), "the kernel's log tells a proof");
    }
    Ok(())
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
