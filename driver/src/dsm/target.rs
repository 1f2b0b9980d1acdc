//! `SYNO.Core.ISCSI.Target` v1: calls and replies. Pure. Evidence: `proto/dsm/target_*.json`.
//!
//! `target_id` is a JSON *string* holding the number; a bare number is refused (measured).

use serde::Deserialize;

use super::call::Call;
use super::reply::DsmError;
use super::rows::{Rows, UnreadableRow};
use crate::chap::{Chap, Method};
use crate::publication::Iqn;
use crate::volume::LunUuid;

const API: &str = "SYNO.Core.ISCSI.Target";
const ADDITIONAL: [&str; 2] = ["mapped_lun", "connected_sessions"];

/// A target as `get` and `list` report it. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Target {
    /// DSM's key.
    pub target_id: u64,
    /// Unique on the NAS.
    pub name: String,
    /// Unique on the NAS.
    pub iqn: String,
    /// A disabled target takes no logins.
    pub is_enabled: Option<bool>,
    /// CHAP: 0 none, 1 one-way (initiator), 2 mutual.
    pub auth_type: Option<u8>,
    /// The initiator's CHAP name. DSM returns passwords empty.
    pub user: Option<String>,
    /// The target's CHAP name.
    pub mutual_user: Option<String>,
    /// Always requested.
    pub mapped_luns: Vec<Mapping>,
    /// Always requested.
    #[serde(default)]
    pub connected_sessions: Vec<ConnectedSession>,
}

/// A LUN that a target exports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Mapping {
    /// The LUN's key.
    pub lun_uuid: String,
    /// The SCSI logical unit number; −1 was seen for a target that is not loaded.
    pub mapping_index: i64,
}

impl Mapping {
    /// The SCSI logical unit number, if it is valid.
    pub fn unit(&self) -> Option<u16> {
        u16::try_from(self.mapping_index).ok()
    }
}

/// An initiator that is logged in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ConnectedSession {
    /// Its IQN.
    pub iqn: String,
    /// Its IP address.
    #[serde(default)]
    pub ip: String,
}

impl Target {
    /// The mapping of `lun` to this target.
    pub fn mapping_of(&self, lun: &LunUuid) -> Option<&Mapping> {
        self.mapped_luns
            .iter()
            .find(|mapping| mapping.lun_uuid == lun.as_str())
    }

    /// How its CHAP settings differ from `chap`, as far as DSM reports them: it never returns a password.
    pub fn differs_from(&self, chap: Option<&Chap>) -> Option<String> {
        let wanted = Method::of(chap).auth_type();
        if let Some(seen) = self.auth_type.filter(|seen| *seen != wanted) {
            return Some(format!("auth_type is {seen}, not {wanted}"));
        }
        let chap = chap?;
        let other =
            |seen: &Option<String>, wanted: &str| seen.as_ref().is_some_and(|seen| seen != wanted);
        if other(&self.user, &chap.initiator.user) {
            return Some("the initiator's CHAP name differs".to_owned());
        }
        match &chap.target {
            Some(target) if other(&self.mutual_user, &target.user) => {
                Some("the target's CHAP name differs".to_owned())
            }
            Some(_) | None => None,
        }
    }

    /// It is the same target, read at another time.
    pub fn is(&self, other: &Self) -> bool {
        self.target_id == other.target_id && self.iqn == other.iqn
    }

    /// Its IQN, if it is well-formed.
    pub fn iqn(&self) -> Option<Iqn> {
        self.iqn.parse().ok()
    }
}

/// An unreadable row could concern `lun`: it is a publication of it or mentions it, or that cannot be determined. A foreign
/// target without readable mappings is ignored: DSM also reports for the LUN that it is exported (`is_mapped`).
pub fn may_concern(row: &UnreadableRow, lun: &LunUuid) -> bool {
    row.text("iqn").is_none_or(|iqn| {
        publication_of(iqn).is_some_and(|published| published == *lun) || row.mentions(lun.as_str())
    })
}

/// An unreadable row could be a publication of this driver.
pub fn may_be_ours(row: &UnreadableRow) -> bool {
    row.text("iqn")
        .is_none_or(|iqn| publication_of(iqn).is_some())
}

