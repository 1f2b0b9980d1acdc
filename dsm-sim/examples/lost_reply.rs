//! Creates a LUN and loses the reply, then shows what is on the NAS. `cargo run -p dsm-sim --example lost_reply`

use std::io::Write;

use dsm_sim::{DsmSim, Fault, Rule};
use serde_json::Value;

const LUN: &str = "SYNO.Core.ISCSI.LUN";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let nas = DsmSim::builder().account("alice", "pw").start().await?;
    let url = format!("{}/webapi/entry.cgi", nas.api());
    let http = reqwest::Client::new();
    let call = async |form: String| http.post(&url).body(form).send().await?.text().await;

    let login = "api=SYNO.API.Auth&version=7&method=login&account=alice&passwd=pw";
    let login: Value = serde_json::from_str(&call(login.to_owned()).await?)?;
    let sid = login["data"]["sid"].as_str().unwrap_or("");
    let lun = format!("api={LUN}&version=1&_sid={sid}");

    nas.add_fault(Rule::new(LUN, "create", Fault::LoseReply));
    let new = "method=create&name=data&type=BLUN&location=/volume1&size=1073741824";
    let saw = call(format!("{lun}&{new}")).await;
    let list = call(format!("{lun}&method=list")).await?;

    let mut out = std::io::stdout();
    writeln!(
        out,
        "The client saw: {saw:?}\nThe NAS has: {list}\nIt received:"
    )?;
    for entry in nas.journal() {
        writeln!(out, "  {} {} {:?}", entry.api, entry.method, entry.fault)?;
    }
    Ok(())
}
