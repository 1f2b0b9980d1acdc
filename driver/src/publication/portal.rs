//! Where targets listen. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::volume::Malformed;

/// Where a target listens: an address (never a name: open-iscsi's records hold addresses) and a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Portal(SocketAddr);

impl Portal {
    /// iSCSI's well-known port (RFC 7143, section 13).
    pub const PORT: u16 = 3260;

    /// `address` on the well-known port.
    pub fn at(address: IpAddr) -> Self {
        Self(SocketAddr::new(address, Self::PORT))
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.0.ip()
    }

    /// Its TCP port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// No NAS can listen there for other machines: an address that means nobody, many, or only something on one wire.
    pub fn is_useless(&self) -> bool {
        let (v4, v6) = match self.0.ip().to_canonical() {
            IpAddr::V4(v4) => (Some(v4), None),
            IpAddr::V6(v6) => (None, Some(v6)),
        };
        let bad_v4 = |it: Ipv4Addr| {
            it.is_unspecified() || it.is_multicast() || it.is_broadcast() || it.is_link_local()
        };
        let bad_v6 =
            |it: Ipv6Addr| it.is_unspecified() || it.is_multicast() || it.is_unicast_link_local();
        self.0.port() == 0 || v4.is_some_and(bad_v4) || v6.is_some_and(bad_v6)
    }

    /// Of this machine itself, or of the bridge that Docker makes on every machine that runs it, a NAS too.
    fn is_of_any_machine(&self) -> bool {
        match self.0.ip().to_canonical() {
            IpAddr::V4(v4) => v4.is_loopback() || v4.octets()[..2] == [172, 17],
            IpAddr::V6(v6) => v6.is_loopback(),
        }
    }
}

/// The most portals of a publication; each costs a login.
pub const MOST_PORTALS: usize = 16;

/// Of the addresses that a NAS's name has, those that can be portals: mDNS and hosts files name link-local and loopback addresses
/// and those of Docker's bridge, too. One of these last two stays only where there is no other. In order, each once.
pub fn portals_among(mut resolved: Vec<Portal>) -> Vec<Portal> {
    resolved.retain(|portal| !portal.is_useless());
    if !resolved.iter().all(Portal::is_of_any_machine) {
        resolved.retain(|portal| !portal.is_of_any_machine());
    }
    resolved.sort_unstable();
    resolved.dedup();
    resolved.truncate(MOST_PORTALS);
    resolved
}

impl From<SocketAddr> for Portal {
    fn from(address: SocketAddr) -> Self {
        Self(address)
    }
}

impl FromStr for Portal {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let bare = || {
            text.trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .map(Self::at)
        };
        text.parse()
            .map(Self)
            .or_else(|_| bare())
            .map_err(|_| Malformed("ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT"))
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// design.md#portals
    #[test]
    fn portals_of_both_families() {
        for (text, shown) in [
            ("10.0.0.5", "10.0.0.5:3260"),
            ("10.0.0.5:3261", "10.0.0.5:3261"),
            ("fd00::5", "[fd00::5]:3260"),
            ("[fd00::5]", "[fd00::5]:3260"),
            ("[fd00::5]:3261", "[fd00::5]:3261"),
        ] {
            assert_eq!(text.parse::<Portal>().unwrap().to_string(), shown);
        }
        assert!("nas.local:3260".parse::<Portal>().is_err());
    }

    /// design.md#portals
    #[test]
    fn what_a_name_also_means_is_no_portal() {
        let among = |addresses: &[&str]| {
            let resolved = addresses.iter().map(|it| it.parse().unwrap()).collect();
            let portals: Vec<String> = portals_among(resolved)
                .iter()
                .map(Portal::to_string)
                .collect();
            portals
        };
        let of_mdns = [
            "10.0.0.5",
            "fe80::211:32ff:fe00:1",
            "169.254.7.7",
            "172.17.0.1",
            "127.0.1.1",
            "::1",
            "fd00::5",
            "10.0.0.5",
            "0.0.0.0",
            "ff02::1",
        ];
        assert_eq!(among(&of_mdns), ["10.0.0.5:3260", "[fd00::5]:3260"]);
        // A simulator beside the driver, or a network that happens to be Docker's.
        assert_eq!(among(&["127.0.0.1", "fe80::1"]), ["127.0.0.1:3260"]);
        assert_eq!(among(&["172.17.0.9"]), ["172.17.0.9:3260"]);
        assert!(among(&["fe80::1", "169.254.0.1"]).is_empty());
        let many: Vec<String> = (1..40).map(|host| format!("10.0.0.{host}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(among(&many).len(), MOST_PORTALS);
    }
}
