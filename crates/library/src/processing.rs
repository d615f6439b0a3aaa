//! Putting documents through flows.
//!
//! # Flow
//! Everything that can be wrong is checked first. Then the record is written, then the messages are published, then the
//! record says so, then the caller is answered. A crash in between leaves a record that says it was not sent; it is sent
//! again at the next start, or when the caller repeats the call. So what was accepted is sent at least once, and a
//! repeated call sends nothing twice into one run, unless the broker's log was lost since and nothing says that the document
//! was through.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_bus::{Address, Broker, ErrorKind, Message, property};
use sluice_schema::listing::{self, Page};
use sluice_schema::message::{self as m, DocumentMetadata, ProcessingMetadata};
use sluice_schema::{Class, Topic, ceilings, record, wire};
use sluice_sdk::ConfigClient;
use sluice_store::{Batch, Found, KeyRange, Read};

use crate::collections::Collections;
use crate::documents::{Document, Documents};
use crate::progress::{Entry, Lost, Progress};
use crate::removals::{Removals, Scope};
use crate::rows::{self, Row, Rows, check_id, key, prefix};
use crate::{Error, clock, provenance};

const PROCESSING: &str = "library-processing";
/// By document and record.
const OF_DOCUMENT: &str = "library-processing-of";
/// The interface of flows that index chunks.
const KEYWORD_INDEX: &str = "keyword-index";
/// Records read at once.
const LISTED_ROWS: usize = 256;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Processing {
    metadata: ProcessingMetadata,
    /// The run of the flow that it went to.
    run: String,
    /// Which pass of the document it is; what is made in it carries this number.
    #[serde(default)]
    pass: i64,
    /// When that began, in milliseconds since 1970; 0 in records of earlier versions.
    #[serde(default)]
    begun_ms: i64,
    /// Whether the messages are on their way.
    sent: bool,
}

/// Documents on their way into flows, in all workspaces.
#[derive(Clone)]
pub(crate) struct Processings {
    pub(crate) documents: Documents,
    pub(crate) progress: Progress,
    pub(crate) collections: Collections,
    pub(crate) removals: Removals,
    pub(crate) config: Arc<ConfigClient>,
    pub(crate) broker: Arc<dyn Broker>,
    /// Records being sent at this moment, so that a repeated call does not send what another is sending.
    pub(crate) under_way: Arc<Mutex<HashSet<Vec<u8>>>>,
}

/// What goes where when a document enters a flow.
#[derive(Debug, PartialEq)]
struct Entrance {
    run: String,
    load: Address,
    /// The text goes straight to the chunker.
    is_text: bool,
    /// Chunks are indexed.
    has_index: bool,
    triples: Option<Address>,
}

/// What is put down where a document could not be sent: nothing, or what was known of a pass of it that may be lost.
#[derive(Default)]
struct Unsent {
    /// The record, and what was counted.
    lost: Option<(Bytes, Lost)>,
}

impl Unsent {
    fn undo(self, workspace: &str, row: &Processing) -> Batch {
        let (row_key, document) = (key(&[workspace, &row.metadata.id]), &row.metadata.document_id);
        let mut batch = Batch::new();
        batch.expect_value(PROCESSING, &row_key, rows::encode(row));
        match self.lost {
            Some((record, lost)) => {
                batch.put(PROCESSING, &row_key, record);
                Progress::put_back(workspace, document, &row.run, lost, &mut batch);
            }
            None => {
                batch.delete(PROCESSING, &row_key);
                Progress::undo(workspace, document, &row.run, &mut batch);
            }
        }
        batch
    }
}

