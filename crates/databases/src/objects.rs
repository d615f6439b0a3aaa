//! Content in an object store, with its places in tables.
//!
//! # Flow
//! An object is written once, under a name of its own that no other content has had, and never changed. Its name is put
//! down as loose before it is written; the commit that points an id to it takes it off that list and puts the object that
//! the id pointed to on it. So whatever a crash leaves behind is on the list. An opening notes when it saw that, and the
//! first one a day later removes it.
//!
//! An object has digests of its parts in the tables, and what is read is compared with them.
//!
//! # Guarantees
//! Those of [`Blobs`]. Nothing under the address is removed but what was written from here, and only after a mark beside it
//! has shown that it is the place that the tables speak of.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
};
use sha2::{Digest as _, Sha256};
use sluice_store::content::{self, Digests, PartDigest, Place};
use sluice_store::contract::blobs::GET_BYTES_MAX;
use sluice_store::{
    Batch, BlobInfo, BlobWriter, Blobs, BoxFuture, ContentFile, Error, ErrorKind, Found, KeyRange, Read,
    Result, Tables,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::Url;

use crate::Settings;

/// Content larger than this goes in parts of this size. The service takes at most 10 000 parts.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// The longest id, in bytes.
const ID_BYTES_MAX: usize = 1024;
/// How often a write or read begins again because somebody replaced the content meanwhile.
const TRIES_MAX: usize = 16;
/// How long one exchange with the service may take; a part is at most [`PART_BYTES`] long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a failing exchange is tried again, and how often.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES_MAX: usize = 5;

/// Where content is: size, and the object's name.
const PLACES: &str = "objects";
/// Objects that no place names, or not yet.
const LOOSE: &str = "objects.loose";
/// The digests of the parts of an object, by its name.
const PARTS: &str = "objects.parts";
/// How long what a crash left behind stays, in seconds.
const LOOSE_SECONDS: u64 = 24 * 3_600;
/// The address that all of this is under, in one row.
const AT: &str = "objects.at";
const ONLY: &str = "url";
/// In the same table: what the mark beside the content says.
const MARKED: &str = "mark";
/// The mark beside the content: an object that says whose it is.
const MARK: &str = "sluice-folder";

pub(crate) async fn used_by(tables: &dyn Tables) -> Result<Option<String>> {
    let found = tables.read(vec![Read::get(AT, ONLY)]).await?;
    let row = found.into_iter().next().and_then(Found::into_value);
    Ok(row.map(|row| String::from_utf8_lossy(&row).into_owned()))
}

pub(crate) struct ObjectBlobs {
    shared: Arc<Shared>,
}

struct Shared {
    store: AmazonS3,
    folder: Path,
    /// The address, for people.
    address: String,
    tables: Arc<dyn Tables>,
}

impl ObjectBlobs {
    pub(crate) async fn open(url: &str, settings: &Settings, tables: Arc<dyn Tables>) -> Result<Self> {
        let (store, folder, address) = locate(url, settings)?;
        let blobs = Self { shared: Arc::new(Shared { store, folder, address, tables }) };
        blobs.shared.greet().await?;
        blobs.shared.settle(url.trim_end_matches('/')).await?;
        if let Some(owner) = &settings.owner {
            blobs.shared.own(owner, settings.accept_loss).await?;
        }
        blobs.shared.sweep().await?;
        Ok(blobs)
    }
}

/// The object store that an address names, the folder in it, and the address for people.
fn locate(url: &str, settings: &Settings) -> Result<(AmazonS3, Path, String)> {
    let refused = |reason: String| Error::Refused { reason };
    // What cannot be read is not repeated: it may hold a key.
    let parsed = Url::parse(url)
        .map_err(|error| refused(format!("the object store's address cannot be read: {error}")))?;
    let bucket = parsed.host_str().unwrap_or_default();
    if bucket.is_empty() || parsed.port().is_some() || holds_more(&parsed) {
        return Err(refused(
            "an object store's address looks like s3://bucket/folder, with keys given beside it".to_owned(),
        ));
    }
    if let Some(endpoint) = &settings.endpoint {
        let parsed = Url::parse(endpoint)
            .map_err(|error| refused(format!("the object store's endpoint cannot be read: {error}")))?;
        let is_torn = parsed.path().contains('@');
        if !matches!(parsed.scheme(), "http" | "https") || holds_more(&parsed) || is_torn {
            return Err(refused(
                "an object store's endpoint looks like http://host:9000, with keys given beside it"
                    .to_owned(),
            ));
        }
    }
    let folder = Path::from_url_path(parsed.path()).map_err(|_| {
        refused("the object store's address names no folder: one of its parts is empty or no text".to_owned())
    })?;
    let at = settings.endpoint.as_ref().map(|endpoint| format!(" on {endpoint}")).unwrap_or_default();
    let address = format!("s3://{bucket}/{folder}{at}");
    let store = client(bucket, settings).map_err(|error| refused(format!("{address}: {error}")))?;
    Ok((store, folder, address))
}

/// Whether an address holds more than a place.
fn holds_more(url: &Url) -> bool {
    let has_user = !url.username().is_empty() || url.password().is_some();
    has_user || url.query().is_some() || url.fragment().is_some()
}

fn client(bucket: &str, settings: &Settings) -> Result<AmazonS3, Box<dyn std::error::Error>> {
    let mut options = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(settings.endpoint.as_ref().is_some_and(|url| url.starts_with("http://")));
    if let Some(file) = &settings.ca {
        for certificate in Certificate::from_pem_bundle(&std::fs::read(file)?)? {
            options = options.with_root_certificate(certificate);
        }
    }
    let retry =
        RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(settings.region.as_deref().unwrap_or("us-east-1"))
        .with_client_options(options)
        .with_retry(retry);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(key) = &settings.access_key {
        builder = builder.with_access_key_id(key);
    }
    if let Some(secret) = &settings.secret_key {
        builder = builder.with_secret_access_key(secret.reveal());
    }
    if let Some(token) = &settings.session_token {
        builder = builder.with_token(token.reveal());
    }
    Ok(builder.build()?)
}

impl Shared {
    /// Whether the bucket answers, with these keys.
    async fn greet(&self) -> Result<()> {
        let mut listed = self.store.list(Some(&self.folder));
        listed.next().await.transpose().map(drop).map_err(|error| self.failed("looking into", &error))
    }

    /// Insists that what the tables name is here, or puts down that it is from now on.
    async fn settle(&self, url: &str) -> Result<()> {
        match used_by(&*self.tables).await? {
            Some(known) if known == url => Ok(()),
            Some(known) => {
                let reason =
                    format!("the content of these documents rests in {known}, not in {url}; name that one");
                Err(Error::Refused { reason })
            }
            None => {
                let mut batch = Batch::new();
                batch.put(AT, ONLY, url.to_owned().into_bytes());
                self.tables.commit(batch).await
            }
        }
    }

    /// Insists that what lies under the address is what the tables speak of, or marks it if it never was.
    async fn own(&self, owner: &str, accept_loss: bool) -> Result<()> {
        let found = self.tables.read(vec![Read::get(AT, MARKED)]).await?;
        let known = found.into_iter().next().and_then(Found::into_value);
        let known = known.map(|row| String::from_utf8_lossy(&row).into_owned());
        let there = match self.store.get(&self.path(MARK)).await {
            Ok(mark) => {
                let text = mark.bytes().await.map_err(|error| self.failed("reading from", &error))?;
                Some(String::from_utf8_lossy(&text).trim().to_owned())
            }
            Err(object_store::Error::NotFound { .. }) => None,
            Err(error) => return Err(self.failed("reading from", &error)),
        };
        let address = &self.address;
        let lost = match (&known, &there) {
            (Some(known), Some(there)) if known == there => return Ok(()),
            (_, Some(there)) if there != owner => {
                let reason = format!(
                    "what lies in {address} belongs to the data folder {there}, not to this one ({owner}); name the one of \
                     this folder, or an empty one"
                );
                return Err(Error::Refused { reason });
            }
            (Some(_), None) => {
                Some(format!("{address} has no mark of this data folder: it was emptied, or is another one"))
            }
            // Marked a moment before a crash.
            (_, Some(_)) => None,
            // From before there were marks.
            (None, None) => match self.missing().await? {
                0 => None,
                missing => Some(format!("{address} lacks {missing} objects that the tables name")),
            },
        };
        if let Some(lost) = lost {
            if !accept_loss {
                let reason = format!("{lost}; bring its content back, or name the right one");
                return Err(Error::Refused { reason });
            }
            tracing::warn!("{lost}; going on without, as was asked for");
        }
        let put = self.store.put(&self.path(MARK), PutPayload::from(owner.as_bytes().to_vec())).await;
        put.map_err(|error| self.failed("storing in", &error))?;
        let mut batch = Batch::new();
        batch.put(AT, MARKED, owner.as_bytes().to_vec());
        self.tables.commit(batch).await
    }

    /// How many objects that the tables name are not there.
    async fn missing(&self) -> Result<usize> {
        let mut there = HashSet::new();
        let mut listed = self.store.list(Some(&self.folder));
        while let Some(object) = listed.next().await {
            let object = object.map_err(|error| self.failed("looking into", &error))?;
            there.extend(object.location.filename().map(str::to_owned));
        }
        let (mut missing, mut range) = (0, KeyRange::all());
        loop {
            let rows = self.tables.read(vec![Read::range(PLACES, range.clone(), 1_000)]).await?;
            let rows = rows.into_iter().next().map(Found::into_rows).unwrap_or_default();
            for (_, row) in &rows.rows {
                missing += usize::from(!there.contains(&object_of(&Place::decode(row)?)));
            }
            match rows.rows.last() {
                Some((last, _)) if rows.more => range = range.after(last),
                _ => return Ok(missing),
            }
        }
    }

    /// Removes what a crash left behind and was seen a day ago. What cannot be removed now is left to the next time.
    async fn sweep(self: &Arc<Self>) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut range = KeyRange::all();
        loop {
            let rows = self.tables.read(vec![Read::range(LOOSE, range.clone(), 1_000)]).await?;
            let rows = rows.into_iter().next().map(Found::into_rows).unwrap_or_default();
            let mut batch = Batch::new();
            for (name, seen) in &rows.rows {
                match seen[..].try_into().map(u64::from_le_bytes) {
                    Ok(seen) if seen + LOOSE_SECONDS <= now => {
                        self.drop_object(&String::from_utf8_lossy(name)).await;
                    }
                    Ok(_) => {}
                    Err(_) => _ = batch.put(LOOSE, name, now.to_le_bytes().to_vec()),
                }
            }
            if !batch.is_empty() {
                self.tables.commit(batch).await?;
            }
            match rows.rows.last() {
                Some((last, _)) if rows.more => range = range.after(last),
                _ => return Ok(()),
            }
        }
    }

    fn failed(&self, doing: &str, error: &object_store::Error) -> Error {
        failed(&self.address, doing, error)
    }

    fn path(&self, object: &str) -> Path {
        self.folder.clone().join(object)
    }

    async fn place(&self, id: &str) -> Result<(Option<Bytes>, Option<Place>)> {
        check_id(id)?;
        let found = self.tables.read(vec![Read::get(PLACES, id)]).await?;
        let row = found.into_iter().next().and_then(Found::into_value);
        let place = row.as_deref().map(Place::decode).transpose()?;
        Ok((row, place))
    }

    /// A name that no other content has had, put down before anything is written under it.
    async fn name(&self, id: &str) -> Result<String> {
        let hash: String = Sha256::digest(id)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{hash}-{}", uuid::Uuid::now_v7().simple());
        let mut batch = Batch::new();
        batch.put(LOOSE, &name, Vec::new());
        self.tables.commit(batch).await?;
        Ok(name)
    }

    /// Points an id to an object that is whole, or to none; the one it pointed to goes.
    async fn point(self: Arc<Self>, id: String, place: Option<(Place, Vec<PartDigest>)>) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let (row, old) = self.place(&id).await?;
            let mut batch = Batch::new();
            batch.expect(PLACES, &id, row.clone());
            match &place {
                Some((place, parts)) => {
                    let object = object_of(place);
                    content::put_digests(&mut batch, PARTS, &object, parts);
                    batch.put(PLACES, &id, place.encode()).delete(LOOSE, &object)
                }
                None if row.is_none() => return Ok(()),
                None => batch.delete(PLACES, &id),
            };
            let old = old.as_ref().map(object_of);
            if let Some(old) = &old {
                content::forget_digests(&mut batch, PARTS, old);
                batch.put(LOOSE, old, Vec::new());
            }
            match self.tables.commit(batch).await {
                Ok(()) => {}
                Err(error) if error.is_conflict() => continue,
                Err(error) => return Err(error),
            }
            if let Some(old) = old {
                self.drop_object(&old).await;
            }
            return Ok(());
        }
        Err(Error::Unavailable {
            reason: format!("'{id}' is being changed by others all the time; try again"),
        })
    }

    /// Removes an object that no place names. It stays on the list while that fails.
    async fn drop_object(&self, object: &str) {
        match self.store.delete(&self.path(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => {
                let error = self.failed("removing from", &error);
                return tracing::warn!(%error, object, "old content could not be removed yet");
            }
        }
        let mut batch = Batch::new();
        batch.delete(LOOSE, object);
        if let Err(error) = self.tables.commit(batch).await {
            tracing::debug!(%error, object, "a removed object stays on the list");
        }
    }

    /// Reads a part of the content. The row and the object are looked at one after the other, so a replacement between the
    /// two makes it begin again.
    async fn read_part(&self, id: &str, offset: u64, bytes_max: u64) -> Result<Option<Bytes>> {
        for _ in 0..TRIES_MAX {
            let (_, Some(place)) = self.place(id).await? else { return Ok(None) };
            let from = offset.min(place.bytes);
            let to = from + bytes_max.min(place.bytes - from);
            if from == to {
                return Ok(Some(Bytes::new()));
            }
            let object = object_of(&place);
            let (parts, digests) = match place.digest {
                None => (from..to, None),
                Some(_) => match content::digests(&*self.tables, PARTS, &object, from..to).await? {
                    Some(digests) => (content::parts_of(from..to, place.bytes), Some(digests)),
                    None => continue,
                },
            };
            match self.store.get_range(&self.path(&object), parts.clone()).await {
                Ok(read) if digests.is_some_and(|digests| !content::fits(&read, &digests)) => {
                    let reason = format!(
                        "its object '{object}' in {} does not match its digests; restore it from a backup, and check the \
                         object store",
                        self.address
                    );
                    return Err(Error::damaged_content(id, reason));
                }
                Ok(read) => {
                    let begin = usize::try_from(from - parts.start).unwrap_or(usize::MAX);
                    let end = begin.saturating_add(usize::try_from(to - from).unwrap_or(usize::MAX));
                    return Ok(Some(read.slice(begin.min(read.len())..end.min(read.len()))));
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed("reading from", &error)),
            }
        }
        let reason = format!("its object or the digests of it are not in {}", self.address);
        Err(Error::damaged_content(id, reason))
    }
}

