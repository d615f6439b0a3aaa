//! Where a broker is and who we are there; whatever holds a password prints as `***`.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::tcp::OwnedTLSConfig;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use sluice_bus::{Error, Result};
use sluice_schema::address;
use url::Url;

use super::Options;
use crate::local::decoded;

/// Seconds between heartbeats; a dead connection is seen within two of them.
const HEARTBEAT_SECS: u16 = 20;

/// A checked broker address. Prints without the password.
pub(super) struct Address {
    uri: AMQPUri,
    ca_pem: Option<String>,
    pub(super) name: String,
    lost: AtomicUsize,
}

impl Address {
    /// A connection to it was lost. Whether it is the only one that is: a broker that goes away is told once.
    pub(super) fn lost_one(&self) -> bool {
        self.lost.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// A lost connection is back. Whether none is lost any more.
    pub(super) fn regained_one(&self) -> bool {
        self.lost.fetch_sub(1, Ordering::Relaxed) == 1
    }

    pub(super) fn parse(text: &str, options: &Options) -> Result<Self> {
        let refused = |why: &str| Error::Refused {
            reason: format!(
                "the broker's address {why}; it should look like amqp://user:password@host:5672/vhost"
            ),
        };
        // The text itself is not repeated: it may hold a password.
        let url = Url::parse(text).map_err(|error| refused(&format!("cannot be read ({error})")))?;
        let scheme = match url.scheme() {
            "amqp" => AMQPScheme::AMQP,
            "amqps" => AMQPScheme::AMQPS,
            _ => return Err(refused("does not begin with amqp:// or amqps://")),
        };
        let plain = |part: &str| decoded(part).ok_or_else(|| refused("holds bytes that are not text"));
        let username = if url.username().is_empty() { "guest".to_owned() } else { plain(url.username())? };
        let password = match (&options.password, url.password()) {
            (Some(secret), _) => secret.reveal().to_owned(),
            (None, Some(password)) => plain(password)?,
            (None, None) => "guest".to_owned(),
        };
        let host = match url.host_str() {
            Some(host) if !host.is_empty() => host.trim_matches(['[', ']']).to_owned(),
            _ => return Err(refused("names no host")),
        };
        let vhost = match url.path().strip_prefix('/').unwrap_or_default() {
            "" => "/".to_owned(),
            path => plain(path)?,
        };
        let uri = AMQPUri {
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username, password },
                host,
                port: url.port().unwrap_or_else(|| scheme.default_port()),
            },
            scheme,
            vhost,
            query: AMQPQueryString { heartbeat: Some(HEARTBEAT_SECS), ..Default::default() },
        };
        Ok(Self {
            uri,
            ca_pem: options.ca_pem.clone(),
            name: options.name.clone(),
            lost: AtomicUsize::new(0),
        })
    }

    pub(super) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }

    pub(super) fn tls(&self) -> OwnedTLSConfig {
        OwnedTLSConfig { identity: None, cert_chain: self.ca_pem.clone() }
    }

    pub(super) fn user(&self) -> &AMQPUserInfo {
        &self.uri.authority.userinfo
    }

    pub(super) fn vhost(&self) -> &str {
        &self.uri.vhost
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPAuthority { userinfo, host, port } = &self.uri.authority;
        let user = address::shown_user(&userinfo.username);
        write!(f, "{}://{user}@{host}:{port}, vhost '{}'", self.uri.scheme, self.uri.vhost)
    }
}

/// A path segment with everything but letters, digits, `-`, `_` and `.` as `%XX`.
pub(super) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    #[test]
    fn an_address_is_read_and_shown_without_its_password() {
        let check = |text: &str, shown: &str, password: &str| {
            let address = Address::parse(text, &Options::default()).unwrap();
            assert_eq!((address.to_string().as_str(), address.user().password.as_str()), (shown, password));
        };
        check("amqp://h", "amqp://guest@h:5672, vhost '/'", "guest");
        check("amqp://h/", "amqp://guest@h:5672, vhost '/'", "guest");
        check("amqp://u:p%40%2Fs@h:1/tg", "amqp://u@h:1, vhost 'tg'", "p@/s");
        check("amqps://u:p@127.0.0.1/%2Fa", "amqps://u@127.0.0.1:5671, vhost '/a'", "p");
        check("amqp://u:p@[::1]:7/", "amqp://u@::1:7, vhost '/'", "p");
        // The colon before the password is another character.
        for mistyped in ["amqp://u hush@h", "amqp://u;hush@h", "amqp://u%20hush@h", "amqp://u%3Ahush@h"] {
            check(mistyped, "amqp://***@h:5672, vhost '/'", "guest");
        }
    }

    #[test]
    fn an_address_that_cannot_work_says_so_without_its_password() {
        for text in ["h:5672", "http://u:hush@h", "amqp://u:hush@h:port/", "amqp:///v"] {
            let told =
                Address::parse(text, &Options::default()).err().map(|error| error.to_string()).unwrap();
            assert!(told.contains("should look like") && !told.contains("hush"), "{text}: {told}");
        }
    }

    #[test]
    fn a_password_of_its_own_takes_the_place_of_the_one_in_the_address() {
        let options = Options { password: Some(Secret::new("other")), ..Options::default() };
        assert_eq!(Address::parse("amqp://u:p@h", &options).unwrap().user().password, "other");
        assert!(!format!("{options:?}").contains("other"));
    }
}
