//! The wire: requests come in by two kinds of doors, answers go out, and the start-up that puts it all together.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use sluice_bus::{Address, Message, TopicSpec};
use sluice_schema::message::{self, ConfigPush, ConfigResponse};
use sluice_schema::{Class, Exchange, Topic, listing, wire};
use sluice_sdk::service::{SMALL_PAGE_BYTES, serve};
use sluice_sdk::{Backoff, Point, Process, Responder, owned};
use tokio_util::sync::CancellationToken;

use crate::hosting::{self, Hosting, SERVED_TIMEOUT};
use crate::outbox::{Outbox, Wire};
use crate::pages::Paging;
use crate::reader::{self, Reader};
use crate::request::{self, Asked, Door, Operation, Read, Write};
use crate::writer::{Sent, Writer};
use crate::{Error, NOTICE_TIMEOUT, Parts, SUBSCRIPTION};
use crate::{sizes, state};

/// The config exchange with the question left as it came, so that what is wrong with it can be told in config's words.
enum RawConfig {}

impl Exchange for RawConfig {
    const NAME: &'static str = "config";
    type Request = Box<RawValue>;
    type Response = ConfigResponse;

    fn is_last(_: &ConfigResponse) -> bool {
        true
    }

    fn error(response: &ConfigResponse) -> Option<&message::Error> {
        response.error.as_ref()
    }

    fn failed(error: message::Error) -> ConfigResponse {
        ConfigResponse { error: Some(error), ..Default::default() }
    }
}

/// Everything that answering needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    process: Process,
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) outbox: Outbox,
    hosting: Hosting,
}

/// Types and workspaces that one notice of a start names.
const ANNOUNCED_MAX: usize = 10_000;
/// How long start-up waits until everything is served.
const START_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn start(parts: Parts) -> Result<(), Error> {
    let process = parts.process.clone();
    let [request, response, notify] =
        [Class::Request, Class::Response, Class::Notify].map(|class| Topic::tg(class, "config"));
    let (request, response, notify) = (request?, response?, notify?);
    let topics = vec![
        TopicSpec::with(request.clone(), SUBSCRIPTION),
        TopicSpec::bare(response.clone()),
        TopicSpec::bare(notify.clone()),
    ];
    owned::own(&process, &parts.admin, "config", topics).await?;

    // Boxed, as is all that is deep: whoever starts a system holds every future of it.
    Box::pin(sizes::count(&*parts.tables)).await?;
    let sent = Arc::new(Sent::default());
    let (writer, committing) = Writer::new(parts.tables.clone(), sent.clone(), process.stop.clone());
    process.tasks.spawn("config/writer", committing);
    let outbox = Outbox::new(process.stop.clone());
    let wire = Wire {
        tables: parts.tables.clone(),
        broker: process.broker.clone(),
        admin: parts.admin.clone(),
        topic: notify.clone(),
        sent,
    };
    process.tasks.spawn("config/outbox", outbox.clone().run(Arc::new(wire)));
    let reader = Reader::new(parts.tables.clone());
    let (hosting, asked) = Hosting::new();
    let service = Service { process: process.clone(), reader, writer, outbox, hosting: hosting.clone() };
    service.announce_start(&notify).await?;

    let point = Point::new(request, response, SUBSCRIPTION);
    let attached = service.serve(Door::System, point, process.stop.child_token());
    let not_serving =
        |what: &str| Error::NotServing { what: what.to_owned(), within_s: START_TIMEOUT.as_secs() };
    tokio::time::timeout(START_TIMEOUT, attached.cancelled())
        .await
        .map_err(|_| not_serving("request:tg:config"))?;
    process.tasks.spawn("config/hosting", hosting::run(parts, service, asked));
    let asking = hosting.clone();
    let listening = process.clone();
    process.tasks.supervise("config/listen", Backoff::default(), move || {
        hosting::listen(listening.clone(), asking.clone(), notify.clone())
    });
    if hosting.look(START_TIMEOUT).await { Ok(()) } else { Err(not_serving("the queues of the workspaces")) }
}

impl Service {
    /// Answers what comes through a door; the token is cancelled once it does.
    pub(crate) fn serve(&self, door: Door, point: Point, stop: CancellationToken) -> CancellationToken {
        let service = self.clone();
        serve::<RawConfig, _, _>(&self.process, point, stop, move |body, responder| {
            let (service, door) = (service.clone(), door.clone());
            let asked = Asked { id: responder.id().to_owned(), is_repeated: responder.is_repeated() };
            async move { service.answer(&door, body.get(), asked, &responder).await }
        })
    }

