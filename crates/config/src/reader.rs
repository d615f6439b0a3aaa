//! Answers to questions. Each is read in one moment together with its version, or in pages that are at one in the end; where
//! a second look is needed to know what to read, it counts only if nothing was written in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use sluice_schema::ceilings::{self, json_bytes};
use sluice_schema::message::{self, ConfigKey, ConfigResponse, ConfigValue, ScopedKey};
use sluice_schema::{listing, record, wire};
use sluice_store::{Found, KeyRange, Tables, contract::Read as Look};

use crate::layout::{self, HEAD, HEAD_KEY, Head, PLACE, Row, VALUE};
use crate::pages::{self, Pages, Paging, Scope, Since};
use crate::request::Read;

/// Names read in one go.
const NAMES_MAX: usize = 10_000;
/// Values got in one go.
const GOT_MAX: usize = 64;
/// How often a read in several looks starts over because something was written in between.
const LOOKS_MAX: usize = 8;

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Store(#[from] sluice_store::Error),
    /// A list, as far as it got.
    #[error("{}", .0.message)]
    List(message::Error),
    /// What a page would go on with cannot be told any more.
    #[error("what comes after this page cannot be told any more; begin again with the first page")]
    Expired,
    /// It does not fit into one answer.
    #[error(
        "the answer is larger than the limit of {max} bytes for one message; ask for fewer keys or types, or in pages with 'bytes_max'"
    )]
    TooLarge {
        /// Bytes of one message.
        max: usize,
    },
}

/// Reads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    tables: Arc<dyn Tables>,
}

/// The head with the rest of what was read in the same moment.
struct Seen {
    head: Head,
    raw: Option<Bytes>,
    found: std::vec::IntoIter<Found>,
}

