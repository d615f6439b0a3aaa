//! Small values under names, each gone after a while: a stream that keeps the last message of each subject, laid out as the
//! key-value buckets of the server's own tools are.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, StorageType};
use async_nats::jetstream::{Error as Refusal, ErrorCode};
use async_nats::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde_json::json;
use sluice_bus::{Error, Result};

use super::link::{self, Fault, Link};

const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const SEQUENCE: &str = "Nats-Sequence";

/// A value, and which of the values of its key it is.
pub(super) struct Entry {
    pub(super) value: Bytes,
    pub(super) revision: u64,
}

#[derive(Clone)]
pub(super) struct Bucket {
    link: Arc<Link>,
    name: &'static str,
    max_age: Duration,
}

impl Bucket {
    pub(super) const fn new(link: Arc<Link>, name: &'static str, max_age: Duration) -> Self {
        Self { link, name, max_age }
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    /// Makes the bucket where it is missing.
    async fn make(&self, within: Duration) -> Result<()> {
        let name = format!("KV_{}", self.name);
        let config = stream::Config {
            subjects: vec![self.subject(">")],
            max_messages_per_subject: 1,
            max_messages: -1,
            max_bytes: -1,
            max_consumers: -1,
            max_age: self.max_age,
            storage: StorageType::File,
            num_replicas: self.link.replicas,
            allow_direct: true,
            name,
            ..stream::Config::default()
        };
        match self.link.make(&config, within).await? {
            Ok(_) => Ok(()),
            // With bounds of an operator's, or of another version.
            Err(refusal) if refusal.error_code() == ErrorCode::STREAM_NAME_EXIST => Ok(()),
            Err(refusal) => Err(link::refused(&refusal, "making a bucket")),
        }
    }

    /// Puts a value; with `expected` only while that is the revision, 0 for none. Answers the new revision, or `None` where
    /// it is another.
    pub(super) async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Option<u64>,
        within: Duration,
    ) -> Result<Option<u64>> {
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert(EXPECTED, expected.to_string());
        }
        let what = format!("a note '{key}'");
        let send = || self.link.request(&what, self.subject(key), headers.clone(), value.clone(), within);
        let answer = match send().await {
            Err(Fault::NoResponders) => {
                self.make(within).await?;
                send().await
            }
            answer => answer,
        };
        let answer = answer.map_err(|fault| other(fault, &what))?;
        match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
            Ok(Response::Ok(done)) => Ok(Some(done.sequence)),
            Ok(Response::Err { error }) if is_another(&error) => Ok(None),
            Ok(Response::Err { error }) => Err(link::refused(&error, &what)),
            Err(error) => Err(Error::OutcomeUnknown { what, reason: error.to_string() }),
        }
    }

    /// The value of a key; `None` also where there is no bucket.
    pub(super) async fn get(&self, key: &str, within: Duration) -> Result<Option<Entry>> {
        let what = format!("reading a note '{key}'");
        let subject = format!("$JS.API.DIRECT.GET.KV_{}.{}", self.name, self.subject(key));
        let answer = match self.link.request(&what, subject, HeaderMap::new(), Bytes::new(), within).await {
            Err(Fault::NoResponders) => return Ok(None),
            answer => answer.map_err(|fault| other(fault, &what))?,
        };
        if answer.status == Some(StatusCode::NOT_FOUND) {
            return Ok(None);
        }
        let revision = answer.headers.as_ref().and_then(|headers| headers.get(SEQUENCE));
        let revision = revision.and_then(|revision| revision.as_str().parse().ok());
        let revision =
            revision.ok_or_else(|| Error::Unavailable { reason: format!("{what}: no revision came") })?;
        Ok(Some(Entry { value: answer.payload, revision }))
    }

    /// Removes one revision; what is there instead stays.
    pub(super) async fn remove(&self, revision: u64, within: Duration) -> Result<()> {
        let path = format!("STREAM.MSG.DELETE.KV_{}", self.name);
        let body = json!({"seq": revision, "no_erase": true});
        // Where it is refused, the revision is gone.
        self.link.api::<serde_json::Value>(&path, &body, within).await.map(drop)
    }
}

fn is_another(refusal: &Refusal) -> bool {
    refusal.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE
}

fn other(fault: Fault, what: &str) -> Error {
    match fault {
        Fault::Other(error) => error,
        Fault::NoResponders => Error::Unavailable { reason: format!("{what}: its bucket is missing") },
        Fault::TooLarge => Error::Refused { reason: format!("{what} is too large") },
    }
}