    async fn answer(
        &self,
        door: &Door,
        body: &str,
        asked: Asked,
        responder: &Responder<RawConfig>,
    ) -> Result<ConfigResponse, message::Error> {
        match request::parse(door, body)? {
            Operation::Read(read, paging) => {
                let max = responder.answer_bytes_max();
                let page_bytes = listing::page_bytes(paging.bytes_max, max).unwrap_or(max);
                match self.reader.bytes(&read, page_bytes).await {
                    Some(bytes) => responder.room_for(bytes.min(max)).await?,
                    // How large it is shows in a small page of it; what goes on behind a page is large.
                    None if paging.cursor.is_empty() && page_bytes > SMALL_PAGE_BYTES => {
                        let small = Paging { bytes_max: SMALL_PAGE_BYTES as i64, cursor: String::new() };
                        let answer = self.read(read.clone(), small).await?;
                        if answer.cursor.is_empty() {
                            return Ok(answer);
                        }
                        drop(answer);
                        responder.room_for(page_bytes).await?;
                    }
                    None => responder.room_for(page_bytes).await?,
                }
                let answer = self.read(read, paging).await?;
                if let [only] = &answer.values[..] {
                    responder.room_for(only.value.as_ref().map_or(0, String::len)).await?;
                }
                Ok(answer)
            }
            Operation::Write(write) => self.write(Write { asked: Some(asked), ..write }).await,
        }
    }

    async fn read(&self, read: Read, paging: Paging) -> Result<ConfigResponse, message::Error> {
        let max = self.process.broker.limits().message_bytes_max;
        let answer = Box::pin(self.reader.read(read, &paging, max)).await.map_err(|error| match error {
            reader::Error::Expired => message::Error::new(message::Error::PAGE_EXPIRED, error.to_string()),
            reader::Error::List(error) => error,
            reader::Error::TooLarge { .. } => {
                message::Error::new(message::Error::TOO_LARGE, error.to_string())
            }
            reader::Error::Store(error) => {
                tracing::error!(%error, "config could not be read");
                message::Error::new("config-error", error.to_string())
            }
        })?;
        self.fits(answer)
    }

    /// Refuses an answer that the broker would refuse, in words that help. Nothing is ever cut off.
    fn fits(&self, answer: ConfigResponse) -> Result<ConfigResponse, message::Error> {
        let max = self.process.broker.limits().message_bytes_max;
        let in_values = answer.values.iter().filter_map(|v| v.value.as_deref()).map(str::len).sum::<usize>();
        let in_dump = answer.config.values().flat_map(|keys| keys.values()).map(String::len).sum::<usize>();
        if in_values + in_dump < max / 8 {
            return Ok(answer);
        }
        let bytes = wire::encode(&answer).len();
        if bytes <= max {
            return Ok(answer);
        }
        let error = reader::Error::TooLarge { max };
        Err(message::Error::new(message::Error::TOO_LARGE, error.to_string()))
    }

    async fn write(&self, mut write: Write) -> Result<ConfigResponse, message::Error> {
        let skipped = std::mem::take(&mut write.skipped);
        let workspaces = state::touches_registry(&write);
        let written = self.writer.write(write).await?;
        if let Some(version) = written.notice {
            self.outbox.wait(version, NOTICE_TIMEOUT).await;
        }
        if workspaces && !self.hosting.look(SERVED_TIMEOUT).await {
            tracing::warn!("the queues of a workspace are not served yet; they will be");
        }
        Ok(ConfigResponse { version: written.version, skipped, ..Default::default() })
    }

    /// Tells receivers that the service is there, and which types to read again where: what they may have missed while
    /// it was away. It has a version of its own, since one already used could hide a notice that is still on its way.
    async fn announce_start(&self, notify: &Topic) -> Result<(), Error> {
        if self.reader.version().await? == 0 {
            let push = Message::new(wire::encode(&ConfigPush::default()));
            self.process.broker.publish(&Address::Topic(notify.clone()), push).await?;
            return Ok(());
        }
        let pairs = self.reader.pairs().await?;
        // Several notices where one would name all tenants; one also where there is nothing to name.
        let mut parts: Vec<Vec<(String, String)>> = pairs.chunks(ANNOUNCED_MAX).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        for announce in parts {
            match self.writer.write(Write { announce, ..Write::default() }).await {
                Ok(written) => self.outbox.wait(written.version, NOTICE_TIMEOUT).await,
                Err(error) => tracing::error!(error = error.message, "the start could not be announced"),
            }
        }
        Ok(())
    }
}
