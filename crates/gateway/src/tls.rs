//! TLS on the listener: certificate and key from files, read again when they change.
//!
//! The handshake is made by the connection itself, when it is first read or written, so that a peer that takes its time
//! keeps nobody else from being accepted. It has a deadline.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// How often files are looked at for a change.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// What the gateway speaks within TLS.
const PROTOCOL: &[u8] = b"http/1.1";

/// The files that TLS is made with, all of them PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by those of its issuers.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Issuers of the certificates that callers have to show; without it they need none.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be made with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("'{}' cannot be read; check its path and rights", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("'{}' does not hold {wanted} in PEM form", file.display())]
    NotThere {
        /// The file.
        file: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Certificate and key do not go together, or cannot be used.
    #[error("certificate '{}' and key '{}' cannot be used together", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// The issuers of callers' certificates cannot be used.
    #[error("the certificates in '{}' cannot be trusted as issuers", file.display())]
    Issuers {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// TLS as it is configured now. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
    seen: Mutex<Seen>,
}

/// The files as they were last looked at.
#[derive(Default)]
struct Seen {
    loaded: Vec<Mark>,
    /// What could not be used; told once.
    refused: Vec<Mark>,
}

/// What shows that a file is another than before.
#[derive(Clone, PartialEq, Eq)]
struct Mark {
    modified: Option<SystemTime>,
    bytes: u64,
    #[cfg(unix)]
    inode: u64,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.shared.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A [`TlsError`] that names the file.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let loaded = marks(&files);
        let current = RwLock::new(configured(&files)?);
        let seen = Mutex::new(Seen { loaded, refused: Vec::new() });
        Ok(Self { shared: Arc::new(Shared { files, current, seen }) })
    }

    /// Takes the files in again if they have changed. What cannot be used is logged once, and what was used before stays.
    pub(crate) fn look(&self) {
        let Shared { files, current, seen } = &*self.shared;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = marks(files);
        if now == seen.loaded || now == seen.refused {
            return;
        }
        match configured(files) {
            Ok(config) => {
                *current.write().unwrap_or_else(PoisonError::into_inner) = config;
                *seen = Seen { loaded: now, refused: Vec::new() };
                tracing::info!(certificate = %files.certificate.display(), "a changed certificate is used from now on");
            }
            Err(error) => {
                seen.refused = now;
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "a changed certificate cannot be used; the one before stays");
            }
        }
    }

    /// Looks at the files for ever.
    pub(crate) async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let own = self.clone();
            // Reading files blocks. A panic in there would be a fault of the library; the next look tries again.
            let _ = tokio::task::spawn_blocking(move || own.look()).await;
        }
    }

    fn accept(&self, tcp: TcpStream) -> Accept<TcpStream> {
        let config = self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        TlsAcceptor::from(config).accept(tcp)
    }
}

fn marks(files: &TlsFiles) -> Vec<Mark> {
    let all = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
    let mark = |file: &PathBuf| {
        let meta = fs::metadata(file).ok();
        Mark {
            modified: meta.as_ref().and_then(|meta| meta.modified().ok()),
            bytes: meta.as_ref().map_or(0, fs::Metadata::len),
            #[cfg(unix)]
            inode: meta.as_ref().map_or(0, std::os::unix::fs::MetadataExt::ino),
        }
    };
    all.into_iter().flatten().map(mark).collect()
}

fn configured(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let unusable = |source| TlsError::Unusable {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(unusable)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let refused = |reason: String| TlsError::Issuers { file: file.clone(), reason };
            let mut issuers = RootCertStore::empty();
            for certificate in certificates(file)? {
                issuers.add(certificate).map_err(|error| refused(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(issuers), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| refused(error.to_string()))?)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| TlsError::NotThere { file: files.key.clone(), wanted: "a private key" })?;
    warn_if_open(&files.key);
    let mut config = builder.with_single_cert(certificates(&files.certificate)?, key).map_err(unusable)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Unreadable { file: file.to_owned(), source })
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let absent = || TlsError::NotThere { file: file.to_owned(), wanted: "a certificate" };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(absent)
}

#[cfg(unix)]
fn warn_if_open(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0) {
        tracing::warn!(file = %file.display(), "others can read the private key; run chmod 600 on its file");
    }
}

#[cfg(not(unix))]
fn warn_if_open(_: &Path) {}

/// The bytes of a connection, in clear or in TLS.
pub(crate) enum Wire {
    Plain(TcpStream),
    /// Before the first byte of the caller.
    Shaking(Box<Handshake>),
    Secure(Box<TlsStream<TcpStream>>),
    /// The handshake failed; nothing more comes.
    Broken,
}

