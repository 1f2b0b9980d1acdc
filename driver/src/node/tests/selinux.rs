//! SELinux labels as mount options (`context=`), as the kubelet passes them at stage and publish.

use super::*;

const LABEL: &str = r#"context="system_u:object_r:container_file_t:s0:c0,c1""#;

fn labelled(co: &mut Co, label: &str) {
    co.flags = vec!["noatime".to_owned(), label.to_owned()];
}

/// A node where SELinux runs.
fn node() -> Co {
    let mut co = Co::new();
    co.fake.machine().selinux = true;
    labelled(&mut co, LABEL);
    co
}

#[tokio::test]
async fn a_label_is_passed_to_mount_unchanged_and_not_to_bind_mounts() {
    let co = node();
    co.stage().await.unwrap();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    co.publish("/pods/2", true).await.unwrap();
    let temp_mount = "/staging.csi.synology.com-readonly";
    assert_eq!(
        co.fake.ran("mount"),
        [
            format!(
                "mount -t ext4 -o nodev,nosuid,errors=remount-ro,noatime,{LABEL} /dev/sdb /staging"
            ),
            "mount -o bind /staging /pods/1".to_owned(),
            format!("mount -o bind /staging {temp_mount}"),
            format!("mount -o remount,bind,ro {temp_mount}"),
            format!("mount -o bind {temp_mount} /pods/2"),
        ]
    );
}

#[tokio::test]
async fn a_label_with_reordered_categories_is_the_same() {
    let mut co = node();
    co.stage().await.unwrap();
    labelled(
        &mut co,
        r#"context="system_u:object_r:container_file_t:s0:c1,c0""#,
    );
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
}

#[tokio::test]
async fn a_volume_has_one_label() {
    let mut co = node();
    co.stage().await.unwrap();
    labelled(
        &mut co,
        r#"context="system_u:object_r:container_file_t:s0:c8,c9""#,
    );
    fails(co.stage().await, Code::AlreadyExists, "s0:c8,c9");
    let refused = co.publish("/pods/1", false).await;
    fails(
        refused,
        Code::FailedPrecondition,
        "staged with the SELinux label system_u:object_r:container_file_t:s0:c0,c1",
    );
    co.flags.clear();
    fails(co.stage().await, Code::AlreadyExists, "no SELinux label");
    let refused = co.publish("/pods/1", false).await;
    fails(
        refused,
        Code::FailedPrecondition,
        "not with no SELinux label",
    );
    assert_eq!(co.fake.mounted(), ["/staging"], "the volume stays staged");

    let mut co = node();
    co.flags.clear();
    co.stage().await.unwrap();
    labelled(&mut co, LABEL);
    co.flags.remove(0);
    fails(co.stage().await, Code::AlreadyExists, "s0:c0,c1");
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        "s0:c0,c1",
    );
}

#[tokio::test]
async fn a_label_that_mount_drops_is_detected() {
    let co = node();
    co.fake.machine().selinux = false;
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "/sys/fs/selinux",
    );
    assert!(co.fake.mounted().is_empty(), "no unlabelled mount is left");
    assert!(
        co.fake.machine().sessions.is_empty(),
        "a final error leaves no session"
    );
    co.fake.machine().selinux = true;
    co.stage().await.unwrap();
}

#[tokio::test]
async fn a_label_that_the_kernel_refuses_is_reported() {
    let co = node();
    co.fake
        .answer("mount -t", 32, "mount: /staging: wrong fs type, bad option");
    fails(co.stage().await, Code::Unavailable, "bad option");
    assert!(co.fake.mounted().is_empty());
}
