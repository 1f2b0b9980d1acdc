//! CHAP: logins with the Secret of a stage call, and that no credentials are left behind.

use super::*;
use crate::chap::{PASSWORD, PASSWORD_IN, USERNAME, USERNAME_IN};

const PORTALS: [&str; 2] = ["10.0.0.5:3260", "[fd00::5]:3261"];

impl Co {
    /// A target that requires alice's password, and a stage call with `password`.
    fn with_password(password: &str) -> Self {
        let co = Self {
            secrets: HashMap::from([
                (USERNAME.to_owned(), "alice".to_owned()),
                (PASSWORD.to_owned(), password.to_owned()),
            ]),
            ..Self::new()
        };
        co.fake.machine().chap = Some(("alice".to_owned(), "planted-right".to_owned()));
        co
    }

    fn mutual(self) -> Self {
        let mut co = self;
        co.secrets.extend([
            (USERNAME_IN.to_owned(), "nas".to_owned()),
            (PASSWORD_IN.to_owned(), "planted-other".to_owned()),
        ]);
        co
    }

    fn record(&self, name: &str) -> String {
        let path = format!("/etc/iscsi/nodes/{}/{name}", self.fake.iqn());
        let text = self.fake.machine().files.get(&path).cloned();
        String::from_utf8(text.unwrap_or_default()).unwrap()
    }

    #[track_caller]
    fn assert_clean(&self) {
        let machine = self.fake.machine();
        assert!(machine.records.is_empty() && machine.sessions.is_empty());
        let text = machine
            .files
            .values()
            .map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(text.into_iter().all(|text| !text.contains("planted")));
    }
}

#[tokio::test]
async fn the_right_secret_logs_in_and_is_on_no_command_line() {
    let co = Co::with_password("planted-right").mutual();
    co.stage().await.unwrap();
    let record = co.record("10.0.0.5,3260");
    assert!(
        record.contains("node.session.auth.password = planted-right\n"),
        "{record}"
    );
    assert!(record.contains("node.session.auth.password_in = planted-other\n"));
    let log = co.fake.machine().log.join("\n");
    assert!(!log.contains("planted") && !log.contains("alice"), "{log}");
    assert!(log.contains(&format!(
        "by way of /etc/iscsi/.synology-csi-{}",
        co.fake.iqn()
    )));
    co.unstage().await.unwrap();
    co.assert_clean();
}

#[tokio::test]
async fn a_wrong_secret_is_tried_once_and_leaves_nothing() {
    let co = Co::with_password("planted-wrong");
    let refused = co.stage_through(&PORTALS).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    for word in [
        "secrets[node.session.auth.password]",
        "same Secret",
        "10.0.0.5:3260",
    ] {
        assert!(refused.message().contains(word), "no {word} in: {refused}");
    }
    assert!(!refused.message().contains("planted"));
    assert_eq!(co.logins(), 1, "the second portal is the same target");
    co.assert_clean();
    // Not final while something may be left.
    let iqn = co.fake.iqn();
    co.fake
        .hang(&format!("iscsiadm -m node -T {iqn} -o delete"));
    fails(co.stage().await, Code::Unavailable, "may be left");
    let co = Co {
        secrets: HashMap::new(),
        ..co
    };
    fails(
        co.stage().await,
        Code::Unauthenticated,
        "csi.storage.k8s.io/node-stage-secret-name",
    );
    co.assert_clean();
}

#[tokio::test]
async fn a_target_that_fails_mutual_authentication_is_not_tried_again() {
    let co = Co::with_password("planted-right").mutual();
    let login = format!(
        "iscsiadm -m node -T {} -p 10.0.0.5:3260 --login",
        co.fake.iqn()
    );
    co.fake.answer(&login, 19, "non-retryable");
    fails(
        co.stage_through(&PORTALS).await,
        Code::FailedPrecondition,
        "secrets[node.session.auth.password_in]",
    );
    assert_eq!(co.logins(), 1);
    co.assert_clean();
}

#[tokio::test]
async fn an_old_record_keeps_no_secret_and_no_portal_group() {
    let co = Co::with_password("planted-right");
    co.stage().await.unwrap();
    co.fake.machine().sessions.clear();
    co.fake.machine().mounts.clear();
    // The Secret is gone, there is a record made by discovery, and a crash left a temporary record file.
    co.fake.machine().chap = None;
    let discovered = format!("/etc/iscsi/nodes/{}/10.0.0.5,3260,1/default", co.fake.iqn());
    co.fake
        .machine()
        .files
        .insert(discovered.clone(), Vec::new());
    let temp_file = "/etc/iscsi/.synology-csi-iqn.x".to_owned();
    co.fake
        .machine()
        .files
        .insert(temp_file.clone(), b"planted".to_vec());
    let co = Co {
        secrets: HashMap::new(),
        ..co
    };
    co.stage().await.unwrap();
    assert!(!co.record("10.0.0.5,3260").contains("planted"));
    assert!(!co.fake.machine().files.contains_key(&discovered));
    co.node.sweep().await;
    assert!(!co.fake.machine().files.contains_key(&temp_file));
    assert_eq!(co.fake.mounted(), ["/staging"]);
}

#[tokio::test]
async fn publish_and_stage_must_get_the_same_secret() {
    for (auth, secrets, fits) in [
        (None, "", true),
        (None, "chap", true),
        (Some(Method::None), "", true),
        (Some(Method::None), "chap", false),
        (Some(Method::Chap), "", false),
        (Some(Method::Chap), "chap", true),
        (Some(Method::Chap), "mutual", false),
        (Some(Method::Mutual), "chap", false),
        (Some(Method::Mutual), "mutual", true),
    ] {
        let mut co = Co::with_password("planted-right");
        match secrets {
            "" => {
                co.secrets.clear();
                co.fake.machine().chap = None;
            }
            "mutual" => co = co.mutual(),
            _ => {}
        }
        co.auth = auth;
        if fits {
            co.stage().await.unwrap();
        } else {
            fails(
                co.stage().await,
                Code::InvalidArgument,
                "csi.storage.k8s.io/node-stage-secret-name",
            );
            assert!(co.fake.machine().log.is_empty(), "nothing was done");
        }
    }
}

#[tokio::test]
async fn only_the_volumes_logical_unit_is_attached() {
    let co = Co::new();
    co.stage().await.unwrap();
    let log = co.fake.machine().log.join("\n");
    assert!(
        log.contains("echo 0 0 1 > /sys/class/scsi_host/host4/scan"),
        "{log}"
    );
    assert!(!log.contains("--rescan"), "{log}");
}
