//! Portals: the addresses and TCP ports of targets. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::volume::Malformed;

/// A portal of a target: an IP address (never a host name: open-iscsi's records hold addresses) and a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Portal(SocketAddr);

impl Portal {
    /// iSCSI's well-known port (RFC 7143, section 13).
    pub const PORT: u16 = 3260;

    /// `address` on the well-known port.
    pub fn at(address: IpAddr) -> Self {
        Self(SocketAddr::new(address, Self::PORT))
    }

    /// The IP address.
    pub fn address(&self) -> IpAddr {
        self.0.ip()
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// No NAS can be reached there from other machines: unspecified, multicast, broadcast or link-local, or port 0.
    pub fn is_unusable(&self) -> bool {
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

    /// A loopback address, or one of Docker's default bridge, which exists on every machine that runs Docker, including a NAS.
    fn is_loopback_or_docker(&self) -> bool {
        match self.0.ip().to_canonical() {
            IpAddr::V4(v4) => v4.is_loopback() || v4.octets()[..2] == [172, 17],
            IpAddr::V6(v6) => v6.is_loopback(),
        }
    }
}

/// The maximum number of portals of a publication; each costs a login.
pub const MAX_PORTALS: usize = 16;

/// Filters the resolved addresses of a NAS's name for usable portals: mDNS and hosts files also return link-local and loopback
/// addresses and those of Docker's bridge. The latter two are kept only if there is no other. Sorted, without duplicates.
pub fn portals_among(mut resolved: Vec<Portal>) -> Vec<Portal> {
    resolved.retain(|portal| !portal.is_unusable());
    if !resolved.iter().all(Portal::is_loopback_or_docker) {
        resolved.retain(|portal| !portal.is_loopback_or_docker());
    }
    resolved.sort_unstable();
    resolved.dedup();
    resolved.truncate(MAX_PORTALS);
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
    fn unusable_resolved_addresses_are_filtered_out() {
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
        // A simulator on the same machine, or a network that happens to use Docker's range.
        assert_eq!(among(&["127.0.0.1", "fe80::1"]), ["127.0.0.1:3260"]);
        assert_eq!(among(&["172.17.0.9"]), ["172.17.0.9:3260"]);
        assert!(among(&["fe80::1", "169.254.0.1"]).is_empty());
        let many: Vec<String> = (1..40).map(|host| format!("10.0.0.{host}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(among(&many).len(), MAX_PORTALS);
    }
}