/// The object that a place names.
fn object_of(place: &Place) -> String {
    place.name.clone().unwrap_or_default()
}

fn failed(address: &str, doing: &str, error: &object_store::Error) -> Error {
    use object_store::Error as From;
    let told = causes(error);
    let said = |words: &[&str]| words.iter().any(|word| told.contains(word));
    if matches!(error, From::NotFound { .. }) || said(&["NoSuchBucket"]) {
        let reason =
            format!("{doing} {address} failed: there is no such bucket; make it, or name another ({told})");
        return Error::Refused { reason };
    }
    if matches!(error, From::PermissionDenied { .. } | From::Unauthenticated { .. })
        || said(&["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
    {
        let reason =
            format!("{doing} {address} is not allowed: check the access key and what it may do ({told})");
        return Error::Refused { reason };
    }
    Error::Unavailable { reason: format!("{doing} {address} failed: {told}") }
}

/// An error with all that caused it, each said once.
fn causes(error: &object_store::Error) -> String {
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    told
}

fn check_id(id: &str) -> Result<()> {
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        let reason = format!("an id of content has 1 to {ID_BYTES_MAX} bytes, this one has {}", id.len());
        return Err(Error::Refused { reason });
    }
    Ok(())
}

/// Runs to its end even if the caller goes away: half of it would leave what it says it did not.
async fn to_the_end(work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a few calls with time limits of their own")]
    let work = tokio::spawn(work);
    work.await.unwrap_or_else(|error| {
        Err(Error::OutcomeUnknown { what: "a change of content", reason: error.to_string() })
    })
}

impl Blobs for ObjectBlobs {
    fn put<'a>(&'a self, id: &'a str, content: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut writer = self.writer(id).await?;
            writer.write(content).await?;
            writer.finish().await.map(drop)
        })
    }

    fn writer<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Box<dyn BlobWriter>>> {
        Box::pin(async move {
            check_id(id)?;
            let shared = Arc::clone(&self.shared);
            let id = id.to_owned();
            let digests = Digests::default();
            let writer = Writer { shared, id, bytes: 0, digests, waiting: Vec::new(), upload: None };
            Ok(Box::new(writer) as Box<dyn BlobWriter>)
        })
    }

    fn get<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Bytes>>> {
        Box::pin(async move {
            match self.size(id).await? {
                Some(bytes) if bytes > GET_BYTES_MAX => {
                    Err(Error::TooLarge { what: "content read at once", bytes, max: GET_BYTES_MAX })
                }
                _ => self.shared.read_part(id, 0, GET_BYTES_MAX).await,
            }
        })
    }

    fn get_range<'a>(
        &'a self,
        id: &'a str,
        offset: u64,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Option<Bytes>>> {
        Box::pin(self.shared.read_part(id, offset, bytes_max.min(GET_BYTES_MAX)))
    }

    fn size<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(async move { Ok(self.shared.place(id).await?.1.map(|place| place.bytes)) })
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(to_the_end(Arc::clone(&self.shared).point(id.to_owned(), None)))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        entries_max: usize,
    ) -> BoxFuture<'a, Result<Vec<BlobInfo>>> {
        Box::pin(async move {
            let range = KeyRange::prefix(prefix);
            let range = after.map_or_else(|| range.clone(), |after| range.clone().after(after));
            let found = self.shared.tables.read(vec![Read::range(PLACES, range, entries_max)]).await?;
            let rows = found.into_iter().next().map(Found::into_rows).unwrap_or_default();
            let info = |(id, row): &(Bytes, Bytes)| {
                let id = String::from_utf8_lossy(id).into_owned();
                Ok(BlobInfo { id, bytes: Place::decode(row)?.bytes })
            };
            rows.rows.iter().map(info).collect()
        })
    }
}

