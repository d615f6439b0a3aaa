//! `lapin` alone.

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};

use super::waiting::{ID, Waiting};

/// Two queues; each hop is published with a confirm, and the question acknowledged once it is answered.
pub(crate) struct Rabbit {
    publishing: Channel,
    waiting: Waiting,
    request: ShortString,
    replies: ShortString,
    body: &'static str,
    connections: Vec<Connection>,
}

impl Rabbit {
    pub(crate) async fn start(url: &str, prefetch: u16, body: &'static str) -> Self {
        let mut connections = Vec::new();
        let mut channels = Vec::new();
        for _ in 0..4 {
            let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
            channels.push(connection.create_channel().await.unwrap());
            connections.push(connection);
        }
        let [publishing, reading, serving, answering]: [Channel; 4] = channels.try_into().ok().unwrap();
        for channel in [&publishing, &answering] {
            channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        }
        serving.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
        let (request, replies) =
            (format!("bare-{prefetch}").into(), format!("bare-replies-{prefetch}").into());
        let requests = consume(&serving, &request, false).await;
        let answers = consume(&reading, &replies, true).await;
        let waiting = Waiting::default();
        tokio::spawn(requests.for_each(move |delivery| {
            let answering = answering.clone();
            tokio::spawn(async move {
                // The server ends with the run, under its consumers.
                let Ok(delivery) = delivery else { return };
                let to = delivery.properties.reply_to().clone().unwrap();
                let properties = delivery.properties.clone();
                publish(&answering, to, &delivery.data, properties).await;
                delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
            });
            async {}
        }));
        let waiters = waiting.clone();
        tokio::spawn(answers.for_each(move |delivery| {
            if let Ok(delivery) = delivery {
                waiters.answered(&id_of(&delivery.properties));
            }
            async {}
        }));
        Self { publishing, waiting, request, replies, body, connections }
    }

    /// One question and its answer.
    pub(crate) async fn ask(&self) {
        let (id, answer) = self.waiting.add();
        let mut headers = FieldTable::default();
        headers.insert(ID.into(), AMQPValue::LongString(id.into()));
        let replies = self.replies.clone();
        let properties = BasicProperties::default().with_headers(headers).with_reply_to(replies);
        publish(&self.publishing, self.request.clone(), self.body.as_bytes(), properties).await;
        answer.await.unwrap();
    }

    /// Disconnects; the library panics when its runtime ends first.
    pub(crate) async fn close(&self) {
        for connection in &self.connections {
            // Its consumers may be closing their channels already.
            let _ = connection.close(200, "done".into()).await;
        }
    }
}

async fn consume(channel: &Channel, queue: &ShortString, no_ack: bool) -> Consumer {
    let none = FieldTable::default;
    channel.queue_declare(queue.clone(), QueueDeclareOptions::default(), none()).await.unwrap();
    let options = BasicConsumeOptions { no_ack, ..Default::default() };
    channel.basic_consume(queue.clone(), "".into(), options, none()).await.unwrap()
}

async fn publish(channel: &Channel, to: ShortString, body: &[u8], properties: BasicProperties) {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirm = channel.basic_publish("".into(), to, options, body, properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
}

fn id_of(properties: &BasicProperties) -> String {
    let headers = properties.headers().as_ref().unwrap();
    String::from_utf8(headers.inner()[ID].as_long_string().unwrap().as_bytes().to_vec()).unwrap()
}
