//! A reader's own inbox: copies of what it follows and what is sent to its address, bounded, gone with the reader.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sluice_schema::{Class, Topic};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Core;
use super::queue::{Budget, Share};
use super::topic::{Table, TopicState, check_class, lock};
use crate::contract::{Inbox, InboxAddress};
use crate::message::{Delivery, Message, property};
use crate::{BoxFuture, Error, Result};

/// How long what is sent to an inbox waits for room there.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// The inbox as publishers see it.
pub(super) struct Own {
    pub(super) address: Arc<str>,
    /// Stands for the address where a topic is told.
    pub(super) direct: Topic,
    memory: Arc<Budget>,
    messages_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
    /// Notified when something was taken out.
    room: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Message, Topic, Option<Share>)>,
    bytes: usize,
    dropped: u64,
    followed: Vec<Topic>,
    /// Set once it takes and gives nothing any more.
    closed: Option<Error>,
    waker: Option<Waker>,
}

impl Own {
    pub(super) fn new(table: &Table) -> Result<Self> {
        let address: Arc<str> = format!("inbox-{}", uuid::Uuid::new_v4().simple()).into();
        let direct = Topic::parse(&format!("response:tg:{address}"))
            .map_err(|error| Error::Refused { reason: error.to_string() })?;
        Ok(Self {
            address,
            direct,
            memory: table.memory.clone(),
            messages_max: table.config.inbox_messages_max,
            bytes_max: table.config.queue_bytes_max,
            state: Mutex::default(),
            room: Notify::new(),
        })
    }

    /// Puts a message in that was sent to many. Never waits: when the reader is too far behind, it is dropped.
    pub(super) fn push(&self, message: Message, topic: Topic) {
        if let Err(message) = self.put(message, topic.clone()) {
            self.drop_newest(&message, topic);
        }
    }

    /// Puts a message in that was sent here alone. Waits a while for room: its sender has all of it in hand anyway.
    pub(super) async fn give(&self, mut message: Message) {
        let until = Instant::now() + ROOM_TIMEOUT;
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            match self.put(message, self.direct.clone()) {
                Ok(()) => return,
                Err(back) => message = back,
            }
            if tokio::time::timeout_at(until, room).await.is_err() {
                return self.drop_newest(&message, self.direct.clone());
            }
        }
    }

    fn put(&self, message: Message, topic: Topic) -> std::result::Result<(), Message> {
        let bytes = message.size_bytes();
        let mut state = lock(&self.state);
        if state.closed.is_some() {
            return Ok(());
        }
        // One that is larger than all of it still fits in alone.
        let fits = state.bytes == 0 || state.bytes + bytes <= self.bytes_max;
        let share = self.memory.take(bytes);
        // What flows hold in memory keeps no answer back: for those, the inbox's own bound is enough.
        let is_counted = share.is_some() || topic == self.direct;
        if !(is_counted && fits && state.waiting.len() < self.messages_max) {
            return Err(message);
        }
        state.bytes += bytes;
        state.waiting.push_back((message, topic, share));
        Self::wake(state);
        Ok(())
    }

    fn wake(mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Counts a message as dropped. Of an answer its call hears, so that it does not wait for its deadline.
    fn drop_newest(&self, message: &Message, topic: Topic) {
        let mut state = lock(&self.state);
        if state.closed.is_some() {
            return;
        }
        state.dropped += 1;
        if state.dropped == 1 {
            tracing::warn!(inbox = %self.address, %topic, "a reader does not read; what is newest is dropped");
        }
        let is_answer = topic.class() == Class::Response;
        let id =
            message.get(property::ID).filter(|_| is_answer && state.waiting.len() < 2 * self.messages_max);
        if let Some(id) = id {
            let notice = Message::default().with(property::ID, id).with(property::DROPPED, "true");
            state.bytes += notice.size_bytes();
            state.waiting.push_back((notice, topic, None));
            Self::wake(state);
        }
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Result<Delivery>> {
        let mut state = lock(&self.state);
        if let Some((message, topic, share)) = state.waiting.pop_front() {
            state.bytes -= message.size_bytes();
            drop((state, share));
            self.room.notify_waiters();
            return Poll::Ready(Ok(Delivery::unsettled(message, topic)));
        }
        if let Some(error) = &state.closed {
            return Poll::Ready(Err(error.clone()));
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Takes and gives nothing any more.
    pub(super) fn close(&self, why: Option<Error>) -> Vec<Topic> {
        let mut state = lock(&self.state);
        state.closed = Some(why.unwrap_or_else(TopicState::stopped));
        state.waiting.clear();
        state.bytes = 0;
        self.room.notify_waiters();
        let waker = state.waker.take();
        let followed = std::mem::take(&mut state.followed);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        followed
    }

    pub(super) fn dropped(&self) -> u64 {
        lock(&self.state).dropped
    }
}

/// The inbox as its reader holds it.
pub(super) struct OwnInbox {
    pub(super) core: Arc<Core>,
    pub(super) own: Arc<Own>,
}

impl OwnInbox {
    pub(super) fn follow_now(&self, topic: &Topic) -> Result<()> {
        check_class(topic, false)?;
        let found = self.core.table.find(topic)?;
        let mut state = found.lock();
        if state.end.is_some() {
            return Err(Error::NoTopic { topic: topic.clone() });
        }
        if !state.followers.iter().any(|known| Arc::ptr_eq(known, &self.own)) {
            state.followers.push(self.own.clone());
            let followed = &mut lock(&self.own.state).followed;
            if !followed.contains(topic) {
                followed.push(topic.clone());
            }
        }
        Ok(())
    }

    fn forget(&self, topic: &Topic) {
        if let Ok(found) = self.core.table.find(topic) {
            found.lock().followers.retain(|known| !Arc::ptr_eq(known, &self.own));
        }
    }
}

impl Inbox for OwnInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(std::future::poll_fn(|cx| self.own.poll_next(cx)))
    }

    fn address(&self) -> Option<InboxAddress> {
        Some(InboxAddress(self.own.address.clone()))
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.follow_now(topic) })
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            check_class(topic, false)?;
            self.forget(topic);
            lock(&self.own.state).followed.retain(|known| known != topic);
            Ok(())
        })
    }
}

impl Drop for OwnInbox {
    fn drop(&mut self) {
        self.core.table.forget_inbox(&self.own.address);
        for topic in self.own.close(None) {
            self.forget(&topic);
        }
    }
}
