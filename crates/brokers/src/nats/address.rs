//! Where servers are and who we are there; whatever holds a secret prints as `***`.

use std::fmt;
use std::path::{Path, PathBuf};

use async_nats::rustls::pki_types::CertificateDer;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::{ClientConfig, RootCertStore};
use async_nats::{ConnectOptions, ServerAddr};
use sluice_bus::{Error, Result};
use url::Url;

use super::Options;
use crate::Secret;
use crate::local::decoded;

/// As many replicas as a server can give a stream.
const REPLICAS_MAX: usize = 5;

/// A checked address. Prints without secrets.
pub(super) struct Address {
    /// Any of them can be asked; they name the others of their cluster.
    servers: Vec<ServerAddr>,
    shown: String,
    login: Login,
    replicas: Option<usize>,
    tls: Option<ClientConfig>,
}

/// How we prove who we are.
enum Login {
    Nobody,
    Password {
        user: String,
        password: Secret,
    },
    Token(Secret),
    /// A file with a JWT and its key.
    Credentials(PathBuf),
    /// A file with the seed of a key.
    NKey(PathBuf),
}

impl Address {
    /// Reads `nats://USER:PASSWORD@HOST:PORT,HOST:PORT`, `nats://:TOKEN@HOST`, `nats://HOST?creds=FILE` or
    /// `nats://HOST?nkey=FILE`, each with `replicas=NUMBER` or without; with `tls://` the connection is encrypted, or none is
    /// made.
    ///
    /// # Errors
    /// [`Error::Refused`], without repeating the text: it may hold a secret.
    pub(super) fn parse(text: &str, options: &Options) -> Result<Self> {
        let scheme = ["nats", "tls"]
            .into_iter()
            .find(|scheme| text.strip_prefix(scheme).is_some_and(|rest| rest.starts_with("://")));
        let Some(scheme) = scheme else { return Err(refused("does not begin with nats:// or tls://")) };
        let rest = &text[scheme.len() + "://".len()..];
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let hosts: Vec<String> = hosts.split(',').map(|host| server(scheme, host)).collect::<Result<_>>()?;
        let at = if user.is_empty() { "" } else { "@" };
        let url = Url::parse(&format!("{scheme}://{user}{at}host{tail}"));
        let url = url.map_err(|error| refused(&format!("cannot be read ({error})")))?;
        let (file, replicas) = parameters(&url)?;
        let login = match file {
            Some(file) => file,
            None => login(&url, options.password.as_ref())?,
        };
        let shown = match &login {
            Login::Password { user, .. } => format!("{scheme}://{user}@{}", hosts.join(",")),
            Login::Nobody | Login::Token(_) | Login::Credentials(_) | Login::NKey(_) => {
                format!("{scheme}://{}", hosts.join(","))
            }
        };
        let servers = hosts.iter().map(|host| format!("{scheme}://{host}").parse());
        let servers = servers.collect::<Result<_, _>>().map_err(|_| refused("cannot be read"))?;
        let tls = options.ca_pem.as_deref().map(trusting).transpose()?;
        Ok(Self { servers, shown, login, replicas, tls })
    }

    pub(super) fn servers(&self) -> Vec<ServerAddr> {
        self.servers.clone()
    }

    /// How many servers are to have each stream, where that is said.
    pub(super) const fn replicas(&self) -> Option<usize> {
        self.replicas
    }

