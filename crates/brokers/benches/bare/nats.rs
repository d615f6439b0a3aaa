//! `async-nats` alone.

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{self, PersistenceMode, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;
use sluice_bus::BoxFuture;

use super::waiting::{ID, Waiting};
use super::{Bare, REPLY_TO};

/// A question is acknowledged by a stream in a file and taken by a pull consumer; an answer goes to a plain subject, whose
/// reader confirms it.
pub(crate) struct Nats {
    asking: Client,
    serving: Client,
    jetstream: Context,
    waiting: Waiting,
    request: String,
    replies: String,
    body: &'static str,
}

impl Nats {
    pub(crate) async fn start(url: &str, prefetch: u32, body: &'static str) -> Self {
        let asking = async_nats::connect(url).await.unwrap();
        let serving = async_nats::connect(url).await.unwrap();
        let (name, request) = (format!("bare-{prefetch}"), format!("bare.{prefetch}"));
        let stream = stream::Config {
            name: name.clone(),
            subjects: vec![request.clone()],
            retention: RetentionPolicy::Interest,
            storage: StorageType::File,
            persist_mode: Some(PersistenceMode::Async),
            ..Default::default()
        };
        let stream = jetstream::new(serving.clone()).create_stream(stream).await.unwrap();
        let consumer = pull::Config {
            durable_name: Some(name),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: -1,
            ..Default::default()
        };
        let consumer = stream.create_consumer(consumer).await.unwrap();
        let requests = consumer.stream().max_messages_per_batch(prefetch as usize).messages().await.unwrap();
        let answering = serving.clone();
        tokio::spawn(requests.for_each(move |message| {
            let answering = answering.clone();
            tokio::spawn(async move {
                // The server ends with the run, under its consumers.
                let Ok(message) = message else { return };
                let headers = message.headers.clone().unwrap();
                let to = headers.get(REPLY_TO).unwrap().to_string();
                answering.request_with_headers(to, headers, message.payload.clone()).await.unwrap();
                message.ack().await.unwrap();
            });
            async {}
        }));
        let (replies, waiting) = (asking.new_inbox(), Waiting::default());
        let answers = asking.subscribe(replies.clone()).await.unwrap();
        asking.flush().await.unwrap();
        let (confirming, waiters) = (asking.clone(), waiting.clone());
        tokio::spawn(answers.for_each(move |answer| {
            let (confirming, waiters) = (confirming.clone(), waiters.clone());
            async move {
                confirming.publish(answer.reply.unwrap(), "".into()).await.unwrap();
                waiters.answered(answer.headers.unwrap().get(ID).unwrap().as_str());
            }
        }));
        let jetstream = jetstream::new(asking.clone());
        Self { asking, serving, jetstream, waiting, request, replies, body }
    }
}

impl Bare for Nats {
    fn ask(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (id, answer) = self.waiting.add();
            let mut headers = HeaderMap::new();
            headers.insert(ID, id);
            headers.insert(REPLY_TO, self.replies.as_str());
            let sent = self.jetstream.publish_with_headers(self.request.clone(), headers, self.body.into());
            sent.await.unwrap().await.unwrap();
            answer.await.unwrap();
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            for client in [&self.asking, &self.serving] {
                client.drain().await.unwrap();
            }
        })
    }
}
