//! A node whose initiator name changed: it was reinstalled, or the name was changed under running pods.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use serde_json::{Value, json};
use tonic::Code;

use super::common::{NODE_A, NODE_B, TARGET};
use super::edited_replies::{EditedCluster, SYSTEM, refused, seconds};

/// The first node under its new initiator name.
const NODE_A_RENAMED: &str = "worker-a:0000000c";

/// What the NAS also reports: its uptime, and the targets that have a session.
#[derive(Debug, Default)]
struct Setup {
    up_time: String,
    logged_in: Vec<String>,
}

fn reported(cluster: &EditedCluster) -> Arc<Mutex<Setup>> {
    let reported = Arc::new(Mutex::new(Setup {
        up_time: "100:0:0".to_owned(),
        logged_in: Vec::new(),
    }));
    let shared = reported.clone();
    cluster.edit(move |api, method, answer| {
        let reported = shared.lock().expect("not poisoned");
        match (api, method) {
            (SYSTEM, "info") => answer["data"]["up_time"] = json!(reported.up_time),
            (TARGET, "list") => {
                for row in answer["data"]["targets"]
                    .as_array_mut()
                    .into_iter()
                    .flatten()
                {
                    let iqn = row["iqn"].as_str().unwrap_or_default().to_owned();
                    if reported.logged_in.contains(&iqn) {
                        row["connected_sessions"] = sessions();
                    }
                }
            }
            _ => {}
        }
    });
    reported
}

fn sessions() -> Value {
    json!([{"iqn": "iqn.1993-08.org.debian:01:former", "ip": "10.0.0.7"}])
}

#[tokio::test(start_paused = true)]
async fn a_reinstalled_node_releases_its_volumes() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let id = cluster.create("pvc-1", &[]).await?;
    cluster.publish(&id, NODE_A).await?;
    // The attacher knows the node by its new id only.
    cluster.unpublish(&id, NODE_A_RENAMED).await?;
    assert_eq!(cluster.targets().await?, 0);
    cluster.publish(&id, NODE_B).await?;
    cluster.unpublish(&id, NODE_A).await?;
    assert_eq!(cluster.targets().await?, 1, "another node's target stays");
    cluster.unpublish(&id, NODE_B).await?;
    cluster.delete(&id).await.map_err(Into::into)
}

#[tokio::test(start_paused = true)]
async fn a_former_target_is_replaced_after_a_minute_without_sessions() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let reported = reported(&cluster);
    let id = cluster.create("pvc-1", &[]).await?;
    let former = cluster.publish(&id, NODE_A).await?;
    let words = [
        former.as_str(),
        "another initiator name",
        "no initiator is logged in",
    ];
    refused(
        cluster.publish(&id, NODE_A_RENAMED).await,
        Code::Aborted,
        &words,
    );
    seconds(59).await;
    refused(
        cluster.publish(&id, NODE_A_RENAMED).await,
        Code::Aborted,
        &words,
    );
    // A session was seen in between.
    reported
        .lock()
        .expect("whole")
        .logged_in
        .push(former.clone());
    let busy = [
        former.as_str(),
        "iqn.1993-08.org.debian:01:former",
        "SAN Manager",
    ];
    refused(
        cluster.publish(&id, NODE_A_RENAMED).await,
        Code::Aborted,
        &busy,
    );
    reported.lock().expect("whole").logged_in.clear();
    for pause in [0, 40] {
        seconds(pause).await;
        refused(
            cluster.publish(&id, NODE_A_RENAMED).await,
            Code::Aborted,
            &words,
        );
    }
    seconds(20).await;
    let renamed = cluster.publish(&id, NODE_A_RENAMED).await?;
    assert_ne!(renamed, former);
    assert_eq!(cluster.targets().await?, 1);
    assert_eq!(cluster.publish(&id, NODE_A_RENAMED).await?, renamed);
    cluster.unpublish(&id, NODE_A_RENAMED).await?;
    cluster.delete(&id).await.map_err(Into::into)
}

/// The initiator is renamed under a running pod, and the NAS restarts: its session is gone for a while and comes back. The
/// external-attacher keeps retrying ControllerPublishVolume.
#[tokio::test(start_paused = true)]
async fn a_pod_under_a_renamed_initiator_survives_a_restart_of_the_nas() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let reported = reported(&cluster);
    let id = cluster.create("pvc-1", &[]).await?;
    let former = cluster.publish(&id, NODE_A).await?;
    // Uptimes of 0, 20, 40, … seconds; the session is back after 100 s. It exists before the restart and after that.
    for at in (0..=400_u64).step_by(20) {
        {
            let mut reported = reported.lock().expect("whole");
            let up = at.checked_sub(100);
            reported.up_time = up.map_or("100:0:0".to_owned(), |up| {
                format!("0:{}:{}", up / 60, up % 60)
            });
            let away = (100..200).contains(&at);
            reported.logged_in = if away { vec![] } else { vec![former.clone()] };
        }
        refused(
            cluster.publish(&id, NODE_A_RENAMED).await,
            Code::Aborted,
            &[&former],
        );
        assert_eq!(cluster.targets().await?, 1, "after {at} s");
        seconds(20).await;
    }
    assert_eq!(cluster.publish(&id, NODE_A).await?, former);
    Ok(())
}