    /// What a client needs to be let in.
    pub(super) fn options(&self) -> Result<ConnectOptions> {
        let options = ConnectOptions::new();
        let options = match &self.login {
            Login::Nobody => options,
            Login::Password { user, password } => {
                options.user_and_password(user.clone(), password.reveal().to_owned())
            }
            Login::Token(token) => options.token(token.reveal().to_owned()),
            Login::Credentials(file) => options.credentials(&read(file)?).map_err(|error| {
                refused(&format!("names '{}', which holds no credentials ({error})", file.display()))
            })?,
            Login::NKey(file) => options.nkey(read(file)?.trim().to_owned()),
        };
        Ok(match &self.tls {
            Some(config) => options.tls_client_config(config.clone()),
            None => options,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn refused(why: &str) -> Error {
    let reason = format!(
        "the broker's address {why}; it should look like nats://user:password@host:4222, nats://:token@host:4222, \
         nats://host:4222,other:4222?replicas=3, or nats://host:4222?creds=FILE"
    );
    Error::Refused { reason }
}

/// One of the servers, with its port.
fn server(scheme: &str, host: &str) -> Result<String> {
    let url = Url::parse(&format!("{scheme}://{host}"));
    let url = url.map_err(|error| refused(&format!("cannot be read ({error})")))?;
    match url.host_str().filter(|host| !host.is_empty()) {
        Some(host) => Ok(format!("{host}:{}", url.port().unwrap_or(4222))),
        None => Err(refused("names no host")),
    }
}

/// A file that says who we are, and the replicas.
fn parameters(url: &Url) -> Result<(Option<Login>, Option<usize>)> {
    let (mut file, mut replicas) = (None, None);
    for (name, value) in url.query_pairs() {
        match &*name {
            "creds" => file = Some(Login::Credentials(value.into_owned().into())),
            "nkey" => file = Some(Login::NKey(value.into_owned().into())),
            "replicas" => {
                let number = value.parse().ok().filter(|number| (1..=REPLICAS_MAX).contains(number));
                let Some(number) = number else {
                    return Err(refused(&format!("has 'replicas' that are no number up to {REPLICAS_MAX}")));
                };
                replicas = Some(number);
            }
            // Its name is not repeated: it may be the rest of a password.
            _ => {
                return Err(refused(
                    "has a parameter that is not known (known are creds, nkey and replicas)",
                ));
            }
        }
    }
    Ok((file, replicas))
}

fn login(url: &Url, secret: Option<&Secret>) -> Result<Login> {
    let plain = |part: &str| decoded(part).ok_or_else(|| refused("holds bytes that are not text"));
    let user = plain(url.username())?;
    let password = match (secret, url.password()) {
        (Some(secret), _) => Some(secret.clone()),
        (None, Some(password)) => Some(Secret::new(plain(password)?)),
        (None, None) => None,
    };
    Ok(match (user, password) {
        (user, None) if user.is_empty() => Login::Nobody,
        // Others take it for a token, which looks the same.
        (_, None) => {
            return Err(refused("names a user without a password, or a token without a colon before it"));
        }
        (user, Some(token)) if user.is_empty() => Login::Token(token),
        (user, Some(password)) => Login::Password { user, password },
    })
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file)
        .map_err(|error| refused(&format!("names '{}', which cannot be read ({error})", file.display())))
}

/// Trusts what this machine trusts, and `ca_pem`.
fn trusting(ca_pem: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let unreadable = |error: &dyn fmt::Display| Error::Refused {
        reason: format!("the certificates to trust cannot be read ({error}); they must be in PEM"),
    };
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| unreadable(&error))?;
        roots.add(certificate).map_err(|error| unreadable(&error))?;
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address> {
        Address::parse(text, &Options::default())
    }

    #[test]
    fn an_address_is_read_and_shown_without_its_secrets() {
        let check = |text: &str, shown: &str, login: &str| {
            let address = parse(text).unwrap();
            let found = match &address.login {
                Login::Nobody => "nobody".to_owned(),
                Login::Password { user, password } => format!("{user}/{}", password.reveal()),
                Login::Token(token) => format!("token {}", token.reveal()),
                Login::Credentials(file) | Login::NKey(file) => file.display().to_string(),
            };
            assert_eq!((address.to_string().as_str(), found.as_str()), (shown, login));
        };
        check("nats://h", "nats://h:4222", "nobody");
        check("nats://u:p%40@h:1", "nats://u@h:1", "u/p@");
        check("tls://:hush@h", "tls://h:4222", "token hush");
        check("nats://[::1]:7", "nats://[::1]:7", "nobody");
        check("nats://h?creds=/a%20b.creds", "nats://h:4222", "/a b.creds");
        check("nats://h?nkey=/seed", "nats://h:4222", "/seed");
        check("nats://u:p@h:1,other,[::1]:7?replicas=3", "nats://u@h:1,other:4222,[::1]:7", "u/p");
    }

    #[test]
    fn replicas_are_wanted_as_the_address_says() {
        let wanted = |text: &str| parse(text).unwrap().replicas();
        assert_eq!(wanted("nats://h"), None);
        assert_eq!(wanted("nats://h?replicas=3"), Some(3));
        assert_eq!(wanted("nats://h?creds=/c&replicas=1"), Some(1));
    }

    #[test]
    fn an_address_that_cannot_work_says_so_without_its_secrets() {
        for text in [
            "h:4222",
            "amqp://u:hush@h",
            "nats://u:hush@h:port/",
            "nats:///v",
            "nats://u:hush@h?x=1",
            "nats://u:hush@h?replicas=0",
            "nats://u:hush@h?replicas=6",
            "nats://u:hush@h?replicas=two",
            "nats://u:hush@h,",
            "nats://hush@h",
        ] {
            let told = parse(text).err().map(|error| error.to_string()).unwrap();
            assert!(told.contains("should look like") && !told.contains("hush"), "{text}: {told}");
        }
    }

    #[test]
    fn a_password_of_its_own_takes_the_place_of_the_one_in_the_address() {
        let options = Options { password: Some(Secret::new("other")), ..Options::default() };
        let login = |text: &str| Address::parse(text, &options).unwrap().login;
        assert!(
            matches!(login("nats://u:p@h"), Login::Password { password, .. } if password.reveal() == "other")
        );
        assert!(matches!(login("nats://h"), Login::Token(token) if token.reveal() == "other"));
        assert!(!format!("{options:?}").contains("other"));
    }
}
