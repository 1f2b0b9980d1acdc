//! The stale lock of open-iscsi's record database.

use super::*;

impl Co {
    fn locked() -> Self {
        let co = Self::new();
        co.fake.machine().locked = Some(7);
        co
    }

    fn is_locked(&self) -> bool {
        self.fake.machine().locked.is_some()
    }
}

#[tokio::test]
async fn a_stale_lock_is_removed_after_a_minute() {
    let co = Co::locked();
    co.stage().await.unwrap();
    assert!(!co.is_locked());
    let paused = co.fake.machine().paused;
    assert!(paused >= Duration::from_secs(60), "{paused:?}");
    // Records of another volume, and of this one again.
    co.fake.machine().locked = Some(8);
    co.unstage().await.unwrap();
    assert!(!co.is_locked() && co.fake.machine().records.is_empty());
}

#[tokio::test]
async fn a_lock_that_may_be_held_stays_and_is_reported() {
    for (processes, why) in [
        (Some(vec!["iscsiadm"]), "an iscsiadm runs"),
        (None, "hostPID: true"),
    ] {
        let co = Co::locked();
        co.fake.machine().processes = processes;
        let refused = co.stage().await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let said = refused.message();
        assert!(said.contains(why), "{said}");
        assert!(said.ends_with("rm /run/lock/iscsi/lock.write"), "{said}");
        assert!(said.len() <= 200 || why.contains("hostPID"), "{said}");
        assert!(co.is_locked());
        co.fake.machine().processes = Some(vec![]);
        co.stage().await.unwrap();
    }
}

/// A changing lock is in use, whether or not its processes are visible.
#[tokio::test]
async fn a_lock_that_changes_stays() {
    let co = Co::locked();
    co.fake.machine().lock_changes = true;
    fails(co.stage().await, Code::Unavailable, "acquiring lock");
    assert!(co.is_locked());
    let paused = co.fake.machine().paused;
    assert!(paused < Duration::from_secs(60), "{paused:?}");
}

/// iscsiadm walks through all records, and another iscsiadm may delete one of them meanwhile.
#[tokio::test]
async fn a_database_error_without_a_lock_is_retried_once() {
    let co = Co::new();
    let login = format!(
        "iscsiadm -m node -T {} -p 10.0.0.5:3260 --login",
        co.fake.iqn()
    );
    co.fake.answer(
        &login,
        6,
        "iscsiadm: Could not execute operation on all records",
    );
    co.stage().await.unwrap();
    let logins = co.fake.ran("iscsiadm");
    let logins = logins.iter().filter(|line| **line == login).count();
    assert_eq!(logins, 2);
    let paused = co.fake.machine().paused;
    assert!(paused < Duration::from_secs(60), "{paused:?}");
}