impl Reader {
    /// The most that an answer can be in pages of so many bytes, by what is on record of its workspace; `None` where that is not
    /// known before it is made. What cannot be read is told by the answer.
    pub(crate) async fn bytes(&self, read: &Read, page_bytes: usize) -> Option<usize> {
        let value_max = |config_type: &String| ceilings::value_bytes_max(config_type);
        match read {
            // One value alone is always in a page.
            Read::Values { workspace, config_type } => {
                let all = self.size(workspace, config_type).await;
                Some(all.min(page_bytes.max(value_max(config_type))))
            }
            Read::Dump { workspace } => {
                let all = self.size(workspace, "").await;
                Some(all.min(page_bytes.max(ceilings::ONTOLOGY_BYTES_MAX)))
            }
            // It comes in no pages.
            Read::Get { workspace, keys } => {
                // One alone is small, or shows when it is read.
                if let [only] = &keys[..]
                    && value_max(&only.r#type) <= ceilings::VALUE_BYTES_MAX
                {
                    return Some(0);
                }
                let named: BTreeSet<_> = keys.iter().map(|key| (&key.r#type, &key.key)).collect();
                let largest = keys.iter().map(|key| value_max(&key.r#type)).sum();
                // A value may be named again and again.
                let is_once = named.len() == keys.len();
                Some(if is_once { self.size(workspace, "").await.min(largest) } else { largest })
            }
            Read::Everywhere { .. } | Read::Many { .. } | Read::List { .. } => None,
        }
    }

    /// What a type of a workspace takes, or with no type all of it.
    async fn size(&self, workspace: &str, config_type: &str) -> usize {
        let size_key = layout::size_key(workspace, config_type);
        let found = self.tables.read(vec![Look::get(layout::SIZE, size_key)]).await;
        let row = found.ok().and_then(|mut found| found.pop()).and_then(Found::into_value);
        let size = row.and_then(|row| layout::Size::decode(&row)).unwrap_or_default();
        usize::try_from(size.bytes).unwrap_or(usize::MAX)
    }
}

impl Seen {
    fn value(&mut self) -> Option<Bytes> {
        self.found.next().and_then(Found::into_value)
    }
}

/// Reads the head as it rests.
pub(crate) fn head_of(raw: Option<&Bytes>) -> Result<Head, sluice_store::Error> {
    let Some(raw) = raw else { return Ok(Head::default()) };
    wire::decode(raw).map_err(|e| damaged("the head of config", &e.to_string()))
}

/// Reads a row as it rests.
pub(crate) fn row_of(key: &[u8], raw: &[u8]) -> Result<Row, sluice_store::Error> {
    Row::decode(raw).ok_or_else(|| damaged(&format!("config value '{}'", key.escape_ascii()), "not a row"))
}

pub(crate) fn damaged(what: &str, reason: &str) -> sluice_store::Error {
    sluice_store::Error::Damaged { what: what.to_owned(), reason: reason.to_owned() }
}

pub(crate) fn place_at(value_key: &[u8]) -> Result<ScopedKey, sluice_store::Error> {
    layout::place_of(value_key).ok_or_else(|| damaged("a config key", "not type, workspace and key"))
}

impl Reader {
    pub(crate) fn new(tables: Arc<dyn Tables>) -> Self {
        Self { tables }
    }

    /// Answers a question, in at most so many bytes where it wants no pages.
    pub(crate) async fn read(
        &self,
        read: Read,
        paging: &Paging,
        message_bytes_max: usize,
    ) -> Result<ConfigResponse, Error> {
        let page = async |scope: Scope, since: &Since| {
            let pages = Pages { tables: &self.tables, scope: &scope, message_bytes_max };
            let answer = pages.next(since, paging).await?;
            match answer.damaged.first() {
                Some(at) if !matches!(&scope, Scope::Types(_)) => {
                    let advice = "write it again or delete it; if that is refused too, restore a backup";
                    Err(damaged(&format!("config value {}", crate::request::place(at)), advice).into())
                }
                _ => Ok(answer),
            }
        };
        let everything = Since::default();
        match read {
            Read::Get { workspace, keys } => self.get(&workspace, keys, message_bytes_max).await,
            Read::List { workspace, config_type } => {
                self.list(&workspace, &config_type, paging, message_bytes_max).await
            }
            Read::Values { workspace, config_type } => {
                let mut answer = page(Scope::Type { workspace, config_type }, &everything).await?;
                answer.history.clear();
                for value in &mut answer.values {
                    value.workspace.clear();
                }
                Ok(answer)
            }
            Read::Everywhere { config_type, with_values } => {
                let types = [config_type].into();
                let mut answer = page(Scope::Types(types), &everything).await?;
                answer.history.clear();
                if !with_values {
                    answer.values.iter_mut().for_each(|value| value.value = Some(String::new()));
                }
                Ok(answer)
            }
            Read::Many { types, since } => page(Scope::Types(pages::distinct(types)), &since).await,
            Read::Dump { workspace } => {
                let mut answer = page(Scope::Workspace(workspace), &everything).await?;
                answer.history.clear();
                for ConfigValue { r#type, key, value, .. } in std::mem::take(&mut answer.values) {
                    answer.config.entry(r#type).or_default().insert(key, value.unwrap_or_default());
                }
                Ok(answer)
            }
        }
    }

    /// The public version.
    pub(crate) async fn version(&self) -> Result<i64, sluice_store::Error> {
        Ok(self.look(Vec::new()).await?.head.version)
    }

    /// The keys of a type, as they were a moment after the call began.
    async fn list(
        &self,
        workspace: &str,
        config_type: &str,
        paging: &Paging,
        message_bytes_max: usize,
    ) -> Result<ConfigResponse, Error> {
        let mut page = listing::Page::new(paging.bytes_max, message_bytes_max);
        let under = layout::prefix(&[workspace, config_type]);
        let mut range = KeyRange::prefix(&under);
        if !paging.cursor.is_empty() {
            range = range.after([&under, paging.cursor.as_bytes()].concat());
        }
        let version = self.version().await?;
        loop {
            let look = Look::range(PLACE, range.clone(), NAMES_MAX);
            let rows = self.look(vec![look]).await?.found.next().map(Found::into_rows).unwrap_or_default();
            for [_, _, key] in rows.rows.iter().filter_map(|(key, _)| layout::names(key)) {
                let (place, bytes) = (key.clone(), json_bytes(&key));
                if !page.take(&place, bytes, key).map_err(Error::List)? {
                    break;
                }
            }
            match rows.rows.last() {
                Some((last, _)) if rows.more && page.cursor.is_empty() => range = range.after(last),
                _ => break,
            }
        }
        let listing::Page { items: directory, cursor, .. } = page;
        Ok(ConfigResponse { version, directory, cursor, ..Default::default() })
    }

    async fn look(&self, reads: Vec<Look>) -> Result<Seen, sluice_store::Error> {
        let mut all = Vec::with_capacity(reads.len() + 1);
        all.push(Look::get(HEAD, HEAD_KEY));
        all.extend(reads);
        let mut found = self.tables.read(all).await?.into_iter();
        let raw = found.next().and_then(Found::into_value);
        Ok(Seen { head: head_of(raw.as_ref())?, raw, found })
    }

    async fn get(
        &self,
        workspace: &str,
        keys: Vec<ConfigKey>,
        message_bytes_max: usize,
    ) -> Result<ConfigResponse, Error> {
        let at = |key: &ConfigKey| ScopedKey {
            workspace: workspace.to_owned(),
            r#type: key.r#type.clone(),
            key: key.key.clone(),
        };
        for looks in 1.. {
            let mut values = Vec::with_capacity(keys.len());
            let (mut bytes, mut began, mut moved) = (0, None, false);
            for some in keys.chunks(GOT_MAX) {
                let gets = some.iter().map(|key| Look::get(VALUE, layout::value_key(&at(key)))).collect();
                let mut seen = self.look(gets).await?;
                moved |= began.get_or_insert((seen.head, seen.raw.clone())).1 != seen.raw;
                for key in some {
                    let row = seen.value().map(|raw| row_of(key.key.as_bytes(), &raw)).transpose()?;
                    let live = row.filter(|row| row.value.is_some());
                    let version = live.as_ref().map_or(0, |row| row.version);
                    let value = live.and_then(|row| row.value);
                    bytes += value.as_deref().map_or(0, json_bytes);
                    if bytes > message_bytes_max {
                        return Err(Error::TooLarge { max: message_bytes_max });
                    }
                    let ConfigKey { r#type, key } = key.clone();
                    values.push(ConfigValue { r#type, key, value, workspace: String::new(), version });
                }
            }
            // Under constant writing the values may be newer than the version that is told, never older.
            if !moved || looks >= LOOKS_MAX {
                let version = match began {
                    Some((head, _)) => head.version,
                    None => self.version().await?,
                };
                return Ok(ConfigResponse { version, values, ..Default::default() });
            }
        }
        Ok(ConfigResponse::default())
    }

    /// The types and keys that a workspace holds.
    pub(crate) async fn keys(
        &self,
        workspace: &str,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, sluice_store::Error> {
        let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        self.names(KeyRange::prefix(layout::prefix(&[workspace])), |[_, config_type, key]| {
            keys.entry(config_type).or_default().insert(key);
        })
        .await?;
        Ok(keys)
    }

    /// Hands over workspace, type and key of everything in a range of places.
    async fn names(
        &self,
        mut range: KeyRange,
        mut take: impl FnMut([String; 3]),
    ) -> Result<(), sluice_store::Error> {
        loop {
            let look = Look::range(PLACE, range.clone(), NAMES_MAX);
            let rows = self.look(vec![look]).await?.found.next().map(Found::into_rows).unwrap_or_default();
            rows.rows.iter().filter_map(|(key, _)| layout::names(key)).for_each(&mut take);
            match rows.rows.last() {
                Some((last, _)) if rows.more => range = range.after(last),
                _ => return Ok(()),
            }
        }
    }

    /// Ids of the live workspaces, and of those that got their copy of the template.
    pub(crate) async fn workspaces(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), Error> {
        let (mut ids, mut provisioned) = (BTreeSet::new(), BTreeSet::new());
        // Marks first: one that is deleted in between does not look as if it still lacked its copy.
        let marks = layout::prefix(&[record::SYSTEM, crate::state::INIT_STATE]);
        self.names(KeyRange::prefix(marks), |[_, _, mark]| {
            provisioned.extend(mark.strip_prefix("provision:").map(str::to_owned));
        })
        .await?;
        let registry = layout::prefix(&[record::WORKSPACES, record::WORKSPACE]);
        self.names(KeyRange::prefix(registry), |[_, _, id]| _ = ids.insert(id)).await?;
        Ok((ids, provisioned))
    }

    /// Every (type, workspace) that holds something, reserved workspaces left out.
    pub(crate) async fn pairs(&self) -> Result<Vec<(String, String)>, sluice_store::Error> {
        let mut pairs = BTreeSet::new();
        self.names(KeyRange::all(), |[workspace, config_type, _]| {
            if !workspace.starts_with('_') {
                pairs.insert((config_type, workspace));
            }
        })
        .await?;
        Ok(pairs.into_iter().collect())
    }
}
