//! Where a server is and who we are there; whatever holds a secret prints as `***`.

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

/// A checked server address. Prints without secrets.
pub(super) struct Address {
    server: ServerAddr,
    shown: String,
    login: Login,
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
    /// Reads `nats://USER:PASSWORD@HOST:PORT`, `nats://:TOKEN@HOST`, `nats://HOST?creds=FILE` or `nats://HOST?nkey=FILE`;
    /// with `tls://` the connection is encrypted, or none is made.
    ///
    /// # Errors
    /// [`Error::Refused`], without repeating the text: it may hold a secret.
    pub(super) fn parse(text: &str, options: &Options) -> Result<Self> {
        let url = Url::parse(text).map_err(|error| refused(&format!("cannot be read ({error})")))?;
        if !matches!(url.scheme(), "nats" | "tls") {
            return Err(refused("does not begin with nats:// or tls://"));
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return Err(refused("names no host"));
        };
        let port = url.port().unwrap_or(4222);
        let bare = format!("{}://{host}:{port}", url.scheme());
        let server = bare.parse().map_err(|_| refused("cannot be read"))?;
        let login = login(&url, options.password.as_ref())?;
        let shown = match &login {
            Login::Password { user, .. } => format!("{}://{user}@{host}:{port}", url.scheme()),
            Login::Nobody | Login::Token(_) | Login::Credentials(_) | Login::NKey(_) => bare,
        };
        let tls = options.ca_pem.as_deref().map(trusting).transpose()?;
        Ok(Self { server, shown, login, tls })
    }

    pub(super) fn server(&self) -> ServerAddr {
        self.server.clone()
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
        "the broker's address {why}; it should look like nats://user:password@host:4222, nats://:token@host:4222, or \
         nats://host:4222?creds=FILE"
    );
    Error::Refused { reason }
}

fn login(url: &Url, secret: Option<&Secret>) -> Result<Login> {
    if let Some((name, value)) = url.query_pairs().next() {
        return match &*name {
            "creds" => Ok(Login::Credentials(value.into_owned().into())),
            "nkey" => Ok(Login::NKey(value.into_owned().into())),
            _ => Err(refused(&format!("has a parameter '{name}' that is not known"))),
        };
    }
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
    }

    #[test]
    fn an_address_that_cannot_work_says_so_without_its_secrets() {
        for text in [
            "h:4222",
            "amqp://u:hush@h",
            "nats://u:hush@h:port/",
            "nats:///v",
            "nats://u:hush@h?x=1",
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
