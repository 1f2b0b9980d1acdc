//! CHAP on a simulated node: the publication's Secret logs in to its target, another one does not, and no secret leaks.

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
            ..Plan::with_node()
        };
        let cluster = plan.start().await.unwrap();
        let mut volume = TestVolume::create(&cluster, "pvc-1", GIB, Content::Block)
            .await
            .unwrap();
        volume.secrets = secrets;
        Some(Self { cluster, volume })
    }

    /// The state of the volume's target on the NAS.
    async fn target_state(&self) -> Value {
        let targets = self.cluster.nas.targets_now().await.unwrap();
        let [target] = targets.try_into().unwrap();
        target
    }

    /// Checks that logs and journals contain no secret.
    async fn must_leak_no_secret(&self) {
        let log = std::fs::read_to_string(self.cluster.folder().join("driver.log")).unwrap();
        assert!(log.contains("TRACE") && log.contains("NodeStageVolume"));
        let (journal, _) = self.cluster.nas.journal(0).await.unwrap();
        let (journal, nas) = (
            format!("{journal:?}"),
            self.cluster.nas.folder().join("dsm-sim.log"),
        );
        let outputs = log + &journal + &std::fs::read_to_string(nas).unwrap();
        assert!(journal.contains("auth_type") && journal.contains("alice"));
        let telling = outputs
            .lines()
            .find(|line| line.contains("planted-right") || line.contains(OTHER));
        assert_eq!(telling, None);
    }
}

/// Continuously reads every command line on this machine.
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
async fn the_right_secret_logs_in_and_never_leaks() {
    let test = "chap::the_right_secret_logs_in_and_never_leaks";
    for (secrets, auth, auth_type) in [(secret(RIGHT), "chap", 1), (mutual(RIGHT), "mutual", 2)] {
        let Some(mut story) = Story::begin_with(test, secrets).await else {
            return;
        };
        let watch = Watch::start();
        for _ in 0..5 {
            story.attach().await;
            // Publish again: a password cannot be read back, so it is set on the target again.
            story.publish().await;
            assert_eq!(story.volume.publish_context["auth"], auth);
            let target = story.target_state().await;
            assert_eq!(
                (&target["auth_type"], &target["user"]),
                (&json!(auth_type), &json!("alice"))
            );
            story.node_unpublish().await.unwrap();
            story.unstage().await.unwrap();
            story.must_keep_no_record();
        }
        watch.end().await;
        story.must_leak_no_secret().await;
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
        let nodes = std::fs::read_dir(initiator.root().join("etc/iscsi")).unwrap();
        let names: Vec<String> = nodes
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
    // A publish context of a release without CHAP: the target itself refuses the login.
    let auth = story.volume.publish_context.remove("auth");
    story.volume.secrets.clear();
    let refused = story.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    story
        .volume
        .publish_context
        .extend(auth.map(|auth| ("auth".to_owned(), auth)));

    // A changed Secret takes effect when the volume is published again.
    story.volume.secrets = secret(OTHER);
    story.attach().await;
    story.detach().await;
    // Without a Secret, the publication gets generated CHAP credentials.
    story.volume.secrets.clear();
    story.attach().await;
    assert_eq!(story.target_state().await["auth_type"], json!(2));
    story.must_leak_no_secret().await;
    story.end().await;
}
