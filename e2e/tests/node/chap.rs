//! CHAP on the loop plane: the Secret of a publication opens its target, another does not, and nobody sees it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::GIB;
use e2e::harness::skip::needs_root;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, TestVolume};
use serde_json::{Value, json};
use tonic::Code;

use crate::story::Story;

const RIGHT: &str = "planted-right";
const OTHER: &str = "planted-other";

fn secret(password: &str) -> HashMap<String, String> {
    [("username", "alice"), ("password", password)]
        .map(|(key, value)| (format!("node.session.auth.{key}"), value.to_owned()))
        .into()
}

fn mutual(password: &str) -> HashMap<String, String> {
    let mut secrets = secret(password);
    secrets.extend(
        [("username_in", "nas"), ("password_in", OTHER)]
            .map(|(key, value)| (format!("node.session.auth.{key}"), value.to_owned())),
    );
    secrets
}

impl Story {
    async fn begin_with(test: &str, secrets: HashMap<String, String>) -> Option<Self> {
        if needs_root(test) {
            return None;
        }
        let plan = Plan {
            log_level: "trace,h2=trace".to_owned(),
            ..Plan::whole()
        };
        let cluster = plan.start().await.unwrap();
        let mut volume = TestVolume::create(&cluster, "pvc-1", GIB, Content::Block)
            .await
            .unwrap();
        volume.secrets = secrets;
        Some(Self { cluster, volume })
    }

    /// What the NAS knows of the volume's target.
    async fn on_the_nas(&self) -> Value {
        let targets = self.cluster.nas.targets_now().await.unwrap();
        let [target] = targets.try_into().unwrap();
        target
    }

    /// No file of driver, NAS or node tells a secret that they may not tell: logs and journals.
    async fn must_be_silent(&self) {
        let log = std::fs::read_to_string(self.cluster.folder().join("driver.log")).unwrap();
        assert!(log.contains("TRACE") && log.contains("NodeStageVolume"));
        let (journal, _) = self.cluster.nas.journal(0).await.unwrap();
        let (journal, nas) = (
            format!("{journal:?}"),
            self.cluster.nas.folder().join("dsm-sim.log"),
        );
        let told = log + &journal + &std::fs::read_to_string(nas).unwrap();
        assert!(journal.contains("auth_type") && journal.contains("alice"));
        let telling = told
            .lines()
            .find(|line| line.contains("planted-right") || line.contains(OTHER));
        assert_eq!(telling, None);
    }
}

/// Reads every command line on this machine, again and again.
struct Watch {
    stop: Arc<AtomicBool>,
    reading: tokio::task::JoinHandle<(usize, Vec<String>)>,
}

impl Watch {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let (mut logins, mut telling) = (0, Vec::new());
            while !until.load(Ordering::Relaxed) {
                for process in std::fs::read_dir("/proc").unwrap().flatten() {
                    let Ok(line) = std::fs::read_to_string(process.path().join("cmdline")) else {
                        continue;
                    };
                    logins += usize::from(line.contains("iscsiadm"));
                    if line.contains(RIGHT) || line.contains(OTHER) {
                        telling.push(line);
                    }
                }
            }
            (logins, telling)
        });
        Self { stop, reading }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (logins, telling) = self.reading.await.unwrap();
        assert!(logins > 0, "not one iscsiadm was seen");
        assert_eq!(telling, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_secret_opens_the_target_and_is_seen_nowhere() {
    let test = "chap::the_right_secret_opens_the_target_and_is_seen_nowhere";
    for (secrets, auth, auth_type) in [(secret(RIGHT), "chap", 1), (mutual(RIGHT), "mutual", 2)] {
        let Some(mut story) = Story::begin_with(test, secrets).await else {
            return;
        };
        let watch = Watch::start();
        for _ in 0..5 {
            story.attach().await;
            // Once more: a password cannot be read back, so the target is told again.
            story.publish().await;
            assert_eq!(story.volume.publish_context["auth"], auth);
            let target = story.on_the_nas().await;
            assert_eq!(
                (&target["auth_type"], &target["user"]),
                (&json!(auth_type), &json!("alice"))
            );
            story.node_unpublish().await.unwrap();
            story.unstage().await.unwrap();
            story.must_keep_no_record();
        }
        watch.end().await;
        story.must_be_silent().await;
        story.volume.unpublish(&story.cluster).await.unwrap();
        story.volume.delete(&story.cluster).await.unwrap();
        assert_eq!(
            story.cluster.leftovers().await.unwrap(),
            Vec::<String>::new()
        );
    }
}

impl Story {
    fn must_keep_no_record(&self) {
        let initiator = self.cluster.initiator().unwrap();
        assert_eq!(initiator.count("etc/iscsi/nodes").unwrap(), 0);
        let left = std::fs::read_dir(initiator.root().join("etc/iscsi")).unwrap();
        let names: Vec<String> = left
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(".synology"))
            .collect();
        assert_eq!(names, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_is_refused_and_leaves_nothing() {
    let test = "chap::another_secret_is_refused_and_leaves_nothing";
    let Some(mut story) = Story::begin_with(test, secret(RIGHT)).await else {
        return;
    };
    story.publish().await;
    for (secrets, code, says) in [
        (
            secret(OTHER),
            Code::Unauthenticated,
            "secrets[node.session.auth.password]",
        ),
        (
            HashMap::new(),
            Code::InvalidArgument,
            "csi.storage.k8s.io/node-stage-secret-name",
        ),
        (mutual(RIGHT), Code::InvalidArgument, "of another kind"),
    ] {
        story.volume.secrets = secrets;
        let refused = story.stage().await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(says), "{refused}");
        let initiator = story.cluster.initiator().unwrap();
        assert_eq!(initiator.count("sys/class/iscsi_session").unwrap(), 0);
        story.must_keep_no_record();
    }
    // A context from before this was told: the target itself refuses.
    let auth = story.volume.publish_context.remove("auth");
    story.volume.secrets.clear();
    let refused = story.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    story
        .volume
        .publish_context
        .extend(auth.map(|auth| ("auth".to_owned(), auth)));

    // The Secret is changed: it holds once the volume is published anew.
    story.volume.secrets = secret(OTHER);
    story.attach().await;
    story.detach().await;
    // Without one, the publication has proofs of its own.
    story.volume.secrets.clear();
    story.attach().await;
    assert_eq!(story.on_the_nas().await["auth_type"], json!(2));
    story.must_be_silent().await;
    story.end().await;
}
