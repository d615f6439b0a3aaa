//! Answers in pages: what a question covers, told part by part in bounded memory, and whole at one moment in the end.
//!
//! First the values in key order, then what was written meanwhile in the order it was written, again and again until nothing
//! was. Each page is read at its own moment; the last one says the version that all of them together are at. What is asked
//! relative to a version begins with what was written since. An answer in one piece is made of the same parts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_schema::ceilings::json_bytes;
use sluice_schema::listing;
use sluice_schema::message::{ConfigResponse, ConfigValue, ScopedKey};
use sluice_schema::wire;
use sluice_store::{Found, KeyRange, Rows, Tables, contract::Read as Look};

use crate::layout::{self, DEAD, HEAD, HEAD_KEY, Head, LIVE, MARK, Mark, PLACE, Row, VALUE};
use crate::reader::{Error, head_of, place_at, row_of};

/// Changes that a relative answer looks through; with more, everything is answered instead.
const DELTA_ROWS_MAX: usize = 10_000;
/// Rows read in one go before it is known how large they are, and at most.
const ROWS_MIN: usize = 32;
const ROWS_MAX: usize = 4_096;
/// What a value takes in an answer beside its texts, in bytes.
const ROW_BYTES: usize = 128;
/// How often what was written meanwhile is added before an answer is as new as it needs to be.
const ROUNDS_MAX: usize = 8;

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Types by name, or by beginning where they end in `*`, in every workspace; none that another one covers.
    Types(BTreeSet<String>),
    /// One type in one workspace.
    Type { workspace: String, config_type: String },
    /// Everything in a workspace.
    Workspace(String),
}

/// How much may come at once, and after what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Paging {
    /// Bytes of a page; 0 wants everything in one answer.
    pub(crate) bytes_max: i64,
    /// What the last page said; empty for the first.
    pub(crate) cursor: String,
}

impl Paging {
    /// Whether it may come in pages.
    const fn is_asked(&self) -> bool {
        self.bytes_max > 0
    }

    /// Bytes of an answer.
    fn room(&self, message_bytes_max: usize) -> usize {
        let asked = listing::page_bytes(self.bytes_max, message_bytes_max);
        asked.unwrap_or_else(|| listing::room(message_bytes_max))
    }
}

/// The version and the history that a reader has; the default has nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) version: i64,
    pub(crate) history: String,
}

/// A moment: a version, and where it stands in its history, as far as the reader said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    version: i64,
    mark: Option<Mark>,
}

/// Counts of writes never come near this: whoever shows more was not given it here.
const NUMBER_MAX: i64 = i64::MAX / 4;

const fn is_number(number: i64) -> bool {
    0 <= number && number <= NUMBER_MAX
}

impl Base {
    fn is_possible(&self) -> bool {
        is_number(self.version) && self.mark.is_none_or(|mark| is_number(mark.number))
    }

    const fn of(head: &Head) -> Self {
        Self { version: head.version, mark: Some(head.place()) }
    }
}

/// How far a reader has come: what it sends back for the next page, which it cannot read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    /// What was written after this is still to be told.
    base: Base,
    step: Step,
}

impl Cursor {
    /// A reader sends it, so it may be anything.
    fn is_possible(&self) -> bool {
        let step = match &self.step {
            Step::Scan { .. } => true,
            Step::Delta { round, at, .. } => round.is_none_or(|round| round.is_possible()) && is_number(*at),
        };
        step && self.base.is_possible()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    /// Values in key order were returned up to this key.
    Scan { after: String },
    /// Of what was written after the base, this table was returned up to this place; the round began at that moment.
    Delta { round: Option<Base>, dead: bool, at: i64, after: String },
}

impl Step {
    const fn first_round() -> Self {
        Self::Delta { round: None, dead: false, at: 0, after: String::new() }
    }
}

/// What one page returns: the latest known value of each key.
#[derive(Default)]
struct Page {
    told: BTreeMap<Vec<u8>, Option<ConfigValue>>,
    /// Keys whose values cannot be read.
    damaged: BTreeSet<Vec<u8>>,
    bytes: usize,
    room: usize,
}

impl Page {
    /// Whether it had room.
    fn put(&mut self, key: &[u8], value: Option<ConfigValue>) -> bool {
        let text = value.as_ref().and_then(|value| value.value.as_deref()).map_or(0, json_bytes);
        let bytes = text + json_bytes(&String::from_utf8_lossy(key)) + ROW_BYTES;
        if !self.told.is_empty() && self.bytes + bytes > self.room {
            return false;
        }
        self.bytes += bytes;
        self.damaged.remove(key);
        self.told.insert(key.to_vec(), value);
        true
    }

