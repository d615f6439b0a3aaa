//! Telling the librarian how far a document is: stages report per document root, on a durable topic that it owns.

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Broker, Client, ErrorKind, Replies, Sender};
use sluice_schema::message::{LibrarianRequest, StageReport};
use sluice_schema::{Class, Topic, exchange};

use crate::Failure;

/// Longest wait for what the librarian knows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Reports of one processor in one flow. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    sender: Sender<StageReport>,
    flow: Arc<str>,
}

impl Progress {
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        workspace: &str,
        flow: &str,
    ) -> Result<Self, sluice_schema::TopicError> {
        let topic = Topic::tg(Class::Flow, format_args!("progress:{workspace}"))?;
        Ok(Self { sender: Sender::subscribed(broker, topic), flow: flow.into() })
    }

    /// Sends a report; fills in the flow. A deployment whose librarian keeps no progress has no such topic: the report is
    /// then dropped.
    ///
    /// # Errors
    /// [`Failure::Again`] when the broker cannot take it now.
    pub async fn report(&self, mut report: StageReport) -> Result<(), Failure> {
        report.flow = self.flow.to_string();
        match self.sender.send(&report).await {
            Err(error) if error.kind() == ErrorKind::Absent => {
                tracing::debug!(%error, "nobody keeps progress here");
                Ok(())
            }
            other => other.map_err(Failure::from),
        }
    }
}

/// Asks the librarian what is on record of pieces in one flow.
pub struct Recorded {
    librarian: Client<exchange::Librarian>,
    flow: Arc<str>,
}

impl Recorded {
    pub(crate) fn new(
        replies: &Replies,
        workspace: &str,
        flow: &str,
    ) -> Result<Self, sluice_schema::TopicError> {
        let topic = Topic::tg(Class::Request, format_args!("librarian:{workspace}"))?;
        // Only a librarian of ours keeps this on record, and such a one answers to the inbox.
        Ok(Self { librarian: Client::followed(replies, topic), flow: flow.into() })
    }

    /// Whether it is on record that a chunk of a document got its vector in the pass that the librarian counts. What cannot be
    /// told counts as no.
    pub async fn is_embedded(&self, document: &str, chunk: &str) -> bool {
        let question = LibrarianRequest {
            operation: "get-progress".to_owned(),
            document_id: document.to_owned(),
            flow: self.flow.to_string(),
            chunk_ids: vec![chunk.to_owned()],
            ..Default::default()
        };
        match self.librarian.call(&question, ANSWER_TIMEOUT).await {
            Ok(answer) => answer.progress.iter().any(|one| !one.embedded_chunks.is_empty()),
            Err(error) => {
                tracing::debug!(document, chunk, %error, "what is on record of a chunk cannot be told");
                false
            }
        }
    }
}
