//! Creates the objects of the simulator that a NAS is compared with. It takes a [`DsmSim`], so that these calls, which change
//! things, cannot reach a real NAS.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::compare::upstream::{TlsTrust, Upstream};
use crate::instance::running::DsmSim;

const LUN: &str = "SYNO.Core.ISCSI.LUN";
const TARGET: &str = "SYNO.Core.ISCSI.Target";

/// Creates one LUN, one target that it is mapped to, and one snapshot in a fresh simulator (admin, admin).
pub(super) async fn populate(sim: &DsmSim) -> anyhow::Result<()> {
    let at = Upstream {
        url: sim.api().parse()?,
        trust: TlsTrust::Platform,
    };
    let (http, url) = (at.client()?, at.at("/webapi/entry.cgi"));
    let send = async |api: &str, version: &str, method: &str, params: &[(&str, &str)]| {
        let mut form = vec![("api", api), ("version", version), ("method", method)];
        form.extend_from_slice(params);
        let text = http.post(&url).form(&form).send().await?.text().await?;
        let reply: Value = serde_json::from_str(&text)?;
        ensure!(reply["success"] == true, "{api} {method}: {reply}");
        anyhow::Ok(reply["data"].clone())
    };
    let login = [("account", "admin"), ("passwd", "admin")];
    let login = send("SYNO.API.Auth", "6", "login", &login).await?;
    let sid = ("_sid", login["sid"].as_str().unwrap_or_default());

    let lun = [
        ("name", "\"one\""),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "1073741824"),
        (
            "dev_attribs",
            r#"[{"dev_attrib":"can_snapshot","enable":1}]"#,
        ),
        sid,
    ];
    let uuid = send(LUN, "1", "create", &lun).await?["uuid"].to_string();
    let target = [
        ("name", "one"),
        ("iqn", "iqn.2000-01.com.synology:one"),
        sid,
    ];
    let target = send(TARGET, "1", "create", &target).await?["target_id"].clone();
    let target = json!([target]).to_string();
    let map = [("uuid", &*uuid), ("target_ids", &*target), sid];
    send(LUN, "1", "map_target", &map).await?;
    let snapshot = [
        ("src_lun_uuid", &*uuid),
        ("snapshot_name", "\"one\""),
        ("taken_by", "\"dsm-sim\""),
        sid,
    ];
    send(LUN, "1", "take_snapshot", &snapshot).await?;
    Ok(())
}
