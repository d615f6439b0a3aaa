//! Whom a command trusts when it connects with TLS, and what it shows of itself.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cli::Target;
use crate::exit::Told;

/// The certificates of the machine and those that the arguments name; the certificate to show, if one is named.
pub(crate) fn config(target: &Target) -> anyhow::Result<ClientConfig> {
    let mut issuers = RootCertStore::empty();
    // Of the machine's certificates, those that cannot be read are not trusted.
    issuers.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = &target.ca {
        for certificate in certificates(file)? {
            issuers.add(certificate).with_context(|| format!("'{}' cannot be trusted", file.display()))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS cannot be used")?
        .with_root_certificates(issuers);
    match (&target.client_cert, &target.client_key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let own = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("'{}' holds no private key (PEM)", key.display()))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, own)
                .with_context(|| format!("'{}' cannot be shown", certificate.display()))
        }
        (Some(_), None) | (None, Some(_)) => {
            Err(Told::usage("a certificate is shown with its key, and one of them is missing")
                .next("give both --client-cert FILE and --client-key FILE")
                .into())
        }
    }
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(Told::usage(format!("'{}' holds no certificate (PEM)", file.display())).into()),
        Err(error) => {
            Err(error).with_context(|| format!("'{}' cannot be read as certificates (PEM)", file.display()))
        }
    }
}

/// Whether the other end of a connection speaks TLS, whatever it shows; nothing else is said to it.
pub(crate) async fn is_tls_spoken(host: String, tcp: TcpStream) -> bool {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let (Ok(builder), Ok(name)) = (builder.with_safe_default_protocol_versions(), ServerName::try_from(host))
    else {
        return false;
    };
    let nobody_is_trusted = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let Err(error) = TlsConnector::from(Arc::new(nobody_is_trusted)).connect(name, tcp).await else {
        return true;
    };
    // An answer that is no TLS is told from one that is not to our liking.
    tls_error(&error).is_some_and(|error| !matches!(error, rustls::Error::InvalidMessage(_)))
}

/// The failure of TLS that an error comes from, through all that is wrapped around it.
pub(crate) fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    // What an I/O error carries is not among its sources.
    let carried = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match carried {
        Some(carried) => tls_error(carried),
        None => error.source().and_then(tls_error),
    }
}

/// What to do where a server shows the certificate of an issuer.
pub(crate) const ISSUER_SHOWN_NEXT: &str = "serve with a certificate that the issuer made for its host (with openssl req -x509: \
    -addext basicConstraints=critical,CA:FALSE), and give the issuer's with --ca FILE";

/// Whether a server showed, as its own, a certificate that only an issuer may have.
pub(crate) fn shows_an_issuer(error: &rustls::Error) -> bool {
    // The library that checks keeps its reasons to itself, but for their names.
    error.to_string().contains("CaUsedAsEndEntity")
}
