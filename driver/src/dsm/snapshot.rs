//! `SYNO.Core.ISCSI.LUN` v1 `list_snapshot`: the snapshots of a LUN, which `delete` of the LUN silently deletes. Pure, except for
//! the request itself. Evidence: `proto/dsm/lun_list_snapshot*.json`.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use super::call::Call;
use super::lun;
use super::nas::Nas;
use super::reply::{Code, DsmError};
use super::rows::{self, Rows};
use super::target::{self, Target, TargetsAnswer};
use crate::volume::LunUuid;

/// A snapshot of a LUN. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Snapshot {
    /// Not shown in SAN Manager.
    #[serde(default, deserialize_with = "rows::any_string")]
    pub name: String,
    /// Shown in SAN Manager, with its time and lock.
    #[serde(default, deserialize_with = "rows::any_string")]
    pub description: String,
    /// Unix seconds.
    #[serde(default)]
    pub create_time: Value,
    /// A user has locked it. All recorded rows have this field, so its absence is unexpected.
    #[serde(default)]
    pub is_user_locked: Value,
    /// It must not be deleted for some days (WORM). Requested; older releases do not have it.
    #[serde(default)]
    pub is_worm_locked: Value,
    /// Packages that need it: Snapshot Replication, for instance. Requested.
    #[serde(default)]
    pub locked_app_keys: Value,
}

impl Snapshot {
    /// Why it must not be deleted. `None`: DSM reports that it is not locked.
    pub fn locked(&self) -> Option<String> {
        if self.is_user_locked == Value::Bool(true) {
            return Some("locked".to_owned());
        }
        if self.is_user_locked != Value::Bool(false) {
            return Some("DSM does not report whether it is locked".to_owned());
        }
        if !matches!(self.is_worm_locked, Value::Null | Value::Bool(false)) {
            return Some("immutable".to_owned());
        }
        let keys = &self.locked_app_keys;
        let none = keys.is_null() || keys.as_array().is_some_and(Vec::is_empty);
        (!none).then(|| format!("locked for {keys}"))
    }
}

/// As shown in SAN Manager.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, description, ..
        } = self;
        write!(f, "{name:?}")?;
        // RFC 3339 has no years after 9999.
        if let Some(seconds) = self
            .create_time
            .as_u64()
            .filter(|time| *time < 253_402_300_800)
        {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            write!(f, " of {}", humantime::format_rfc3339_seconds(time))?;
        }
        if description.is_empty() {
            Ok(())
        } else {
            write!(f, " ({description})")
        }
    }
}

/// `data` of `list_snapshot`.
#[derive(Debug, Deserialize)]
pub struct SnapshotsAnswer {
    /// All snapshots of the LUN.
    pub snapshots: Rows<Snapshot>,
}

/// The snapshots of a LUN, by whether they may be deleted with it.
#[derive(Debug, Default, PartialEq)]
pub struct Snapshots {
    /// Unlocked ones, as text for messages.
    pub unlocked: Vec<String>,
    /// Locked ones with the reason, and unreadable rows.
    pub locked: Vec<String>,
}

impl From<SnapshotsAnswer> for Snapshots {
    fn from(answer: SnapshotsAnswer) -> Self {
        let mut all = Self::default();
        for snapshot in &answer.snapshots.readable {
            match snapshot.locked() {
                None => all.unlocked.push(snapshot.to_string()),
                Some(why) => all.locked.push(format!("{snapshot}: {why}")),
            }
        }
        // Unknown is not unlocked.
        let unreadable = answer.snapshots.unreadable.iter();
        all.locked.extend(unreadable.map(rows::UnreadableRow::seen));
        all
    }
}

/// Classifies an error of `list_snapshot`. `None`: the LUN cannot have snapshots.
fn unless_unsupported(refusal: DsmError) -> Option<DsmError> {
    let none = |code: Code| {
        // A release or model without snapshots; a LUN type without them; a LUN that was deleted just now, which `delete` and
        // `get` will notice.
        code.no_such_call() || code == Code::BAD_TYPE || code.no_lun()
    };
    (!refusal.code().is_some_and(none)).then_some(refusal)
}

