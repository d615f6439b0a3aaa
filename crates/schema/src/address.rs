//! What may be shown of an address that somebody gave. It may hold a password, and so may a text that was meant to be one.
//!
//! Everything that is told or logged of such a text goes through here. What cannot be told apart for certain is not shown:
//! then the option is named that the text came with.

/// Characters that a part of an address may have which is shown.
const PLAIN: &[char] = &['.', '-', '_', '~', '/'];
/// Bytes of a scheme at most: the longest that is known has ten.
const SCHEME_BYTES_MAX: usize = 20;

/// The scheme of an address, if it has one for certain.
///
/// ```
/// use sluice_schema::address::scheme;
///
/// assert_eq!(scheme("amqp://user:password@host/"), Some("amqp"));
/// assert_eq!(scheme("user:password@host/"), None);
/// ```
#[must_use]
pub fn scheme(text: &str) -> Option<&str> {
    split(text).map(|(scheme, _)| scheme)
}

/// An address without user, password, query and fragment: scheme, host, port and path. `None` for what is not told apart
/// for certain, as where a password holds a `/` that is not written `%2F`.
///
/// ```
/// use sluice_schema::address::shown;
///
/// assert_eq!(shown("http://user:password@host:1/v1/?key=k").as_deref(), Some("http://host:1/v1"));
/// assert_eq!(shown("http://user:12/34@host/"), None);
/// ```
#[must_use]
pub fn shown(text: &str) -> Option<String> {
    let (scheme, rest) = split(text.trim())?;
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // Readers of addresses differ about where these end a host.
    let is_odd = |c: char| c == '\\' || c.is_whitespace() || c.is_control();
    if rest.contains('@') || authority.contains(is_odd) {
        return None;
    }
    let at = authority.rsplit_once('@').map_or(authority, |(_, at)| at);
    let path = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
    let is_plain = |c: char| c.is_alphanumeric() || PLAIN.contains(&c);
    (is_host(at) && path.chars().all(is_plain))
        .then(|| format!("{scheme}://{at}{}", path.trim_end_matches('/')))
}

/// What is shown of the user of an address: `***` for what is no plain name, and may hold a password of which the colon was
/// mistyped.
///
/// ```
/// use sluice_schema::address::shown_user;
///
/// assert_eq!(shown_user("sluice-1"), "sluice-1");
/// assert_eq!(shown_user("user;password"), "***");
/// ```
#[must_use]
pub fn shown_user(user: &str) -> &str {
    let is_plain = |c: char| c.is_alphanumeric() || ".-_".contains(c);
    if user.chars().all(is_plain) { user } else { "***" }
}

/// Whether a password may stand behind the host of an address, because a character of it that ends a host was not written
/// as `%XX`.
#[must_use]
pub fn is_torn(text: &str) -> bool {
    let Some((_, rest)) = split(text) else { return false };
    let ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    // A query may name files and other addresses.
    let behind = &rest[ends..];
    let query = behind.find('?').unwrap_or(behind.len());
    behind[..query].contains('@')
        || behind[query..].split_once('#').is_some_and(|(_, rest)| rest.contains('@'))
}

/// Whether a text that is no address holds nothing that could be the password of one, so that it can be repeated.
#[must_use]
pub fn is_harmless(text: &str) -> bool {
    !text.contains(['@', ':', '?'])
}

fn split(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let is_scheme = scheme.len() <= SCHEME_BYTES_MAX
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(is_part);
    is_scheme.then_some((scheme, rest))
}

/// Whether a text is a host, with a port or without.
fn is_host(text: &str) -> bool {
    let is_name = |name: &str| {
        let is_part = |c: char| c.is_alphanumeric() || ".-_".contains(c);
        !name.is_empty() && name.chars().all(is_part)
    };
    let (is_host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address.parse::<std::net::Ipv6Addr>().is_ok(), port),
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (is_name(name), port)
        }
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_what_could_be_a_secret_or_not_at_all() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(shown(text).as_deref(), expected, "{text}");
            assert!(!shown(text).unwrap_or_default().contains("hush"), "{text}");
        };
        check("http://host", Some("http://host"));
        check("http://host:8888/tg/", Some("http://host:8888/tg"));
        check("http://user:hush@host:1/v1?key=hush#hush", Some("http://host:1/v1"));
        check("http://hush@[::1]:7/", Some("http://[::1]:7"));
        check("http://u:h@hush@host/", Some("http://host"));
        check(" https://bücher.example/ ", Some("https://bücher.example"));
        for nothing in [
            "",
            "host",
            "user:hush@host/v1",
            "http:/user:hush@host",
            "http:user:hush@host",
            "http//user:hush@host",
            "http:///user:hush@host",
            "user:hush@host://",
            "hush hush://host",
            "http://u:hush@host:99999/",
            "http://u:hush@host:port/",
            "http://u:hush/sh@host",
            "http://u:12/hush@host",
            "http://u:12?hush@host",
            "http://u:12#hush@host",
            "http://u:12\\hush@host",
            "http://u:hush@ho st",
            "http://u:hush\t@host",
            "http://u:hush@[::1",
            "http://u:hush@",
            "http://host/a;key=hush",
            "http://host/%68ush",
        ] {
            check(nothing, None);
        }
    }

    #[test]
    fn only_what_has_a_scheme_for_certain_has_one() {
        assert_eq!(scheme("some+tls://h"), Some("some+tls"));
        for none in
            ["amqp:/h", "amqp//h", "u:hush@h://", "://h", "9p://h", "a-long-secret-that-is-no-scheme://h"]
        {
            assert_eq!(scheme(none), None, "{none}");
        }
    }

    #[test]
    fn a_password_that_ends_a_host_is_noticed() {
        for torn in ["amqp://u:1/p@h/v", "amqp://u:1#p@h", "amqp://u:1/v?x=1#p@h"] {
            assert!(is_torn(torn), "{torn}");
        }
        for whole in ["amqp://u:p@h/v", "nats://h?creds=/a@b", "amqp://h", "u:p@h", "amqp://u:p@q@h/v"] {
            assert!(!is_torn(whole), "{whole}");
        }
    }
}
