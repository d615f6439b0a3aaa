//! Beside processes of TrustGraph 2.11: what they need that ours do not.
//!
//! They read `flow` topics where ours do, and `request` topics of flows where their entries say that they are. For requests to
//! the system's services, for answers and for notices they look on topics that are not persistent: each of those has a mirror
//! there, made with it by its owner, and what comes on one side is sent to the other. A client of theirs that leaves in good
//! order removes its subscription unless somebody else is attached, so the owner stays attached to each, without ever
//! permitting a message.
//!
//! # Guarantees
//! Once a topic is made, so are its mirror and its keepers; they are made again after a lost connection, and by the next owner
//! once it looks at the topic with the right to act. What has crossed once is marked, and does not cross back.
//!
//! # Caveats
//! A mirror keeps nothing: what nobody reads there now is lost, and so is what a reader has no room for. Two owners of one
//! topic each send what crosses outwards.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use sluice_bus::{Address, Message, Result, TopicSpec};
use sluice_schema::{Class, Topic, system};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ends::{Consumer, How};
use super::link::{Arrived, Fault};
use super::links::{Links, Role};
use super::names::{self, Place};
use super::proto::{MessageId, code};
use super::publish::Publisher;
use super::rest::Call;
use super::system::System;
use super::tail::Tail;
use crate::local::{Pauses, lock};

/// The subscription under which owners read a mirror.
const MIRROR: &str = "sluice-mirror";
/// Messages that a mirror may send ahead.
const AHEAD: u32 = 100;
/// Tries to remove a mirror.
const REMOVALS_MAX: u32 = 5;
/// The property of a message that has crossed.
const CROSSED: &str = "sluice-crossed";

pub(super) struct Beside {
    links: Arc<Links>,
    system: Arc<System>,
    publisher: Arc<Publisher>,
    tasks: TaskTracker,
    stop: CancellationToken,
    attended: Mutex<HashMap<Topic, Attended>>,
}

/// What is seen to of a topic.
struct Attended {
    stop: CancellationToken,
    /// The mirror is being removed.
    leaving: CancellationToken,
    /// Held while something of it is begun.
    begins: Arc<tokio::sync::Mutex<()>>,
    kept: BTreeSet<String>,
    is_mirrored: bool,
}

impl Beside {
    pub(super) fn new(
        (links, system, publisher): (Arc<Links>, Arc<System>, Arc<Publisher>),
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { links, system, publisher, tasks, stop, attended: Mutex::default() }
    }

    /// Whether this process sees to it that a subscription has a keeper.
    pub(super) fn is_keeping(&self, topic: &Topic, subscription: &str) -> bool {
        lock(&self.attended).get(topic).is_some_and(|known| known.kept.contains(subscription))
    }

    /// Sees from now on to a topic that is there.
    pub(super) async fn attend(self: &Arc<Self>, spec: &TopicSpec) -> Result<()> {
        let (topic, place) = (&spec.topic, Place::from(&spec.topic));
        let begins = {
            let mut attended = lock(&self.attended);
            let known = attended.entry(topic.clone()).or_insert_with(|| Attended {
                stop: self.stop.child_token(),
                leaving: CancellationToken::new(),
                begins: Arc::default(),
                kept: BTreeSet::new(),
                is_mirrored: false,
            });
            known.begins.clone()
        };
        // One after the other, so that nothing is begun twice.
        let _begins = begins.lock().await;
        let (stop, leaving, unkept, is_mirrored) = {
            let attended = lock(&self.attended);
            // It was removed meanwhile.
            let Some(known) = attended.get(topic) else { return Ok(()) };
            let unkept: Vec<_> =
                spec.subscriptions.iter().filter(|name| !known.kept.contains(*name)).cloned().collect();
            (known.stop.clone(), known.leaving.clone(), unkept, known.is_mirrored)
        };
        for name in unkept {
            let keeper = Keeper { topic: topic.clone(), place: place.clone(), name };
            let consumer = self.keeper(&keeper).await.map_err(|fault| fault.of("keeping a subscription"))?;
            self.change(topic, &stop, |known| _ = known.kept.insert(keeper.name.clone()));
            self.tasks.spawn(self.clone().keep(keeper, consumer, stop.clone()));
        }
        if !is_mirrored && has_mirror(topic) {
            let mut tail = None;
            if topic.class() != Class::Request {
                let opened = Tail::open(&self.links, place.clone(), MessageId::LATEST, false).await;
                tail = Some(opened.map_err(|fault| fault.of(&format!("following '{topic}'")))?);
            }
            let reader = self.mirror_reader(&place.mirror()).await?;
            if let Some(tail) = tail {
                self.tasks.spawn(self.clone().send_out(topic.clone(), tail, stop.clone()));
            }
            self.tasks.spawn(self.clone().bring_in(topic.clone(), reader, (stop.clone(), leaving)));
            self.change(topic, &stop, |known| known.is_mirrored = true);
        }
        Ok(())
    }

