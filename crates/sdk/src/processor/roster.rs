//! The processors that a program runs, by id; and the catalogue of their slots, which the flow service reads.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use sluice_bus::{BoxFuture, Error, Inbox, Renewing, Subscription};
use sluice_schema::record::ProcessorEntry;
use tokio_util::sync::CancellationToken;

use super::{BindError, Input, Inputs, Lane, Ports, Processor, Resources};
use crate::service::{Point, Served, take};
use crate::{ConfigWatch, HostOptions, Process, Values};

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotUse {
    /// The processor reads the topic.
    Consume,
    /// The processor writes to the topic.
    Produce,
    /// The processor asks the service behind the topic.
    ClientRequest,
    /// The processor reads the service's answers.
    ClientResponse,
}

/// One slot of a processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueSlot {
    /// Its name in the entry's `topics`.
    pub name: String,
    /// What it is used for.
    pub used: SlotUse,
    /// Whether the processor runs without it.
    pub optional: bool,
}

/// Slots of the processors that a program runs, by processor id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue(pub BTreeMap<String, Vec<CatalogueSlot>>);

impl Catalogue {
    /// Names of the slots that a processor reads; `None` when it is not ours.
    #[must_use]
    pub fn inputs(&self, processor: &str) -> Option<Vec<&str>> {
        let slots = self.0.get(processor)?;
        Some(
            slots
                .iter()
                .filter(|slot| slot.used == SlotUse::Consume)
                .map(|slot| slot.name.as_str())
                .collect(),
        )
    }
}

/// One running flow's part for one processor.
#[derive(Clone)]
pub(crate) struct Variant {
    pub(crate) process: Process,
    pub(crate) watch: ConfigWatch,
    pub(crate) resources: Resources,
    pub(crate) options: HostOptions,
    pub(crate) processor: Arc<str>,
    pub(crate) workspace: Arc<str>,
    pub(crate) flow: Arc<str>,
    pub(crate) entry: Arc<ProcessorEntry>,
}

/// Why a variant does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Bus(#[from] Error),
}

trait Kind: Send + Sync {
    fn run(&self, variant: Variant, stop: CancellationToken) -> BoxFuture<'static, Result<(), RunError>>;
    fn slots(&self, variant: Variant) -> Result<Vec<CatalogueSlot>, BindError>;
}

struct Of<P>(PhantomData<fn() -> P>);

/// The processors that a program runs.
#[derive(Clone, Default)]
pub struct Roster {
    kinds: BTreeMap<Arc<str>, Arc<dyn Kind>>,
}

impl Roster {
    /// Nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with a processor under its own name.
    #[must_use]
    pub fn add<P: Processor>(self) -> Self {
        self.add_as::<P>(P::NAME)
    }

    /// The same with a processor under another id.
    #[must_use]
    pub fn add_as<P: Processor>(mut self, id: &str) -> Self {
        self.kinds.insert(id.into(), Arc::new(Of::<P>(PhantomData)));
        self
    }

    /// Ids of the processors.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.kinds.keys()
    }

    /// Only the processors that `keep` says, by id.
    #[must_use]
    pub fn only(mut self, keep: impl Fn(&str) -> bool) -> Self {
        self.kinds.retain(|id, _| keep(id));
        self
    }

    /// The slots of every processor, learned by binding each to recording ports.
    ///
    /// # Errors
    /// When a processor cannot bind even to ports that have every slot, for example for lack of a resource.
    pub fn catalogue(
        &self,
        process: &Process,
        watch: &ConfigWatch,
        resources: &Resources,
    ) -> Result<Catalogue, BindError> {
        let slots_of = |(id, kind): (&Arc<str>, &Arc<dyn Kind>)| {
            let variant = Variant {
                process: process.clone(),
                watch: watch.clone(),
                resources: resources.clone(),
                options: HostOptions::default(),
                processor: id.clone(),
                workspace: "workspace".into(),
                flow: "flow".into(),
                entry: Arc::default(),
            };
            Ok((id.to_string(), kind.slots(variant)?))
        };
        self.kinds.iter().map(slots_of).collect::<Result<_, _>>().map(Catalogue)
    }

    pub(crate) fn run(
        &self,
        variant: Variant,
        stop: CancellationToken,
    ) -> Option<BoxFuture<'static, Result<(), RunError>>> {
        Some(self.kinds.get(&variant.processor)?.run(variant, stop))
    }
}

