//! Answers to questions. Each is read in one moment together with its version; where a second look is needed to know
//! what to read, it counts only if nothing was written in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use sluice_schema::message::{ConfigKey, ConfigResponse, ConfigValue, ScopedKey};
use sluice_schema::{record, wire};
use sluice_store::{Error, Found, KeyRange, Tables, contract::Read as Look};

use crate::layout::{self, DEAD, HEAD, HEAD_KEY, Head, LIVE, MARK, Mark, PLACE, Row, VALUE};
use crate::request::Read;

/// Changes that an answer to `getvalues-many` looks through; with more, it answers everything instead.
const DELTA_ROWS_MAX: usize = 10_000;
/// How often a two-step read starts over because something was written in between.
const LOOKS_MAX: usize = 8;

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

impl Seen {
    fn rows(&mut self) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let rows = self.found.next().map(Found::into_rows).unwrap_or_default();
        if rows.more {
            return Err(Error::TooLarge {
                what: "the answer to this read",
                bytes: sluice_store::contract::tables::RANGE_BYTES_MAX as u64 + 1,
                max: sluice_store::contract::tables::RANGE_BYTES_MAX as u64,
            });
        }
        Ok(rows.rows)
    }

    fn value(&mut self) -> Option<Bytes> {
        self.found.next().and_then(Found::into_value)
    }
}

/// Reads the head as it rests.
pub(crate) fn head_of(raw: Option<&Bytes>) -> Result<Head, Error> {
    let Some(raw) = raw else { return Ok(Head::default()) };
    wire::decode(raw).map_err(|e| damaged("the head of config", &e.to_string()))
}

/// Reads a row as it rests.
pub(crate) fn row_of(key: &[u8], raw: &[u8]) -> Result<Row, Error> {
    Row::decode(raw).ok_or_else(|| damaged(&format!("config value '{}'", key.escape_ascii()), "not a row"))
}

pub(crate) fn damaged(what: &str, reason: &str) -> Error {
    Error::Damaged { what: what.to_owned(), reason: reason.to_owned() }
}

fn place_at(value_key: &[u8]) -> Result<ScopedKey, Error> {
    layout::place_of(value_key).ok_or_else(|| damaged("a config key", "not type, workspace and key"))
}

fn value(at: ScopedKey, row: &Row) -> ConfigValue {
    ConfigValue {
        r#type: at.r#type,
        key: at.key,
        value: row.value.clone(),
        workspace: at.workspace,
        version: row.version,
    }
}

impl Reader {
    pub(crate) fn new(tables: Arc<dyn Tables>) -> Self {
        Self { tables }
    }

    /// Answers a question.
    pub(crate) async fn read(&self, read: Read) -> Result<ConfigResponse, Error> {
        match read {
            Read::Get { workspace, keys } => self.get(&workspace, keys).await,
            Read::List { workspace, config_type } => {
                let (head, values) = self.values(&[&config_type, &workspace]).await?;
                let directory = values.into_iter().map(|(at, _)| at.key).collect();
                Ok(ConfigResponse { version: head.version, directory, ..Default::default() })
            }
            Read::Values { workspace, config_type } => {
                let (head, values) = self.values(&[&config_type, &workspace]).await?;
                let unscoped =
                    |(at, row): (ScopedKey, Row)| value(ScopedKey { workspace: String::new(), ..at }, &row);
                let values = values.into_iter().map(unscoped).collect();
                Ok(ConfigResponse { version: head.version, values, ..Default::default() })
            }
            Read::Everywhere { config_type, with_values } => {
                let (head, mut values) = self.values(&[&config_type]).await?;
                if !with_values {
                    values.iter_mut().for_each(|(_, row)| row.value = Some(String::new()));
                }
                let values = values.into_iter().map(|(at, row)| value(at, &row)).collect();
                Ok(ConfigResponse { version: head.version, values, ..Default::default() })
            }
            Read::Many { types, since, history } => self.many(types, since, &history).await,
            Read::Dump { workspace } => self.dump(&workspace).await,
        }
    }

    /// The public version.
    pub(crate) async fn version(&self) -> Result<i64, Error> {
        Ok(self.look(Vec::new()).await?.head.version)
    }

    async fn look(&self, reads: Vec<Look>) -> Result<Seen, Error> {
        let mut all = Vec::with_capacity(reads.len() + 1);
        all.push(Look::get(HEAD, HEAD_KEY));
        all.extend(reads);
        let mut found = self.tables.read(all).await?.into_iter();
        let raw = found.next().and_then(Found::into_value);
        Ok(Seen { head: head_of(raw.as_ref())?, raw, found })
    }