    /// A topic is about to be removed: so is its mirror.
    pub(super) async fn leave(&self, topic: &Topic) -> Result<()> {
        let known = lock(&self.attended).remove(topic);
        let _stopped_in_the_end = known.as_ref().map(|known| known.stop.clone().drop_guard());
        if !has_mirror(topic) {
            return Ok(());
        }
        // The broker ends its reader here: one that leaves by itself in that moment is counted as gone twice.
        if let Some(known) = &known {
            known.leaving.cancel();
        }
        let place = Place::from(topic).mirror();
        let path = place.path();
        let (mut pauses, mut failed) = (Pauses::new(), None);
        for _ in 0..REMOVALS_MAX {
            let answer = self.system.call(&Call::delete(&path, &[("force", "true")])).await?;
            if answer.is_done() || answer.is_absent() {
                return Ok(());
            }
            failed = Some(answer.error());
            tokio::time::sleep(pauses.next()).await;
        }
        // It keeps nothing, and goes with its broker at the latest: no reason to keep the topic.
        if let Some(error) = failed {
            tracing::warn!(%topic, %error, "the broker does not remove what was a mirror of this topic");
        }
        Ok(())
    }

    /// Changes what is seen to of a topic, unless it was removed meanwhile.
    fn change(&self, topic: &Topic, stop: &CancellationToken, change: impl FnOnce(&mut Attended)) {
        if let Some(known) = lock(&self.attended).get_mut(topic).filter(|_| !stop.is_cancelled()) {
            change(known);
        }
    }

    /// Somebody else removed a topic.
    fn lose(&self, topic: &Topic, stop: &CancellationToken) {
        let mut attended = lock(&self.attended);
        if !stop.is_cancelled() {
            attended.remove(topic);
            stop.cancel();
        }
    }

    async fn keeper(&self, keeper: &Keeper) -> Result<Consumer, Fault> {
        let link = self.links.to(Role::Read, &keeper.place).await?;
        let escaped = names::escaped(&keeper.name);
        Consumer::open(link, &keeper.place, &How::Keeper { subscription: &escaped }, self.links.within())
            .await
    }

    /// Stays attached until the subscription is gone.
    async fn keep(self: Arc<Self>, keeper: Keeper, mut consumer: Consumer, stop: CancellationToken) {
        let kept = async {
            loop {
                // Nothing is permitted, so nothing comes but the end.
                while consumer.next().await.is_some() {}
                let mut pauses = Pauses::new();
                consumer = loop {
                    tokio::time::sleep(pauses.next()).await;
                    match self.keeper(&keeper).await {
                        Ok(consumer) => break consumer,
                        Err(fault) if fault.is(code::TOPIC_NOT_FOUND) => {
                            return self.lose(&keeper.topic, &stop);
                        }
                        Err(fault) if fault.is(code::SUBSCRIPTION_NOT_FOUND) => return,
                        Err(fault) => {
                            tracing::debug!(topic = %keeper.topic, ?fault, "a keeper is not attached again yet");
                        }
                    }
                };
            }
        };
        stop.run_until_cancelled(kept).await;
        self.change(&keeper.topic, &stop, |known| _ = known.kept.remove(&keeper.name));
    }