pub(crate) struct Handshake {
    accept: Accept<TcpStream>,
    deadline: Pin<Box<Sleep>>,
}

impl Wire {
    /// A connection that was just accepted. In TLS, its handshake has to be done within `timeout`.
    pub(crate) fn new(tcp: TcpStream, tls: Option<&Tls>, timeout: Duration) -> Self {
        match tls {
            None => Self::Plain(tcp),
            Some(tls) => Self::Shaking(Box::new(Handshake {
                accept: tls.accept(tcp),
                deadline: Box::pin(tokio::time::sleep(timeout)),
            })),
        }
    }

    fn poll_shaken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Shaking(handshake) = self else { return Poll::Ready(Ok(())) };
        let shaken = match Pin::new(&mut handshake.accept).poll(cx) {
            Poll::Ready(shaken) => shaken,
            Poll::Pending => {
                ready!(handshake.deadline.as_mut().poll(cx));
                Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"))
            }
        };
        Poll::Ready(match shaken {
            Ok(stream) => {
                *self = Self::Secure(Box::new(stream));
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, "a TLS handshake failed");
                *self = Self::Broken;
                Err(error)
            }
        })
    }
}

/// What a connection says after its handshake failed.
fn broken<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_shaken(cx))?;
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, into),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Shaking(_) | Self::Broken => broken(),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_shaken(cx))?;
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Shaking(_) | Self::Broken => broken(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
            // Nothing was written yet.
            Self::Shaking(_) | Self::Broken => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Shaking(_) | Self::Broken => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_shaken(cx))?;
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Shaking(_) | Self::Broken => broken(),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Secure(stream) => stream.is_write_vectored(),
            Self::Shaking(_) | Self::Broken => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::ClientConfig;
    use rustls::pki_types::ServerName;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use super::*;

    /// Files of a certificate that signs itself, which is also what a client has to trust.
    fn write(folder: &Path) -> TlsFiles {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let files =
            TlsFiles { certificate: folder.join("cert.pem"), key: folder.join("key.pem"), client_ca: None };
        fs::write(&files.certificate, cert.pem()).unwrap();
        fs::write(&files.key, signing_key.serialize_pem()).unwrap();
        files
    }

    /// Whether a client that trusts `trusted` alone is served.
    async fn is_served(tls: &Tls, trusted: &[CertificateDer<'static>]) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut roots = RootCertStore::empty();
        for certificate in trusted {
            roots.add(certificate.clone()).unwrap();
        }
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let mut wire = Wire::new(accepted, Some(tls), Duration::from_secs(60));
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let mut byte = [0; 1];
        let (shaken, _) = tokio::join!(
            async {
                let mut stream = connector.connect(name, tcp).await?;
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await
            },
            wire.read(&mut byte)
        );
        shaken.is_ok()
    }

    #[tokio::test]
    async fn a_changed_certificate_is_used_at_the_next_look_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = write(folder.path());
        let first = certificates(&files.certificate).unwrap();
        let tls = Tls::load(files.clone()).unwrap();
        assert!(is_served(&tls, &first).await);

        fs::write(&files.key, "no key any more").unwrap();
        for _ in 0..2 {
            tls.look();
            assert!(is_served(&tls, &first).await, "the one before stays");
        }
        write(folder.path());
        let second = certificates(&files.certificate).unwrap();
        assert!(!is_served(&tls, &second).await, "nobody has looked yet");
        tls.look();
        assert!(is_served(&tls, &second).await && !is_served(&tls, &first).await);
        fs::remove_file(&files.certificate).unwrap();
        tls.look();
        assert!(is_served(&tls, &second).await);
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = write(folder.path());
        let check = |change: &dyn Fn(&mut TlsFiles), said: &str| {
            let mut files = files.clone();
            change(&mut files);
            let error = Tls::load(files).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        };
        let absent = folder.path().join("absent.pem");
        check(&|files| files.certificate = absent.clone(), "absent.pem' cannot be read");
        check(&|files| files.key = absent.clone(), "absent.pem' cannot be read");
        check(&|files| files.client_ca = Some(absent.clone()), "absent.pem' cannot be read");
        check(&|files| files.certificate = files.key.clone(), "key.pem' does not hold a certificate");
        check(&|files| files.key = files.certificate.clone(), "cert.pem' does not hold a private key");
        check(&|files| files.client_ca = Some(files.key.clone()), "key.pem' does not hold a certificate");
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        let other = write(&other);
        check(&|files| files.key = other.key.clone(), "cannot be used together");
    }
}