    /// Whether it had room for a row, or for that it cannot be read.
    fn put_row(&mut self, key: &[u8], row: Result<Row, sluice_store::Error>) -> Result<bool, Error> {
        match row {
            Ok(row) if row.value.is_none() => Ok(true),
            Ok(row) => Ok(self.put(key, Some(value(place_at(key)?, row)))),
            Err(error) => {
                tracing::error!(%error, "a config value is damaged: write it again, or restore a backup");
                let has_room = self.put(key, None);
                if has_room {
                    self.told.remove(key);
                    self.damaged.insert(key.to_vec());
                }
                Ok(has_room)
            }
        }
    }
}

/// How a part of the work ended.
enum Came {
    /// To its end, at this head.
    ToItsEnd(Head),
    /// The page is full.
    Full,
    /// What was written since then cannot be told.
    Unknown,
}

/// Several reads of one moment.
struct Seen {
    head: Head,
    found: std::vec::IntoIter<Found>,
}

impl Seen {
    fn rows(&mut self) -> Rows {
        self.found.next().map(Found::into_rows).unwrap_or_default()
    }

    fn value(&mut self) -> Option<Bytes> {
        self.found.next().and_then(Found::into_value)
    }
}

/// Everything about one question.
pub(crate) struct Pages<'a> {
    pub(crate) tables: &'a Arc<dyn Tables>,
    pub(crate) scope: &'a Scope,
    /// The most that an answer in one piece may take.
    pub(crate) message_bytes_max: usize,
}

