//! The rest of SAN Manager: `SYNO.Core.ISCSI.Node` and `.Host`, dsm-web-api.md 6.

use serde_json::json;

use crate::nas::api::system::NODE_UUID;
use crate::nas::call::{Answer, Call};
use crate::nas::code::Code;

pub(crate) fn call(call: &Call) -> Answer {
    match (call.api.as_str(), call.method.as_str()) {
        ("SYNO.Core.ISCSI.Node", _) => Ok(Some(json!({"nodes": [{"uuid": NODE_UUID}]}))),
        // `create` is not simulated, so there is never a host to get.
        (_, "list") => Ok(Some(json!({"hosts": []}))),
        _ => Err(Code::SanBadParameter.because("no such host")),
    }
}

#[cfg(test)]
mod tests {
    use crate::nas::tests::NasFixture;

    #[test]
    fn there_is_one_node_and_no_host() {
        let mut sim = NasFixture::new();
        let node = sim.ok("SYNO.Core.ISCSI.Node", "list", &[]);
        assert_eq!(node["nodes"][0]["uuid"].as_str().unwrap().len(), 36);
        let hosts = sim.ok("SYNO.Core.ISCSI.Host", "list", &[]);
        assert_eq!(hosts["hosts"].as_array().unwrap().len(), 0);
        // Measured by jt.
        assert_eq!(sim.code("SYNO.Core.ISCSI.Host", "get", &[]), 18_990_004);
    }
}
