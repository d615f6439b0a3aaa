//! Hosts, origins and networks as people write them in settings and as requests carry them, brought to one form so that
//! they can be compared.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Characters of a host name at most, as in the domain name system.
const NAME_BYTES_MAX: usize = 253;

/// Why a setting cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not a host.
    #[error("'{0}' is not a host; give a name or an address, for example sluice.example.org")]
    Host(String),
    /// Not an origin.
    #[error("'{0}' is not an origin; give scheme, host and port, for example https://app.example.org")]
    Origin(String),
    /// An origin that stands for many.
    #[error("'{0}' would let in pages of every site; name each origin, for example https://app.example.org")]
    EveryOrigin(String),
    /// Not a network.
    #[error("'{0}' is not a network; give an address or a range, for example 10.0.0.0/8")]
    Network(String),
}

/// A host: a name in lower case without the dot at its end, or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Name(String),
    Address(IpAddr),
}

impl Host {
    /// Whether it is this machine under every circumstances: `localhost` or an address of the loopback network.
    pub(crate) fn is_loopback(&self) -> bool {
        match &self.0 {
            Form::Name(name) => name == "localhost",
            Form::Address(address) => address.is_loopback(),
        }
    }

    pub(crate) const fn address(&self) -> Option<IpAddr> {
        match self.0 {
            Form::Name(_) => None,
            Form::Address(address) => Some(address),
        }
    }

    /// Reads what stands before a port.
    fn read(text: &str) -> Option<Self> {
        // Browsers take a name with a dot at its end, and addresses too, for the same host.
        let text = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self(Form::Address(IpAddr::V4(address))));
        }
        let is_part_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_part_of_name);
        is_name.then(|| Self(Form::Name(text.to_ascii_lowercase())))
    }
}

impl FromStr for Host {
    type Err = AddressError;

    /// Reads a host; a port behind it does not matter.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self(Form::Address(IpAddr::V6(address).to_canonical())));
        }
        authority(text).map(|(host, _)| host).ok_or_else(|| AddressError::Host(text.to_owned()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Name(name) => f.write_str(name),
            Form::Address(IpAddr::V4(address)) => address.fmt(f),
            Form::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Reads `host`, `host:port` or `[v6]:port`, as in a `Host` header.
pub(crate) fn authority(text: &str) -> Option<(Host, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            (Host(Form::Address(IpAddr::V6(address).to_canonical())), after)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (Host::read(host)?, port)
        }
    };
    let digits = match port {
        "" | ":" => return Some((host, None)),
        port => port.strip_prefix(':')?,
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = is_number.then(|| digits.parse().ok()).flatten()?;
    Some((host, Some(port)))
}

/// Where a page comes from: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOrigin {
    scheme: String,
    host: Host,
    /// The one that is written, or the scheme's own.
    port: Option<u16>,
}

impl WebOrigin {
    /// Reads an `Origin` header; `null` and what is no origin give nothing.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let is_part_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if scheme.is_empty() || !scheme.bytes().all(is_part_of_scheme) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = authority(rest)?;
        let port = port.or_else(|| default_port(&scheme));
        Some(Self { scheme, host, port })
    }

    /// Whether a page of this origin asks its own server, which it addressed as `host` and `port`. A server that speaks
    /// TLS itself is `https`; in front of one that does not, a proxy may.
    pub(crate) fn is_of(&self, host: &Host, port: Option<u16>, is_tls: bool) -> bool {
        let may_be = match self.scheme.as_str() {
            "https" => true,
            "http" => !is_tls,
            _ => false,
        };
        may_be && self.host == *host && self.port == port.or_else(|| default_port(&self.scheme))
    }
}