/// The LUN of which the target with this IQN is a publication.
fn publication_of(iqn: &str) -> Option<LunUuid> {
    let iqn: Iqn = iqn.parse().ok()?;
    iqn.publication().map(|(lun, _)| lun)
}

/// The error for a compound reply that lacks the result of a call.
pub(super) fn no_result(call: &Call) -> DsmError {
    DsmError::Garbled {
        api: call.api,
        method: call.method,
        seen: "no result in a compound reply".to_owned(),
    }
}

/// `data` of `get`.
#[derive(Debug, Deserialize)]
pub struct TargetAnswer {
    /// The target.
    pub target: Target,
}

/// `data` of `list`.
#[derive(Debug, Deserialize)]
pub struct TargetsAnswer {
    /// The targets.
    pub targets: Rows<Target>,
}

/// `data` of `create`.
#[derive(Debug, Deserialize)]
pub struct CreatedTarget {
    /// The new target's key.
    pub target_id: u64,
}

/// `list` of all targets.
pub fn list() -> Call {
    Call::new(API, 1, "list").with("additional", ADDITIONAL)
}

/// `list` of the targets that export `lun`. The filter is not verified: check every row.
pub fn list_of(lun: &LunUuid) -> Call {
    list().with("lun_uuid", lun.as_str())
}

/// `get` by name.
pub fn get(name: &str) -> Call {
    Call::new(API, 1, "get")
        .with("target_id", name)
        .with("additional", ADDITIONAL)
}

/// `get` by number.
fn get_numbered(target_id: u64) -> Call {
    get(&target_id.to_string())
}

/// The calls to change a target by its number, in one request that stops at the first error: `get` by its name, which is never
/// reused, to check that the target exists; `get` by the number, to see which target has it; the writes; the list.
///
/// Without the `get` by name for a NAS that does not support it.
pub fn guarded(target: &Target, by_name: bool, writes: &[Call]) -> Vec<Call> {
    let name = by_name.then(|| get(&target.name));
    name.into_iter()
        .chain([get_numbered(target.target_id)])
        .chain(writes.iter().cloned())
        .chain([list()])
        .collect()
}

/// `create`, for any number of sessions (`max_sessions` 0): the publication is fenced by its own target.
pub fn create(name: &str, iqn: &Iqn, chap: Option<&Chap>) -> Call {
    let call = Call::new(API, 1, "create")
        .with("name", name)
        .with("iqn", iqn.as_str());
    with_auth(call, chap).with("max_sessions", 0)
}

/// `set` of the CHAP credentials, by numeric id only (design.md#dsm-reuses-target-numbers).
pub fn set_auth(target_id: u64, chap: Option<&Chap>) -> Call {
    let call = Call::new(API, 1, "set").with("target_id", target_id.to_string());
    with_auth(call, chap)
}

fn with_auth(call: Call, chap: Option<&Chap>) -> Call {
    let call = call.with("auth_type", Method::of(chap).auth_type());
    let Some(Chap { initiator, target }) = chap else {
        return call;
    };
    let call = call
        .with("user", &initiator.user)
        .with_secret("password", &initiator.password);
    match target {
        Some(target) => call
            .with("mutual_user", &target.user)
            .with_secret("mutual_password", &target.password),
        None => call,
    }
}

/// `set` of the name.
pub fn rename(target_id: u64, name: &str) -> Call {
    Call::new(API, 1, "set")
        .with("target_id", target_id.to_string())
        .with("name", name)
}

