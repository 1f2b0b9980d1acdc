//! Network interfaces of the NAS: `SYNO.Core.Network.Interface list`, `SYNO.DSM.Network list` and the network page of
//! `SYNO.Core.System info`; dsm-web-api.md 9.

use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::api::system::HOSTNAME;

const INTERFACE: &str = "eth0";
const MAC: &str = "00-11-32-00-00-01";
const MASK: &str = "255.255.255.0";
const GATEWAY: &str = "192.0.2.1";

impl Nas {
    /// An array, unlike all other answers. The official driver takes the addresses of targets from it.
    // ASSUMED: `relay_node`, which asks for the other half of a unified controller, has no effect on a NAS without one.
    pub(crate) fn interfaces(&self) -> Value {
        json!([{
            "ifname": INTERFACE,
            "ip": self.config.portal.ip(),
            "mask": MASK,
            "speed": 1000,
            "status": "connected",
            "type": "lan",
            "use_dhcp": false,
        }])
    }

    pub(crate) fn network(&self) -> Value {
        json!({
            "dns": [GATEWAY],
            "gateway": GATEWAY,
            "hostname": HOSTNAME,
            "interfaces": [{
                "id": INTERFACE,
                "ip": [{"address": self.config.portal.ip(), "netmask": MASK}],
                "mac": MAC,
                "type": "lan",
            }],
            "workgroup": "WORKGROUP",
        })
    }

    /// As recorded from DSM 7 (mib1185/py-synologydsm-api).
    pub(crate) fn network_page(&self) -> Value {
        json!({
            "dns": GATEWAY,
            "enabled_domain": false,
            "enabled_samba": true,
            "gateway": GATEWAY,
            "hostname": HOSTNAME,
            "nif": [{
                "addr": self.config.portal.ip(),
                "duplex": true,
                "id": INTERFACE,
                "mac": MAC,
                "mask": MASK,
                "mtu": 1500,
                "speed": 1000,
                "status": "connected",
                "type": "lan",
                "use_dhcp": false,
            }],
            "wins": "",
            "workgroup": "WORKGROUP",
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::nas::tests::NasFixture;

    #[test]
    fn the_nas_is_where_its_targets_listen() {
        let mut sim = NasFixture::new();
        let list = sim.ok("SYNO.Core.Network.Interface", "list", &[]);
        let rows = list
            .as_array()
            .expect("an array, as the official driver wants it");
        assert_eq!(
            (&rows[0]["ip"], &rows[0]["status"]),
            (&"192.0.2.5".into(), &"connected".into())
        );
        let reply = sim
            .call("SYNO.DSM.Network", 2, "list", &[])
            .answer
            .unwrap()
            .unwrap();
        assert_eq!(reply["interfaces"][0]["ip"][0]["address"], "192.0.2.5");
        let page = sim.ok("SYNO.Core.System", "info", &[("type", "network")]);
        assert_eq!(page["hostname"], reply["hostname"]);
    }
}