impl Pages<'_> {
    /// The next page: `values`, `deleted`, and the `cursor` of what follows; the version is that of the last page.
    pub(crate) async fn next(&self, since: &Since, paging: &Paging) -> Result<ConfigResponse, Error> {
        let room = paging.room(self.message_bytes_max);
        let mut page = Page { room, ..Page::default() };
        let is_first = paging.cursor.is_empty();
        let mut cursor = self.begin(since, &paging.cursor)?;
        let mut is_asked = is_first && cursor.is_some();
        let head = loop {
            let Some(Cursor { base, step }) = &mut cursor else {
                let (came, base, after) = self.scan(None, String::new(), &mut page).await?;
                match came {
                    Came::ToItsEnd(head) if Base::of(&head) == base => break Some(head),
                    Came::ToItsEnd(_) => cursor = Some(Cursor { base, step: Step::first_round() }),
                    Came::Full | Came::Unknown => {
                        cursor = Some(Cursor { base, step: Step::Scan { after } });
                        break None;
                    }
                }
                continue;
            };
            match step {
                Step::Scan { after } => {
                    let (came, _, after) = self.scan(Some(*base), std::mem::take(after), &mut page).await?;
                    match came {
                        Came::ToItsEnd(head) if Base::of(&head) == *base => break Some(head),
                        Came::ToItsEnd(_) => *step = Step::first_round(),
                        Came::Full | Came::Unknown => {
                            *step = Step::Scan { after };
                            break None;
                        }
                    }
                }
                Step::Delta { .. } => match self.rounds(base, step, is_asked, &mut page).await? {
                    Came::ToItsEnd(head) => break Some(head),
                    Came::Full => break None,
                    Came::Unknown if is_asked => {
                        page = Page { room, ..Page::default() };
                        (cursor, is_asked) = (None, false);
                    }
                    Came::Unknown => return Err(Error::Expired),
                },
            }
        };
        if head.is_none() && !paging.is_asked() {
            return Err(Error::TooLarge { max: self.message_bytes_max });
        }
        let is_whole = is_first && !is_asked;
        let relative = if is_asked { since.version } else { 0 };
        let mut answer = ConfigResponse { since: relative, ..Default::default() };
        for (key, value) in page.told {
            match value {
                Some(value) => answer.values.push(value),
                // Who forgets everything first has nothing to remove; in later pages it may have come with an earlier one.
                None if is_whole => {}
                None => answer.deleted.push(place_at(&key)?),
            }
        }
        for key in page.damaged {
            answer.damaged.push(place_at(&key)?);
        }
        match (head, cursor) {
            (Some(head), _) => {
                answer.version = head.version;
                answer.history = head.place().text();
            }
            (None, Some(cursor)) => {
                answer.version = cursor.base.version;
                answer.cursor = String::from_utf8_lossy(&wire::encode(&cursor)).into_owned();
            }
            (None, None) => {}
        }
        Ok(answer)
    }

    /// Where the first page begins, or a later one goes on; `None` begins with all values.
    fn begin(&self, since: &Since, cursor: &str) -> Result<Option<Cursor>, Error> {
        if !cursor.is_empty() {
            let cursor = wire::decode(cursor.as_bytes()).ok().filter(Cursor::is_possible);
            return cursor.map(Some).ok_or(Error::Expired);
        }
        let mark = Mark::read(&since.history);
        if since.version <= 0 || !is_number(since.version) || (mark.is_none() && !since.history.is_empty()) {
            return Ok(None);
        }
        let base = Base { version: since.version, mark };
        Ok(Some(Cursor { base, step: Step::first_round() }))
    }

    async fn look(&self, reads: Vec<Look>) -> Result<Seen, Error> {
        let mut all = Vec::with_capacity(reads.len() + 1);
        all.push(Look::get(HEAD, HEAD_KEY));
        all.extend(reads);
        let mut found = self.tables.read(all).await?.into_iter();
        let raw = found.next().and_then(Found::into_value);
        Ok(Seen { head: head_of(raw.as_ref())?, found })
    }

    fn covers(&self, at: &ScopedKey) -> bool {
        match self.scope {
            Scope::Types(types) => is_of(types, &at.r#type),
            Scope::Type { workspace, config_type } => at.workspace == *workspace && at.r#type == *config_type,
            Scope::Workspace(workspace) => at.workspace == *workspace,
        }
    }

    /// The ranges of values that the question covers, in key order, and the moment at which they were all.
    async fn ranges(&self) -> Result<(Option<Head>, Vec<KeyRange>), Error> {
        let (head, mut prefixes) = match self.scope {
            Scope::Types(types) => {
                let prefix = |name: &String| match name.strip_suffix('*') {
                    Some(start) => start.as_bytes().to_vec(),
                    None => layout::prefix(&[name]),
                };
                (None, types.iter().map(prefix).collect::<Vec<_>>())
            }
            Scope::Type { workspace, config_type } => (None, vec![layout::prefix(&[config_type, workspace])]),
            Scope::Workspace(workspace) => {
                let (mut types, mut head) = (BTreeSet::new(), None);
                let mut range = KeyRange::prefix(layout::prefix(&[workspace]));
                loop {
                    let mut seen = self.look(vec![Look::range(PLACE, range.clone(), 1)]).await?;
                    head.get_or_insert(seen.head);
                    let Some(found) = seen.rows().rows.first().and_then(|(key, _)| layout::type_in(key))
                    else {
                        break;
                    };
                    // On to the first key behind this type.
                    let of_type = KeyRange::prefix(layout::prefix(&[workspace, &found]));
                    types.insert(layout::prefix(&[&found, workspace]));
                    let Some(next) = of_type.to else { break };
                    range.from = next;
                }
                (head, types.into_iter().collect())
            }
        };
        prefixes.sort();
        Ok((head, prefixes.into_iter().map(KeyRange::prefix).collect()))
    }

    /// Returns values in key order after a key, the moment of the first look, and the last key returned.
    async fn scan(
        &self,
        base: Option<Base>,
        after: String,
        page: &mut Page,
    ) -> Result<(Came, Base, String), Error> {
        let (head, ranges) = self.ranges().await?;
        let mut base = base.or(head.as_ref().map(Base::of));
        let mut after = after.into_bytes();
        let mut left: std::collections::VecDeque<KeyRange> = ranges.into();
        if !after.is_empty() {
            left.retain(|range| range.to.as_ref().is_none_or(|to| to[..] > after[..]));
            if let Some(first) = left.front_mut() {
                *first = first.clone().after(&after);
            }
        }
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        // All ranges at once first: where little is there, that is one look.
        let (mut count, mut rows_max) = (left.len(), ROWS_MIN);
        loop {
            let looks = left.iter().take(count).map(|range| Look::range(VALUE, range.clone(), rows_max));
            let mut seen = match self.look(looks.collect()).await {
                Err(Error::Store(sluice_store::Error::Damaged { .. })) => {
                    return self.scan_by_name(base, after, page).await;
                }
                seen => seen?,
            };
            let began = *base.get_or_insert(Base::of(&seen.head));
            let last = seen.head;
            let (mut bytes, mut read) = (0, 0);
            for _ in 0..count {
                let Rows { rows, more } = seen.rows();
                for (key, raw) in &rows {
                    bytes += raw.len();
                    read += 1;
                    if !page.put_row(key, row_of(key, raw))? {
                        return Ok((Came::Full, began, text(&after)));
                    }
                    after = key.to_vec();
                }
                if more {
                    if let Some(first) = left.front_mut() {
                        *first = first.clone().after(&after);
                    }
                    break;
                }
                left.pop_front();
            }
            if left.is_empty() {
                return Ok((Came::ToItsEnd(last), began, text(&after)));
            }
            // One range alone while it has more: as many rows as the page has room for.
            let average = (bytes / read.max(1)).max(1);
            rows_max = (page.room / average).clamp(1, ROWS_MAX);
            count = 1;
        }
    }

    /// The same where a range cannot be read as a whole: names are known from elsewhere, and each value is read alone, so
    /// that those that are damaged are told from those that are not.
    async fn scan_by_name(
        &self,
        base: Option<Base>,
        after: Vec<u8>,
        page: &mut Page,
    ) -> Result<(Came, Base, String), Error> {
        let mut seen = self.look(Vec::new()).await?;
        let base = base.unwrap_or(Base::of(&seen.head));
        let mut keys = BTreeSet::new();
        let mut range = KeyRange::all();
        loop {
            let mut names = self.look(vec![Look::range(PLACE, range.clone(), ROWS_MAX)]).await?;
            let names = names.rows();
            for [workspace, config_type, key] in names.rows.iter().filter_map(|(key, _)| layout::names(key)) {
                let at = ScopedKey { workspace, r#type: config_type, key };
                let key = layout::value_key(&at);
                if self.covers(&at) && key > after {
                    keys.insert(key);
                }
            }
            match names.rows.last() {
                Some((last, _)) if names.more => range = range.after(last),
                _ => break,
            }
        }
        let mut after = after;
        for key in keys {
            let row = match self.look(vec![Look::get(VALUE, &key)]).await {
                Ok(one) => {
                    seen = one;
                    // One that was deleted a moment ago is told of by what follows.
                    let Some(raw) = seen.value() else { continue };
                    row_of(&key, &raw)
                }
                Err(Error::Store(error @ sluice_store::Error::Damaged { .. })) => Err(error),
                Err(error) => return Err(error),
            };
            if !page.put_row(&key, row)? {
                return Ok((Came::Full, base, String::from_utf8_lossy(&after).into_owned()));
            }
            after = key;
        }
        Ok((Came::ToItsEnd(seen.head), base, String::from_utf8_lossy(&after).into_owned()))
    }

    /// Returns what was written after the base, until nothing is written meanwhile.
    async fn rounds(
        &self,
        base: &mut Base,
        step: &mut Step,
        is_asked: bool,
        page: &mut Page,
    ) -> Result<Came, Error> {
        for number in 0.. {
            let is_first = is_asked && number == 0;
            let head = match self.round(*base, step, is_first, page).await? {
                Came::ToItsEnd(head) => head,
                other => return Ok(other),
            };
            let Step::Delta { round: Some(began), .. } = step else { return Ok(Came::ToItsEnd(head)) };
            if *began == Base::of(&head) {
                return Ok(Came::ToItsEnd(head));
            }
            if number + 1 >= ROUNDS_MAX {
                // Under constant writing the values may be newer than the version that is told, never older.
                let Base { version, mark } = *began;
                let mark = mark.unwrap_or_else(|| head.place());
                let quiet = mark.number - version;
                return Ok(Came::ToItsEnd(Head { version, quiet, mark: mark.mark, ..head }));
            }
            *base = *began;
            *step = Step::first_round();
        }
        Ok(Came::Unknown)
    }

    /// Tells once what was written after the base, in the order of writing: values, then deletions.
    async fn round(
        &self,
        base: Base,
        step: &mut Step,
        is_first: bool,
        page: &mut Page,
    ) -> Result<Came, Error> {
        let Step::Delta { round, dead, at, after } = step else { return Ok(Came::Unknown) };
        loop {
            let start = KeyRange { from: layout::history_key(base.version + 1, b"").into(), to: None };
            let here = if *at == 0 {
                start.clone()
            } else {
                start.clone().after(layout::history_key(*at, after.as_bytes()))
            };
            let mark = base.mark.unwrap_or(Mark { number: 0, mark: 0 });
            let mut looks = vec![Look::get(MARK, mark.key())];
            if !*dead {
                looks.push(Look::range(LIVE, here.clone(), DELTA_ROWS_MAX));
            }
            looks.push(Look::range(DEAD, if *dead { here } else { start }, DELTA_ROWS_MAX));
            let mut seen = self.look(looks).await?;
            let on_record = seen.value();
            let is_ours = |mark: Mark| {
                seen.head.place() == mark || on_record.as_ref().is_some_and(|raw| *raw == mark.encode())
            };
            let is_known = base.version >= seen.head.horizon && base.version <= seen.head.version;
            if !is_known || !base.mark.is_none_or(is_ours) {
                return Ok(Came::Unknown);
            }
            round.get_or_insert(Base::of(&seen.head));
            let mut last = seen.head;
            if !*dead {
                let written = seen.rows();
                let gone = seen.rows();
                if is_first && (written.more || gone.more) {
                    return Ok(Came::Unknown);
                }
                match self.tell_written(&written, at, after, page).await? {
                    None => return Ok(Came::Full),
                    Some(Some(head)) => last = head,
                    Some(None) => {}
                }
                if written.more {
                    continue;
                }
                (*dead, *at) = (true, 0);
                after.clear();
                if !self.tell_gone(&gone, at, after, page)? {
                    return Ok(Came::Full);
                }
                if gone.more {
                    continue;
                }
            } else {
                let gone = seen.rows();
                if !self.tell_gone(&gone, at, after, page)? {
                    return Ok(Came::Full);
                }
                if gone.more {
                    continue;
                }
            }
            return Ok(Came::ToItsEnd(last));
        }
    }

    /// Values of keys that a history names; `None` when the page is full, else the head of the last look.
    async fn tell_written(
        &self,
        written: &Rows,
        at: &mut i64,
        after: &mut String,
        page: &mut Page,
    ) -> Result<Option<Option<Head>>, Error> {
        let wanted: Vec<(i64, &[u8])> = written
            .rows
            .iter()
            .filter_map(|(key, _)| layout::history_of(key))
            .filter(|(_, key)| layout::place_of(key).is_some_and(|at| self.covers(&at)))
            .collect();
        let mut last = None;
        for some in wanted.chunks(ROWS_MIN) {
            let gets = |some: &[(i64, &[u8])]| some.iter().map(|(_, key)| Look::get(VALUE, key)).collect();
            let mut together = match self.look(gets(some)).await {
                Err(Error::Store(sluice_store::Error::Damaged { .. })) => None,
                seen => Some(seen?),
            };
            for one in some {
                let (number, key) = one;
                let row = match &mut together {
                    Some(seen) => {
                        last = Some(seen.head);
                        seen.value().map(|raw| row_of(key, &raw))
                    }
                    None => match self.look(gets(std::slice::from_ref(one))).await {
                        Err(Error::Store(error @ sluice_store::Error::Damaged { .. })) => Some(Err(error)),
                        seen => {
                            let mut seen = seen?;
                            last = Some(seen.head);
                            seen.value().map(|raw| row_of(key, &raw))
                        }
                    },
                };
                // What was written again or deleted meanwhile stands further on in a history.
                if let Some(row) = row
                    && !page.put_row(key, row)?
                {
                    return Ok(None);
                }
                *at = *number;
                *after = String::from_utf8_lossy(key).into_owned();
            }
        }
        if let Some((number, key)) = written.rows.last().and_then(|(key, _)| layout::history_of(key)) {
            *at = number;
            *after = String::from_utf8_lossy(key).into_owned();
        }
        Ok(Some(last))
    }

    /// Whether the page had room.
    fn tell_gone(
        &self,
        gone: &Rows,
        at: &mut i64,
        after: &mut String,
        page: &mut Page,
    ) -> Result<bool, Error> {
        for (key, _) in &gone.rows {
            let Some((number, key)) = layout::history_of(key) else { continue };
            if self.covers(&place_at(key)?) && !page.put(key, None) {
                return Ok(false);
            }
            *at = number;
            *after = String::from_utf8_lossy(key).into_owned();
        }
        Ok(true)
    }
}

fn value(at: ScopedKey, row: Row) -> ConfigValue {
    ConfigValue {
        r#type: at.r#type,
        key: at.key,
        value: row.value,
        workspace: at.workspace,
        version: row.version,
    }
}

/// What is asked for, without what another pattern covers, so that no value is answered twice.
pub(crate) fn distinct(types: Vec<String>) -> BTreeSet<String> {
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
