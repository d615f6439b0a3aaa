//! Reads a topic alone and without a trace, from some message on, and goes on behind the last one after a lost connection.

use std::sync::Arc;

use super::ends::{Consumer, How};
use super::link::{Arrived, Fault};
use super::links::{Links, Role};
use super::names::Place;
use super::proto::MessageId;

/// Messages that the broker may send ahead.
const AHEAD: u32 = 1_000;

pub(super) struct Tail {
    links: Arc<Links>,
    place: Place,
    is_compacted: bool,
    /// Where it began.
    after: MessageId,
    /// With the number of the message there, where several were put into one.
    last: Option<(MessageId, u32)>,
    /// Taken since the broker was last permitted to send more.
    taken: u32,
    consumer: Consumer,
}

impl Tail {
    /// Reads what comes after a message; `is_compacted`: only the last of each key.
    pub(super) async fn open(
        links: &Arc<Links>,
        place: Place,
        after: MessageId,
        is_compacted: bool,
    ) -> Result<Self, Fault> {
        let consumer = attach(links, &place, after, is_compacted).await?;
        // A place to go on from, should nothing come before the connection is lost.
        let after = match after {
            MessageId::LATEST => consumer.last(links.within()).await?,
            after => after,
        };
        Ok(Self { links: links.clone(), place, is_compacted, after, last: None, taken: 0, consumer })
    }

    /// What comes next; `None` when the topic was closed or the connection is lost. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Arrived> {
        loop {
            let arrived = self.consumer.next().await?;
            self.taken += 1;
            if self.taken >= AHEAD / 2 {
                self.consumer.permit(std::mem::take(&mut self.taken));
            }
            // The message that was last comes again where reading goes on behind it.
            let at = (arrived.id, arrived.part.map_or(0, |part| part.index));
            if self.last < Some(at) {
                self.last = Some(at);
                return Some(arrived);
            }
        }
    }

    /// Attaches again, behind the last message.
    pub(super) async fn again(&mut self) -> Result<(), Fault> {
        let after = self.last.map_or(self.after, |(id, _)| id);
        self.consumer = attach(&self.links, &self.place, after, self.is_compacted).await?;
        self.taken = 0;
        Ok(())
    }
}

async fn attach(
    links: &Arc<Links>,
    place: &Place,
    after: MessageId,
    is_compacted: bool,
) -> Result<Consumer, Fault> {
    let link = links.to(Role::Read, place).await?;
    let consumer = Consumer::open(link, place, &How::Alone { after, is_compacted }, links.within()).await?;
    consumer.permit(AHEAD);
    Ok(consumer)
}
