//! The queues of live workspaces: a loop that looks at the registry, serves what is in it, lets go of what is not, and
//! gives each new workspace its copy of the template.
//!
//! Woken by a write to the registry, by a notice (another instance wrote it) or by the clock, it is told nothing but
//! "look". A copy of the template is one write together with the mark that it was made, so it happens once and whole,
//! whenever the loop gets to it.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_bus::{Inbox as _, Renewing, TopicSpec};
use sluice_schema::message::{ConfigPush, Expectation, ScopedKey};
use sluice_schema::{Class, Topic, record, wire};
use sluice_sdk::{Point, Process};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::pages::Paging;
use crate::reader;
use crate::request::{Door, Put, Read, Write};
use crate::service::Service;
use crate::state::provisioned_mark;
use crate::{Parts, SUBSCRIPTION};

/// How often the registry is looked at without being told.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// How soon after a look that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Looks that may be asked for and not begun.
const ASKED_MAX: usize = 256;
/// How long an asked look is waited for, and a queue to be served.
pub(crate) const SERVED_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a copy of the template starts over because the workspace or the template changed meanwhile.
const COPIES_MAX: usize = 16;

/// Asks for looks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hosting {
    asked: mpsc::Sender<oneshot::Sender<()>>,
}

impl Hosting {
    /// A way to ask, and what [`run`] needs to hear it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<oneshot::Sender<()>>) {
        let (asked, looks) = mpsc::channel(ASKED_MAX);
        (Self { asked }, looks)
    }

    /// Asks for a look and waits for nothing; one that cannot be asked for comes by the clock.
    fn look_soon(&self) {
        let _ = self.asked.try_send(oneshot::channel().0);
    }

    /// Waits for a look that begins after this call; answers whether it ended within that time.
    pub(crate) async fn look(&self, within: Duration) -> bool {
        let (done, looked) = oneshot::channel();
        let look = async { self.asked.send(done).await.is_ok() && looked.await.is_ok() };
        tokio::time::timeout(within, look).await.unwrap_or(false)
    }
}

/// Looks whenever asked, and now and then, until the process stops.
pub(crate) async fn run(parts: Parts, service: Service, mut asked: mpsc::Receiver<oneshot::Sender<()>>) {
    let stop = parts.process.stop.clone();
    let mut hosts = Hosts { parts, service, served: BTreeMap::new() };
    let mut pause = LOOK_INTERVAL;
    let mut missing = hosts.parts.process.missing.looks();
    loop {
        let mut waiting = Vec::new();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            () = missing.next() => {}
            look = asked.recv() => match look {
                Some(look) => waiting.push(look),
                None => return,
            },
        }
        while let Ok(look) = asked.try_recv() {
            waiting.push(look);
        }
        let everything = waiting.is_empty();
        pause = match stop.run_until_cancelled(hosts.look(everything)).await {
            None => return,
            Some(true) => LOOK_INTERVAL,
            Some(false) => RETRY_INTERVAL,
        };
        for look in waiting {
            let _ = look.send(());
        }
    }
}

/// Asks for a look whenever a notice tells of workspaces that came or went.
pub(crate) async fn listen(
    process: Process,
    hosting: Hosting,
    topic: Topic,
) -> Result<(), sluice_bus::Error> {
    let missed = hosting.clone();
    let inbox = Renewing::attach(&*process.broker, vec![topic], move || missed.look_soon()).await?;
    hosting.look(SERVED_TIMEOUT).await;
    loop {
        let mut delivery = inbox.next().await?;
        let body = std::mem::take(&mut delivery.message).body;
        delivery.ack();
        let told = wire::decode::<ConfigPush>(&body).is_ok_and(|push| push.workspace_changes.is_some());
        if told {
            hosting.look(SERVED_TIMEOUT).await;
        }
    }
}

/// The two topics of a workspace.
fn topics(workspace: &str) -> Result<[TopicSpec; 2], sluice_schema::TopicError> {
    let name = format!("config:{workspace}");
    let request = TopicSpec::with(Topic::tg(Class::Request, &name)?, SUBSCRIPTION);
    Ok([request, TopicSpec::bare(Topic::tg(Class::Response, &name)?)])
}

struct Hosts {
    parts: Parts,
    service: Service,
    served: BTreeMap<String, CancellationToken>,
}

