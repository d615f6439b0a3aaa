//! The admin key: made once, kept in plain text in one file and as a digest in the store.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sluice_store::{Batch, Found, Read, Tables};

use crate::proof::{Challenge, Side};
use crate::{Error, clock};

/// What every API key begins with; the gateway tells keys from other tokens by it.
const PREFIX: &str = "tg_";
/// Random bytes of a key that we make.
const SECRET_BYTES: usize = 24;
/// Characters after the prefix that a key given by a person needs at least.
pub(crate) const SECRET_CHARS_MIN: usize = 16;

const TABLE: &str = "iam.key";
const ADMIN: &str = "admin";

/// What is stored of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// Lower-case hex of the whole key's SHA-256.
    sha256: String,
    /// When it was made or taken in.
    created: String,
}

/// The admin key as it can be compared.
#[derive(Debug, Clone)]
pub(crate) struct AdminKey {
    stored: Stored,
}

/// Whether the store knows an admin key.
pub(crate) async fn is_known(tables: &dyn Tables) -> Result<bool, Error> {
    let found = tables.read(vec![Read::get(TABLE, ADMIN)]).await?;
    Ok(found.into_iter().next().and_then(Found::into_value).is_some())
}

/// What the file holds and what the store knows.
#[derive(Debug)]
pub(crate) struct Both {
    in_file: Option<String>,
    stored: Option<Stored>,
    raw: Option<bytes::Bytes>,
}

/// Reads both, and refuses a file that holds no key, or another one than the store knows.
pub(crate) async fn check(file: &Path, tables: &dyn Tables) -> Result<Both, Error> {
    let found = tables.read(vec![Read::get(TABLE, ADMIN)]).await?;
    let raw = found.into_iter().next().and_then(Found::into_value);
    let stored: Option<Stored> = match &raw {
        None => None,
        Some(raw) => Some(serde_json::from_slice(raw).map_err(|e| sluice_store::Error::Damaged {
            what: "the admin key's digest".to_owned(),
            reason: e.to_string(),
        })?),
    };
    let in_file = on_disk(file, read).await?;
    match (&in_file, &stored) {
        (Some(key), _) if !is_key(key) => Err(Error::NotAKey { file: file.to_owned() }),
        (Some(key), Some(stored)) if !(AdminKey { stored: stored.clone() }).is(key) => {
            Err(Error::OtherKey { file: file.to_owned() })
        }
        _ => Ok(Both { in_file, stored, raw }),
    }
}

impl AdminKey {
    /// Brings file and store together: makes the key where the file is absent, takes it in where only the file has it,
    /// and refuses where both have one and they differ.
    pub(crate) async fn settle(file: &Path, tables: &dyn Tables) -> Result<Self, Error> {
        let Both { in_file, stored, raw } = check(file, tables).await?;
        let key = match (in_file, stored) {
            (Some(_), Some(stored)) => return Ok(Self { stored }),
            (Some(key), None) => key,
            (None, stored) => {
                let key = make().map_err(|source| Error::KeyFile { file: file.to_owned(), source })?;
                let written = key.clone();
                on_disk(file, move |file| write(file, &written)).await?;
                if stored.is_some() {
                    tracing::warn!(file = %file.display(), "a new admin key was made; the old one works no more");
                } else {
                    tracing::info!(file = %file.display(), "the admin key was made");
                }
                key
            }
        };
        // After the file: a crash in between leaves a key that the next start takes in, or makes anew.
        let stored = Stored { sha256: digest(&key), created: clock::now() };
        let mut batch = Batch::new();
        batch.expect(TABLE, ADMIN, raw);
        batch.put(TABLE, ADMIN, sluice_schema::wire::encode(&stored));
        tables.commit(batch).await?;
        Ok(Self { stored })
    }

    /// Whether this is the key. Takes the same time wherever it differs.
    pub(crate) fn is(&self, presented: &str) -> bool {
        let (ours, theirs) = (self.stored.sha256.as_bytes(), digest(presented));
        let differing = ours.iter().zip(theirs.as_bytes()).fold(0, |all, (a, b)| all | (a ^ b));
        ours.len() == theirs.len() && std::hint::black_box(differing) == 0
    }

    /// The service's code, for who shows the holder's.
    pub(crate) fn prove(&self, challenge: &Challenge<'_>, proof: &str) -> Option<String> {
        let digest = &self.stored.sha256;
        let is_holder = challenge.is_sound() && challenge.is_proved_by_digest(Side::Holder, digest, proof);
        is_holder.then(|| challenge.prove_by_digest(Side::Service, digest))
    }

    /// When it was made.
    pub(crate) fn created(&self) -> &str {
        &self.stored.created
    }
}

/// A fresh key: the prefix and 32 url-safe characters.
fn make() -> io::Result<String> {
    let mut secret = [0; SECRET_BYTES];
    OsRng.try_fill_bytes(&mut secret).map_err(io::Error::other)?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)))
}

fn is_key(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(|secret| {
        secret.len() >= SECRET_CHARS_MIN
            && secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    })
}

pub(crate) fn digest(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs file work where it may block.
async fn on_disk<T: Send + 'static>(
    file: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let path = file.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&path)).await;
    done.map_err(io::Error::other)
        .flatten()
        .map_err(|source| Error::KeyFile { file: file.to_owned(), source })
}

fn read(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => {
            warn_if_open(file);
            Ok(Some(text.trim().to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not text, or no file: no key either.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory) => {
            Ok(Some(String::new()))
        }
        Err(error) => Err(error),
    }
}

/// Writes the key whole or not at all, readable by its owner only from the first moment.
fn write(file: &Path, key: &str) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let unfinished = PathBuf::from(name);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.open(&unfinished)?;
    out.write_all(format!("{key}\n").as_bytes())?;
    out.sync_all()?;
    fs::rename(&unfinished, file)?;
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn warn_if_open(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
        tracing::warn!(file = %file.display(), "others can read the admin key; run chmod 600 on its file");
    }
}

#[cfg(not(unix))]
fn warn_if_open(_: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_keys_are_keys_and_differ() {
        let (one, two) = (make().unwrap(), make().unwrap());
        assert!(is_key(&one) && one.len() == 35 && one != two, "{one} {two}");
    }

    #[test]
    fn what_is_not_a_key_is_told_apart() {
        for bad in
            ["", "tg_", "tg_short", "secret_0123456789abcdef", "tg_0123456789abcdef!", "tg_0123 456789abcdef"]
        {
            assert!(!is_key(bad), "{bad}");
        }
        assert!(is_key("tg_0123456789abcdef"));
    }

    #[test]
    fn only_the_key_itself_is_the_key() {
        let key = AdminKey { stored: Stored { sha256: digest("tg_seedtoken123"), created: String::new() } };
        assert!(key.is("tg_seedtoken123"));
        for other in ["", "tg_seedtoken124", "tg_seedtoken1234", "tg_seedtoken12"] {
            assert!(!key.is(other), "{other}");
        }
        // The published digest of the empty text: the form that rests in the store.
        assert_eq!(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