impl Processings {
    /// Puts a document through a flow.
    pub(crate) async fn add(
        &self,
        workspace: &str,
        wanted: ProcessingMetadata,
        trace: Option<&str>,
    ) -> Result<(), Error> {
        check_id("processing record", &wanted.id)?;
        check_id("flow", &wanted.flow)?;
        if wanted.collection.is_empty() {
            return Err(Error::request("the processing record names no collection; 'default' is a good one"));
        }
        let what = format!("processing record '{}'", wanted.id);
        ceilings::within(what, wire::encode(&wanted).len(), ceilings::PROCESSING_BYTES_MAX)
            .map_err(Error::Told)?;
        let document = self.documents.get(workspace, &wanted.document_id).await?.is;
        let row_key = key(&[workspace, &wanted.id]);
        let Some(_turn) = Turn::take(&self.under_way, &row_key) else { return Err(busy(&wanted.id)) };
        let known = self.documents.rows.get::<Processing>(PROCESSING, &row_key).await?;
        if known.as_ref().is_some_and(|known| known.is.metadata != wanted) {
            return Err(Error::request(format!(
                "processing record '{}' already exists; remove it first (remove-processing), or choose another id",
                wanted.id
            )));
        }
        let entrance = self.entrance(workspace, &wanted.flow, &document.metadata).await?;
        let (document_id, collection) = (wanted.document_id.clone(), wanted.collection.clone());
        // The same record for a later run of the flow is no repetition: that run has not seen the document.
        let in_run = known.as_ref().filter(|known| known.is.run == entrance.run);
        let lost = match in_run {
            Some(Row { is: Processing { run, pass, begun_ms, .. }, .. }) => {
                self.progress
                    .lost_pass(workspace, (document_id.as_str(), run.as_str()), *pass, *begun_ms)
                    .await?
            }
            None => None,
        };
        if in_run.is_some_and(|known| known.is.sent) && lost.is_none() {
            return Ok(());
        }
        let scopes = [
            Scope::of(&document_id, &collection),
            Scope::document(&document_id),
            Scope::collection(&collection),
        ];
        let mut batch = Batch::new();
        self.removals.settle(workspace, &scopes, &mut batch).await?;
        self.removals.restore(workspace, &scopes).await?;
        self.collections.ensure(workspace, &collection).await?;
        let pass = self.removals.passes.next(workspace).await?;
        let (run, begun_ms) = (entrance.run.clone(), clock::milliseconds());
        let row = Processing { metadata: wanted, run, pass, begun_ms, sent: false };
        let raw = rows::encode(&row);
        batch.put(OF_DOCUMENT, key(&[workspace, &document_id, &row.metadata.id]), Bytes::new());
        // What a call before this one may have sent is being counted already.
        let is_counted = in_run.is_some() && lost.is_none();
        let known = known.map(|row| row.raw);
        let unsent = Unsent { lost: lost.and_then(|lost| Some((known.clone()?, lost))) };
        batch.expect(PROCESSING, &row_key, known).put(PROCESSING, &row_key, raw);
        if !is_counted {
            let Entrance { run, is_text, has_index, .. } = &entrance;
            let entry = Entry { run, pass, is_text: *is_text, has_index: *has_index };
            self.progress.begin(workspace, &row.metadata, entry, &mut batch).await?;
        }
        match self.documents.rows.commit(batch).await {
            Err(error) if rows::is_conflict(&error) => return Err(busy(&row.metadata.id)),
            done => done?,
        }
        self.send(workspace, row, unsent, &document, &entrance, trace).await
    }

    /// Publishes what a recorded document needs to enter its flow, and records that it did.
    async fn send(
        &self,
        workspace: &str,
        row: Processing,
        unsent: Unsent,
        document: &Document,
        entrance: &Entrance,
        trace: Option<&str>,
    ) -> Result<(), Error> {
        let row_key = key(&[workspace, &row.metadata.id]);
        if let Err(error) = self.publish(&row, document, entrance, trace).await {
            if error.kind() != ErrorKind::OutcomeUnknown
                && let Err(error) = self.documents.rows.commit(unsent.undo(workspace, &row)).await
            {
                tracing::warn!(workspace, processing = row.metadata.id, %error, "a record of what was not sent stays");
            }
            if error.kind() == ErrorKind::Absent {
                return Err(Error::request(format!(
                    "flow '{}' was stopped meanwhile: {error}; start it and try again",
                    row.metadata.flow
                )));
            }
            return Err(error.into());
        }
        let sent = Processing { sent: true, ..row };
        let mut batch = Batch::new();
        batch.put(PROCESSING, &row_key, rows::encode(&sent));
        self.documents.rows.commit(batch).await
    }