impl Hosts {
    /// One look; whether all went well. With `everything`, queues that should be there are made again where missing.
    async fn look(&mut self, everything: bool) -> bool {
        let (ids, provisioned) = match self.service.reader.workspaces().await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "the registry of workspaces could not be read; trying again");
                return false;
            }
        };
        let mut well = true;
        let gone: Vec<String> = self.served.keys().filter(|id| !ids.contains(*id)).cloned().collect();
        for id in gone {
            well &= self.let_go(&id).await;
        }
        for id in &ids {
            if id.starts_with('_') {
                tracing::warn!(workspace = id, "a reserved name stands in the registry; it gets no queues");
                continue;
            }
            if everything || !self.served.contains_key(id) {
                well &= self.host(id).await;
            }
            if !provisioned.contains(id) {
                well &= self.provision(id).await;
            }
        }
        well
    }

    async fn host(&mut self, id: &str) -> bool {
        let [request, response] = match topics(id) {
            Ok(topics) => topics,
            Err(error) => {
                tracing::warn!(workspace = id, %error, "a workspace cannot have queues; choose another id for it");
                return true;
            }
        };
        for topic in [&request, &response] {
            if let Err(error) = self.parts.admin.ensure(topic).await {
                tracing::warn!(workspace = id, %error, "a config queue could not be made; trying again");
                return false;
            }
        }
        if self.served.contains_key(id) {
            return true;
        }
        let stop = self.parts.process.stop.child_token();
        let point = Point::new(request.topic, response.topic, SUBSCRIPTION);
        let attached = self.service.serve(Door::Workspace(id.into()), point, stop.clone());
        self.served.insert(id.to_owned(), stop);
        tokio::time::timeout(SERVED_TIMEOUT, attached.cancelled()).await.is_ok()
    }

    async fn let_go(&mut self, id: &str) -> bool {
        if let Some(stop) = self.served.get(id) {
            stop.cancel();
        }
        let Ok(topics) = topics(id) else { return true };
        for topic in &topics {
            if let Err(error) = self.parts.admin.remove(topic).await {
                tracing::warn!(workspace = id, %error, "a config queue could not be removed; trying again");
                return false;
            }
        }
        self.served.remove(id);
        true
    }

    async fn provision(&self, id: &str) -> bool {
        for _ in 0..COPIES_MAX {
            let write = match self.copy_of_template(id).await {
                Ok(write) => write,
                Err(error) => {
                    tracing::error!(workspace = id, %error, "the template could not be read; trying again");
                    return false;
                }
            };
            match self.service.writer.write(write).await {
                Ok(written) => {
                    if let Some(version) = written.notice {
                        self.service.outbox.wait(version, crate::NOTICE_TIMEOUT).await;
                    }
                    return true;
                }
                Err(error) if error.r#type == "version-conflict" => {}
                Err(error) => {
                    tracing::error!(
                        workspace = id,
                        error = error.message,
                        "the template could not be copied"
                    );
                    return false;
                }
            }
        }
        false
    }

    /// What a workspace lacks of the template, with the mark that it was given.
    async fn copy_of_template(&self, id: &str) -> Result<Write, reader::Error> {
        let dump = Read::Dump { workspace: record::TEMPLATE.to_owned() };
        // No message carries it, so none bounds it.
        let (paging, bytes_max) = (Paging::default(), usize::MAX);
        let template = Box::pin(self.service.reader.read(dump, &paging, bytes_max)).await?.config;
        let present = self.service.reader.keys(id).await?;
        let mark = provisioned_mark(id);
        let absent = |at: &ScopedKey| Expectation {
            workspace: at.workspace.clone(),
            r#type: at.r#type.clone(),
            key: at.key.clone(),
            version: 0,
        };
        let mut write = Write { expect: vec![absent(&mark)], ..Write::default() };
        for (config_type, values) in &template {
            for (key, value) in values {
                if present.get(config_type).is_some_and(|keys| keys.contains(key)) {
                    continue;
                }
                let at =
                    ScopedKey { workspace: id.to_owned(), r#type: config_type.clone(), key: key.clone() };
                write.expect.push(absent(&at));
                write.puts.push(Put { at, value: value.clone() });
            }
        }
        // With nothing to give there is nothing to tell.
        write.quiet = write.puts.is_empty();
        write.announce = present.into_keys().map(|config_type| (config_type, id.to_owned())).collect();
        write.puts.push(Put { at: mark, value: "\"v1\"".to_owned() });
        Ok(write)
    }
}