/// The objects that rows name, read page by page.
pub(crate) fn objects_in(
    page: impl Fn(&str, Option<&[u8]>) -> Result<sluice_store::Rows>,
) -> Result<Vec<ContentFile>> {
    let mut objects = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        let found = page(PLACES, after.as_deref())?;
        for (id, row) in &found.rows {
            let (id, place) = (String::from_utf8_lossy(id).into_owned(), Place::decode(row)?);
            objects.push(ContentFile {
                id,
                name: object_of(&place),
                bytes: place.bytes,
                digest: place.digest,
                is_lost: false,
            });
        }
        match found.rows.last() {
            Some((last, _)) if found.more => after = Some(last.clone()),
            _ => return Ok(objects),
        }
    }
}

/// Puts down that content rests at another address from now on, which has no mark yet.
pub(crate) async fn move_to(tables: &dyn Tables, url: &str) -> Result<()> {
    let mut batch = Batch::new();
    batch.put(AT, ONLY, url.trim_end_matches('/').as_bytes().to_vec());
    batch.delete(AT, MARKED);
    tables.commit(batch).await
}

/// An object store as files are copied from and to it, without any tables.
pub struct Bucket {
    store: AmazonS3,
    folder: Path,
    address: String,
}

impl Bucket {
    /// Reaches the object store at `url`.
    ///
    /// # Errors
    /// [`Error::Refused`] for an address or key that cannot work.
    pub fn open(url: &str, settings: &Settings) -> Result<Self> {
        let (store, folder, address) = locate(url, settings)?;
        Ok(Self { store, folder, address })
    }

