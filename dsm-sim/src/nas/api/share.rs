//! Shared folders, as far as drivers list them at startup: this NAS has none. dsm-web-api.md 8.

use serde_json::json;

use crate::nas::call::{Answer, Call};
use crate::nas::code::Code;
use crate::nas::params::missing;

/// Answers for a NAS without shared folders. Creating one is not simulated, and refused as such.
pub(crate) fn call(call: &Call) -> Answer {
    match (call.api.as_str(), call.method.as_str()) {
        ("SYNO.Core.Share", "list") => Ok(Some(json!({"shares": [], "total": 0}))),
        ("SYNO.Core.FileServ.NFS", _) => Ok(Some(nfs())),
        ("SYNO.Core.FileServ.NFS.SharePrivilege", _) => {
            no_such_share(call, "share_name", Code::NfsShareGone)
        }
        _ => no_such_share(call, "name", Code::NO_SUCH_SHARE),
    }
}

fn no_such_share(call: &Call, parameter: &str, code: Code) -> Answer {
    let share = call
        .params
        .string(parameter)
        .ok_or_else(|| missing(parameter))?;
    Err(code.because(format!("no share {share}")))
}

// ASSUMED: that NFS is off, and the sizes; only the names were recorded.
fn nfs() -> serde_json::Value {
    json!({
        "enable_nfs": false,
        "enable_nfs_v4": false,
        "nfs_v4_domain": "",
        "read_size": 8192,
        "support_encrypt_share": 0,
        "support_major_ver": 4,
        "support_minor_ver": 1,
        "unix_pri_enable": true,
        "write_size": 8192,
    })
}

#[cfg(test)]
mod tests {
    use crate::nas::tests::NasFixture;

    #[test]
    fn a_nas_without_shares_says_so() {
        let mut sim = NasFixture::new();
        let list = sim.ok("SYNO.Core.Share", "list", &[("additional", "[]")]);
        assert_eq!(
            (list["shares"].as_array().unwrap().len(), &list["total"]),
            (0, &0.into())
        );
        for (api, method, params, code) in [
            ("SYNO.Core.Share", "get", vec![("name", "\"x\"")], 402),
            ("SYNO.Core.Share", "get", vec![], 114),
            (
                "SYNO.Core.Share.Snapshot",
                "list",
                vec![("name", "\"x\"")],
                402,
            ),
            (
                "SYNO.Core.FileServ.NFS.SharePrivilege",
                "load",
                vec![("share_name", "\"x\"")],
                2_370,
            ),
            ("SYNO.Core.FileServ.NFS", "get", vec![], 0),
            ("SYNO.Core.Share", "create", vec![], 103),
        ] {
            assert_eq!(
                sim.code(api, method, &params),
                code,
                "{api} {method} {params:?}"
            );
        }
    }
}