/// `delete`, by numeric id only (design.md#dsm-reuses-target-numbers).
pub fn delete(target_id: u64) -> Call {
    Call::new(API, 1, "delete").with("target_id", target_id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// design.md#dsm-reuses-target-numbers
    #[test]
    fn targets_are_deleted_by_a_number_in_quotes() {
        assert_eq!(delete(3).form()[3], ("target_id", "\"3\"".to_owned()));
    }

    fn chap(target: Option<&str>) -> Chap {
        let account = |user: &str| crate::chap::Account {
            user: user.to_owned(),
            password: "planted-12345".into(),
        };
        Chap {
            initiator: account("alice"),
            target: target.map(account),
        }
    }

    #[test]
    fn chap_settings_are_compared() {
        let seen = |fields: &str| {
            let text =
                format!(r#"{{"target_id":1,"name":"n","iqn":"iqn.x","mapped_luns":[]{fields}}}"#);
            serde_json::from_str::<Target>(&text).unwrap()
        };
        let one = r#","auth_type":1,"user":"alice","mutual_user":"""#;
        let both = r#","auth_type":2,"user":"alice","mutual_user":"nas""#;
        for (fields, chap, differs) in [
            (r#","auth_type":0,"user":"left over""#, None, false),
            (one, None, true),
            (one, Some(chap(None)), false),
            (r#","auth_type":1,"user":"bob""#, Some(chap(None)), true),
            (r#","auth_type":0"#, Some(chap(None)), true),
            (both, Some(chap(Some("nas"))), false),
            (both, Some(chap(Some("nas2"))), true),
            (both, Some(chap(None)), true),
            ("", Some(chap(Some("nas"))), false),
        ] {
            let found = seen(fields).differs_from(chap.as_ref());
            assert_eq!(found.is_some(), differs, "{fields}: {found:?}");
        }
    }

    #[test]
    fn a_password_is_in_the_form_and_in_no_text() {
        for call in [
            create("n", &"iqn.x".parse().unwrap(), Some(&chap(Some("nas")))),
            set_auth(3, Some(&chap(Some("nas")))),
        ] {
            let form = call.form();
            for name in ["password", "mutual_password"] {
                assert!(
                    form.contains(&(name, "\"planted-12345\"".to_owned())),
                    "{name}"
                );
            }
            assert!(form.contains(&("auth_type", "2".to_owned())));
            assert!(!format!("{call:?}").contains("planted"));
        }
    }

    #[test]
    fn a_target_without_mapped_luns_is_not_an_answer() {
        let text = r#"{"target_id":1,"name":"n","iqn":"iqn.x","is_enabled":true}"#;
        assert!(
            serde_json::from_str::<Target>(text).is_err(),
            "unknown is not absent"
        );
    }

    #[test]
    fn unreadable_rows_of_foreign_targets_are_ignored() {
        use serde_json::json;
        const UUID: &str = "13a3cd1e-f296-4d4b-b712-a85c139f9dac";
        let (lun, other): (LunUuid, LunUuid) = (
            UUID.parse().unwrap(),
            "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        );
        let node = "node-a:0123abcd".parse().unwrap();
        let nonce = crate::publication::Nonce::draw(&mut rand::rng());
        let ours = Iqn::of_publication(&lun, &node, &nonce);
        for (row, concerns, may_be) in [
            (json!({"iqn": "iqn.2000-01.com.synology:vm"}), false, false),
            (
                json!({"iqn": "iqn.2000-01.com.synology:vm", "mapped_luns": 1}),
                false,
                false,
            ),
            (
                json!({"iqn": "iqn.2000-01.com.synology:vm", "mapped_luns": [{"lun_uuid": UUID}]}),
                true,
                false,
            ),
            (json!({"iqn": ours.as_str()}), true, true),
            (json!({"name": "no iqn"}), true, true),
            (json!(17), true, true),
        ] {
            let rows: Rows<Target> = serde_json::from_value(json!([row])).unwrap();
            assert_eq!(may_concern(&rows.unreadable[0], &lun), concerns, "{row}");
            assert_eq!(may_be_ours(&rows.unreadable[0]), may_be, "{row}");
            if row.get("iqn").is_some() {
                assert!(!may_concern(&rows.unreadable[0], &other), "{row}");
            }
        }
        let odd = json!([{
            "target_id": 7, "name": "vm", "iqn": "iqn.x", "mapped_luns": [{"lun_uuid": UUID, "mapping_index": -1}],
        }]);
        let rows: Rows<Target> = serde_json::from_value(odd).unwrap();
        assert_eq!(rows.readable[0].mapping_of(&lun).unwrap().unit(), None);
    }
}