    async fn publish(
        &self,
        processing: &Processing,
        document: &Document,
        entrance: &Entrance,
        trace: Option<&str>,
    ) -> Result<(), sluice_bus::Error> {
        let traced = |body| {
            let message = Message::new(body).with(property::PASS, &processing.pass.to_string());
            trace.into_iter().fold(message, |message, trace| message.with(property::TRACE, trace))
        };
        let collection = &processing.metadata.collection;
        if let Some(address) = &entrance.triples {
            let triples = provenance::of(&document.metadata, collection);
            self.broker.publish(address, traced(wire::encode(&triples))).await?;
        }
        let metadata = Some(provenance::root(&document.metadata, collection));
        let document_id = document.metadata.id.clone();
        let body = if entrance.is_text {
            wire::encode(&m::TextDocument { metadata, text: String::new(), document_id })
        } else {
            wire::encode(&m::Document { metadata, data: String::new(), document_id })
        };
        self.broker.publish(&entrance.load, traced(body)).await
    }

    /// Where a document enters a flow, from the flow's record as it is now.
    async fn entrance(
        &self,
        workspace: &str,
        flow: &str,
        document: &DocumentMetadata,
    ) -> Result<Entrance, Error> {
        let found = self.config.get(workspace, record::FLOW, flow).await?.and_then(|value| value.value);
        let Some(text) = found else {
            return Err(Error::NotFound(format!(
                "flow '{flow}' does not run in workspace '{workspace}'; start it first"
            )));
        };
        let flow_record: record::Flow = serde_json::from_str(&text)
            .map_err(|error| Error::Damaged { what: format!("flow '{flow}'"), reason: error.to_string() })?;
        entrance(flow, &flow_record, document)
    }

