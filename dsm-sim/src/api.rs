//! Which APIs this NAS has, in which versions, with which methods; and `SYNO.API.Info`, which tells. Source: dsm-api.md 2.

use serde_json::{Map, Value, json};

use crate::decode::missing;
use crate::model::Dsm;
use crate::nas::{Answer, Call};

/// One API.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) name: &'static str,
    /// Highest version on DSM 6 and on DSM 7.
    max: [u32; 2],
    min: u32,
    pub(crate) methods: &'static [&'static str],
    /// Whether a call needs a session.
    pub(crate) session: bool,
}

// The versions are those of the DSM 6 and DSM 7 fixtures of mib1185/py-synologydsm-api.
const APIS: [Api; 9] = [
    Api {
        name: "SYNO.API.Info",
        max: [1, 1],
        min: 1,
        methods: &["query"],
        session: false,
    },
    Api {
        name: "SYNO.API.Auth",
        max: [6, 7],
        min: 1,
        methods: &["login", "logout"],
        session: false,
    },
    Api {
        name: "SYNO.Entry.Request",
        max: [2, 2],
        min: 1,
        methods: &["request"],
        session: true,
    },
    Api {
        name: "SYNO.Core.ISCSI.LUN",
        max: [1, 1],
        min: 1,
        methods: &[
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
        ],
        session: true,
    },
    Api {
        name: "SYNO.Core.ISCSI.Target",
        max: [1, 1],
        min: 1,
        methods: &[
            "list",
            "get",
            "create",
            "set",
            "delete",
            "map_lun",
            "unmap_lun",
            "enable",
            "disable",
        ],
        session: true,
    },
    Api {
        name: "SYNO.Core.Storage.Volume",
        max: [1, 1],
        min: 1,
        methods: &["list", "get"],
        session: true,
    },
    Api {
        name: "SYNO.Core.System",
        max: [3, 3],
        min: 1,
        methods: &["info"],
        session: true,
    },
    Api {
        name: "SYNO.DSM.Info",
        max: [2, 2],
        min: 2,
        methods: &["getinfo"],
        session: true,
    },
    Api {
        name: "SYNO.Core.Security.DSM",
        max: [4, 5],
        min: 1,
        methods: &["get"],
        session: true,
    },
];

impl Api {
    /// The API of this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        APIS.iter().find(|api| api.name == name)
    }

    /// Whether this version exists.
    pub(crate) fn has_version(&self, version: u32, dsm: Dsm) -> bool {
        (self.min..=self.max_version(dsm)).contains(&version)
    }

    fn max_version(&self, dsm: Dsm) -> u32 {
        match dsm {
            Dsm::Six => self.max[0],
            Dsm::Seven => self.max[1],
        }
    }

    fn info(&self, dsm: Dsm) -> Value {
        let path = match (dsm, self.name) {
            (Dsm::Six, "SYNO.API.Info") => "query.cgi",
            (Dsm::Six, "SYNO.API.Auth") => "auth.cgi",
            _ => "entry.cgi",
        };
        let mut info =
            json!({"maxVersion": self.max_version(dsm), "minVersion": self.min, "path": path});
        let plain = self.name == "SYNO.API.Auth" || path != "entry.cgi";
        if !plain {
            info["requestFormat"] = json!("JSON");
        }
        info
    }
}

/// `SYNO.API.Info query`. Names that do not exist are left out, and that is no error.
pub(crate) fn query(call: &Call, dsm: Dsm) -> Answer {
    let asked = call
        .params
        .string("query")
        .ok_or_else(|| missing("query"))?;
    let all = asked == "all";
    let wanted = |api: &&Api| all || asked.split(',').any(|name| name.trim() == api.name);
    let rows: Map<String, Value> = APIS
        .iter()
        .filter(wanted)
        .map(|api| (api.name.to_owned(), api.info(dsm)))
        .collect();
    Ok(Some(Value::Object(rows)))
}