    /// Insists that no data folder has its content there yet.
    ///
    /// # Errors
    /// [`Error::Refused`] if one has.
    pub async fn check_free(&self) -> Result<()> {
        match self.store.head(&self.folder.clone().join(MARK)).await {
            Ok(_) => {
                let reason =
                    format!("{} holds the content of another data folder; name an empty one", self.address);
                Err(Error::Refused { reason })
            }
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(&self.address, "looking into", &error)),
        }
    }

    /// Copies an object into a file that is whole or not there.
    ///
    /// # Errors
    /// What the object store or the disk says, and [`Error::Damaged`] for an object of another size.
    pub async fn fetch(&self, object: &str, bytes: u64, to: &std::path::Path) -> Result<()> {
        let on_disk =
            |error: std::io::Error| Error::Unavailable { reason: format!("'{}': {error}", to.display()) };
        let got = self.store.get(&self.folder.clone().join(object)).await;
        let mut parts = got.map_err(|error| failed(&self.address, "reading from", &error))?.into_stream();
        let unfinished = to.with_extension("new");
        let mut file = tokio::fs::File::create(&unfinished).await.map_err(on_disk)?;
        let mut copied = 0;
        while let Some(part) = parts.next().await {
            let part = part.map_err(|error| failed(&self.address, "reading from", &error))?;
            copied += part.len() as u64;
            file.write_all(&part).await.map_err(on_disk)?;
        }
        if copied != bytes {
            let reason = format!("it has {copied} bytes instead of {bytes}");
            return Err(Error::Damaged { what: format!("object '{object}' in {}", self.address), reason });
        }
        file.sync_all().await.map_err(on_disk)?;
        tokio::fs::rename(&unfinished, to).await.map_err(on_disk)
    }

    /// Stores a file as an object.
    ///
    /// # Errors
    /// What the object store or the disk says.
    pub async fn put(&self, object: &str, from: &std::path::Path) -> Result<()> {
        let on_disk =
            |error: std::io::Error| Error::Unavailable { reason: format!("'{}': {error}", from.display()) };
        let told = |error: object_store::Error| failed(&self.address, "storing in", &error);
        let path = self.folder.clone().join(object);
        let mut file = tokio::fs::File::open(from).await.map_err(on_disk)?;
        let mut part = next_part(&mut file).await.map_err(on_disk)?;
        if part.len() < PART_BYTES {
            return self.store.put(&path, PutPayload::from(part)).await.map(drop).map_err(told);
        }
        let mut upload = self.store.put_multipart(&path).await.map_err(told)?;
        while !part.is_empty() {
            upload.put_part(PutPayload::from(part)).await.map_err(told)?;
            part = next_part(&mut file).await.map_err(on_disk)?;
        }
        upload.complete().await.map(drop).map_err(told)
    }
}

