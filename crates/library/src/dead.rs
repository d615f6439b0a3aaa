//! Messages that could not be processed: kept with their reason until somebody exports, replays or removes them.
//!
//! Letters are kept in the order they came. Their number and bytes per workspace are bounded; beyond that no more are
//! taken, loudly, and those to come rest on their topic until there is room. A replay publishes first and removes then, so
//! a crash in between leaves a letter that was replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use serde::{Deserialize, Serialize};
use sluice_bus::{Address, Broker, BrokerAdmin, Message, TopicSpec, letter, property};
use sluice_schema::ceilings::{self, LETTER_BYTES_MAX, REASON_BYTES_MAX};
use sluice_schema::message::{
    DeadLetter, DeadLettersRequest as Request, DeadLettersResponse as Response, Error as Told, KeptLetter,
    Metadata,
};
use sluice_schema::{Class, Topic, WorkspaceId, exchange, record, system};
use sluice_sdk::{ConfigClient, Responder};
use sluice_store::{Batch, Found, KeyRange, Read};

use crate::Error;
use crate::progress::flow_of;
use crate::rows::{self, Rows, check_id, is_id, key, prefix};
use crate::uploads::signed;

const LETTERS: &str = "library-letters";
const BODIES: &str = "library-letter-bodies";
const IDS: &str = "library-letter-ids";

/// Letters listed when the caller sets no limit.
const LIST_DEFAULT: usize = 100;
/// Letters handled by one call.
const CALL_LETTERS_MAX: usize = 1_000;
/// Bytes of letters in one page of a list or an export.
const PAGE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of letters, without their bodies, that one call changes.
const CHANGED_BYTES: u64 = 32 * 1024 * 1024;
/// Letters read at once, without their bodies.
const HEADS_READ: usize = 256;
/// How often it is told that the dead letters are full.
const FULL_REMINDER: Duration = Duration::from_secs(60);
/// Bytes of bodies kept in one step, beyond a single one.
const KEEP_BYTES: u64 = 64 * 1024 * 1024;
/// What of an answer is not bodies, in bytes.
const ANSWER_ROOM_BYTES: u64 = 256 * 1024;
/// Letters removed in one step.
const REMOVE_LETTERS: usize = 500;

/// How much a workspace's dead letters may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Letters; default 1 000 000.
    pub letters_max: usize,
    /// Bytes of their bodies; default 4 GiB. A single larger letter is kept if it is the only one.
    pub body_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { letters_max: 1_000_000, body_bytes_max: 4 * 1024 * 1024 * 1024 }
    }
}

/// In which order letters are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    NewestFirst,
    OldestFirst,
}

/// How much one call may hold.
struct Room {
    letters: usize,
    bytes: u64,
    is_with_bodies: bool,
}

/// A letter without its body, as it rests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    letter: DeadLetter,
    body_bytes: u64,
    /// Its body rests as it is, and not as base64.
    #[serde(default, skip_serializing_if = "is_false")]
    is_raw: bool,
    /// The document that its message was made from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    document: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// A letter as it came, and its body.
pub(crate) struct Letter {
    about: DeadLetter,
    body: Bytes,
    is_raw: bool,
}

impl Head {
    /// Bytes of the body in an answer, as base64.
    fn shown_bytes(&self) -> u64 {
        if self.is_raw { self.body_bytes.div_ceil(3) * 4 } else { self.body_bytes }
    }
}

/// The dead letters of all workspaces.
#[derive(Clone)]
pub(crate) struct DeadLetters {
    pub(crate) rows: Rows,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    pub(crate) limits: Limits,
    pub(crate) config: Arc<ConfigClient>,
    /// Workspaces that take no more letters at this moment.
    pub(crate) full: Gauge,
}

/// How much one workspace holds, as its only keeper counts.
#[derive(Default)]
pub(crate) struct Held {
    count: std::sync::Mutex<Count>,
    /// Somebody removed letters.
    removed: tokio::sync::Notify,
    /// Letters are changed by one call at a time, so that none is replayed or counted twice.
    change: tokio::sync::Mutex<()>,
}

/// Counted from the rows at first, then kept up to date.
#[derive(Default, Clone, Copy)]
struct Count {
    known: Option<(usize, u64)>,
    /// Letters were removed while they were being counted.
    stale: bool,
    /// Bytes of the letter that did not fit.
    waiting_bytes: u64,
}

