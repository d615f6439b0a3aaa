//! What a processor reads, and which handler takes it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use sluice_bus::{BoxFuture, Delivery, trace};
use sluice_schema::{Exchange, message, wire};

use super::{Failure, Lane, Processor};
use crate::service::{self, Responder};
use crate::tasks::panic_text;

type Handle<P> = Arc<dyn Fn(Arc<P>, Delivery, Arc<Lane>) -> BoxFuture<'static, ()> + Send + Sync>;

/// One input with its handler, the message type erased.
pub(crate) struct Input<P> {
    pub(crate) slot: &'static str,
    /// The slot of the topic that answers go to; requests only.
    pub(crate) response_slot: Option<String>,
    pub(crate) handle: Handle<P>,
}

/// Collects the inputs of a processor.
pub struct Inputs<P> {
    pub(crate) list: Vec<Input<P>>,
}

impl<P: Processor> Inputs<P> {
    pub(crate) fn of() -> Vec<Input<P>> {
        let mut on = Self { list: Vec::new() };
        P::inputs(&mut on);
        on.list
    }

    /// Messages of a slot. A `flow` topic is read from the processor's subscription; a `response` or `notify` topic is
    /// followed: the handler sees everything published while it runs.
    pub fn message<T, F, Fut>(&mut self, slot: &'static str, handler: F)
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Arc<P>, T) -> Fut + Copy + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let handle: Handle<P> = Arc::new(move |processor, delivery, lane| {
            Box::pin(async move {
                if lane.is_spent(&delivery) {
                    return lane.give_up(delivery).await;
                }
                let started = tokio::time::Instant::now();
                let outcome = match wire::decode::<T>(&delivery.message.body) {
                    Ok(item) => {
                        let handled = AssertUnwindSafe(handler(processor, item)).catch_unwind();
                        let outcome = trace::carry(&delivery.message, delivery.attempt, handled).await;
                        outcome.unwrap_or_else(|panic| {
                            Err(Failure::Again(format!("panic: {}", panic_text(&*panic))))
                        })
                    }
                    Err(error) => Err(Failure::never(error)),
                };
                lane.settle(delivery, outcome, started.elapsed()).await;
            })
        });
        self.list.push(Input { slot, response_slot: None, handle });
    }

    /// Requests of a slot, answered on its response slot (`request` → `response`, `x-request` → `x-response`). A handler is
    /// dropped where it stands when its asker stops waiting, in this process or in another of ours.
    pub fn request<X, F, Fut>(&mut self, slot: &'static str, handler: F)
    where
        X: Exchange,
        F: Fn(Arc<P>, X::Request, Responder<X>) -> Fut + Copy + Send + Sync + 'static,
        Fut: Future<Output = Result<X::Response, message::Error>> + Send + 'static,
    {
        let handle: Handle<P> = Arc::new(move |processor, delivery, lane| {
            Box::pin(async move {
                let started = tokio::time::Instant::now();
                let Some(served) = lane.served.clone() else { return };
                let answer = move |request, mut responder: Responder<X>| {
                    let asker = responder.asker();
                    let work = handler(processor.clone(), request, responder);
                    let nobody = || Err(message::Error::new("abandoned", "the asker has stopped waiting"));
                    async move { asker.while_it_waits(work).await.unwrap_or_else(nobody) }
                };
                service::answer::<X, _, _>(served, delivery, answer).await;
                lane.count(true, started.elapsed());
            })
        });
        let response_slot = slot.strip_suffix("request").map(|stem| format!("{stem}response"));
        self.list.push(Input { slot, response_slot, handle });
    }
}