async fn next_part(file: &mut tokio::fs::File) -> std::io::Result<Vec<u8>> {
    let mut part = Vec::new();
    file.take(PART_BYTES as u64).read_to_end(&mut part).await?;
    Ok(part)
}

/// Content on its way in: gathered, and sent in parts once it is more than one.
struct Writer {
    shared: Arc<Shared>,
    id: String,
    bytes: u64,
    digests: Digests,
    waiting: Vec<u8>,
    upload: Option<Upload>,
}

struct Upload {
    object: String,
    parts: Box<dyn MultipartUpload>,
}

impl Writer {
    /// Sends what is gathered as a part.
    async fn send(&mut self) -> Result<()> {
        let part = Bytes::from(std::mem::take(&mut self.waiting));
        if self.upload.is_none() {
            let object = self.shared.name(&self.id).await?;
            let begun = self.shared.store.put_multipart(&self.shared.path(&object)).await;
            let parts = begun.map_err(|error| self.shared.failed("storing in", &error))?;
            self.upload = Some(Upload { object, parts });
        }
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let sent = upload.parts.put_part(PutPayload::from(part)).await;
        sent.map_err(|error| self.shared.failed("storing in", &error))
    }

    /// Brings the rest to the object store; the object's name.
    async fn complete(&mut self) -> Result<String> {
        if self.upload.is_none() {
            let object = self.shared.name(&self.id).await?;
            let content = PutPayload::from(std::mem::take(&mut self.waiting));
            let put = self.shared.store.put(&self.shared.path(&object), content).await;
            return match put {
                Ok(_) => Ok(object),
                Err(error) => Err(self.shared.failed("storing in", &error)),
            };
        }
        if !self.waiting.is_empty() {
            self.send().await?;
        }
        let Some(upload) = &mut self.upload else { return Ok(String::new()) };
        let completed = upload.parts.complete().await;
        completed.map_err(|error| self.shared.failed("storing in", &error))?;
        // It is whole: nothing to give up any more.
        Ok(self.upload.take().map(|upload| upload.object).unwrap_or_default())
    }
}

