//! Keeps pages of other sites out. A browser reaches whatever its user's machine reaches, so a gateway that asks for no key
//! is open to every page that the user looks at, loopback or not, unless it looks at where a request comes from.
//!
//! Two rules, applied before a request is routed, to every path and to upgrades too:
//!
//! - **Host.** A page whose name was made to point here (DNS rebinding) names its own host. On a loopback address, and
//!   wherever no key is asked for, the host has to be the listener's own, a loopback name, or one that the settings allow.
//! - **Page.** Where no key is asked for, a request that a browser sends for a page (`Origin`, `Sec-Fetch-Site`) has to come
//!   from a page of this gateway or of an allowed origin. Where a key is asked for, a page without one gets nothing, and a
//!   browser adds none by itself: there are no cookies.
//!
//! Programs send neither `Origin` nor `Sec-Fetch-Site` and are not touched. Pages of allowed origins get the headers that
//! let their scripts read answers (CORS).

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tower::ServiceExt as _;

use crate::Options;
use crate::address::{self, Host, WebOrigin};
use crate::hall::Hall;
use crate::identity::{Credential, Gatekeeper, Origin};
use crate::refusal::Refusal;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const PRIVATE_NETWORK_ASKED: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
const HEADERS: HeaderValue = HeaderValue::from_static("authorization, content-type, x-request-id");
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, retry-after, www-authenticate");
/// How long a browser may remember what it was allowed, in seconds.
const REMEMBERED_S: HeaderValue = HeaderValue::from_static("600");
const VARY_PREFLIGHT: HeaderValue =
    HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");
const VARY: HeaderValue = HeaderValue::from_static("origin");

/// How long the word of the identity service counts that a key is asked for.
const CLOSED_TIMEOUT: Duration = Duration::from_secs(5);
/// Refusals are logged once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Characters of a header that are repeated to people.
const SHOWN_CHARS_MAX: usize = 100;

/// The rules of one gateway.
pub(crate) struct Browsers {
    listen: IpAddr,
    /// Names under which it is reached.
    names: Vec<Host>,
    origins: Vec<WebOrigin>,
    is_tls: bool,
    /// Whether a key is asked for, where that is known from the start.
    open: Option<bool>,
    /// When the identity service said that a key is asked for.
    closed: Mutex<Option<Instant>>,
    logged: Mutex<Option<Instant>>,
}

/// What does not belong here.
#[derive(Debug, PartialEq, Eq)]
enum Foreign {
    Host(String),
    Origin(String),
    Site(String),
}

/// What the headers of a request say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Look {
    /// A host that is not ours.
    host: Option<Foreign>,
    /// A page that is not ours.
    page: Option<Foreign>,
    /// The origin of a page that the settings allow.
    allowed: Option<HeaderValue>,
}

