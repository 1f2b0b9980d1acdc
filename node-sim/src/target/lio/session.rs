//! The sessions of a LIO target, from configfs and the kernel's table of TCP connections.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::configfs::Tree;
use crate::target::Session;

/// The sessions of a target. Demo mode shows initiators without addresses, so the address is taken from the TCP connections to
/// the target's portals. If these come from more than one address, it is unknown and reported as `0.0.0.0`.
pub(super) fn list(tree: &Tree, iqn: &str) -> io::Result<Vec<Session>> {
    let initiators = initiators(&tree.dynamic_sessions(iqn)?);
    let Some(state) = tree.target(iqn)?.filter(|_| !initiators.is_empty()) else {
        return Ok(Vec::new());
    };
    let mut peers = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(table) => peers.extend(remote_addresses(&table, &state.portals)),
            // A kernel without IPv6 does not have this table.
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let address = match peers.first() {
        Some(only) if peers.len() == 1 => *only,
        Some(_) | None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let session = |initiator| Session { initiator, address };
    Ok(initiators.into_iter().map(session).collect())
}

/// Parses `dynamic_sessions`: a name and a newline per session, with NULs between them.
fn initiators(text: &str) -> Vec<String> {
    text.split(['\n', '\0'])
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// The remote addresses of established connections to these portals, in a table like `/proc/net/tcp`.
fn remote_addresses(table: &str, portals: &BTreeSet<SocketAddr>) -> Vec<IpAddr> {
    let listens = |local: SocketAddr| {
        portals.iter().any(|portal| {
            portal.port() == local.port()
                && (portal.ip() == local.ip() || portal.ip().is_unspecified())
        })
    };
    let remote = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, peer) = (endpoint(words.next()?)?, endpoint(words.next()?)?);
        // 01 is TCP_ESTABLISHED.
        (words.next()? == "01" && listens(local)).then(|| peer.ip())
    };
    table.lines().filter_map(remote).collect()
}

/// Parses `0100007F:0CBC`: an address as 32-bit words in host byte order, and a port.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<u8>> = address
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect::<Option<Vec<[u8; 4]>>>()
        .map(|words| words.concat());
    let bytes = words?;
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiators_are_parsed_as_the_kernel_prints_them() {
        let text = "iqn.1993-08.org.debian:01:vm\n\0iqn.b\n\0";
        assert_eq!(initiators(text), ["iqn.1993-08.org.debian:01:vm", "iqn.b"]);
        assert_eq!(initiators(""), Vec::<String>::new());
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn remote_addresses_are_those_of_connections_to_a_portal() {
        let portals = BTreeSet::from([
            "10.9.0.1:3260".parse().unwrap(),
            "[::1]:3260".parse().unwrap(),
        ]);
        // Recorded in the VM: a listener, a closed connection, both ends of a live one.
        let table = "  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100090A:0CBC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13488
   2: 0100090A:0CBC 0300090A:A682 06 00000000:00000000 03:0000148D 00000000     0        0 0
   3: 0100090A:0CBC 0200090A:A68A 01 00000000:00000000 00:00000000 00000000     0        0 12276
   4: 0200090A:A68A 0100090A:0CBC 01 00000000:00000000 00:00000000 00000000     0        0 12278
   5: 0101090A:0CBC 0500090A:A68A 01 00000000:00000000 00:00000000 00000000     0        0 12279
";
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(remote_addresses(table, &portals), [ip("10.9.0.2")]);
        let six = "   0: 00000000000000000000000001000000:0CBC B80D0120000000000000000007000000:A68A 01 0:0";
        assert_eq!(remote_addresses(six, &portals), [ip("2001:db8::7")]);
        let any = BTreeSet::from(["0.0.0.0:3260".parse().unwrap()]);
        assert_eq!(remote_addresses(table, &any).len(), 2);
    }
}