impl BlobWriter for Writer {
    fn write(&mut self, part: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.bytes += part.len() as u64;
            self.digests.add(&part);
            self.waiting.extend_from_slice(&part);
            if self.waiting.len() > PART_BYTES { self.send().await } else { Ok(()) }
        })
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, Result<u64>> {
        Box::pin(async move {
            let bytes = self.bytes;
            let object = self.complete().await?;
            let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
            let parts = std::mem::take(&mut self.digests).finish();
            let place = Place {
                bytes,
                digest: Some(content::whole(&parts)),
                name: Some(object.clone()),
                is_packed: false,
                more_rows: 0,
            };
            let pointed = to_the_end(Arc::clone(&shared).point(id, Some((place, parts)))).await;
            if let Err(error) = &pointed
                && error.kind() != ErrorKind::OutcomeUnknown
            {
                shared.drop_object(&object).await;
            }
            pointed.map(|()| bytes)
        })
    }
}

impl Drop for Writer {
    /// Gives up what was begun; if that fails, the parts stay until the bucket's own rules remove them.
    fn drop(&mut self) {
        let Some(Upload { object, mut parts }) = self.upload.take() else { return };
        let shared = Arc::clone(&self.shared);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // Two calls with time limits of their own.
        runtime.spawn(async move {
            if let Err(error) = parts.abort().await {
                tracing::warn!(%error, object, "an upload could not be given up");
            }
            shared.drop_object(&object).await;
        });
    }
}
