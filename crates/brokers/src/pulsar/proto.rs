//! What travels over a connection, as structs of our own: only the fields that we send or read. Numbers and types are the
//! protocol's; what is not named here is skipped when read.

use prost::{Message, Oneof};

/// How new a protocol we speak: with receipts of acknowledgements and without broker entry metadata.
pub(super) const PROTOCOL_VERSION: i32 = 17;

/// What the broker refuses with.
pub(super) mod code {
    pub(in super::super) const PERSISTENCE: i32 = 2;
    pub(in super::super) const AUTHENTICATION: i32 = 3;
    pub(in super::super) const AUTHORIZATION: i32 = 4;
    pub(in super::super) const QUOTA: i32 = 7;
    pub(in super::super) const QUOTA_EXCEPTION: i32 = 8;
    pub(in super::super) const TOPIC_NOT_FOUND: i32 = 11;
    pub(in super::super) const SUBSCRIPTION_NOT_FOUND: i32 = 12;
    pub(in super::super) const TERMINATED: i32 = 15;
    pub(in super::super) const PRODUCER_BUSY: i32 = 16;
    pub(in super::super) const NOT_ALLOWED: i32 = 22;
    pub(in super::super) const PRODUCER_FENCED: i32 = 25;
}

pub(super) const SHARED: i32 = 1;
pub(super) const EXCLUSIVE: i32 = 0;
/// Of a producer.
pub(super) const EXCLUSIVE_ACCESS: i32 = 1;
pub(super) const INDIVIDUAL: i32 = 0;

/// Of a look-up: the topic is served there; else another broker has to be asked, or there is an error.
pub(super) const CONNECT: i32 = 1;
pub(super) const REDIRECT: i32 = 0;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Envelope {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(
        oneof = "Command",
        tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 23, 24, 29, 30, 36, 37"
    )]
    pub(super) command: Option<Command>,
}

/// The number of a command is the number of its field too.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Command {
    #[prost(message, tag = "2")]
    Connect(Connect),
    #[prost(message, tag = "3")]
    Connected(Connected),
    #[prost(message, tag = "4")]
    Subscribe(Subscribe),
    #[prost(message, tag = "5")]
    Producer(Producer),
    #[prost(message, tag = "6")]
    Send(Send),
    #[prost(message, tag = "7")]
    SendReceipt(SendReceipt),
    #[prost(message, tag = "8")]
    SendError(SendError),
    #[prost(message, tag = "9")]
    Message(Deliver),
    #[prost(message, tag = "10")]
    Ack(Ack),
    #[prost(message, tag = "11")]
    Flow(Flow),
    #[prost(message, tag = "13")]
    Success(Success),
    #[prost(message, tag = "14")]
    Error(Failed),
    #[prost(message, tag = "15")]
    CloseProducer(Close),
    #[prost(message, tag = "16")]
    CloseConsumer(Close),
    #[prost(message, tag = "17")]
    ProducerSuccess(ProducerSuccess),
    #[prost(message, tag = "18")]
    Ping(Nothing),
    #[prost(message, tag = "19")]
    Pong(Nothing),
    #[prost(message, tag = "20")]
    Redeliver(Redeliver),
    #[prost(message, tag = "23")]
    Lookup(Lookup),
    #[prost(message, tag = "24")]
    LookupResponse(LookupResponse),
    #[prost(message, tag = "29")]
    GetLast(GetLast),
    #[prost(message, tag = "30")]
    Last(Last),
    #[prost(message, tag = "36")]
    AuthChallenge(Nothing),
    #[prost(message, tag = "37")]
    AuthResponse(AuthResponse),
}

impl From<Command> for Envelope {
    fn from(command: Command) -> Self {
        Self { kind: command.number(), command: Some(command) }
    }
}

