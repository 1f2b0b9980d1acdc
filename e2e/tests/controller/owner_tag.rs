//! What CreateVolume makes: the owner tag in the LUN's description, and the attributes that make the NAS honor flushes.

use anyhow::{Context as _, Result};
use e2e::GIB;
use serde_json::json;
use tonic::Code;

use super::common::{LUN, NODE_A};
use super::edited_replies::{EditedCluster, refused};

/// DSM stores a truncated description.
#[tokio::test(start_paused = true)]
async fn a_lun_with_a_truncated_tag_is_deleted_again() -> Result<()> {
    let cluster = EditedCluster::start()?;
    for (length, made) in [(200, true), (64, true), (10, false), (0, false)] {
        cluster.edit(move |api, method, answer| {
            let lun = &mut answer["data"]["lun"];
            if (api, method) == (LUN, "get") && lun.is_object() {
                let text = lun["description"].as_str().unwrap_or_default();
                lun["description"] = text.chars().take(length).collect::<String>().into();
            }
        });
        let name = format!("pvc-{length}");
        if made {
            let id = cluster.create(&name, &[]).await?;
            assert_eq!(cluster.create(&name, &[]).await?, id, "{length}");
            cluster.delete(&id).await?;
        } else {
            let words = ["differently than requested", "csi2 o=", "deleted again"];
            refused(
                cluster.create(&name, &[]).await,
                Code::FailedPrecondition,
                &words,
            );
        }
        let state = cluster
            .line
            .nas
            .control(http::Method::GET, "/state", &json!(null));
        assert_eq!(state.await?["luns"], json!([]), "{length}");
    }
    Ok(())
}

/// An administrator edits a description: before the tag, after it, or replacing it; then restores it as the error message says.
#[tokio::test(start_paused = true)]
async fn an_edited_owner_tag_can_be_restored_as_the_error_message_says() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let id = cluster.create("pvc-1", &[]).await?;
    let path = format!("/luns/{}", id.rsplit('/').next().unwrap_or_default());
    let describe = async |text: &str| {
        let description = json!({"description": text});
        let changed = cluster
            .line
            .nas
            .control(http::Method::PATCH, &path, &description);
        changed.await.map(drop)
    };
    let state = cluster
        .line
        .nas
        .control(http::Method::GET, "/state", &json!(null));
    let mark = state.await?["luns"][0]["description"].clone();
    let mark = mark.as_str().context("a description")?.to_owned();
    for text in [
        format!("Finance! {mark}"),
        format!("{mark}\nAsk Eve first."),
    ] {
        describe(&text).await?;
        cluster.publish(&id, NODE_A).await?;
        cluster.unpublish(&id, NODE_A).await?;
    }
    describe("Finance, do not touch").await?;
    let words = [
        "lacks the owner tag",
        "SAN Manager",
        "Finance, do not touch",
    ];
    for answer in [
        cluster.publish(&id, NODE_A).await.map(drop),
        cluster.delete(&id).await,
        cluster.expand(&id, 2 * GIB).await.map(drop),
    ] {
        refused(answer, Code::FailedPrecondition, &words);
    }
    let message = cluster
        .delete(&id)
        .await
        .expect_err("refused")
        .message()
        .to_owned();
    let typed = message.split('"').nth(1).context("what to type")?;
    describe(&format!("{typed} Finance, do not touch")).await?;
    cluster.publish(&id, NODE_A).await?;
    assert_eq!(cluster.create("pvc-1", &[]).await?, id);
    cluster.unpublish(&id, NODE_A).await?;
    cluster.delete(&id).await.map_err(Into::into)
}

#[tokio::test(start_paused = true)]
async fn flushes_count_where_the_nas_can() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let flushes = async |uuid: &str| -> Result<u64> {
        let state = cluster
            .line
            .nas
            .control(http::Method::GET, "/state", &json!(null));
        let luns = state.await?["luns"].as_array().cloned().unwrap_or_default();
        let lun = luns
            .iter()
            .find(|lun| lun["uuid"] == uuid)
            .context("the LUN")?
            .clone();
        let rows = lun["dev_attribs"].as_array().cloned().unwrap_or_default();
        let on = |name: &str| {
            rows.iter()
                .any(|row| row["dev_attrib"] == name && row["enable"] == 1)
        };
        Ok(u64::from(on("emulate_fua_write")) + u64::from(on("emulate_sync_cache")))
    };
    let uuid = |id: &str| id.rsplit('/').next().unwrap_or_default().to_owned();
    let class = |word: &'static str| [("location", "/volume1"), ("enableFuaSyncCache", word)];
    let on = cluster.create("on", &[]).await?;
    let off = cluster.create("off", &class("false")).await?;
    assert_eq!(
        (flushes(&uuid(&on)).await?, flushes(&uuid(&off)).await?),
        (2, 0)
    );
    // An older DSM release, or a LUN type that does not support them.
    let refuse = json!({"api": LUN, "method": "create", "nth": 1, "times": 1, "fault": {"kind": "refuse", "code": 18_990_622}});
    let fault = async || {
        cluster
            .line
            .nas
            .control(http::Method::POST, "/faults", &refuse)
            .await
    };
    fault().await?;
    let without = cluster.create("without", &[]).await?;
    assert_eq!(flushes(&uuid(&without)).await?, 0);
    fault().await?;
    let insists = cluster.create("insists", &class("true")).await;
    refused(
        insists,
        Code::InvalidArgument,
        &["enableFuaSyncCache", "18990622"],
    );
    let no_word = cluster.create("no-word", &class("maybe")).await;
    refused(
        no_word,
        Code::InvalidArgument,
        &["enableFuaSyncCache", "maybe", "true or false"],
    );
    Ok(())
}
