//! A reader of a shared subscription, and the duty to settle what it got.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use sluice_schema::Topic;
use tokio::time::{Instant, Sleep};

use super::Core;
use super::queue::{Entry, Settled, Take};
use super::topic::{End, TopicState, check_class};
use crate::contract::{Inbox, InboxAddress};
use crate::message::{Delivery, Settle, Verdict};
use crate::{BoxFuture, Error, Result};

/// One subscription of one topic, as readers and their deliveries refer to it.
#[derive(Clone)]
struct Place {
    core: Arc<Core>,
    topic: Arc<TopicState>,
    /// Subscriptions are only ever added to a topic, so an index stays good.
    queue: usize,
}

pub(super) struct SharedInbox {
    place: Place,
    name: String,
    /// The subscription's number in the log.
    queue_id: u64,
    reader: u64,
}

impl SharedInbox {
    pub(super) fn attach(core: &Arc<Core>, topic: &Topic, name: &str, prefetch: u32) -> Result<Self> {
        check_class(topic, true)?;
        let found = core.table.find(topic)?;
        let mut state = found.lock();
        if state.end.is_some() {
            return Err(Error::NoTopic { topic: topic.clone() });
        }
        let queue =
            state.queues.iter().position(|queue| *queue.name == *name).ok_or_else(|| {
                Error::NoSubscription { topic: topic.clone(), subscription: name.to_owned() }
            })?;
        let reader = state.queues[queue].attach(prefetch);
        let queue_id = state.queues[queue].id;
        drop(state);
        let place = Place { core: core.clone(), topic: found, queue };
        Ok(Self { place, name: name.to_owned(), queue_id, reader })
    }

    fn ended(&self, end: &End) -> Error {
        match end {
            End::Removed => Error::NoSubscription {
                topic: self.place.topic.topic.clone(),
                subscription: self.name.clone(),
            },
            End::Stopped(error) => error.clone(),
        }
    }

    fn take(&self, cx: &Context<'_>) -> Result<Take> {
        let mut state = self.place.topic.lock();
        if let Some(end) = &state.end {
            return Err(self.ended(end));
        }
        Ok(state.queues[self.place.queue].take(self.reader, Instant::now(), cx.waker()))
    }

    /// Makes a delivery of what was taken; on failure the message stands first again.
    fn hand_over(&self, entry: &Entry, token: u64) -> Result<Delivery> {
        let settlement = Settlement { place: self.place.clone(), token };
        let message = match self.place.core.before_hand_over(entry, self.queue_id) {
            Ok(message) => message,
            Err(error) => {
                self.place.topic.lock().queues[self.place.queue].untake(token);
                return Err(error);
            }
        };
        let topic = self.place.topic.topic.clone();
        Ok(Delivery::new(message, topic, entry.attempts, Box::new(settlement)))
    }
}

impl Inbox for SharedInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(Next { inbox: self, sleep: None, waits: false })
    }

    fn address(&self) -> Option<InboxAddress> {
        None
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        let reason = format!("a reader of a shared subscription cannot follow '{topic}'");
        Box::pin(async move { Err(Error::Refused { reason }) })
    }

    fn unfollow<'a>(&'a self, _topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { Ok(()) })
    }
}

impl Drop for SharedInbox {
    fn drop(&mut self) {
        let wakers = self.place.topic.lock().queues[self.place.queue].detach(self.reader);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Waits for a message; for a delayed one it sleeps until the time it was told.
struct Next<'a> {
    inbox: &'a SharedInbox,
    sleep: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl Future for Next<'_> {
    type Output = Result<Delivery>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let until = match self.inbox.take(cx)? {
                Take::Entry { entry, token } => {
                    self.waits = false;
                    return Poll::Ready(self.inbox.hand_over(&entry, token));
                }
                Take::Wait(until) => until,
            };
            self.waits = true;
            let Some(until) = until else {
                self.sleep = None;
                return Poll::Pending;
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if sleep.deadline() != until {
                sleep.as_mut().reset(until);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        if self.waits {
            let place = &self.inbox.place;
            let waker = place.topic.lock().queues[place.queue].leave(self.inbox.reader);
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

struct Settlement {
    place: Place,
    token: u64,
}

impl Settlement {
    /// Notes that this time does not count, before the message can be handed out again.
    fn uncount(&self) {
        let (handed, queue_id) = {
            let state = self.place.topic.lock();
            let queue = &state.queues[self.place.queue];
            (queue.handed(self.token), queue.id)
        };
        if let Some((id, attempts)) = handed {
            self.place.core.uncount(id, queue_id, attempts.saturating_sub(1));
        }
    }
}

impl Settle for Settlement {
    fn settle(self: Box<Self>, verdict: Verdict) {
        if let Verdict::Untried(_) = verdict {
            self.uncount();
        }
        let mut state = self.place.topic.lock();
        let queue = &mut state.queues[self.place.queue];
        let queue_id = queue.id;
        let (settled, waker) = queue.settle(self.token, verdict, Instant::now());
        drop(state);
        if let Settled::Done { id } = settled {
            self.place.core.after_settling(id, queue_id);
        }
        waker.into_iter().for_each(Waker::wake);
    }
}