impl Browsers {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            listen: options.listen.ip().to_canonical(),
            names: options.listen_name.iter().chain(&options.allow_hosts).cloned().collect(),
            origins: options.allow_origins.clone(),
            is_tls: options.tls.is_some(),
            open: options.open,
            closed: Mutex::new(None),
            logged: Mutex::new(None),
        }
    }

    fn look(&self, headers: &HeaderMap, uri: &Uri) -> Look {
        let mut look = Look::default();
        // The authority of an absolute request target counts like the header, and both have to be right.
        let named = uri.authority().map(|authority| authority.as_str().as_bytes());
        let hosts = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes).chain(named);
        let mut own = None;
        for host in hosts {
            match std::str::from_utf8(host).ok().and_then(address::authority) {
                Some(read) if self.is_own(&read.0) => own = Some(read),
                _ => look.host = Some(Foreign::Host(shown(host))),
            }
        }
        for origin in headers.get_all(header::ORIGIN) {
            let read = origin.to_str().ok().and_then(WebOrigin::read);
            let is_same = |origin: &WebOrigin| {
                own.as_ref().is_some_and(|(host, port)| origin.is_of(host, *port, self.is_tls))
            };
            match read {
                Some(read) if self.origins.contains(&read) => look.allowed = Some(origin.clone()),
                Some(read) if is_same(&read) => {}
                _ => look.page = Some(Foreign::Origin(shown(origin.as_bytes()))),
            }
        }
        if look.page.is_none() && look.allowed.is_none() {
            let is_ours = |site: &HeaderValue| {
                let is = |own: &str| site.as_bytes().eq_ignore_ascii_case(own.as_bytes());
                is("same-origin") || is("none")
            };
            let foreign = headers.get_all(FETCH_SITE).iter().find(|site| !is_ours(site));
            look.page = foreign.map(|site| Foreign::Site(shown(site.as_bytes())));
        }
        if look.page.is_some() {
            look.allowed = None;
        }
        look
    }

    fn is_own(&self, host: &Host) -> bool {
        // Behind a wildcard, every address may be one of this machine, or of what forwards to it. An address that a
        // browser was given as such cannot be made to point elsewhere, which is what names are looked at for.
        let is_listened_on = |address| address == self.listen || self.listen.is_unspecified();
        host.is_loopback() || host.address().is_some_and(is_listened_on) || self.names.contains(host)
    }

    /// Whether anybody is let in without a key. A question that fails is the caller's refusal.
    async fn is_open(&self, gate: &Gatekeeper, origin: &Origin) -> Result<bool, Refusal> {
        if let Some(open) = self.open {
            return Ok(open);
        }
        let closed = *self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.is_some_and(|since| since.elapsed() < CLOSED_TIMEOUT) {
            return Ok(false);
        }
        match gate.authenticate(&Credential::Absent, origin).await {
            Ok(_) => Ok(true),
            Err(Refusal::Unauthenticated) => {
                *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Ok(false)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// What is refused of a request, if anything.
    async fn foreign(
        &self,
        look: Look,
        gate: &Gatekeeper,
        origin: &Origin,
    ) -> Result<Option<Foreign>, Refusal> {
        let (host, page) = (look.host, look.page);
        if self.listen.is_loopback() && host.is_some() {
            return Ok(host);
        }
        match host.or(page) {
            Some(foreign) if self.is_open(gate, origin).await? => Ok(Some(foreign)),
            _ => Ok(None),
        }
    }

    fn refuse(&self, foreign: &Foreign) -> Response {
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(
                ?foreign,
                "a request of a foreign host or page was refused; others like it are not logged for a minute"
            );
        }
        drop(logged);
        (StatusCode::FORBIDDEN, crate::http::json(&json!({"error": foreign.told()}))).into_response()
    }
}

impl Foreign {
    fn told(&self) -> String {
        let open = "this gateway asks for no key, so it takes no requests from pages of";
        match self {
            Self::Host(host) => format!(
                "this gateway is not '{host}': use its own address or a loopback name, or, if a proxy in front sends this \
                 host on purpose, start it with --allow-host {host}"
            ),
            Self::Origin(origin) if origin == "null" => {
                format!(
                    "{open} no origin ('null'): serve the page from an origin of its own and start the gateway with --allow-origin ORIGIN, or without --no-auth"
                )
            }
            Self::Origin(origin) => format!(
                "{open} '{origin}': if they may do everything here, start it with --allow-origin {origin}, else without --no-auth"
            ),
            Self::Site(site) => format!(
                "{open} other sites (Sec-Fetch-Site: {site}): if they may do everything here, start it with --allow-origin ORIGIN, else without --no-auth"
            ),
        }
    }
}

/// A header for people: printable, short.
fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

/// Looks at every request before it is routed.
pub(crate) async fn guard(hall: &Hall, origin: &Origin, router: &Router, request: Request) -> Response {
    let browsers = &hall.browsers;
    let mut look = browsers.look(request.headers(), request.uri());
    let allowed = look.allowed.take();
    let mut response = match browsers.foreign(look, &hall.gate, origin).await {
        Ok(None) => match &allowed {
            Some(_) if is_preflight(&request) => preflight(request.headers()),
            _ => router.clone().oneshot(request).await.into_response(),
        },
        Ok(Some(foreign)) => {
            hall.metrics.foreign_requests.inc();
            browsers.refuse(&foreign)
        }
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    if let Some(allowed) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    if !browsers.origins.is_empty() && !headers.contains_key(header::VARY) {
        headers.insert(header::VARY, VARY);
    }
    response
}

/// A browser's question whether a page may send what it wants to send.
fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBERED_S);
    headers.insert(header::VARY, VARY_PREFLIGHT);
    if asked.contains_key(PRIVATE_NETWORK_ASKED) {
        headers.insert(PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(listen: &str, settings: &[&str], headers: &[(&str, &str)]) -> Look {
        let mut options = Options::new(listen.parse().unwrap());
        for setting in settings {
            match setting.parse::<WebOrigin>() {
                Ok(origin) => options.allow_origins.push(origin),
                Err(_) => options.allow_hosts.push(setting.parse().unwrap()),
            }
        }
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        Browsers::new(&options).look(&map, &Uri::from_static("/"))
    }

    #[test]
    fn the_host_is_the_listeners_own_a_loopback_name_or_an_allowed_one() {
        let check = |listen: &str, host: &str, expected: bool| {
            let look = look(listen, &["sluice.example.org"], &[("host", host)]);
            assert_eq!(look.host.is_none(), expected, "{host} at {listen}: {look:?}");
        };
        let loopback = "127.0.0.1:8888";
        for own in [
            "127.0.0.1:8888",
            "localhost:8888",
            // A forwarded port.
            "LOCALHOST.:9999",
            "[::1]",
            "127.0.0.2",
            "Sluice.Example.Org.:443",
        ] {
            check(loopback, own, true);
        }
        for foreign in [
            "evil.example",
            "evil.example:8888",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "0.0.0.0:8888",
            "192.0.2.1:8888",
            "other.example.org",
            "sluice.example.org.evil.example",
            "user@localhost",
            "localhost localhost",
            "",
            "ü",
        ] {
            check(loopback, foreign, false);
        }
        check("[::1]:8888", "[::1]:8888", true);
        check("[::1]:8888", "localhost", true);
        check("192.0.2.1:80", "192.0.2.1", true);
        check("192.0.2.1:80", "192.0.2.2", false);
        check("0.0.0.0:80", "192.0.2.2", true);
        check("0.0.0.0:80", "evil.example", false);
        check("[::]:80", "[2001:db8::1]:80", true);
    }

    #[test]
    fn of_two_hosts_both_have_to_be_right() {
        let listen = "127.0.0.1:8888";
        assert!(look(listen, &[], &[("host", "localhost"), ("host", "evil.example")]).host.is_some());
        assert!(look(listen, &[], &[("host", "evil.example"), ("host", "localhost")]).host.is_some());
        // A health check of the first version of the protocol names none; a browser always does.
        assert!(look(listen, &[], &[]).host.is_none());
        let browsers = Browsers::new(&Options::new(listen.parse().unwrap()));
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        let absolute = Uri::from_static("http://evil.example/api/v1/config");
        assert!(browsers.look(&headers, &absolute).host.is_some());
    }

    #[test]
    fn a_page_is_the_gateways_own_or_of_an_allowed_origin() {
        let host = ("host", "localhost:8888");
        let check = |headers: &[(&str, &str)], expected: bool, is_allowed: bool| {
            let headers = [&[host], headers].concat();
            let look = look("127.0.0.1:8888", &["https://app.example.org"], &headers);
            assert_eq!(
                (look.page.is_none(), look.allowed.is_some()),
                (expected, is_allowed),
                "{headers:?}: {look:?}"
            );
        };
        check(&[], true, false);
        check(&[("origin", "http://localhost:8888")], true, false);
        check(&[("origin", "http://localhost:8888"), ("sec-fetch-site", "same-origin")], true, false);
        check(&[("sec-fetch-site", "none")], true, false);
        check(&[("sec-fetch-site", "Same-Origin")], true, false);
        check(&[("origin", "https://app.example.org"), ("sec-fetch-site", "cross-site")], true, true);
        check(&[("origin", "https://APP.example.org:443")], true, true);
        for foreign in [
            "https://evil.example",
            "null",
            "http://localhost:3000",
            "http://127.0.0.1:8888",
            "http://app.example.org",
            "https://app.example.org.evil.example",
            "https://app.example.org:8443",
            "",
            "file://",
        ] {
            check(&[("origin", foreign)], false, false);
            check(&[("origin", foreign), ("sec-fetch-site", "same-origin")], false, false);
        }
        for site in ["cross-site", "same-site", "", "whatever"] {
            check(&[("sec-fetch-site", site)], false, false);
            check(&[("origin", "http://localhost:8888"), ("sec-fetch-site", site)], false, false);
        }
        check(&[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], false, false);
        check(&[("origin", "https://app.example.org"), ("origin", "https://evil.example")], false, false);
        check(&[("origin", "https://evil.example"), ("origin", "http://localhost:8888")], false, false);
    }

    #[test]
    fn what_a_page_is_called_is_shown_short_and_printable() {
        assert_eq!(shown(b"a\x1b[31mb\r\n"), "a[31mb");
        assert_eq!(shown("x".repeat(1_000).as_bytes()).len(), SHOWN_CHARS_MAX);
    }
}