impl FromStr for WebOrigin {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text == "*" || text.eq_ignore_ascii_case("null") {
            return Err(AddressError::EveryOrigin(text.to_owned()));
        }
        // As people copy it from the address bar.
        let origin = Self::read(text.strip_suffix('/').unwrap_or(text));
        origin.ok_or_else(|| AddressError::Origin(text.to_owned()))
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// A range of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

impl Network {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let same = |ours: u128, theirs: u128, bits: u8| {
            let rest = u32::from(bits - self.prefix_bits);
            ours.checked_shr(rest).unwrap_or(0) == theirs.checked_shr(rest).unwrap_or(0)
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same(u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.to_bits(), theirs.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError::Network(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| refused())?;
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            None => bits,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(refused)?
            }
            Some(_) => return Err(refused()),
        };
        // An address of the old kind in the clothes of the new one is compared as what it is.
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(v4)) => {
                let prefix_bits = prefix_bits.checked_sub(96).ok_or_else(refused)?;
                Ok(Self { address: IpAddr::V4(v4), prefix_bits })
            }
            (address, _) => Ok(Self { address, prefix_bits }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_the_same_are_equal_however_they_are_written() {
        let check = |text: &str, expected: Option<(&str, Option<u16>)>| {
            let read = authority(text).map(|(host, port)| (host.to_string(), port));
            assert_eq!(read, expected.map(|(host, port)| (host.to_owned(), port)), "{text}");
        };
        check("localhost:8888", Some(("localhost", Some(8888))));
        check("LocalHost.:8888", Some(("localhost", Some(8888))));
        check("localhost:", Some(("localhost", None)));
        check("127.0.0.1.", Some(("127.0.0.1", None)));
        check("[::1]:8888", Some(("[::1]", Some(8888))));
        check("[0:0::1]", Some(("[::1]", None)));
        check("[::ffff:127.0.0.1]:1", Some(("127.0.0.1", Some(1))));
        for bad in [
            "",
            ".",
            ":80",
            "::1",
            "[::1",
            "[::1]80",
            "[localhost]",
            "a b",
            "a/b",
            "user@localhost",
            "localhost:+1",
            "localhost:99999",
            "localhost:8888:1",
            "localhost,evil.example",
        ] {
            check(bad, None);
        }
        assert!("::1".parse::<Host>().unwrap().is_loopback());
        assert!("127.9.9.9".parse::<Host>().unwrap().is_loopback());
        for other in
            ["localhost.evil.example", "evil.localhost", "0.0.0.0", "127.1", "0x7f.0.0.1", "10.0.0.1"]
        {
            assert!(!other.parse::<Host>().unwrap().is_loopback(), "{other}");
        }
    }

    #[test]
    fn a_page_is_of_its_server_only_with_host_and_port() {
        let check = |origin: &str, host: &str, is_tls: bool, expected: bool| {
            let (own, port) = authority(host).unwrap();
            let is_of = WebOrigin::read(origin).is_some_and(|origin| origin.is_of(&own, port, is_tls));
            assert_eq!(is_of, expected, "{origin} at {host}");
        };
        check("http://127.0.0.1:8888", "127.0.0.1:8888", false, true);
        check("HTTP://LOCALHOST.:8888", "localhost:8888", false, true);
        check("http://[::1]:8888", "[0::1]:8888", false, true);
        check("https://app.example", "app.example", false, true);
        check("https://app.example", "app.example:443", false, true);
        check("https://app.example:443", "app.example", true, true);
        check("http://app.example", "app.example", true, false);
        check("http://localhost:3000", "localhost:8888", false, false);
        check("http://localhost", "localhost:8888", false, false);
        check("http://127.0.0.1:8888", "localhost:8888", false, false);
        check("http://localhost.evil.example:8888", "localhost:8888", false, false);
        check("chrome-extension://abcdef", "abcdef", false, false);
        for none in
            ["null", "", "localhost:8888", "://x", "http://", "http://a b", "http://a/b", "http://a http://b"]
        {
            assert_eq!(WebOrigin::read(none), None, "{none}");
        }
    }

    #[test]
    fn origins_that_stand_for_every_site_are_no_settings() {
        for every in ["*", "null", "NULL"] {
            assert_eq!(every.parse::<WebOrigin>(), Err(AddressError::EveryOrigin(every.to_owned())));
        }
        assert!("app.example".parse::<WebOrigin>().unwrap_err().to_string().contains("https://"));
        assert_eq!("https://App.Example:443/".parse::<WebOrigin>(), "https://app.example".parse());
    }

    #[test]
    fn networks_hold_their_addresses_and_no_others() {
        let check = |network: &str, address: &str, expected: bool| {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), expected, "{network:?} {address}");
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.1", false);
        check("10.1.2.3", "10.1.2.3", true);
        check("10.1.2.3", "10.1.2.4", false);
        check("0.0.0.0/0", "192.0.2.1", true);
        check("0.0.0.0/0", "2001:db8::1", false);
        check("10.0.0.0/8", "::ffff:10.0.0.1", true);
        check("::ffff:10.0.0.0/104", "10.9.9.9", true);
        check("2001:db8::/32", "2001:db8:1::1", true);
        check("2001:db8::/32", "2001:db9::1", false);
        check("::/0", "2001:db8::1", true);
        for bad in
            ["", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0/8", "::1/129", "example.org", "::ffff:10.0.0.0/8"]
        {
            assert_eq!(bad.parse::<Network>(), Err(AddressError::Network(bad.to_owned())));
        }
    }
}
