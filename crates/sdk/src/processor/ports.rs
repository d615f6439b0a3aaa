//! The ends that a processor binds: outputs, clients, settings, and what its program lends it.

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use sluice_bus::{Client, Message, Sender};
use sluice_schema::record::ProcessorEntry;
use sluice_schema::{Class, Exchange, Topic};

use super::roster::{CatalogueSlot, SlotUse};
use super::{BindError, Failure};
use crate::metrics::ProducerLabels;
use crate::{ConfigWatch, Process, Progress, Recorded, Values};

/// What a program lends its processors, one value per type: stores, model settings, …
#[derive(Clone, Default)]
pub struct Resources(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl Resources {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more value; a second value of a type replaces the first.
    #[must_use]
    pub fn with<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.0.insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    /// The value of a type.
    #[must_use]
    pub fn get<T: Clone + 'static>(&self) -> Option<T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref::<T>().cloned()
    }
}

/// The ends of one processor in one flow, while it binds.
pub struct Ports {
    pub(crate) process: Process,
    pub(crate) watch: ConfigWatch,
    pub(crate) resources: Resources,
    pub(crate) processor: Arc<str>,
    pub(crate) workspace: Arc<str>,
    pub(crate) flow: Arc<str>,
    pub(crate) entry: Arc<ProcessorEntry>,
    /// Recording: every slot exists.
    pub(crate) recording: bool,
    pub(crate) used: Vec<CatalogueSlot>,
    pub(crate) follows: Vec<Topic>,
    pub(crate) values: Vec<Values>,
}

impl Ports {
    /// The end that sends to the topic of a slot.
    ///
    /// # Errors
    /// When the entry has no such slot.
    pub fn output<T: Serialize + ?Sized>(&mut self, slot: &str) -> Result<Out<T>, BindError> {
        self.used.push(CatalogueSlot { name: slot.to_owned(), used: SlotUse::Produce, optional: false });
        let topic = self.topic(slot, Class::Flow)?.ok_or_else(|| BindError::MissingSlot(slot.to_owned()))?;
        let labels = ProducerLabels { processor: self.processor.to_string(), producer: topic.to_string() };
        let sent = self.process.metrics.producer_messages.get_or_create(&labels).clone();
        let broker = self.process.broker.clone();
        let is_read = self.entry.read.iter().any(|read| read == slot);
        let sender = if is_read { Sender::subscribed(broker, topic) } else { Sender::new(broker, topic) };
        Ok(Out { sender, sent })
    }

    /// The end that asks the service behind `<name>-request` and `<name>-response`.
    ///
    /// # Errors
    /// When the entry lacks one of the two slots.
    pub fn client<X: Exchange>(&mut self, name: &str) -> Result<Client<X>, BindError> {
        self.any_client(name, false)?.ok_or_else(|| BindError::MissingSlot(format!("{name}-request")))
    }

    /// As [`Ports::client`], `None` when the entry lacks the slots.
    ///
    /// # Errors
    /// When a slot is there and not a topic.
    pub fn optional_client<X: Exchange>(&mut self, name: &str) -> Result<Option<Client<X>>, BindError> {
        self.any_client(name, true)
    }

    fn any_client<X: Exchange>(
        &mut self,
        name: &str,
        optional: bool,
    ) -> Result<Option<Client<X>>, BindError> {
        let (ask, answer) = (format!("{name}-request"), format!("{name}-response"));
        self.used.push(CatalogueSlot { name: ask.clone(), used: SlotUse::ClientRequest, optional });
        self.used.push(CatalogueSlot { name: answer.clone(), used: SlotUse::ClientResponse, optional });
        let (Some(request), Some(response)) =
            (self.topic(&ask, Class::Request)?, self.topic(&answer, Class::Response)?)
        else {
            return Ok(None);
        };
        self.follows.push(response);
        Ok(Some(Client::followed(&self.process.replies, request)))
    }

    /// A parameter, or the default when the entry has none or an empty one.
    ///
    /// # Errors
    /// When the text is not a valid `T`.
    pub fn setting<T: FromStr>(&self, name: &str, default: T) -> Result<T, BindError> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.trim().parse().map_err(|_| BindError::BadSetting {
            name: name.to_owned(),
            value: text,
            wanted: type_name::<T>(),
        })
    }

    /// A parameter's text, if it is there and not empty.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        self.entry.parameters.get(name).filter(|text| !text.is_empty()).cloned()
    }

    /// What the program lends.
    ///
    /// # Errors
    /// When it was started without.
    pub fn resource<T: Clone + Send + Sync + 'static>(&self) -> Result<T, BindError> {
        self.resources.get::<T>().ok_or(BindError::MissingResource(type_name::<T>()))
    }

    /// The workspace of the flow.
    #[must_use]
    pub fn workspace(&self) -> &str {
        &self.workspace
    }

    /// The variant: the run's name of the flow, or the blueprint's for shared parts.
    #[must_use]
    pub fn flow(&self) -> &str {
        &self.flow
    }

    /// The id under which this processor runs.
    #[must_use]
    pub fn processor(&self) -> &str {
        &self.processor
    }

    /// The process, for metrics of one's own.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Reports of how far documents are.
    ///
    /// # Errors
    /// When the workspace's name fits no topic.
    pub fn progress(&self) -> Result<Progress, BindError> {
        Progress::new(self.process.broker.clone(), &self.workspace, &self.flow)
            .map_err(|error| BindError::BadTopic { slot: "progress".to_owned(), reason: error.to_string() })
    }

    /// What is on record of the pieces of documents.
    ///
    /// # Errors
    /// When the workspace's name fits no topic.
    pub fn recorded(&self) -> Result<Recorded, BindError> {
        Recorded::new(&self.process.replies, &self.workspace, &self.flow)
            .map_err(|error| BindError::BadTopic { slot: "librarian".to_owned(), reason: error.to_string() })
    }

    /// Config of a type in the workspace of the flow, as it is when it is asked for.
    #[must_use]
    pub fn config(&mut self, kind: &str) -> Values {
        let values = self.watch.values(kind, &self.workspace);
        self.values.push(values.clone());
        values
    }

    pub(crate) fn topic(&self, slot: &str, recorded_class: Class) -> Result<Option<Topic>, BindError> {
        let bad = |error: sluice_schema::TopicError| BindError::BadTopic {
            slot: slot.to_owned(),
            reason: error.to_string(),
        };
        match self.entry.topics.get(slot) {
            Some(text) => (self.process.broker.naming().topic)(text).map(Some).map_err(bad),
            None if self.recording => Topic::tg(recorded_class, slot).map(Some).map_err(bad),
            None => Ok(None),
        }
    }
}

/// Sends messages of one type to the topic of a slot.
pub struct Out<T: ?Sized> {
    sender: Sender<T>,
    sent: Counter,
}

impl<T: Serialize + ?Sized> Out<T> {
    /// Sends; on return the broker has it.
    ///
    /// # Errors
    /// A [`Failure`] to hand on with `?`.
    pub async fn send(&self, message: &T) -> Result<(), Failure> {
        self.sender.send(message).await?;
        self.sent.inc();
        Ok(())
    }

    /// Sends with properties already set.
    ///
    /// # Errors
    /// As [`Out::send`].
    pub async fn send_message(&self, message: Message) -> Result<(), Failure> {
        self.sender.send_message(message).await?;
        self.sent.inc();
        Ok(())
    }

    /// Where it sends.
    #[must_use]
    pub const fn topic(&self) -> &Topic {
        self.sender.topic()
    }
}
