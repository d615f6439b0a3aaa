//! Where a cluster is and who we are there; whatever holds a secret prints as `***`.

use std::fmt;
use std::io::Write as _;
use std::time::Duration;

use krafka::auth::{AuthConfig, TlsConfig};
use sluice_bus::{Error, Result};
use sluice_schema::address;
use tempfile::NamedTempFile;
use url::Url;

use super::{Options, fault};
use crate::Secret;
use crate::local::decoded;

const PORT: u16 = 9092;
const PORT_TLS: u16 = 9093;
/// How long a connection may take that is not said otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A checked address. Prints without secrets.
pub(super) struct Address {
    servers: String,
    shown: String,
    login: Option<Login>,
    tls: Option<Trust>,
    is_beside: bool,
}

/// How we prove who we are.
struct Login {
    user: String,
    password: Secret,
    mechanism: Mechanism,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    Plain,
    Scram256,
    Scram512,
}

/// Whom connections trust.
struct Trust {
    /// The client library reads certificates from files only; this one goes with the address.
    ca: Option<NamedTempFile>,
}

/// What a connection is for. One that waits for messages holds up whatever is sent over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Publish,
    Admin,
    /// Renewals of leases, which are worth nothing when they come late.
    Lease,
    /// The registry, inboxes and followed topics.
    Tail,
    /// One reader of a subscription.
    Read,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Publish => "sluice-publish",
            Self::Admin => "sluice-admin",
            Self::Lease => "sluice-lease",
            Self::Tail => "sluice-tail",
            Self::Read => "sluice-read",
        }
    }
}

impl Address {
    /// Reads `kafka://USER:PASSWORD@HOST:9092,HOST:9092?mechanism=SCRAM-SHA-512&beside=2.11`; with `kafka+ssl://` connections are encrypted.
    ///
    /// # Errors
    /// [`Error::Refused`], without repeating the text: it may hold a secret.
    pub(super) fn parse(text: &str, options: &Options) -> Result<Self> {
        let (is_tls, rest) = if let Some(rest) = text.strip_prefix("kafka://") {
            (false, rest)
        } else if let Some(rest) = text.strip_prefix("kafka+ssl://") {
            (true, rest)
        } else {
            return Err(refused("does not begin with kafka:// or kafka+ssl://"));
        };
        let ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(ends);
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let usual = if is_tls { PORT_TLS } else { PORT };
        let servers: Vec<String> = hosts.split(',').map(|host| server(host, usual)).collect::<Result<_>>()?;
        let servers = servers.join(",");
        let scheme = if is_tls { "kafka+ssl" } else { "kafka" };
        let (mechanism, is_beside) = parameters(tail)?;
        let login = login(user, mechanism, options.password.as_ref())?;
        let shown = match &login {
            Some(login) => format!("{scheme}://{}@{servers}", address::shown_user(&login.user)),
            None => format!("{scheme}://{servers}"),
        };
        let tls = is_tls.then(|| trusting(options.ca_pem.as_deref())).transpose()?;
        Ok(Self { servers, shown, login, tls, is_beside })
    }

    /// Whether processes of TrustGraph 2.11 take part.
    pub(super) const fn is_beside(&self) -> bool {
        self.is_beside
    }

    fn auth(&self) -> AuthConfig {
        let auth = match &self.login {
            None => AuthConfig::plaintext(),
            Some(Login { user, password, mechanism }) => match mechanism {
                Mechanism::Plain => AuthConfig::sasl_plain(user, password.reveal()),
                Mechanism::Scram256 => AuthConfig::sasl_scram_sha256(user, password.reveal()),
                Mechanism::Scram512 => AuthConfig::sasl_scram_sha512(user, password.reveal()),
            },
        };
        let Some(trust) = &self.tls else { return auth };
        let tls = TlsConfig::new().with_native_roots();
        auth.with_tls(match &trust.ca {
            Some(file) => tls.with_ca_cert(file.path().to_string_lossy()),
            None => tls,
        })
    }

