//! Where a broker is and who we are there; whatever holds a secret prints as `***`.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sluice_bus::{Error, Result};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::Options;
use super::link::Stream;
use crate::Secret;
use crate::local::decoded;

const PORT: u16 = 6650;
const PORT_TLS: u16 = 6651;
const ADMIN_PORT: u16 = 8080;
const ADMIN_PORT_TLS: u16 = 8443;

/// A checked address. Prints without secrets.
pub(super) struct Address {
    broker: String,
    admin: Url,
    token: Option<Secret>,
    is_beside: bool,
    /// `None` where connections are plain.
    tls: Option<TlsConnector>,
}

impl Address {
    /// Reads `pulsar://:TOKEN@HOST:6650?admin=http://HOST:8080`; with `pulsar+ssl://` connections are encrypted.
    ///
    /// # Errors
    /// [`Error::Refused`], without repeating the text: it may hold a secret.
    pub(super) fn parse(text: &str, options: &Options) -> Result<Self> {
        let url = Url::parse(text).map_err(|error| refused(&format!("cannot be read ({error})")))?;
        let is_tls = match url.scheme() {
            "pulsar" => false,
            "pulsar+ssl" => true,
            _ => return Err(refused("does not begin with pulsar:// or pulsar+ssl://")),
        };
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return Err(refused("names no host"));
        };
        if !url.username().is_empty() {
            return Err(refused("names a user, or a token without a colon before it"));
        }
        let port = url.port().unwrap_or(if is_tls { PORT_TLS } else { PORT });
        let (named, is_beside) = parameters(&url)?;
        let given = options.admin.as_ref().map(|admin| admin.reveal().to_owned()).or(named);
        let usual = if is_tls { ("https", ADMIN_PORT_TLS) } else { ("http", ADMIN_PORT) };
        let admin = given.unwrap_or_else(|| format!("{}://{host}:{}", usual.0, usual.1));
        let tls = is_tls.then(|| trusting(options.ca_pem.as_deref())).transpose()?;
        Ok(Self {
            broker: format!("{}://{host}:{port}", url.scheme()),
            admin: admin_url(&admin)?,
            token: token(&url, options.token.as_ref())?,
            is_beside,
            tls: tls.map(|config| TlsConnector::from(Arc::new(config))),
        })
    }

    pub(super) fn broker(&self) -> &str {
        &self.broker
    }

    pub(super) const fn admin(&self) -> &Url {
        &self.admin
    }

    pub(super) const fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// Whether processes of TrustGraph 2.11 take part.
    pub(super) const fn is_beside(&self) -> bool {
        self.is_beside
    }

    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Opens a connection to a broker of the cluster, encrypted as this one's.
    pub(super) async fn open(&self, broker: &str) -> Result<Box<dyn Stream>> {
        let unavailable = |why: &dyn fmt::Display| Error::Unavailable {
            reason: format!("no connection to {broker}: {why}"),
        };
        let url = Url::parse(broker).map_err(|error| unavailable(&error))?;
        let (Some(host), Some(port)) = (url.host_str(), url.port()) else {
            return Err(unavailable(&"the broker names itself without a host or a port"));
        };
        let host = host.trim_matches(['[', ']']);
        let socket = TcpStream::connect((host, port)).await.map_err(|error| unavailable(&error))?;
        // Each command waits for its answer: none may wait for others to share a packet with.
        socket.set_nodelay(true).map_err(|error| unavailable(&error))?;
        let Some(tls) = &self.tls else { return Ok(Box::new(socket)) };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| unavailable(&error))?;
        match tls.connect(name, socket).await {
            Ok(socket) => Ok(Box::new(socket)),
            Err(error) if error.to_string().contains("certificate") => Err(Error::Refused {
                reason: format!(
                    "the broker at {broker} shows a certificate that is not trusted here ({error}); give the certificate \
                     of the CA that signed it, and an address whose host the certificate names"
                ),
            }),
            Err(error) => Err(unavailable(&error)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.broker)
    }
}

fn refused(why: &str) -> Error {
    let reason = format!(
        "the broker's address {why}; it should look like pulsar://host:6650, pulsar://:token@host:6650 or \
         pulsar+ssl://host:6651, with ?admin=http://host:8080 where the admin API is elsewhere, and beside=2.11 where processes of TrustGraph 2.11 take part"
    );
    Error::Refused { reason }
}