impl Variant {
    fn ports(&self, recording: bool) -> Ports {
        Ports {
            process: self.process.clone(),
            watch: self.watch.clone(),
            resources: self.resources.clone(),
            processor: self.processor.clone(),
            workspace: self.workspace.clone(),
            flow: self.flow.clone(),
            entry: self.entry.clone(),
            recording,
            used: Vec::new(),
            follows: Vec::new(),
            values: Vec::new(),
        }
    }

    fn lane<P: Processor>(&self, ports: &Ports, input: &Input<P>) -> Result<Lane, BindError> {
        let missing = |slot: &str| BindError::MissingSlot(slot.to_owned());
        let topic =
            ports.topic(input.slot, sluice_schema::Class::Flow)?.ok_or_else(|| missing(input.slot))?;
        let subscription = format!("{}--{}--{}--{}", self.processor, self.workspace, self.flow, input.slot);
        let served = match &input.response_slot {
            None => None,
            Some(slot) => {
                let point = Point {
                    request: topic.clone(),
                    response: ports
                        .topic(slot, sluice_schema::Class::Response)?
                        .ok_or_else(|| missing(slot))?,
                    subscription: subscription.clone(),
                    concurrency: P::CONCURRENCY,
                    direct: self.entry.direct.contains(slot),
                };
                Some(Arc::new(Served { process: self.process.clone(), point }))
            }
        };
        Ok(Lane {
            process: self.process.clone(),
            options: self.options.clone(),
            workspace: self.workspace.clone(),
            flow: self.flow.clone(),
            processor: self.processor.clone(),
            stage: P::STAGE,
            topic,
            subscription,
            served,
            progress: ports.progress().ok(),
        })
    }
}

impl Lane {
    async fn attach(&self, concurrency: usize) -> Result<Box<dyn Inbox>, Error> {
        let (broker, topic) = (&*self.process.broker, self.topic.clone());
        if !topic.class().has_subscriptions() {
            return Ok(Box::new(Renewing::attach(broker, vec![topic], || ()).await?));
        }
        let prefetch = u32::try_from(concurrency).unwrap_or(u32::MAX);
        broker.subscribe(&Subscription::Shared { topic, name: self.subscription.clone(), prefetch }).await
    }
}

impl<P: Processor> Kind for Of<P> {
    fn run(&self, variant: Variant, stop: CancellationToken) -> BoxFuture<'static, Result<(), RunError>> {
        Box::pin(async move {
            let mut ports = variant.ports(false);
            let processor = Arc::new(P::bind(&mut ports)?);
            let mut following = Vec::new();
            for topic in &ports.follows {
                following.push(variant.process.replies.follow(topic).await?);
            }
            let mut taking = Vec::new();
            for input in Inputs::<P>::of() {
                let lane = Arc::new(variant.lane::<P>(&ports, &input)?);
                let concurrency = processor.concurrency().max(1);
                let inbox = lane.attach(concurrency).await?;
                let (processor, stop) = (processor.clone(), stop.clone());
                let process = variant.process.clone();
                taking.push(async move {
                    let work = |delivery| (input.handle)(processor.clone(), delivery, lane.clone());
                    take(&*inbox, concurrency, &process, &stop, work).await.map_or(Ok(()), Err)
                });
            }
            // Once it is attached: one that is not yet binds again and again.
            let warm = stop.run_until_cancelled(join_all(ports.values.iter().map(Values::warm)));
            let mut taking = std::pin::pin!(try_join_all(taking));
            let mut warm = std::pin::pin!(warm);
            let took = tokio::select! {
                took = &mut taking => took,
                _ = &mut warm => taking.await,
            };
            took?;
            Ok(())
        })
    }

    fn slots(&self, variant: Variant) -> Result<Vec<CatalogueSlot>, BindError> {
        let mut ports = variant.ports(true);
        P::bind(&mut ports)?;
        let reads =
            |name: &str| CatalogueSlot { name: name.to_owned(), used: SlotUse::Consume, optional: false };
        let writes =
            |name: &str| CatalogueSlot { name: name.to_owned(), used: SlotUse::Produce, optional: false };
        let mut slots = ports.used;
        for input in Inputs::<P>::of() {
            slots.push(reads(input.slot));
            slots.extend(input.response_slot.as_deref().map(writes));
        }
        Ok(slots)
    }
}
