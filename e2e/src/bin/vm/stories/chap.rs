//! CHAP: the right secret logs in, a wrong one is refused once with a clear error. Behaviour 22 of dsm-web-api.md section 11.

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
        // A live session does not authenticate again; a new one does.
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
            // open-iscsi has no specific error for a target that fails mutual authentication.
            let error_code = (
                "the NAS's own",
                Code::FailedPrecondition,
                "secrets[node.session.auth.password_in]",
            );
            refused(&volume, secret(PASSWORD, Some(WRONG)), scene, error_code).await?;
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

/// Stages with a wrong secret: a clear error, one login, and nothing left.
async fn refused(
    volume: &TestVolume,
    wrong: HashMap<String, String>,
    scene: &Scene,
    (what, code, message): (&str, Code, &str),
) -> Result<()> {
    let volume = TestVolume {
        secrets: wrong,
        ..volume.clone()
    };
    let before = connections()?;
    let Err(status) = volume.stage(&scene.cluster).await else {
        anyhow::bail!("{what}: a wrong secret was accepted");
    };
    let tried = connections()? - before;
    ensure!(tried <= 2, "{what}: {tried} connections for one call");
    ensure!(
        status.code() == code && status.message().contains(message),
        "{what}: {status}"
    );
    let left = scene.cluster.initiator()?;
    ensure!(
        left.count("sys/class/iscsi_session")? == 0 && left.count("etc/iscsi/nodes")? == 0,
        "{what}: a session or record is left"
    );
    Ok(())
}

/// TCP connections that this VM has opened since boot.
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