/// Shows a workspace as full for as long as it is there.
struct Full<'a>(&'a Gauge);

impl<'a> Full<'a> {
    fn show(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl DeadLetters {
    /// Waits until a letter can be taken; how many can. `waits` is called if it takes time.
    pub(crate) async fn room(
        &self,
        workspace: &str,
        held: &Held,
        waits: impl Fn() + Send,
    ) -> Result<usize, Error> {
        let mut shown = None;
        loop {
            let (count, bytes) = self.held(workspace, held).await?;
            if self.fits(count, bytes, held.locked().waiting_bytes) {
                return Ok(self.limits.letters_max.saturating_sub(count).max(1));
            }
            shown.get_or_insert_with(|| Full::show(&self.full));
            waits();
            tracing::error!(
                workspace,
                count,
                bytes,
                letters_max = self.limits.letters_max,
                body_bytes_max = self.limits.body_bytes_max,
                "the dead letters are full and no more are taken: further ones wait on their topic; \
                 replay some, or export and remove some (see `sluice dead`)"
            );
            // It is looked at again in any case; the reminder is what the time is for.
            let _ = tokio::time::timeout(FULL_REMINDER, held.removed.notified()).await;
        }
    }

    /// Keeps the first letters, as many as fit, and returns how many; on return they are durable. One that is known
    /// already is not kept twice.
    pub(crate) async fn keep(
        &self,
        workspace: &str,
        held: &Held,
        letters: Vec<Letter>,
    ) -> Result<usize, Error> {
        let mut batch = Batch::new();
        let own_topic = system::dead_letters(&WorkspaceId::existing(workspace)).to_string();
        let (mut count, mut bytes) = self.held(workspace, held).await?;
        let (had, had_bytes) = (count, bytes);
        let (mut taken, mut waiting_bytes) = (0, 0);
        let reads =
            letters.iter().map(|letter| Read::get(IDS, key(&[workspace, &letter.about.id]))).collect();
        let known = self.rows.read(reads).await?;
        let mut seen = BTreeSet::new();
        for (Letter { about: letter, body, is_raw }, known) in letters.into_iter().zip(known) {
            if known.value().is_some() || !seen.insert(letter.id.clone()) {
                taken += 1;
                continue;
            }
            let body_bytes = body.len() as u64;
            if count > had && bytes - had_bytes + body_bytes > KEEP_BYTES {
                // The others come again.
                break;
            }
            if !self.fits(count, bytes, body_bytes) {
                waiting_bytes = body_bytes;
                break;
            }
            let place = uuid::Uuid::now_v7().to_string();
            // What could not be read as a letter is read no further.
            let is_unread = letter.topic == own_topic;
            let document = if is_unread { String::new() } else { document_of(&body, is_raw) };
            let head = Head { body_bytes, is_raw, document, letter };
            taken += 1;
            count += 1;
            bytes += body_bytes;
            let row_key = key(&[workspace, &place]);
            batch
                .put(IDS, key(&[workspace, &head.letter.id]), place)
                .put(LETTERS, &row_key, rows::encode(&head))
                .put(BODIES, &row_key, body);
        }
        if count > had {
            // Counted first: a letter that is there and not counted could be removed from the count.
            held.add(count - had, bytes - had_bytes);
            if let Err(error) = self.rows.commit(batch).await {
                held.locked().known = None;
                return Err(error);
            }
        }
        held.locked().waiting_bytes = waiting_bytes;
        Ok(taken)
    }

    /// Whether one more letter fits. The first one always does, lest it block the others for ever.
    fn fits(&self, count: usize, bytes: u64, more_bytes: u64) -> bool {
        count == 0
            || (count < self.limits.letters_max
                && bytes.saturating_add(more_bytes) <= self.limits.body_bytes_max)
    }

    async fn held(&self, workspace: &str, held: &Held) -> Result<(usize, u64), Error> {
        loop {
            if let Some(known) = held.locked().known {
                return Ok(known);
            }
            held.locked().stale = false;
            let total = self.total(workspace).await?;
            let mut count = held.locked();
            if !count.stale {
                count.known = Some(total);
                return Ok(total);
            }
        }
    }

    async fn total(&self, workspace: &str) -> Result<(usize, u64), Error> {
        let (mut count, mut bytes) = (0, 0);
        self.rows
            .scan(LETTERS, &prefix(&[workspace]), |key, raw| {
                count += 1;
                bytes += rows::decode::<Head>(LETTERS, key, raw)?.body_bytes;
                Ok(true)
            })
            .await?;
        Ok((count, bytes))
    }

    /// Answers one call.
    pub(crate) async fn answer(
        &self,
        workspace: &str,
        held: &Held,
        request: Request,
        responder: &Responder<exchange::DeadLetters>,
    ) -> Result<Response, Told> {
        let outcome = match request.operation.as_str() {
            "list" => self.list(workspace, &request).await,
            "export" => self.export(workspace, &request, responder).await,
            "replay" => self.replay(workspace, held, &request).await,
            "remove" => self.remove(workspace, held, &request).await,
            "" => Err(Error::request("Null operation")),
            other => Err(Error::request(format!(
                "Invalid operation: {other}; dead letters know list, export, replay and remove"
            ))),
        };
        outcome.map_err(|error| error.told(&request.operation, responder.trace()))
    }

    /// A page of letters without their bodies, newest first.
    async fn list(&self, workspace: &str, request: &Request) -> Result<Response, Error> {
        let letters = if request.limit == 0 { LIST_DEFAULT } else { limit(request) };
        let room = Room { letters, bytes: PAGE_BYTES, is_with_bodies: false };
        let (chosen, remaining) = self.choose(workspace, request, Order::NewestFirst, room).await?;
        let letters: Vec<DeadLetter> = chosen.into_iter().map(|(_, head)| head.letter).collect();
        Ok(Response { count: signed(letters.len() as u64), remaining, letters, ..Default::default() })
    }

    /// A page of whole letters, newest first.
    async fn export(
        &self,
        workspace: &str,
        request: &Request,
        responder: &Responder<exchange::DeadLetters>,
    ) -> Result<Response, Error> {
        let room = Room { letters: limit(request), bytes: PAGE_BYTES, is_with_bodies: true };
        let (chosen, remaining) = self.choose(workspace, request, Order::NewestFirst, room).await?;
        let told = chosen.iter().map(|(_, head)| head).filter(|head| self.fits_an_answer(head));
        let bytes: u64 = told.map(Head::shown_bytes).sum();
        responder.room_for(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
        let mut page = Response { remaining, ..Default::default() };
        for (place, head) in chosen {
            // One that is kept is the last of its page, so that the next one begins behind it.
            if !page.kept.is_empty() {
                page.remaining += 1;
                continue;
            }
            if !self.fits_an_answer(&head) {
                let reason =
                    format!("its body of {} bytes is too large for an answer; replay it", head.body_bytes);
                page.kept.push(KeptLetter { id: head.letter.id, reason });
                continue;
            }
            // One that was removed meanwhile is not exported.
            page.letters.extend(self.whole(workspace, &place, head).await?);
        }
        Ok(Response { count: signed(page.letters.len() as u64), ..page })
    }

    async fn replay(&self, workspace: &str, held: &Held, request: &Request) -> Result<Response, Error> {
        let _turn = held.change.lock().await;
        let (chosen, remaining) = self.chosen(workspace, request).await?;
        let mut answer = Response { remaining, ..Default::default() };
        for (place, head) in chosen {
            let id = head.letter.id.clone();
            match self.replay_one(workspace, &place, head.clone(), &request.run).await {
                Ok(()) => {
                    self.delete(workspace, held, &[(place, head)]).await?;
                    answer.count += 1;
                }
                Err(Error::Request(reason)) => answer.kept.push(KeptLetter { id, reason }),
                Err(error) => answer.kept.push(KeptLetter { id, reason: crate::error::cause(&error) }),
            }
        }
        Ok(answer)
    }

    async fn replay_one(&self, workspace: &str, place: &str, head: Head, run: &str) -> Result<(), Error> {
        let Some(body) = self.body(workspace, place).await? else { return Ok(()) };
        let Head { letter, is_raw, .. } = head;
        let body = if is_raw {
            body
        } else {
            let decoded = STANDARD.decode(&body);
            decoded
                .map_err(|error| Error::request(format!("the letter's body is not base64: {error}")))?
                .into()
        };
        let run = if run.is_empty() { self.current_run(workspace, &letter).await? } else { run.to_owned() };
        let target = target(workspace, &letter, &run)?;
        let seen = self.admin.observe(std::slice::from_ref(&target)).await?;
        let is_read = seen.iter().any(|topic| topic.exists && topic.subscriptions.iter().any(|s| s.exists));
        if !is_read {
            return Err(Error::request(format!(
                "nobody reads {}; start the flow, or name a run that is there",
                target.topic
            )));
        }
        let mut message = Message::new(body);
        for (name, value) in &letter.properties {
            // Those that belong to one delivery of a call do not fit another.
            if name != property::REPLY_TO && name != property::TTL {
                message.set(name, value);
            }
        }
        Ok(self.broker.publish(&Address::Subscribed(target.topic), message).await?)
    }

    /// The run that the letter's flow has now; empty where the letter's topic does not belong to one run.
    async fn current_run(&self, workspace: &str, letter: &DeadLetter) -> Result<String, Error> {
        let own = target(workspace, letter, "")?.topic;
        let Some((_, (_, owner))) = split(&own) else { return Ok(String::new()) };
        let flow = flow_of(owner);
        if flow != flow_of(&letter.flow) {
            return Ok(String::new());
        }
        let Some(text) = self.config.get(workspace, record::FLOW, flow).await?.and_then(|found| found.value)
        else {
            // Topics that all flows of a blueprint share bear its name.
            if self.config.get(workspace, record::BLUEPRINT, owner).await?.is_some() {
                return Ok(String::new());
            }
            return Err(Error::request(format!("flow '{flow}' does not run; start the flow, then replay")));
        };
        let record: record::Flow = serde_json::from_str(&text)
            .map_err(|error| Error::Damaged { what: format!("flow '{flow}'"), reason: error.to_string() })?;
        if !record.is_routable() {
            return Err(Error::request(format!(
                "flow '{flow}' is {}; wait for its end and start the flow again, then replay",
                record.status.unwrap_or_default()
            )));
        }
        Ok(record.run.unwrap_or_else(|| flow.to_owned()))
    }

    async fn remove(&self, workspace: &str, held: &Held, request: &Request) -> Result<Response, Error> {
        let _turn = held.change.lock().await;
        let (chosen, remaining) = self.chosen(workspace, request).await?;
        for some in chosen.chunks(REMOVE_LETTERS) {
            self.delete(workspace, held, some).await?;
        }
        Ok(Response { count: signed(chosen.len() as u64), remaining, ..Default::default() })
    }

    /// The letters to change, oldest first, and how many more there are; "all of them" has to be said.
    async fn chosen(&self, workspace: &str, request: &Request) -> Result<(Vec<(String, Head)>, i64), Error> {
        let unnamed = request.ids.is_empty()
            && [&request.flow, &request.topic, &request.document_id].iter().all(|name| name.is_empty());
        if unnamed && !request.all {
            return Err(Error::request("name letters by ids, flow, topic or document, or say all"));
        }
        let room = Room { letters: limit(request), bytes: CHANGED_BYTES, is_with_bodies: false };
        self.choose(workspace, request, Order::OldestFirst, room).await
    }

    /// Letters that a request is about: as many as there is room for, one at least, and how many more there are. No more of
    /// them are held at any time.
    async fn choose(
        &self,
        workspace: &str,
        request: &Request,
        order: Order,
        mut room: Room,
    ) -> Result<(Vec<(String, Head)>, i64), Error> {
        let (mut chosen, mut remaining) = (Vec::new(), 0);
        let mut take = |place: String, raw: &Bytes, head: Head| {
            // A body that no answer has room for is not in it.
            let has_body = room.is_with_bodies && self.fits_an_answer(&head);
            let bytes = raw.len() as u64 + if has_body { head.shown_bytes() } else { 0 };
            let has_room = chosen.is_empty() || (chosen.len() < room.letters && bytes <= room.bytes);
            if remaining > 0 || !has_room {
                remaining += 1;
                return;
            }
            room.bytes = room.bytes.saturating_sub(bytes);
            chosen.push((place, head));
        };
        if request.ids.is_empty() {
            let mut range = KeyRange::prefix(prefix(&[workspace]));
            if !request.before.is_empty() {
                let end = self.place(workspace, &request.before).await?;
                range.to = Some(key(&[workspace, &end]).into());
            }
            loop {
                let look = match order {
                    Order::OldestFirst => Read::range(LETTERS, range.clone(), HEADS_READ),
                    Order::NewestFirst => Read::range_reverse(LETTERS, range.clone(), HEADS_READ),
                };
                let found = self.rows.read(vec![look]).await?.pop().map(Found::into_rows).unwrap_or_default();
                for (row_key, raw) in &found.rows {
                    let head: Head = rows::decode(LETTERS, row_key, raw)?;
                    if fits(&head, request) {
                        take(rows::last_part(row_key), raw, head);
                    }
                }
                match (found.rows.last(), order) {
                    (Some((last, _)), Order::OldestFirst) if found.more => range = range.after(last),
                    (Some((last, _)), Order::NewestFirst) if found.more => range.to = Some(last.clone()),
                    _ => break,
                }
            }
            return Ok((chosen, remaining));
        }
        if request.ids.len() > CALL_LETTERS_MAX {
            return Err(Error::request(format!(
                "{} letters are named; name at most {CALL_LETTERS_MAX} in one call",
                request.ids.len()
            )));
        }
        let (places, unknown) = self.named(workspace, request).await?;
        if let (Some(unknown), Order::OldestFirst) = (unknown, order) {
            let said = format!("there is no dead letter '{unknown}' in workspace '{workspace}'");
            return Err(if places.is_empty() { Error::NotFound(said) } else { Error::Request(said) });
        }
        let mut places: Vec<String> = places.into_iter().collect();
        if order == Order::NewestFirst {
            places.reverse();
        }
        for place in places {
            let row_key = key(&[workspace, &place]);
            let found = self.rows.read(vec![Read::get(LETTERS, &row_key)]).await?.pop();
            if let Some(raw) = found.and_then(Found::into_value) {
                let head: Head = rows::decode(LETTERS, &row_key, &raw)?;
                take(place, &raw, head);
            }
        }
        Ok((chosen, remaining))
    }

    /// The places of the letters that a request names and is about, oldest first, and one that it names in vain.
    async fn named(
        &self,
        workspace: &str,
        request: &Request,
    ) -> Result<(BTreeSet<String>, Option<String>), Error> {
        let (mut places, mut unknown) = (BTreeSet::new(), None);
        for id in &request.ids {
            let head = match self.place(workspace, id).await {
                Ok(place) => {
                    self.rows.get::<Head>(LETTERS, &key(&[workspace, &place])).await?.zip(Some(place))
                }
                Err(Error::Request(_)) => None,
                Err(error) => return Err(error),
            };
            match head {
                Some((head, place)) if fits(&head.is, request) => _ = places.insert(place),
                _ => _ = unknown.get_or_insert_with(|| id.clone()),
            }
        }
        Ok((places, unknown))
    }

    /// Whether an answer has room for the body of a letter.
    fn fits_an_answer(&self, head: &Head) -> bool {
        head.shown_bytes() + ANSWER_ROOM_BYTES <= self.broker.limits().message_bytes_max as u64
    }

    async fn place(&self, workspace: &str, id: &str) -> Result<String, Error> {
        check_id("dead letter", id)?;
        let found = self.rows.read(vec![Read::get(IDS, key(&[workspace, id]))]).await?.pop();
        found.and_then(Found::into_value).map(|raw| String::from_utf8_lossy(&raw).into_owned()).ok_or_else(
            || Error::request(format!("there is no dead letter '{id}' in workspace '{workspace}'")),
        )
    }

    async fn body(&self, workspace: &str, place: &str) -> Result<Option<Bytes>, Error> {
        let found = self.rows.read(vec![Read::get(BODIES, key(&[workspace, place]))]).await?.pop();
        Ok(found.and_then(Found::into_value))
    }

    async fn whole(&self, workspace: &str, place: &str, head: Head) -> Result<Option<DeadLetter>, Error> {
        let Some(body) = self.body(workspace, place).await? else { return Ok(None) };
        let shown =
            if head.is_raw { STANDARD.encode(&body) } else { String::from_utf8_lossy(&body).into_owned() };
        Ok(Some(DeadLetter { body: shown, ..head.letter }))
    }

    async fn delete(&self, workspace: &str, held: &Held, letters: &[(String, Head)]) -> Result<(), Error> {
        let mut batch = Batch::new();
        for (place, head) in letters {
            let row_key = key(&[workspace, place]);
            batch
                .delete(LETTERS, &row_key)
                .delete(BODIES, &row_key)
                .delete(IDS, key(&[workspace, &head.letter.id]));
        }
        self.rows.commit(batch).await?;
        held.subtract(letters.len(), letters.iter().map(|(_, head)| head.body_bytes).sum());
        Ok(())
    }
}

impl Held {
    fn locked(&self) -> std::sync::MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn add(&self, letters: usize, more_bytes: u64) {
        if let Some((count, bytes)) = &mut self.locked().known {
            *count += letters;
            *bytes += more_bytes;
        }
    }

    fn subtract(&self, letters: usize, less_bytes: u64) {
        let mut held = self.locked();
        match &mut held.known {
            Some((count, bytes)) => {
                *count = count.saturating_sub(letters);
                *bytes = bytes.saturating_sub(less_bytes);
            }
            None => held.stale = true,
        }
        drop(held);
        self.removed.notify_one();
    }
}

/// Reads a letter from the bus. What cannot be read as one is kept all the same, as the body of a letter about it.
pub(crate) fn read(workspace: &str, message: &Message, topic: &Topic) -> Letter {
    let unreadable = |reason: String| unread(workspace, message, topic, reason);
    match letter::read(message) {
        Ok((letter, _)) if is_id(&letter.id) && head_bytes(&letter) > LETTER_BYTES_MAX => unreadable(
            format!("a parked message whose names and properties take more than {LETTER_BYTES_MAX} bytes"),
        ),
        Ok((mut letter, raw)) if is_id(&letter.id) => {
            let is_raw = raw.is_some();
            let body = raw.unwrap_or_else(|| std::mem::take(&mut letter.body).into());
            let reason = ceilings::cut(std::mem::take(&mut letter.reason), REASON_BYTES_MAX);
            let about = DeadLetter { workspace: workspace.to_owned(), body: String::new(), reason, ..letter };
            Letter { about, body, is_raw }
        }
        Ok(_) => unreadable("a parked message without a usable id".to_owned()),
        Err(error) => unreadable(format!("a parked message that is no letter: {error}")),
    }
}

/// Properties of a message, as many as there is room for.
fn properties(message: &Message) -> BTreeMap<String, String> {
    let mut left = LETTER_BYTES_MAX;
    let fits = message.properties().filter(|(name, value)| {
        let has_room = name.len() + value.len() <= left;
        left -= if has_room { name.len() + value.len() } else { 0 };
        has_room
    });
    fits.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What names and properties of a letter take.
fn head_bytes(letter: &DeadLetter) -> usize {
    let names = [&letter.flow, &letter.topic, &letter.subscription];
    let properties = letter.properties.iter().flat_map(|(name, value)| [name, value]);
    names.into_iter().chain(properties).map(String::len).sum()
}

/// A letter about a parked message, of which nothing is read.
pub(crate) fn unread(workspace: &str, message: &Message, topic: &Topic, reason: String) -> Letter {
    let about = DeadLetter {
        id: uuid::Uuid::now_v7().to_string(),
        workspace: workspace.to_owned(),
        topic: topic.to_string(),
        reason: ceilings::cut(reason, REASON_BYTES_MAX),
        time: crate::clock::seconds(),
        properties: properties(message),
        ..Default::default()
    };
    Letter { about, body: message.body.clone(), is_raw: true }
}

fn limit(request: &Request) -> usize {
    let wanted = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
    wanted.map_or(CALL_LETTERS_MAX, |limit| limit.min(CALL_LETTERS_MAX))
}

/// The document that a parked message was made from, if it is a pipeline's.
fn document_of(body: &[u8], is_raw: bool) -> String {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Parked {
        metadata: Metadata,
    }
    let decoded = if is_raw { None } else { STANDARD.decode(body).ok() };
    let parked = serde_json::from_slice::<Parked>(decoded.as_deref().unwrap_or(body)).unwrap_or_default();
    let Metadata { id, root, .. } = parked.metadata;
    if root.is_empty() { id } else { root }
}

fn fits(Head { letter, document, .. }: &Head, request: &Request) -> bool {
    let flow = &request.flow;
    // A flow's id means all its runs.
    (flow.is_empty() || letter.flow == *flow || flow_of(&letter.flow) == flow)
        && (request.topic.is_empty() || letter.topic == request.topic)
        && (request.document_id.is_empty() || *document == request.document_id)
}

/// Where a letter goes when it is replayed: the topic it came from, or the one of the same name in another run. Only
/// topics of flows of the same workspace take letters.
fn target(workspace: &str, letter: &DeadLetter, run: &str) -> Result<TopicSpec, Error> {
    let refuse = |why: &str| Error::request(format!("'{}' takes no replayed messages: {why}", letter.topic));
    let topic = Topic::parse(&letter.topic).map_err(|error| refuse(&error.to_string()))?;
    let (name, at) = split(&topic).ok_or_else(|| refuse("it is no topic of a flow"))?;
    if topic.class() != Class::Flow || topic.space() != "tg" {
        return Err(refuse("it is no topic of a flow"));
    }
    let (topic_workspace, owner) = at;
    if topic_workspace != workspace {
        return Err(refuse("it belongs to another workspace"));
    }
    if run.is_empty() || run == owner {
        return Ok(TopicSpec::with(topic.clone(), letter.subscription.clone()));
    }
    if flow_of(owner) != flow_of(&letter.flow) {
        return Err(refuse("it does not belong to one run alone; replay it without naming a run"));
    }
    if flow_of(run) != flow_of(&letter.flow) {
        return Err(refuse("the run named belongs to another flow"));
    }
    let moved = Topic::tg(Class::Flow, format_args!("{name}:{workspace}:{run}"))
        .map_err(|error| Error::request(error.to_string()))?;
    let (old, new) = (format!("--{workspace}--{owner}--"), format!("--{workspace}--{run}--"));
    Ok(TopicSpec::with(moved, letter.subscription.replacen(&old, &new, 1)))
}

/// `flow:tg:<name>:<workspace>:<run>` taken apart; a system's topic has fewer parts.
fn split(topic: &Topic) -> Option<(&str, (&str, &str))> {
    let mut parts = topic.name().rsplitn(3, ':');
    let (owner, workspace, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some((name, (workspace, owner)))
}

#[cfg(test)]
mod tests {
    use sluice_schema::wire;

    use super::*;

    #[test]
    fn a_letter_goes_back_to_its_topic_or_to_the_same_one_of_a_later_run() {
        let letter = |topic: &str| DeadLetter {
            flow: "f1".into(),
            topic: topic.into(),
            subscription: "chunker--w--f1--input".into(),
            ..Default::default()
        };
        let goes = |topic: &str, run: &str| {
            target("w", &letter(topic), run)
                .map(|spec| (spec.topic.to_string(), spec.subscriptions[0].clone()))
                .map_err(|error| error.to_string())
        };
        let own = "flow:tg:text-document-load:w:f1";
        assert_eq!(goes(own, "").unwrap(), (own.into(), "chunker--w--f1--input".into()));
        assert_eq!(
            goes(own, "f1-r3").unwrap(),
            ("flow:tg:text-document-load:w:f1-r3".into(), "chunker--w--f1-r3--input".into())
        );
        let refused = |topic: &str, run: &str, why: &str| {
            let said = goes(topic, run).unwrap_err();
            assert!(said.contains(why), "{topic} {run}: {said}");
        };
        refused(own, "f2", "another flow");
        refused("flow:tg:x:other:f1", "", "another workspace");
        refused("flow:tg:dead-letters:w", "", "no topic of a flow");
        refused("request:tg:embeddings:w:f1", "", "no topic of a flow");
        refused("flow:tg:x:w:blueprint", "f1-r2", "one run alone");
        refused("nonsense", "", "class:space:name");
    }

    #[test]
    fn what_is_no_letter_is_kept_as_the_body_of_one() {
        let topic = Topic::parse("flow:tg:dead-letters:w").unwrap();
        let kept = read("w", &Message::new(&b"\xffgarbage"[..]).with("a", "b"), &topic);
        assert!(is_id(&kept.about.id) && kept.about.reason.contains("no letter"), "{:?}", kept.about);
        assert!(kept.is_raw && kept.body == b"\xffgarbage"[..]);
        assert_eq!(kept.about.properties["a"], "b");
        let nameless = read("w", &Message::new(wire::encode(&DeadLetter::default())), &topic);
        assert!(is_id(&nameless.about.id));
    }
}