/// Where the admin API is, and whether others take part.
fn parameters(url: &Url) -> Result<(Option<String>, bool)> {
    let (mut admin, mut is_beside) = (None, false);
    for (name, value) in url.query_pairs() {
        match (&*name, &*value) {
            ("admin", _) => admin = Some(value.into_owned()),
            ("beside", "2.11") => is_beside = true,
            ("beside", _) => return Err(refused("has a parameter 'beside' that is not 2.11")),
            // Its name is not repeated: it may be the rest of a password.
            _ => return Err(refused("has a parameter that is not known (known are admin and beside)")),
        }
    }
    Ok((admin, is_beside))
}

fn admin_url(text: &str) -> Result<Url> {
    let url = Url::parse(text)
        .map_err(|error| refused(&format!("has an admin URL that cannot be read ({error})")))?;
    let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !matches!(url.scheme(), "http" | "https") || !is_plain {
        return Err(refused("has an admin URL that is not http://host:port or https://host:port"));
    }
    Ok(url)
}

fn token(url: &Url, given: Option<&Secret>) -> Result<Option<Secret>> {
    match (given, url.password()) {
        (Some(given), _) => Ok(Some(given.clone())),
        (None, Some(token)) => match decoded(token) {
            Some(token) => Ok(Some(Secret::new(token))),
            None => Err(refused("holds bytes that are not text")),
        },
        (None, None) => Ok(None),
    }
}

/// Trusts what this machine trusts, and `ca_pem`.
fn trusting(ca_pem: Option<&str>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let unreadable = |error: &dyn fmt::Display| Error::Refused {
        reason: format!("the certificates to trust cannot be read ({error}); they must be in PEM"),
    };
    for certificate in CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default().as_bytes()) {
        let certificate = certificate.map_err(|error| unreadable(&error))?;
        roots.add(certificate).map_err(|error| unreadable(&error))?;
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Address::parse(text, &Options::default())
    }

    #[test]
    fn an_address_is_read_and_shown_without_its_secrets() {
        let check = |text: &str, shown: &str, admin: &str, token: Option<&str>| {
            let address = parse(text).unwrap();
            let found = address.token().map(Secret::reveal);
            let admin_found = address.admin().as_str();
            assert_eq!((address.to_string().as_str(), admin_found, found), (shown, admin, token));
        };
        check("pulsar://h", "pulsar://h:6650", "http://h:8080/", None);
        check("pulsar://:t%40k@h:1", "pulsar://h:1", "http://h:8080/", Some("t@k"));
        check("pulsar+ssl://h", "pulsar+ssl://h:6651", "https://h:8443/", None);
        check("pulsar://h?admin=http://a:81", "pulsar://h:6650", "http://a:81/", None);
        check("pulsar://h?beside=2.11&admin=http://a:81", "pulsar://h:6650", "http://a:81/", None);
        assert!(
            parse("pulsar://h?beside=2.11").unwrap().is_beside() && !parse("pulsar://h").unwrap().is_beside()
        );
        check("pulsar://[::1]:7", "pulsar://[::1]:7", "http://[::1]:8080/", None);
    }

    #[test]
    fn an_address_that_cannot_work_says_so_without_its_secrets() {
        for text in [
            "h:6650",
            "amqp://:hush@h",
            "pulsar://:hush@h:port/",
            "pulsar:///v",
            "pulsar://:hush@h?x=1",
            "pulsar://:1?hush@h",
            "pulsar://:hush@h?beside=2.10",
            "pulsar://hush@h",
            "pulsar://:hush@h?admin=ftp://h",
            "pulsar://h?admin=http://u:hush@h",
        ] {
            let told = parse(text).err().map(|error| error.to_string()).unwrap();
            assert!(told.contains("should look like") && !told.contains("hush"), "{text}: {told}");
        }
    }

    #[test]
    fn a_token_of_its_own_takes_the_place_of_the_one_in_the_address() {
        let options = Options {
            token: Some(Secret::new("other")),
            admin: Some(Secret::new("http://a:1")),
            ..Options::default()
        };
        let address = Address::parse("pulsar://:t@h?admin=http://b:2", &options).unwrap();
        assert_eq!(address.token().map(Secret::reveal), Some("other"));
        assert_eq!(address.admin().as_str(), "http://a:1/");
        assert!(!format!("{options:?}").contains("other"));
    }
}
