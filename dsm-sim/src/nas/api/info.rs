//! The table of APIs, their versions and their simulated methods, and `SYNO.API.Info`, which reports it. Source: dsm-web-api.md
//! 2.

use serde_json::{Map, Value, json};

use crate::nas::call::Call;
use crate::nas::model::Generation;

/// One API.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) name: &'static str,
    /// Lowest and highest version on DSM 6 and on DSM 7; 0 if the API does not exist there.
    versions: [(u32, u32); 2],
    /// The simulated methods. A NAS reports its APIs, but not their methods.
    pub(crate) methods: &'static [&'static str],
}

/// An API with these highest versions on DSM 6 and 7, and lowest version 1.
const fn api(name: &'static str, six: u32, seven: u32, methods: &'static [&'static str]) -> Api {
    Api {
        name,
        versions: [(1, six), (1, seven)],
        methods,
    }
}

const LUN: &[&str] = &[
    "list",
    "get",
    "create",
    "set",
    "delete",
    "map_target",
    "unmap_target",
    "clone",
    "stop_clone",
    "take_snapshot",
    "list_snapshot",
    "get_snapshot",
    "delete_snapshot",
    "clone_snapshot",
    "restore_snapshot",
];
const TARGET: &[&str] = &[
    "list",
    "get",
    "create",
    "set",
    "delete",
    "map_lun",
    "unmap_lun",
    "enable",
    "disable",
];

/// The APIs that dsm-web-api.md covers; a NAS has hundreds more. The versions are those of the DSM 6 and DSM 7 fixtures of
/// mib1185/py-synologydsm-api.
static APIS: &[Api] = &[
    api("SYNO.API.Auth", 6, 7, &["login", "logout"]),
    api("SYNO.API.Auth.UIConfig", 0, 1, &["get"]),
    api("SYNO.API.Encryption", 1, 1, &["getinfo"]),
    api("SYNO.API.Info", 1, 1, &["query"]),
    api("SYNO.API.OTP", 1, 1, &[]),
    api("SYNO.Core.CurrentConnection", 1, 1, &["get", "list"]),
    api("SYNO.Core.ExternalDevice.Storage.USB", 1, 1, &["list"]),
    api("SYNO.Core.FileServ.NFS", 2, 3, &["get"]),
    api("SYNO.Core.FileServ.NFS.SharePrivilege", 1, 1, &["load"]),
    api("SYNO.Core.FileServ.SMB", 3, 3, &[]),
    api("SYNO.Core.Hardware.FanSpeed", 1, 1, &["get"]),
    api("SYNO.Core.ISCSI.FCTarget", 0, 1, &["list"]),
    api("SYNO.Core.ISCSI.Host", 0, 1, &["list", "get"]),
    api("SYNO.Core.ISCSI.LUN", 1, 1, LUN),
    api("SYNO.Core.ISCSI.Lunbkp", 1, 1, &[]),
    api("SYNO.Core.ISCSI.Node", 1, 1, &["list"]),
    api("SYNO.Core.ISCSI.Replication", 1, 1, &["list"]),
    api("SYNO.Core.ISCSI.Target", 1, 1, TARGET),
    api("SYNO.Core.ISCSI.VLUN", 1, 0, &[]),
    api("SYNO.Core.ISCSI.VMware", 0, 1, &[]),
    api("SYNO.Core.Network", 1, 2, &["get"]),
    api("SYNO.Core.Network.Interface", 1, 1, &["list"]),
    api("SYNO.Core.Security.DSM", 4, 5, &["get"]),
    api("SYNO.Core.SecurityScan.Status", 1, 1, &["system_get"]),
    api("SYNO.Core.Share", 1, 1, &["list", "get"]),
    api("SYNO.Core.Share.Permission", 1, 1, &["list"]),
    api("SYNO.Core.Share.Snapshot", 2, 2, &["list"]),
    api("SYNO.Core.Storage.Disk", 1, 1, &["list"]),
    api("SYNO.Core.Storage.Pool", 1, 1, &["list"]),
    api("SYNO.Core.Storage.Volume", 1, 1, &["list", "get"]),
    api("SYNO.Core.Storage.iSCSILUN", 1, 1, &[]),
    api("SYNO.Core.System", 3, 3, &["info"]),
    api("SYNO.Core.System.Utilization", 1, 1, &["get"]),
    api("SYNO.Core.Upgrade.Server", 2, 4, &["check"]),
    api("SYNO.Core.User", 1, 1, &["list"]),
    Api {
        versions: [(2, 2), (2, 2)],
        ..api("SYNO.DSM.Info", 2, 2, &["getinfo"])
    },
    Api {
        versions: [(2, 2), (2, 2)],
        ..api("SYNO.DSM.Network", 2, 2, &["list"])
    },
    api("SYNO.Entry.Request", 2, 2, &["request"]),
    api("SYNO.Storage.CGI.Storage", 1, 1, &["load_info"]),
];

impl Api {
    /// The API with this name, if this generation of DSM has it.
    pub(crate) fn named(name: &str, dsm: Generation) -> Option<&'static Self> {
        APIS.iter()
            .find(|api| api.name == name)
            .filter(|api| api.highest(dsm) > 0)
    }

    /// Whether this version exists.
    pub(crate) fn has_version(&self, version: u32, dsm: Generation) -> bool {
        let (lowest, highest) = self.versions[dsm as usize];
        (lowest..=highest).contains(&version)
    }

    /// Whether a call needs a session.
    pub(crate) fn needs_session(&self) -> bool {
        !self.name.starts_with("SYNO.API.")
    }

    /// Whether `SYNO.API.Info` reports it. An API without simulated methods is not reported: a client would rely on it.
    fn is_advertised(&self, dsm: Generation) -> bool {
        // Recorded (democratic #176): the API exists, but its one known method does not.
        let known = self.name == "SYNO.Core.Storage.iSCSILUN";
        self.highest(dsm) > 0 && (known || !self.methods.is_empty())
    }

    fn highest(&self, dsm: Generation) -> u32 {
        self.versions[dsm as usize].1
    }

    fn info(&self, dsm: Generation) -> Value {
        let path = match (dsm, self.name) {
            (Generation::Six, "SYNO.API.Info") => "query.cgi",
            (Generation::Six, "SYNO.API.Auth") => "auth.cgi",
            (Generation::Six, "SYNO.API.Encryption") => "encryption.cgi",
            (_, "SYNO.API.OTP") => "otp.cgi",
            _ => "entry.cgi",
        };
        let (lowest, highest) = self.versions[dsm as usize];
        let mut info = json!({"maxVersion": highest, "minVersion": lowest, "path": path});
        // Recorded: the old paths and the login do not use JSON.
        if path == "entry.cgi" && self.name != "SYNO.API.Auth" {
            info["requestFormat"] = json!("JSON");
        }
        info
    }
}

