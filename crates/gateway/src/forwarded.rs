//! Where a request comes from when proxies stand in between.
//!
//! `X-Forwarded-For` grows at its end: each proxy adds the address it was called from. So it is read from the end, and
//! only as far as each entry was written by a proxy that the settings name; what comes before may have been written by
//! anybody.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

use crate::address::Network;

const FORWARDED_FOR: &str = "x-forwarded-for";
/// Proxies in a row that are looked through.
const PROXIES_MAX: usize = 32;

/// The address that a request comes from, as far as it can be known.
pub(crate) fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_proxy = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    if !is_proxy(client) {
        return client;
    }
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    let entries = lines.into_iter().rev().flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    for entry in entries.take(PROXIES_MAX) {
        let Some(address) = address(entry.trim()) else { break };
        client = address;
        if !is_proxy(client) {
            break;
        }
    }
    client
}

/// An entry: an address, with a port behind it or not.
fn address(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let with_port = || entry.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_what_listed_proxies_wrote_is_believed() {
        let check = |peer: &str, lines: &[&str], expected: &str| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            let trusted = ["127.0.0.1".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
            let client = client(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{peer} {lines:?}");
        };
        check("192.0.2.7", &["198.51.100.1"], "192.0.2.7");
        check("127.0.0.1", &[], "127.0.0.1");
        check("127.0.0.1", &["198.51.100.1"], "198.51.100.1");
        check("::ffff:127.0.0.1", &["198.51.100.1"], "198.51.100.1");
        check("127.0.0.1", &["6.6.6.6, 198.51.100.1"], "198.51.100.1");
        check("127.0.0.1", &["6.6.6.6, 198.51.100.1, 10.1.1.1"], "198.51.100.1");
        check("127.0.0.1", &["6.6.6.6", "198.51.100.1", "10.1.1.1,10.1.1.2"], "198.51.100.1");
        check("127.0.0.1", &["198.51.100.1:1234"], "198.51.100.1");
        check("127.0.0.1", &["[2001:db8::1]:1234"], "2001:db8::1");
        check("127.0.0.1", &["[2001:db8::1]"], "2001:db8::1");
        check("127.0.0.1", &["6.6.6.6, unknown"], "127.0.0.1");
        check("127.0.0.1", &["6.6.6.6, ödd, 10.1.1.1"], "127.0.0.1");
        check("127.0.0.1", &["6.6.6.6, odd, 10.1.1.1"], "10.1.1.1");
        check("127.0.0.1", &["10.0.0.1,".repeat(100).as_str()], "127.0.0.1");
        check("127.0.0.1", &[("6.6.6.6".to_owned() + &", 10.0.0.1".repeat(100)).as_str()], "10.0.0.1");
    }
}
