use std::collections::HashMap;

use super::csi;

fn planted() -> HashMap<String, String> {
    HashMap::from([("chap-password".to_owned(), "hunter2hunter2".to_owned())])
}

#[track_caller]
fn check(debug: &str) {
    assert!(!debug.contains("hunter2"), "{debug}");
    assert!(debug.contains("1 secret(s) ***"), "{debug}");
    assert!(
        debug.contains("vol-1"),
        "the other fields stay readable: {debug}"
    );
}

#[test]
fn a_request_with_secrets_prints_none() {
    let volume_id = String::from("vol-1");
    check(&format!(
        "{:?}",
        csi::CreateVolumeRequest {
            name: volume_id.clone(),
            secrets: planted(),
            ..Default::default()
        }
    ));
    check(&format!(
        "{:?}",
        csi::DeleteVolumeRequest {
            volume_id: volume_id.clone(),
            secrets: planted()
        }
    ));
    check(&format!(
        "{:#?}",
        csi::NodeStageVolumeRequest {
            volume_id: volume_id.clone(),
            secrets: planted(),
            ..Default::default()
        }
    ));
    check(&format!(
        "{:?}",
        csi::NodeExpandVolumeRequest {
            volume_id,
            secrets: planted(),
            ..Default::default()
        }
    ));
}

#[test]
fn no_message_derives_a_debug_over_its_secrets() {
    // The generated source itself: every struct with a `secrets` field must leave Debug to the hand-made impls.
    let source = include_str!(concat!(env!("OUT_DIR"), "/csi.v1.rs"));
    let debug = include_str!(concat!(env!("OUT_DIR"), "/debug.rs"));
    let with_secrets: Vec<&str> = source
        .split("pub struct ")
        .skip(1)
        .filter(|body| {
            body.split("\n}")
                .next()
                .is_some_and(|fields| fields.contains("pub secrets:"))
        })
        .filter_map(|body| body.split_whitespace().next())
        .collect();
    let marked = include_str!("../csi.proto")
        .matches("(csi_secret) = true")
        .count();
    assert_eq!(with_secrets.len(), marked, "{with_secrets:?}");
    for name in with_secrets {
        assert!(
            debug.contains(&format!("Debug for {name} {{")),
            "{name} has no redacting Debug"
        );
    }
}

#[test]
fn the_descriptor_set_keeps_the_secret_marks() {
    // The text of an option's name does appear in the set; `cargo ci spec` compares the values themselves.
    let set = super::FILE_DESCRIPTOR_SET;
    assert!(set.windows(10).any(|window| window == b"csi_secret"));
}
