//! Telling the librarian how far a document is: stages report per document root, on a durable topic that it owns.

use std::sync::Arc;

use sluice_bus::{Broker, ErrorKind, Sender};
use sluice_schema::message::StageReport;
use sluice_schema::{Class, Topic};

use crate::Failure;

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
        Ok(Self { sender: Sender::new(broker, topic), flow: flow.into() })
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