/// The APIs that can be called, with their methods.
pub(crate) fn simulated(
    dsm: Generation,
) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    let available = APIS.iter().filter(move |api| api.highest(dsm) > 0);
    available
        .filter(|api| !api.methods.is_empty())
        .map(|api| (api.name, api.methods))
}

/// `SYNO.API.Info query`. Unknown names are left out without an error; without `query` it returns all APIs, which is how Home
/// Assistant asks.
// ASSUMED: an empty `query` returns all, too.
pub(crate) fn query(call: &Call, dsm: Generation) -> Value {
    let requested = call.params.string("query").unwrap_or_default();
    let all = matches!(requested.as_str(), "" | "all");
    let wanted = |api: &&Api| all || requested.split(',').any(|name| name.trim() == api.name);
    let rows: Map<String, Value> = APIS
        .iter()
        .filter(|api| api.is_advertised(dsm))
        .filter(wanted)
        .map(|api| (api.name.to_owned(), api.info(dsm)))
        .collect();
    Value::Object(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nas::tests::NasFixture;

    #[test]
    fn each_generation_has_its_own_apis() {
        // dsm-web-api.md 2 and 11.1.
        for (name, six, seven) in [
            ("SYNO.Core.ISCSI.VLUN", true, false),
            ("SYNO.Core.ISCSI.Host", false, true),
            ("SYNO.Core.ISCSI.LUN", true, true),
            ("SYNO.Core.ISCSI.LUN.Snapshot.Schedule", false, false),
        ] {
            let has = |dsm| Api::named(name, dsm).is_some();
            assert_eq!(
                (has(Generation::Six), has(Generation::Seven)),
                (six, seven),
                "{name}"
            );
        }
        let nfs = |dsm| {
            Api::named("SYNO.Core.FileServ.NFS", dsm)
                .unwrap()
                .has_version(3, dsm)
        };
        assert!(!nfs(Generation::Six) && nfs(Generation::Seven));
    }

    #[test]
    fn without_a_query_all_apis_are_returned() {
        let mut sim = NasFixture::new();
        let api = "SYNO.API.Info";
        let all = sim.ok(api, "query", &[("query", "all")]);
        assert!(all.as_object().unwrap().len() > 20);
        assert_eq!(sim.ok(api, "query", &[]), all);
        let one = sim.ok(api, "query", &[("query", "SYNO.API.Auth,SYNO.No")]);
        assert_eq!(one.as_object().unwrap().len(), 1);
    }

    #[test]
    fn each_api_reports_its_path() {
        for (name, dsm, path, json) in [
            ("SYNO.API.Auth", Generation::Six, "auth.cgi", false),
            ("SYNO.API.Auth", Generation::Seven, "entry.cgi", false),
            ("SYNO.API.Info", Generation::Six, "query.cgi", false),
            ("SYNO.API.Info", Generation::Seven, "entry.cgi", true),
            ("SYNO.API.Encryption", Generation::Seven, "entry.cgi", true),
            ("SYNO.Core.ISCSI.LUN", Generation::Six, "entry.cgi", true),
        ] {
            let info = Api::named(name, dsm).unwrap().info(dsm);
            assert_eq!(info["path"], path, "{name} {dsm:?}");
            assert_eq!(info.get("requestFormat").is_some(), json, "{name} {dsm:?}");
        }
    }
}