    /// Attaches to a mirror, which is made where it is missing: it does not outlive its broker.
    async fn mirror_reader(&self, mirror: &Place) -> Result<Consumer> {
        self.system.make(mirror, self.links.within()).await?;
        let attached = async {
            let link = self.links.to(Role::Read, mirror).await?;
            Consumer::open(link, mirror, &How::Shared { subscription: MIRROR }, self.links.within()).await
        };
        let consumer =
            attached.await.map_err(|fault: Fault| fault.of(&format!("reading '{}'", mirror.uri())))?;
        consumer.permit(AHEAD);
        Ok(consumer)
    }

    /// Sends to a topic what comes on its mirror.
    async fn bring_in(
        self: Arc<Self>,
        topic: Topic,
        mut reader: Consumer,
        (stop, leaving): (CancellationToken, CancellationToken),
    ) {
        let place = Place::from(&topic);
        let mirror = place.mirror();
        let brought = async {
            loop {
                while let Some(arrived) = reader.next().await {
                    reader.permit(1);
                    let Some(message) = crossing(arrived) else { continue };
                    if let Err(error) = self.publisher.publish(&Address::Topic(topic.clone()), message).await
                    {
                        tracing::warn!(%topic, %error, "a message of a process of TrustGraph 2.11 is lost");
                    }
                }
                if leaving.is_cancelled() {
                    return;
                }
                let mut pauses = Pauses::new();
                reader = loop {
                    tokio::time::sleep(pauses.next()).await;
                    // A mirror goes last: where its topic is gone, so it shall be.
                    let again = async {
                        match self.system.incarnation(&place).await? {
                            Some(_) => self.mirror_reader(&mirror).await.map(Some),
                            None => Ok(None),
                        }
                    };
                    match again.await {
                        Ok(Some(reader)) => break reader,
                        Ok(None) => return self.lose(&topic, &stop),
                        Err(error) => tracing::debug!(%topic, %error, "a mirror is not read again yet"),
                    }
                };
            }
        };
        stop.run_until_cancelled(brought).await;
    }

    /// Sends to the mirror what comes on a topic.
    async fn send_out(self: Arc<Self>, topic: Topic, mut tail: Tail, stop: CancellationToken) {
        let mirror = Place::from(&topic).mirror();
        let sent = async {
            loop {
                while let Some(arrived) = tail.next().await {
                    let Some(message) = crossing(arrived) else { continue };
                    match self.publisher.send(&mirror, &message).await {
                        // Whoever reads it makes it again.
                        Ok(_) => {}
                        Err(error) => tracing::debug!(%topic, %error, "a mirror did not get a message"),
                    }
                }
                let mut pauses = Pauses::new();
                loop {
                    tokio::time::sleep(pauses.next()).await;
                    match tail.again().await {
                        Ok(()) => break,
                        Err(fault) if fault.is(code::TOPIC_NOT_FOUND) => return self.lose(&topic, &stop),
                        Err(fault) => tracing::debug!(%topic, ?fault, "a topic is not followed again yet"),
                    }
                }
            }
        };
        stop.run_until_cancelled(sent).await;
    }
}

struct Keeper {
    topic: Topic,
    place: Place,
    name: String,
}

/// Whether theirs look for it on a topic that is not persistent.
fn has_mirror(topic: &Topic) -> bool {
    match topic.class() {
        Class::Flow => false,
        Class::Request => system::is_system(topic),
        Class::Response | Class::Notify => true,
    }
}

/// What crosses, marked; `None` for what has crossed before.
fn crossing(arrived: Arrived) -> Option<Message> {
    let mut message = names::message(arrived.body, &arrived.metadata);
    if message.get(CROSSED).is_some() {
        return None;
    }
    message.set(CROSSED, "1");
    Some(message)
}
