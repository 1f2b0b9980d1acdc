//! CHAP on the NAS: what a publication's target is told, read back, and what is answered when the NAS will not have it.

use std::collections::HashMap;

use anyhow::Result;
use e2e::GIB;
use e2e::life::{Content, capability};
use e2e::world::{Plan, World};
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;
use serde_json::json;
use tonic::{Code, Status};

use super::common::{Csi, NODE_A, TARGET, calls, lose, now, refuse, refused, shorts};

const BAD_AUTH_DATA: u32 = 18_990_708;

fn secret(password: &str) -> HashMap<String, String> {
    [("username", "alice"), ("password", password)]
        .map(|(key, value)| (format!("node.session.auth.{key}"), value.to_owned()))
        .into()
}

async fn publish(csi: &Csi, id: &str, password: &str) -> Result<String, Status> {
    let request = csi::ControllerPublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: NODE_A.to_owned(),
        volume_capability: Some(capability(Content::Block, Mode::SingleNodeWriter)),
        secrets: if password.is_empty() {
            HashMap::new()
        } else {
            secret(password)
        },
        ..Default::default()
    };
    let answer = csi.0.clone().controller_publish_volume(request).await?;
    Ok(answer.into_inner().publish_context["auth"].clone())
}

async fn auth_types(world: &World) -> Result<Vec<u64>> {
    let targets = world.nas.targets_now().await?;
    Ok(targets
        .iter()
        .filter_map(|target| target["auth_type"].as_u64())
        .collect())
}

#[tokio::test]
async fn a_repeated_publication_tells_the_target_again() -> Result<()> {
    let world = Plan::controller().start().await?;
    let csi = Csi::of(&world.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    for (password, auth, auth_type, wanted) in [
        (
            "planted-right",
            "chap",
            1,
            vec![
                "LUN.get",
                "Target.list",
                "Target.create",
                "LUN.map_target",
                "Target.list",
            ],
        ),
        // A password cannot be read back.
        (
            "planted-right",
            "chap",
            1,
            vec!["LUN.get", "Target.list", "Target.set", "Target.list"],
        ),
        (
            "",
            "none",
            0,
            vec!["LUN.get", "Target.list", "Target.set", "Target.list"],
        ),
        ("", "none", 0, vec!["LUN.get", "Target.list"]),
        (
            "planted-other",
            "chap",
            1,
            vec!["LUN.get", "Target.list", "Target.set", "Target.list"],
        ),
    ] {
        let since = now(&world.nas).await?;
        assert_eq!(publish(&csi, &id, password).await?, auth);
        assert_eq!(shorts(&calls(&world.nas, since).await?), wanted);
        assert_eq!(auth_types(&world).await?, [auth_type]);
    }
    Ok(())
}

#[tokio::test]
async fn choice_17_bad_auth_data_is_final_only_when_nothing_was_made() -> Result<()> {
    let world = Plan::controller().start().await?;
    let csi = Csi::of(&world.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let field = "secrets[node.session.auth.password]";
    world
        .nas
        .fault(TARGET, "create", 1, 1, refuse(BAD_AUTH_DATA))
        .await?;
    refused(
        publish(&csi, &id, "planted-right").await,
        Code::InvalidArgument,
        &[field, "does not take"],
    );
    assert_eq!(auth_types(&world).await?, Vec::<u64>::new());

    // The reply is lost, and the target that was made takes no other auth data: it exports nothing and goes.
    world.nas.fault(TARGET, "create", 1, 1, lose()).await?;
    world
        .nas
        .fault(TARGET, "set", 1, 1, refuse(BAD_AUTH_DATA))
        .await?;
    refused(
        publish(&csi, &id, "planted-right").await,
        Code::InvalidArgument,
        &[field],
    );
    assert_eq!(auth_types(&world).await?, Vec::<u64>::new());

    // A publication that may be in use stays.
    publish(&csi, &id, "planted-right").await?;
    world
        .nas
        .fault(TARGET, "set", 1, 1, refuse(BAD_AUTH_DATA))
        .await?;
    refused(
        publish(&csi, &id, "planted-other").await,
        Code::Unavailable,
        &[field, "may be in use"],
    );
    assert_eq!(auth_types(&world).await?, [1]);
    world
        .nas
        .fault(TARGET, "set", 1, 1, json!({"kind": "lose_reply"}))
        .await?;
    refused(
        publish(&csi, &id, "planted-other").await,
        Code::Unavailable,
        &["CHAP"],
    );
    assert_eq!(publish(&csi, &id, "planted-other").await?, "chap");
    Ok(())
}