    /// Sends what was recorded before a crash and not sent. What fails keeps nothing else from it; its error is returned in the
    /// end, so that it is tried again.
    pub(crate) async fn resume(&self, workspace: &str) -> Result<(), Error> {
        let mut unsent: Vec<Processing> = Vec::new();
        let mut failure = None;
        let range = KeyRange::prefix(prefix(&[workspace]));
        self.documents
            .rows
            .scan_range(PROCESSING, range, LISTED_ROWS, |key, raw| {
                match rows::decode::<Processing>(PROCESSING, key, raw) {
                    Ok(row) => unsent.extend(Some(row).filter(|row| !row.sent)),
                    Err(error) => tracing::warn!(workspace, %error, "a record cannot be read; whether its document was sent is not known"),
                }
                Ok(true)
            })
            .await?;
        for row in unsent {
            let id = row.metadata.id.clone();
            match self.resume_one(workspace, row).await {
                Ok(()) => {
                    tracing::info!(workspace, processing = id, "a document recorded before a crash was sent")
                }
                Err(error @ (Error::Request(_) | Error::NotFound(_))) => {
                    tracing::warn!(workspace, processing = id, %error, "a document recorded before a crash was not sent");
                }
                Err(error) => {
                    tracing::warn!(workspace, processing = id, %error, "a document recorded before a crash cannot be sent yet");
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn resume_one(&self, workspace: &str, row: Processing) -> Result<(), Error> {
        let row_key = key(&[workspace, &row.metadata.id]);
        let Some(_turn) = Turn::take(&self.under_way, &row_key) else { return Ok(()) };
        let now = self.documents.rows.get::<Processing>(PROCESSING, &row_key).await?;
        if now.is_none_or(|now| now.is != row) {
            return Ok(());
        }
        let document = self.documents.get(workspace, &row.metadata.document_id).await?.is;
        let entrance = self.entrance(workspace, &row.metadata.flow, &document.metadata).await?;
        if entrance.run != row.run {
            return Err(Error::request(format!("flow '{}' was started again since", row.metadata.flow)));
        }
        self.send(workspace, row, Unsent::default(), &document, &entrance, None).await
    }

    /// Removes a record, with what flows made of its document in its collection unless another record wants that too.
    pub(crate) async fn remove(&self, workspace: &str, id: &str, derived: bool) -> Result<(), Error> {
        check_id("processing record", id)?;
        let row_key = key(&[workspace, id]);
        let Some(row) = self.documents.rows.get::<Processing>(PROCESSING, &row_key).await? else {
            return Err(Error::NotFound(format!("processing record '{id}' does not exist")));
        };
        let ProcessingMetadata { document_id, collection, .. } = &row.is.metadata;
        let mut batch = Batch::new();
        batch.delete(PROCESSING, &row_key).delete(OF_DOCUMENT, key(&[workspace, document_id, id]));
        if !derived {
            return self.documents.rows.commit(batch).await;
        }
        let all = records_of(&self.documents.rows, workspace, document_id).await?;
        if all.iter().any(|other| other.metadata.id != id && other.metadata.collection == *collection) {
            return self.documents.rows.commit(batch).await;
        }
        self.removals.remove(workspace, Scope::of(document_id, collection), batch).await
    }

    /// The records of a workspace.
    pub(crate) async fn list(
        &self,
        workspace: &str,
        cursor: &str,
        mut page: Page<ProcessingMetadata>,
    ) -> Result<Page<ProcessingMetadata>, Error> {
        let range = rows::behind(&prefix(&[workspace]), cursor);
        self.documents
            .rows
            .scan_range(PROCESSING, range, LISTED_ROWS, |key, raw| {
                let row: Processing = rows::decode(PROCESSING, key, raw)?;
                // The row is larger than what is told of it.
                page.take(&rows::last_part(key), listing::row_bytes(raw), row.metadata).map_err(Error::Told)
            })
            .await?;
        Ok(page)
    }
}

async fn records_of(rows: &Rows, workspace: &str, document: &str) -> Result<Vec<Processing>, Error> {
    let mut reads = Vec::new();
    rows.scan(OF_DOCUMENT, &prefix(&[workspace, document]), |of, _| {
        reads.push(Read::get(PROCESSING, key(&[workspace, &rows::last_part(of)])));
        Ok(true)
    })
    .await?;
    let found = rows.read(reads).await?.into_iter().filter_map(Found::into_value);
    found.map(|raw| rows::decode(PROCESSING, document.as_bytes(), &raw)).collect()
}

/// Forgets the records of a document, of a collection, or of a document in a collection; what is empty stands for all.
pub(crate) async fn forget(
    rows: &Rows,
    workspace: &str,
    document: &str,
    collection: &str,
) -> Result<(), Error> {
    if !document.is_empty() {
        let records = records_of(rows, workspace, document).await?;
        return forget_records(rows, workspace, &records, collection).await;
    }
    let mut range = KeyRange::prefix(prefix(&[workspace]));
    loop {
        let found = rows.read(vec![Read::range(PROCESSING, range.clone(), LISTED_ROWS)]).await?.pop();
        let some = found.map(Found::into_rows).unwrap_or_default();
        let records: Vec<Processing> = some
            .rows
            .iter()
            .map(|(key, raw)| rows::decode(PROCESSING, key, raw))
            .collect::<Result<_, _>>()?;
        forget_records(rows, workspace, &records, collection).await?;
        match some.rows.last() {
            Some((last, _)) if some.more => range = range.after(last),
            _ => return Ok(()),
        }
    }
}

async fn forget_records(
    rows: &Rows,
    workspace: &str,
    records: &[Processing],
    collection: &str,
) -> Result<(), Error> {
    let mut batch = Batch::new();
    for Processing { metadata, .. } in records {
        if collection.is_empty() || metadata.collection == collection {
            batch
                .delete(PROCESSING, key(&[workspace, &metadata.id]))
                .delete(OF_DOCUMENT, key(&[workspace, &metadata.document_id, &metadata.id]));
        }
    }
    if batch.is_empty() { Ok(()) } else { rows.commit(batch).await }
}

/// The right to send one record; given back when dropped.
struct Turn {
    under_way: Arc<Mutex<HashSet<Vec<u8>>>>,
    row_key: Vec<u8>,
}

impl Turn {
    fn take(under_way: &Arc<Mutex<HashSet<Vec<u8>>>>, row_key: &[u8]) -> Option<Self> {
        let is_free = under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(row_key.to_vec());
        is_free.then(|| Self { under_way: under_way.clone(), row_key: row_key.to_vec() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.row_key);
    }
}

fn busy(id: &str) -> Error {
    Error::request(format!("processing record '{id}' is being sent by another call; ask again"))
}

fn entrance(flow: &str, record: &record::Flow, document: &DocumentMetadata) -> Result<Entrance, Error> {
    if let Some(status) = &record.status {
        return Err(Error::request(format!(
            "flow '{flow}' is {status} and takes no documents; start it again when it is gone"
        )));
    }
    let door = |interface: &str| -> Result<Option<Address>, Error> {
        let Some(text) = record.interfaces.get(interface).and_then(|roles| roles.get("flow")) else {
            return Ok(None);
        };
        let topic = checked(flow, interface, text)?;
        let is_read = record.read.contains(text);
        Ok(Some(if is_read { Address::Subscribed(topic) } else { Address::Topic(topic) }))
    };
    let kind = document.kind.split(';').next().unwrap_or_default().trim();
    let loads = match kind {
        "text/plain" => ["text-load", ""],
        // Markdown is read by the decoder where the flow has one, and is a text all the same.
        "text/markdown" | "text/x-markdown" => ["document-load", "text-load"],
        _ => ["document-load", ""],
    };
    for interface in loads.into_iter().filter(|name| !name.is_empty()) {
        if let Some(load) = door(interface)? {
            return Ok(Entrance {
                run: record.run.clone().unwrap_or_else(|| flow.to_owned()),
                load,
                is_text: interface == "text-load",
                has_index: record.interfaces.contains_key(KEYWORD_INDEX),
                triples: door("triples-store")?,
            });
        }
    }
    let have: Vec<&str> = record.interfaces.keys().map(String::as_str).collect();
    Err(Error::request(format!(
        "flow '{flow}' has no interface '{}' that a document of kind {kind} could enter by; it has: {}",
        loads[0],
        have.join(", ")
    )))
}

fn checked(flow: &str, interface: &str, text: &str) -> Result<Topic, Error> {
    let damaged =
        |reason: String| Error::Damaged { what: format!("flow '{flow}', interface '{interface}'"), reason };
    let topic = Topic::parse(text).map_err(|error| damaged(error.to_string()))?;
    if topic.class() != Class::Flow {
        return Err(damaged(format!("{topic} is no flow topic")));
    }
    Ok(topic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn flow(interfaces: &[&str]) -> record::Flow {
        let topic = |name: &str| BTreeMap::from([("flow".to_owned(), format!("flow:tg:{name}:w:f1-r2"))]);
        record::Flow {
            interfaces: interfaces.iter().map(|name| ((*name).to_owned(), topic(name))).collect(),
            run: Some("f1-r2".to_owned()),
            ..Default::default()
        }
    }

    fn entered(record: &record::Flow, kind: &str) -> Result<String, String> {
        let document = DocumentMetadata { kind: kind.to_owned(), ..Default::default() };
        let load = entrance("f1", record, &document).map(|entrance| entrance.load);
        load.map(|load| load.topic().unwrap().to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_kind_decides_where_a_document_enters() {
        let full = flow(&["text-load", "document-load", "triples-store"]);
        let check = |kind: &str, interface: &str| {
            assert_eq!(entered(&full, kind).unwrap(), format!("flow:tg:{interface}:w:f1-r2"), "{kind}");
        };
        check("text/plain", "text-load");
        check("text/plain; charset=utf-8", "text-load");
        check("text/markdown", "document-load");
        check("application/pdf", "document-load");
        assert_eq!(entered(&flow(&["text-load"]), "text/markdown").unwrap(), "flow:tg:text-load:w:f1-r2");
    }

    #[test]
    fn a_flow_without_the_right_door_refuses_and_says_what_it_has() {
        let refused = entered(&flow(&["text-load", "triples"]), "application/pdf").unwrap_err();
        assert!(refused.contains("'document-load'") && refused.contains("text-load, triples"), "{refused}");
        let stopping = record::Flow { status: Some("stopping".to_owned()), ..flow(&["text-load"]) };
        assert!(entered(&stopping, "text/plain").unwrap_err().contains("is stopping"));
        let mut odd = flow(&["text-load"]);
        odd.interfaces
            .insert("text-load".into(), BTreeMap::from([("flow".into(), "request:tg:config".into())]));
        assert!(entered(&odd, "text/plain").unwrap_err().contains("cannot be read"));
    }
}