    /// Connections of their own. A request over them waits this long at most.
    pub(super) async fn open(&self, role: Role, within: Duration) -> Result<krafka::Kafka> {
        let builder = krafka::Kafka::builder(&self.servers)
            .client_id(role.name())
            .security(self.auth())
            .connect_timeout(CONNECT_TIMEOUT.min(within))
            .request_timeout(within);
        let opened = tokio::time::timeout(within, builder.connect()).await;
        let opened = opened.map_err(|_| Error::Unavailable {
            reason: format!("{self} did not answer within {} ms", within.as_millis()),
        })?;
        opened.map_err(|error| fault::of(&error, &format!("connecting to {self}")))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn refused(why: &str) -> Error {
    let reason = format!(
        "the broker's address {why}; it should look like kafka://host:9092, kafka://host:9092,other:9092, \
         kafka+ssl://user:password@host:9093 or kafka://user:password@host:9092?mechanism=SCRAM-SHA-512, and end in \
         beside=2.11 where processes of TrustGraph 2.11 take part"
    );
    Error::Refused { reason }
}

/// One of the cluster's brokers, with its port.
fn server(host: &str, usual: u16) -> Result<String> {
    let url = Url::parse(&format!("kafka://{host}"));
    let url = url.map_err(|error| refused(&format!("cannot be read ({error})")))?;
    let is_bare = url.username().is_empty() && url.password().is_none();
    match url.host_str().filter(|host| !host.is_empty() && is_bare) {
        Some(host) => Ok(format!("{host}:{}", url.port().unwrap_or(usual))),
        None => Err(refused("names no host")),
    }
}

fn parameters(tail: &str) -> Result<(Mechanism, bool)> {
    let url = Url::parse(&format!("kafka://host{tail}"));
    let url = url.map_err(|error| refused(&format!("cannot be read ({error})")))?;
    if !matches!(url.path(), "" | "/") {
        return Err(refused("has a path"));
    }
    let (mut mechanism, mut is_beside) = (Mechanism::Plain, false);
    for (name, value) in url.query_pairs() {
        match (&*name, &*value) {
            ("mechanism", "PLAIN") => mechanism = Mechanism::Plain,
            ("mechanism", "SCRAM-SHA-256") => mechanism = Mechanism::Scram256,
            ("mechanism", "SCRAM-SHA-512") => mechanism = Mechanism::Scram512,
            ("beside", "2.11") => is_beside = true,
            ("beside", _) => return Err(refused("has a parameter 'beside' that is not 2.11")),
            ("mechanism", _) => {
                return Err(refused("has a mechanism that is not PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"));
            }
            // Its name is not repeated: it may be the rest of a password.
            _ => return Err(refused("has a parameter that is not known (known are mechanism and beside)")),
        }
    }
    Ok((mechanism, is_beside))
}

fn login(user: Option<&str>, mechanism: Mechanism, given: Option<&Secret>) -> Result<Option<Login>> {
    let text = |part: &str| decoded(part).ok_or_else(|| refused("holds bytes that are not text"));
    let (user, own) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
        Some((user, password)) => (text(user)?, text(password)?),
        None => (String::new(), String::new()),
    };
    let password = given.cloned().unwrap_or_else(|| Secret::new(own));
    match (user.is_empty(), password.reveal().is_empty()) {
        (true, true) => Ok(None),
        (true, false) => Err(refused("has a password and no user")),
        (false, _) => Ok(Some(Login { user, password, mechanism })),
    }
}

/// Trusts what this machine trusts, and `ca_pem`.
fn trusting(ca_pem: Option<&str>) -> Result<Trust> {
    let Some(pem) = ca_pem else { return Ok(Trust { ca: None }) };
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        let reason = "the certificates to trust cannot be read; they must be in PEM".to_owned();
        return Err(Error::Refused { reason });
    }
    let kept = NamedTempFile::new().and_then(|mut file| file.write_all(pem.as_bytes()).map(|()| file));
    let kept = kept.map_err(|error| Error::Refused {
        reason: format!(
            "the certificates to trust cannot be put into a file of the machine's temporary folder: {error}"
        ),
    })?;
    Ok(Trust { ca: Some(kept) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address> {
        Address::parse(text, &Options::default())
    }

    #[test]
    fn an_address_is_read_and_shown_without_its_secrets() {
        let check = |text: &str, servers: &str, shown: &str, password: Option<(&str, Mechanism)>| {
            let address = parse(text).unwrap();
            let found = address.login.as_ref().map(|login| (login.password.reveal(), login.mechanism));
            assert_eq!((&*address.servers, &*address.to_string(), found), (servers, shown, password));
        };
        check("kafka://h", "h:9092", "kafka://h:9092", None);
        check("kafka://a:1,b", "a:1,b:9092", "kafka://a:1,b:9092", None);
        check("kafka://u:p%40@h:1", "h:1", "kafka://u@h:1", Some(("p@", Mechanism::Plain)));
        check("kafka://u%3Bhush:p@h", "h:9092", "kafka://***@h:9092", Some(("p", Mechanism::Plain)));
        check("kafka+ssl://h", "h:9093", "kafka+ssl://h:9093", None);
        check("kafka://[::1]:7", "[::1]:7", "kafka://[::1]:7", None);
        let scram = Some(("p", Mechanism::Scram512));
        check("kafka://u:p@h/?mechanism=SCRAM-SHA-512", "h:9092", "kafka://u@h:9092", scram);
    }

    #[test]
    fn an_address_that_cannot_work_says_so_without_its_secrets() {
        for text in [
            "h:9092",
            "amqp://:hush@h",
            "kafka://u:hush@h:port",
            "kafka://",
            "kafka://a,,b",
            "kafka://u:hush@h?x=1",
            "kafka://u:1?hush@h",
            "kafka://u:hush@h?mechanism=hush",
            "kafka://:hush@h",
            "kafka://u:hush@h/vhost",
        ] {
            let told = parse(text).err().map(|error| error.to_string()).unwrap();
            assert!(told.contains("should look like") && !told.contains("hush"), "{text}: {told}");
        }
    }

    #[test]
    fn a_password_of_its_own_takes_the_place_of_the_one_in_the_address() {
        let options = Options { password: Some(Secret::new("other")), ..Options::default() };
        let address = Address::parse("kafka://u:p@h", &options).unwrap();
        assert_eq!(address.login.unwrap().password.reveal(), "other");
        assert!(!format!("{options:?}").contains("other"));
    }
}