/// `list_snapshot`.
pub fn list_of(lun: &LunUuid) -> Call {
    Call::new(lun::API, 1, "list_snapshot")
        .with("src_lun_uuid", lun.as_str())
        .with("additional", ["locked_app_keys", "is_worm_locked"])
}

impl Nas {
    /// The targets that export `uuid`, and its snapshots, in one request.
    ///
    /// # Errors
    /// [`DsmError`], unless it proves that the LUN has no snapshots; also for an unreadable target row that may concern the LUN.
    pub async fn targets_and_snapshots(
        &self,
        uuid: &LunUuid,
    ) -> Result<(Vec<Target>, Snapshots), DsmError> {
        let (targets, snapshots) = self
            .client
            .call_pair::<TargetsAnswer, SnapshotsAnswer>(&target::list_of(uuid), &list_of(uuid))
            .await?;
        let targets = self.targets_about(uuid, targets.targets)?;
        let snapshots = match snapshots {
            Ok(answer) => Snapshots::from(answer),
            Err(error) => match unless_unsupported(error) {
                Some(error) => return Err(error),
                None => Snapshots::default(),
            },
        };
        Ok((targets, snapshots))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(rows: &Value) -> Snapshots {
        let answer: SnapshotsAnswer =
            serde_json::from_value(json!({"count": 1, "snapshots": rows})).unwrap();
        answer.into()
    }

    #[test]
    fn only_a_snapshot_that_dsm_reports_as_unlocked_may_be_deleted() {
        for (row, locked) in [
            (json!({"is_user_locked": false}), false),
            (
                json!({"is_user_locked": false, "is_worm_locked": false, "locked_app_keys": []}),
                false,
            ),
            (
                json!({"is_user_locked": false, "is_worm_locked": null, "locked_app_keys": null}),
                false,
            ),
            (json!({"is_user_locked": true}), true),
            (
                json!({"is_user_locked": false, "is_worm_locked": true}),
                true,
            ),
            (
                json!({"is_user_locked": false, "locked_app_keys": ["SnapshotReplication-synodr-1"]}),
                true,
            ),
            (json!({}), true),
            (json!({"is_user_locked": null}), true),
            (json!({"is_user_locked": "no"}), true),
            (json!(null), true),
            (json!(7), true),
        ] {
            let snapshots = of(&json!([row]));
            assert_eq!(
                (snapshots.locked.len(), snapshots.unlocked.len()),
                (usize::from(locked), usize::from(!locked)),
                "{row}"
            );
        }
        assert_eq!(of(&json!([])), Snapshots::default());
    }

    #[test]
    fn a_snapshot_is_described_as_in_san_manager() {
        let row = json!({"name": "SnapShot-1", "description": "before the upgrade", "create_time": 1_742_739_365, "is_user_locked": true});
        assert_eq!(
            of(&json!([row])).locked,
            [r#""SnapShot-1" of 2025-03-23T14:16:05Z (before the upgrade): locked"#]
        );
        for time in [json!("yesterday"), json!(u64::MAX), json!(-1), json!(null)] {
            let row = json!({"name": "s", "create_time": time, "is_user_locked": false});
            assert_eq!(of(&json!([row])).unlocked, [r#""s""#], "{time}");
        }
    }

    #[test]
    fn a_malformed_list_is_not_an_empty_list() {
        for text in ["{}", r#"{"snapshots":null}"#, "null"] {
            assert!(
                serde_json::from_str::<SnapshotsAnswer>(text).is_err(),
                "{text}"
            );
        }
        let refusal = |code| DsmError::Refused {
            api: lun::API,
            method: "list_snapshot",
            code: Code(code),
        };
        for (code, none) in [
            (102, true),
            (103, true),
            (104, true),
            (18_990_500, true),
            (18_990_531, true),
            (18_990_505, true),
            (100, false),
            (105, false),
            (117, false),
            (18_990_004, false),
        ] {
            assert_eq!(unless_unsupported(refusal(code)).is_none(), none, "{code}");
        }
    }
}