/// An initiator that knows the target's name, but not its secret.
pub(crate) async fn without_secret(scene: &mut Scene) -> Result<String> {
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
    for password in [None, Some(WRONG)] {
        if let Some(password) = password {
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
                "an initiator without the secret was accepted ({})",
                if password.is_some() {
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
    worker.teardown().await?;
    Ok(format!(
        "refused without a secret and with a wrong one ({})",
        answers.join("; ")
    ))
}

/// Without a Secret in the StorageClass: each publication has generated CHAP credentials, which only its node gets.
pub(crate) async fn default(scene: &mut Scene) -> Result<String> {
    let watch = Watch::start();
    let worker = Worker::start(&[]).await?;
    let cluster = &scene.cluster;
    let mut volume = TestVolume::create(cluster, "pvc-1", GIB, Content::Fs("ext4")).await?;
    volume.attach(cluster).await?;
    let data = Scene::write(&volume, 3)?;
    let credentials = Credentials::of(&volume)?;
    let level = cluster.nas.targets_now().await?[0]["auth_type"].clone();
    ensure!(level == 2, "auth_type is {level}");

    // It would create node records.
    let discovery = "iscsiadm -m discovery -o nonpersistent -t st -p";
    let discovery: Vec<&str> = discovery.split(' ').chain([PORTALS[0]]).collect();
    let listed = worker.run(&discovery).await?;
    let listed = listed.contains(&credentials.iqn);
    must_refuse_logins(&worker, &credentials).await?;
    worker
        .run(&["rm", "-rf", "/etc/iscsi/send_targets"])
        .await?;
    Scene::must_hold(&data)?;
    must_leak_no_secret(scene, &credentials)?;

    // A server that impersonates the NAS lacks the secrets that only the NAS knows.
    volume.node_unpublish(cluster).await?;
    volume.unstage(cluster).await?;
    let mut noticed = Vec::new();
    for (what, mutual) in [
        ("no secret of its own", None),
        ("a wrong secret", Some(WRONG_OF_TARGET)),
    ] {
        let spoof = Spoof::start(&worker, &credentials, mutual).await?;
        let mut elsewhere = volume.clone();
        elsewhere
            .publish_context
            .insert("portals".to_owned(), SPOOF.to_owned());
        let Err(status) = elsewhere.stage(cluster).await else {
            bail!("a target with {what} was accepted as the NAS");
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
    must_leak_no_secret(scene, &credentials)?;
    volume.detach(cluster).await?;
    volume.delete(cluster).await?;
    worker.teardown().await?;
    let seen = watch.stop()?;
    for word in credentials.secrets() {
        ensure!(
            !seen.iter().any(|line| line.contains(word)),
            "a secret on a command line: {seen:?}"
        );
    }
    Ok(format!(
        "discovery {}; other initiators refused (24); a spoofed target detected ({}); no secret in {} command lines, logs or files but the record",
        if listed {
            "lists it"
        } else {
            "does not list it"
        },
        noticed.join(", "),
        seen.len()
    ))
}

/// Logs in with wrong credentials or none.
async fn must_refuse_logins(worker: &Worker, credentials: &Credentials) -> Result<()> {
    let logins = [
        ("no proofs", Vec::new()),
        (
            "wrong proofs",
            vec![("username", credentials.user.as_str()), ("password", WRONG)],
        ),
        (
            "the target's own",
            vec![
                ("username", &credentials.user_in),
                ("password", &credentials.password_in),
            ],
        ),
    ];
    let record = [
        "iscsiadm",
        "-m",
        "node",
        "-T",
        &credentials.iqn,
        "-p",
        PORTALS[0],
    ];
    let on = async |more: &[&str]| worker.run(&[record.as_slice(), more].concat()).await;
    on(&["-o", "new"]).await?;
    for (what, fields) in logins {
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
            bail!("an initiator with {what} was accepted");
        };
        let refusal = format!("{refusal:#}");
        ensure!(refusal.contains("exit status: 24"), "{what}: {refusal}");
    }
    on(&["-o", "delete"]).await?;
    Ok(())
}

/// The portal of the spoofed target, on the second VM.
const SPOOF: &str = "10.77.0.2:3260";
/// The control port of its `tgtd`.
const SPOOF_CONTROL: &str = "7";
const WRONG_OF_TARGET: &str = "planted-wrong-4";

/// The CHAP credentials of a publication.
struct Credentials {
    iqn: String,
    user: String,
    password: String,
    user_in: String,
    password_in: String,
}

impl Credentials {
    fn of(volume: &TestVolume) -> Result<Self> {
        let value = |key: &str| {
            let value = volume.publish_context.get(key).cloned();
            value.with_context(|| format!("publish_context[{key}]"))
        };
        Ok(Self {
            iqn: value("iqn")?,
            user: value("chap_username")?,
            password: value("chap_password")?,
            user_in: value("chap_username_in")?,
            password_in: value("chap_password_in")?,
        })
    }

    fn secrets(&self) -> [&str; 3] {
        [CHAP_KEY, &self.password, &self.password_in]
    }
}

/// A target with the same name at another address, which accepts any login and authenticates itself with the given secret.
struct Spoof(u32);

impl Spoof {
    async fn start(
        worker: &Worker,
        credentials: &Credentials,
        mutual: Option<&str>,
    ) -> Result<Self> {
        let portal = format!("portal={SPOOF}");
        let args = ["tgtd", "-f", "-C", SPOOF_CONTROL, "--iscsi", &portal];
        let daemon = worker.remote.start(&args, "/run/spoof.log").await?;
        let admin = async |args: &str| {
            let usual = ["tgtadm", "-C", SPOOF_CONTROL, "--lld", "iscsi"];
            let args: Vec<&str> = usual.into_iter().chain(args.split(' ')).collect();
            worker.run(&args).await
        };
        let answers = async || Ok(admin("--op show --mode system").await.is_ok());
        until("the spoofed target's daemon answers", answers, |answers| {
            *answers
        })
        .await?;
        worker
            .run(&["truncate", "-s", "1G", "/run/spoof.img"])
            .await?;
        let Credentials {
            iqn,
            user,
            password,
            user_in,
            ..
        } = credentials;
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
        let is_gone = async || {
            let names = worker.remote.list("/proc").await?;
            Ok(!names.contains(&self.0.to_string()))
        };
        until("the spoofed target is gone", is_gone, |is_gone| *is_gone).await?;
        worker.run(&["rm", "-f", "/run/spoof.img"]).await.map(drop)
    }
}

/// Checks that logs and files of the node and the driver contain no secret, except open-iscsi's own record, which only root can
/// read.
fn must_leak_no_secret(scene: &Scene, credentials: &Credentials) -> Result<()> {
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
            // The NAS knows its own secrets; a volume contains its user's data; the host's folder has other VMs' logs.
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
            let contents = std::fs::read(&path)?;
            let contains = |word: &str| {
                contents
                    .windows(word.len())
                    .any(|part| part == word.as_bytes())
            };
            if !credentials.secrets().into_iter().any(contains) {
                continue;
            }
            let mode = metadata.permissions().mode() & 0o777;
            let is_record = path
                .to_string_lossy()
                .contains(&format!("nodes/{}/", credentials.iqn));
            ensure!(
                is_record && mode == 0o600 && !contains(CHAP_KEY),
                "{} (mode {mode:o}) contains a secret or the key",
                path.display()
            );
            records += 1;
        }
    }
    ensure!(
        records > 0,
        "no record of the login was found: this check is ineffective"
    );
    let kernel_log = e2e::harness::process::run("dmesg", [""; 0])?;
    for word in credentials.secrets() {
        ensure!(
            !kernel_log.contains(word),
            "the kernel's log contains a secret"
        );
    }
    Ok(())
}

/// Samples every command line on this VM as often as possible.
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
                sample(&mut seen);
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

fn sample(seen: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // tgtadm accepts secrets only on its command line. It belongs to the simulated NAS, not to the driver.
        if !line.is_empty() && !line.contains("tgtadm") {
            seen.insert(line);
        }
    }
}