    async fn get(&self, workspace: &str, keys: Vec<ConfigKey>) -> Result<ConfigResponse, Error> {
        let at = |key: &ConfigKey| ScopedKey {
            workspace: workspace.to_owned(),
            r#type: key.r#type.clone(),
            key: key.key.clone(),
        };
        let looks = keys.iter().map(|key| Look::get(VALUE, layout::value_key(&at(key)))).collect();
        let mut seen = self.look(looks).await?;
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let row = seen.value().map(|raw| row_of(key.key.as_bytes(), &raw)).transpose()?;
            let live = row.filter(|row| row.value.is_some());
            let version = live.as_ref().map_or(0, |row| row.version);
            let value = live.and_then(|row| row.value);
            values.push(ConfigValue {
                r#type: key.r#type,
                key: key.key,
                value,
                workspace: String::new(),
                version,
            });
        }
        Ok(ConfigResponse { version: seen.head.version, values, ..Default::default() })
    }

    /// Live values whose key begins with these names (type, maybe workspace), in key order.
    async fn values(&self, names: &[&str]) -> Result<(Head, Vec<(ScopedKey, Row)>), Error> {
        let mut seen = self.look(vec![under(names)]).await?;
        Ok((seen.head, live(seen.rows()?)?))
    }

    async fn dump(&self, workspace: &str) -> Result<ConfigResponse, Error> {
        let mut looks = 0;
        loop {
            looks += 1;
            let mut places =
                self.look(vec![Look::prefix(PLACE, layout::prefix(&[workspace]), usize::MAX)]).await?;
            let types: BTreeSet<String> =
                places.rows()?.iter().filter_map(|(key, _)| layout::type_in(key)).collect();
            let wanted = types.iter().map(|t| under(&[t, workspace])).collect();
            let mut seen = self.look(wanted).await?;
            if seen.raw != places.raw && looks < LOOKS_MAX {
                continue;
            }
            let mut config: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
            for config_type in &types {
                let of_type = live(seen.rows()?)?.into_iter();
                let texts: BTreeMap<_, _> =
                    of_type.filter_map(|(at, row)| Some((at.key, row.value?))).collect();
                if !texts.is_empty() {
                    config.insert(config_type.clone(), texts);
                }
            }
            // Under constant writing the list of types may be older than the values; so is the version then.
            return Ok(ConfigResponse { version: places.head.version, config, ..Default::default() });
        }
    }

    async fn many(&self, types: Vec<String>, since: i64, history: &str) -> Result<ConfigResponse, Error> {
        let types = distinct(types);
        for _ in 0..LOOKS_MAX {
            match self.changes(&types, since, history).await? {
                Changes::Told(answer) => return Ok(*answer),
                Changes::Moved => {}
                Changes::Unknown => break,
            }
        }
        let mut seen = self.look(types.iter().map(|t| of_type(t)).collect()).await?;
        let mut values = Vec::new();
        for _ in &types {
            values.extend(live(seen.rows()?)?.into_iter().map(|(at, row)| value(at, &row)));
        }
        let history = seen.head.place().text();
        Ok(ConfigResponse { version: seen.head.version, values, history, ..Default::default() })
    }

    /// What was written after `since`, if that can still be told and `since` is of this history. A reader that names no
    /// history is believed.
    async fn changes(&self, types: &BTreeSet<String>, since: i64, history: &str) -> Result<Changes, Error> {
        let mark = Mark::read(history);
        if since <= 0 || (mark.is_none() && !history.is_empty()) {
            return Ok(Changes::Unknown);
        }
        let newer = || KeyRange { from: layout::history_key(since + 1, b"").into(), to: None };
        let histories = [LIVE, DEAD].map(|table| Look::range(table, newer(), DELTA_ROWS_MAX));
        let mut looks = vec![Look::get(MARK, mark.map_or([0; 8], Mark::key))];
        looks.extend(histories);
        let mut history = self.look(looks).await?;
        let on_record = history.value();
        let is_ours =
            |mark: Mark| history.head.place() == mark || on_record.is_some_and(|raw| raw == mark.encode());
        if since < history.head.horizon || since > history.head.version || !mark.is_none_or(is_ours) {
            return Ok(Changes::Unknown);
        }
        let mut keys = [Vec::new(), Vec::new()];
        for keys in &mut keys {
            let found = history.found.next().map(Found::into_rows).unwrap_or_default();
            if found.more {
                return Ok(Changes::Unknown);
            }
            for (key, _) in found.rows {
                let Some((_, value_key)) = layout::history_of(&key) else { continue };
                if layout::place_of(value_key).is_some_and(|at| is_of(types, &at.r#type)) {
                    keys.push(value_key.to_vec());
                }
            }
        }
        let [written, gone] = keys;
        let mut values = Vec::with_capacity(written.len());
        if !written.is_empty() {
            let mut seen = self.look(written.iter().map(|key| Look::get(VALUE, key)).collect()).await?;
            if seen.raw != history.raw {
                return Ok(Changes::Moved);
            }
            for key in &written {
                let Some(raw) = seen.value() else { continue };
                values.push(value(place_at(key)?, &row_of(key, &raw)?));
            }
        }
        let deleted = gone.iter().map(|key| place_at(key)).collect::<Result<_, _>>()?;
        let (version, history) = (history.head.version, history.head.place().text());
        let answer = ConfigResponse { version, values, since, deleted, history, ..Default::default() };
        Ok(Changes::Told(Box::new(answer)))
    }

    /// Ids of the live workspaces, and of those that got their copy of the template.
    pub(crate) async fn workspaces(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), Error> {
        let registry = under(&[record::WORKSPACE, record::WORKSPACES]);
        let marks = under(&[crate::state::INIT_STATE, record::SYSTEM]);
        let mut seen = self.look(vec![registry, marks]).await?;
        let ids = live(seen.rows()?)?.into_iter().map(|(at, _)| at.key).collect();
        let mark = |(at, _): (ScopedKey, Row)| at.key.strip_prefix("provision:").map(str::to_owned);
        let provisioned = live(seen.rows()?)?.into_iter().filter_map(mark).collect();
        Ok((ids, provisioned))
    }

    /// Every (type, workspace) that holds something, reserved workspaces left out.
    pub(crate) async fn pairs(&self) -> Result<Vec<(String, String)>, Error> {
        let mut pairs = BTreeSet::new();
        let mut range = KeyRange::all();
        loop {
            let look = Look::range(PLACE, range.clone(), DELTA_ROWS_MAX);
            let rows = self.look(vec![look]).await?.found.next().map(Found::into_rows).unwrap_or_default();
            for (key, _) in &rows.rows {
                let names = layout::names(key).filter(|[workspace, ..]| !workspace.starts_with('_'));
                if let Some([workspace, config_type, _]) = names {
                    pairs.insert((config_type, workspace));
                }
            }
            match rows.rows.last() {
                Some((last, _)) if rows.more => range = range.after(last),
                _ => return Ok(pairs.into_iter().collect()),
            }
        }
    }
}