impl Command {
    const fn number(&self) -> i32 {
        match self {
            Self::Connect(_) => 2,
            Self::Connected(_) => 3,
            Self::Subscribe(_) => 4,
            Self::Producer(_) => 5,
            Self::Send(_) => 6,
            Self::SendReceipt(_) => 7,
            Self::SendError(_) => 8,
            Self::Message(_) => 9,
            Self::Ack(_) => 10,
            Self::Flow(_) => 11,
            Self::Success(_) => 13,
            Self::Error(_) => 14,
            Self::CloseProducer(_) => 15,
            Self::CloseConsumer(_) => 16,
            Self::ProducerSuccess(_) => 17,
            Self::Ping(_) => 18,
            Self::Pong(_) => 19,
            Self::Redeliver(_) => 20,
            Self::Lookup(_) => 23,
            Self::LookupResponse(_) => 24,
            Self::GetLast(_) => 29,
            Self::Last(_) => 30,
            Self::AuthChallenge(_) => 36,
            Self::AuthResponse(_) => 37,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Connect {
    #[prost(string, required, tag = "1")]
    pub(super) client_version: String,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub(super) auth_data: Option<Vec<u8>>,
    #[prost(int32, optional, tag = "4")]
    pub(super) protocol_version: Option<i32>,
    #[prost(string, optional, tag = "5")]
    pub(super) auth_method_name: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub(super) proxy_to_broker_url: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Connected {
    #[prost(string, required, tag = "1")]
    pub(super) server_version: String,
    #[prost(int32, optional, tag = "3")]
    pub(super) max_message_size: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthResponse {
    #[prost(string, optional, tag = "1")]
    pub(super) client_version: Option<String>,
    #[prost(message, optional, tag = "2")]
    pub(super) response: Option<AuthData>,
    #[prost(int32, optional, tag = "3")]
    pub(super) protocol_version: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthData {
    #[prost(string, optional, tag = "1")]
    pub(super) auth_method_name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) auth_data: Option<Vec<u8>>,
}

/// Where a message is; no two of a broker are at one place, whatever their topics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Message)]
pub(super) struct MessageId {
    #[prost(uint64, required, tag = "1")]
    pub(super) ledger: u64,
    #[prost(uint64, required, tag = "2")]
    pub(super) entry: u64,
}

impl MessageId {
    /// Before the first message.
    pub(super) const EARLIEST: Self = Self { ledger: u64::MAX, entry: u64::MAX };
    /// Behind the last one.
    pub(super) const LATEST: Self = Self { ledger: i64::MAX as u64, entry: i64::MAX as u64 };
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Property {
    #[prost(string, required, tag = "1")]
    pub(super) key: String,
    #[prost(string, required, tag = "2")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Subscribe {
    #[prost(string, required, tag = "1")]
    pub(super) topic: String,
    #[prost(string, required, tag = "2")]
    pub(super) subscription: String,
    #[prost(int32, required, tag = "3")]
    pub(super) kind: i32,
    #[prost(uint64, required, tag = "4")]
    pub(super) consumer: u64,
    #[prost(uint64, required, tag = "5")]
    pub(super) request: u64,
    #[prost(string, optional, tag = "6")]
    pub(super) name: Option<String>,
    #[prost(bool, optional, tag = "8")]
    pub(super) durable: Option<bool>,
    #[prost(message, optional, tag = "9")]
    pub(super) start: Option<MessageId>,
    #[prost(bool, optional, tag = "11")]
    pub(super) compacted: Option<bool>,
    #[prost(bool, optional, tag = "15")]
    pub(super) force_topic_creation: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Producer {
    #[prost(string, required, tag = "1")]
    pub(super) topic: String,
    #[prost(uint64, required, tag = "2")]
    pub(super) producer: u64,
    #[prost(uint64, required, tag = "3")]
    pub(super) request: u64,
    #[prost(string, optional, tag = "4")]
    pub(super) name: Option<String>,
    #[prost(message, repeated, tag = "6")]
    pub(super) metadata: Vec<Property>,
    #[prost(bool, optional, tag = "9")]
    pub(super) is_name_given: Option<bool>,
    #[prost(int32, optional, tag = "10")]
    pub(super) access: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ProducerSuccess {
    #[prost(uint64, required, tag = "1")]
    pub(super) request: u64,
    #[prost(string, required, tag = "2")]
    pub(super) name: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Send {
    #[prost(uint64, required, tag = "1")]
    pub(super) producer: u64,
    #[prost(uint64, required, tag = "2")]
    pub(super) sequence: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct SendReceipt {
    #[prost(uint64, required, tag = "1")]
    pub(super) producer: u64,
    #[prost(uint64, required, tag = "2")]
    pub(super) sequence: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SendError {
    #[prost(uint64, required, tag = "1")]
    pub(super) producer: u64,
    #[prost(uint64, required, tag = "2")]
    pub(super) sequence: u64,
    #[prost(int32, required, tag = "3")]
    pub(super) code: i32,
    #[prost(string, required, tag = "4")]
    pub(super) message: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Deliver {
    #[prost(uint64, required, tag = "1")]
    pub(super) consumer: u64,
    #[prost(message, required, tag = "2")]
    pub(super) id: MessageId,
    #[prost(uint32, optional, tag = "3")]
    pub(super) redelivered: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Ack {
    #[prost(uint64, required, tag = "1")]
    pub(super) consumer: u64,
    #[prost(int32, required, tag = "2")]
    pub(super) kind: i32,
    #[prost(message, repeated, tag = "3")]
    pub(super) ids: Vec<MessageId>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Flow {
    #[prost(uint64, required, tag = "1")]
    pub(super) consumer: u64,
    #[prost(uint32, required, tag = "2")]
    pub(super) permits: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Redeliver {
    #[prost(uint64, required, tag = "1")]
    pub(super) consumer: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) ids: Vec<MessageId>,
}

/// Of a producer or a consumer.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Close {
    #[prost(uint64, required, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, required, tag = "2")]
    pub(super) request: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Success {
    #[prost(uint64, required, tag = "1")]
    pub(super) request: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Failed {
    #[prost(uint64, required, tag = "1")]
    pub(super) request: u64,
    #[prost(int32, required, tag = "2")]
    pub(super) code: i32,
    #[prost(string, required, tag = "3")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Lookup {
    #[prost(string, required, tag = "1")]
    pub(super) topic: String,
    #[prost(uint64, required, tag = "2")]
    pub(super) request: u64,
    #[prost(bool, optional, tag = "3")]
    pub(super) authoritative: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LookupResponse {
    #[prost(string, optional, tag = "1")]
    pub(super) url: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) url_tls: Option<String>,
    #[prost(int32, optional, tag = "3")]
    pub(super) response: Option<i32>,
    #[prost(uint64, required, tag = "4")]
    pub(super) request: u64,
    #[prost(bool, optional, tag = "5")]
    pub(super) authoritative: Option<bool>,
    #[prost(int32, optional, tag = "6")]
    pub(super) code: Option<i32>,
    #[prost(string, optional, tag = "7")]
    pub(super) message: Option<String>,
    #[prost(bool, optional, tag = "8")]
    pub(super) is_proxied: Option<bool>,
}

/// Asks where the last message of a consumer's topic is.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct GetLast {
    #[prost(uint64, required, tag = "1")]
    pub(super) consumer: u64,
    #[prost(uint64, required, tag = "2")]
    pub(super) request: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Last {
    #[prost(message, required, tag = "1")]
    pub(super) id: MessageId,
    #[prost(uint64, required, tag = "2")]
    pub(super) request: u64,
}

/// What stands before a body.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(string, required, tag = "1")]
    pub(super) producer_name: String,
    #[prost(uint64, required, tag = "2")]
    pub(super) sequence: u64,
    /// Milliseconds since 1970.
    #[prost(uint64, required, tag = "3")]
    pub(super) publish_time: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) properties: Vec<Property>,
    /// Of messages of which the last of each key counts.
    #[prost(string, optional, tag = "6")]
    pub(super) key: Option<String>,
    /// How many messages the body holds, where their sender put some into one.
    #[prost(int32, optional, tag = "11")]
    pub(super) in_batch: Option<i32>,
}

/// Of one message of several in one body; its own body follows.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OneMetadata {
    #[prost(message, repeated, tag = "1")]
    pub(super) properties: Vec<Property>,
    #[prost(string, optional, tag = "2")]
    pub(super) key: Option<String>,
    /// Of its body.
    #[prost(int32, required, tag = "3")]
    pub(super) bytes: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_written_under_its_number() {
        let close = Close { id: 7, request: 9 };
        let bytes = Envelope::from(Command::CloseConsumer(close)).encode_to_vec();
        // Field 1 is 16; field 16 holds fields 1 and 2.
        assert_eq!(bytes, [0x08, 16, 0x82, 0x01, 4, 0x08, 7, 0x10, 9]);
        let read = Envelope::decode(bytes.as_slice()).unwrap();
        assert_eq!(read.command, Some(Command::CloseConsumer(close)));
    }

    #[test]
    fn what_is_not_known_is_skipped() {
        // A command of number 50 with an empty body.
        let read = Envelope::decode([0x08, 50, 0x92, 0x03, 0].as_slice()).unwrap();
        assert_eq!((read.kind, read.command), (50, None));
    }
}