enum Changes {
    Told(Box<ConfigResponse>),
    /// Something was written between the two looks.
    Moved,
    /// Not told any more, or too much: everything has to be read.
    Unknown,
}

/// What is asked for, without what another pattern covers, so that no value is answered twice.
fn distinct(types: Vec<String>) -> BTreeSet<String> {
    let all: BTreeSet<String> = types.into_iter().collect();
    let covered = |asked: &str| {
        let own = asked.strip_suffix('*');
        let others =
            all.iter().filter_map(|other| other.strip_suffix('*')).filter(|start| own != Some(*start));
        others.into_iter().any(|start| own.unwrap_or(asked).starts_with(start))
    };
    all.iter().filter(|asked| !covered(asked)).cloned().collect()
}

/// Whether a type is asked for: by its name, or by its beginning where what is asked ends in `*`.
fn is_of(types: &BTreeSet<String>, config_type: &str) -> bool {
    types.contains(config_type)
        || types.iter().any(|t| t.strip_suffix('*').is_some_and(|start| config_type.starts_with(start)))
}

fn of_type(config_type: &str) -> Look {
    match config_type.strip_suffix('*') {
        Some(start) => Look::prefix(VALUE, start.as_bytes(), usize::MAX),
        None => under(&[config_type]),
    }
}

fn under(names: &[&str]) -> Look {
    Look::prefix(VALUE, layout::prefix(names), usize::MAX)
}

fn live(rows: Vec<(Bytes, Bytes)>) -> Result<Vec<(ScopedKey, Row)>, Error> {
    let mut values = Vec::with_capacity(rows.len());
    for (key, raw) in rows {
        let row = row_of(&key, &raw)?;
        if row.value.is_some() {
            values.push((place_at(&key)?, row));
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_asked_for_once() {
        let check = |asked: &[&str], expected: &[&str]| {
            let found = distinct(asked.iter().map(|t| (*t).to_owned()).collect());
            assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{asked:?}");
        };
        check(&["flow", "flow", "tool"], &["flow", "tool"]);
        check(&["processor:*", "processor:a", "flow"], &["flow", "processor:*"]);
        check(&["processor:*", "proc*"], &["proc*"]);
        check(&["a*", "a**", "a"], &["a*"]);
        check(&["*", "x"], &["*"]);
    }
}
