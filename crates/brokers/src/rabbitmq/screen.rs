//! Stands between the broker and the client library. The library reads the headers of a message by recursion, on a thread
//! with a stack of two mebibytes: a table nested some thousand deep, which takes a few kilobytes to send, ends the process, and
//! comes again with the next connection. So what is nested deeper than anybody needs is turned into bytes before the library
//! sees it: a table and an array are written as a type, a length and content, and so are bytes, so that one byte changes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio, TokioRuntime};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::tcp::{AMQPUriTcpExt as _, AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};

/// Tables and arrays within each other that are read as such.
const DEPTH_MAX: usize = 16;
/// Bytes of a frame of headers; brokers and clients agree on 128 KiB as a rule.
const HEADER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes taken from the connection at once.
const CHUNK_BYTES: usize = 32 * 1024;
/// Type, channel and size of a frame.
const HEAD_BYTES: usize = 7;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Bytes of a header frame's payload before its properties: class, weight, size of the body, and which properties there are.
const FIXED_BYTES: usize = 14;
const HAS_CONTENT_TYPE: u16 = 1 << 15;
const HAS_CONTENT_ENCODING: u16 = 1 << 14;
const HAS_HEADERS: u16 = 1 << 13;

/// Connects to a broker through a [`Screen`].
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
) -> lapin::Result<Connection> {
    let inner = TokioRuntime::tokio_current();
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Screened(inner.clone())));
    let open = async move |uri: AMQPUri, _: Runtime<RuntimeParts<Tokio, Screened>>| {
        let stream = uri.connect_with_config_async(tls.as_ref(), &inner).await?;
        Ok(AsyncTcpStream::Plain(Screen::new(stream)))
    };
    Connection::connector(uri, runtime, open, properties).await
}

/// What tokio does for connections, whose streams are screened.
#[derive(Debug, Clone)]
struct Screened(TokioRuntime);

type Inner = AsyncTcpStream<<TokioRuntime as Reactor>::TcpStream>;

impl Reactor for Screened {
    type TcpStream = Screen<Inner>;
    type Sleep = <TokioRuntime as Reactor>::Sleep;

    /// Only connections that it makes itself are screened, so it takes no others.
    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Screen::new(AsyncTcpStream::Plain(connecting.await?))) }
    }
}

/// A connection whose headers nest no deeper than they may.
pub(super) struct Screen<S> {
    inner: S,
    filter: Filter,
    chunk: Box<[u8]>,
}

impl<S> Screen<S> {
    fn new(inner: S) -> Self {
        Self { inner, filter: Filter::default(), chunk: vec![0; CHUNK_BYTES].into() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Screen<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let screen = self.get_mut();
        loop {
            let given = screen.filter.give(into);
            if given > 0 || into.is_empty() {
                return Poll::Ready(Ok(given));
            }
            match Pin::new(&mut screen.inner).poll_read(cx, &mut screen.chunk) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(0)),
                Poll::Ready(Ok(taken)) => screen.filter.take(&screen.chunk[..taken])?,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Screen<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, from)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, from)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}

/// The bytes of a connection on their way; frames of headers wait until they are whole.
#[derive(Default)]
struct Filter {
    state: State,
    head: Vec<u8>,
    held: Vec<u8>,
    ready: Vec<u8>,
    given: usize,
}

#[derive(Default, Clone, Copy)]
enum State {
    /// At the beginning of a frame.
    #[default]
    Head,
    /// So many bytes of a frame go through.
    Pass(usize),
    /// So many bytes of a frame of headers are to come.
    Hold(usize),
    /// This is no conversation in frames, which the library will say.
    Blind,
}

impl Filter {
    /// Gives what is ready.
    fn give(&mut self, into: &mut [u8]) -> usize {
        let ready = &self.ready[self.given..];
        let count = ready.len().min(into.len());
        into[..count].copy_from_slice(&ready[..count]);
        self.given += count;
        if self.given == self.ready.len() {
            self.ready.clear();
            self.given = 0;
        }
        count
    }

    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.state {
                State::Blind => {
                    self.ready.extend_from_slice(bytes);
                    return Ok(());
                }
                State::Head => {
                    let (some, rest) = bytes.split_at(bytes.len().min(HEAD_BYTES - self.head.len()));
                    self.head.extend_from_slice(some);
                    bytes = rest;
                    if self.head.len() == HEAD_BYTES {
                        self.begin()?;
                    }
                }
                State::Pass(left) => {
                    let (some, rest) = bytes.split_at(bytes.len().min(left));
                    self.ready.extend_from_slice(some);
                    bytes = rest;
                    let left = left - some.len();
                    self.state = if left == 0 { State::Head } else { State::Pass(left) };
                }
                State::Hold(left) => {
                    let (some, rest) = bytes.split_at(bytes.len().min(left));
                    self.held.extend_from_slice(some);
                    bytes = rest;
                    let left = left - some.len();
                    self.state = if left == 0 { State::Head } else { State::Hold(left) };
                    if left == 0 {
                        // Its last byte ends the frame.
                        let end = self.held.len() - 1;
                        flatten(&mut self.held[..end]);
                        self.ready.append(&mut self.held);
                    }
                }
            }
        }
        Ok(())
    }

    /// A frame begins.
    fn begin(&mut self) -> io::Result<()> {
        let size = self.head.get(3..).and_then(|size| u32_at(size, 0)).unwrap_or_default();
        let rest = size.saturating_add(1);
        self.state = match self.head.first() {
            Some(&HEADER) if size > HEADER_BYTES_MAX => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "the broker sends {size} bytes of headers, more than the {HEADER_BYTES_MAX} that are taken"
                    ),
                ));
            }
            Some(&HEADER) => State::Hold(rest),
            Some(&(METHOD | BODY | HEARTBEAT)) => State::Pass(rest),
            _ => State::Blind,
        };
        self.ready.append(&mut self.head);
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(four)).ok()
}

/// Turns what is nested too deeply in a header frame's payload into bytes. Headers that cannot be followed become bytes
/// altogether: whoever reads them otherwise than this does must find nothing in them.
fn flatten(payload: &mut [u8]) {
    let Some(start) = table(payload) else { return };
    let Some(length) = u32_at(payload, start) else { return };
    let (from, to) = (start + 4, (start + 4).saturating_add(length).min(payload.len()));
    let headers = &mut payload[from..to];
    if follow(headers).is_none() {
        blank(headers);
    }
}

/// Where the table of headers begins, if there is one.
fn table(payload: &[u8]) -> Option<usize> {
    let flags = u16::from_be_bytes(payload.get(FIXED_BYTES - 2..FIXED_BYTES)?.try_into().ok()?);
    let mut at = FIXED_BYTES;
    for before in [HAS_CONTENT_TYPE, HAS_CONTENT_ENCODING] {
        if flags & before != 0 {
            at += 1 + usize::from(*payload.get(at)?);
        }
    }
    (flags & HAS_HEADERS != 0).then_some(at)
}

/// A table or an array that is being followed.
#[derive(Clone, Copy)]
struct Level {
    end: usize,
    has_keys: bool,
}

/// Follows a table's content, without recursion; `None` when it is not one.
fn follow(bytes: &mut [u8]) -> Option<()> {
    let mut levels = vec![Level { end: bytes.len(), has_keys: true }];
    let mut at = 0;
    while let Some(level) = levels.last().copied() {
        if at == level.end {
            levels.pop();
            continue;
        }
        if level.has_keys {
            at += 1 + usize::from(*bytes.get(at)?);
        }
        let kind = at;
        at += 1;
        let size = match *bytes.get(kind)? {
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'l' | b'L' | b'd' | b'T' => 8,
            b'V' => 0,
            b'S' | b'x' => 4 + u32_at(bytes, at)?,
            nested @ (b'F' | b'A') => {
                let length = u32_at(bytes, at)?;
                if levels.len() < DEPTH_MAX {
                    at += 4;
                    let end = at.checked_add(length)?;
                    if end > level.end {
                        return None;
                    }
                    levels.push(Level { end, has_keys: nested == b'F' });
                    continue;
                }
                bytes[kind] = b'x';
                4 + length
            }
            _ => return None,
        };
        at = at.checked_add(size)?;
        if at > level.end {
            return None;
        }
    }
    Some(())
}

/// Makes a table's content one member without a name that is all bytes. What is shorter has no room for nesting.
fn blank(content: &mut [u8]) {
    const BEFORE: usize = 6;
    let Some(rest) = content.len().checked_sub(BEFORE).and_then(|rest| u32::try_from(rest).ok()) else {
        return;
    };
    content[0] = 0;
    content[1] = b'x';
    content[2..BEFORE].copy_from_slice(&rest.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use lapin::types::AMQPValue;

    use super::*;

    fn nested(kinds: &[u8], depth: usize) -> Vec<u8> {
        let mut value: Vec<u8> = vec![b't', 1];
        for level in 0..depth {
            let kind = kinds[level % kinds.len()];
            let content = if kind == b'F' { [&[1, b'k'][..], &value].concat() } else { value };
            value = [&[kind][..], &u32::try_from(content.len()).unwrap().to_be_bytes(), &content].concat();
        }
        value
    }

    fn entry(key: &str, value: &[u8]) -> Vec<u8> {
        [&[u8::try_from(key.len()).unwrap()][..], key.as_bytes(), value].concat()
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 1][..], &u32::try_from(payload.len()).unwrap().to_be_bytes(), payload, &[0xce]].concat()
    }

    fn header_frame(content: &[u8]) -> Vec<u8> {
        let flags = HAS_CONTENT_TYPE | HAS_HEADERS;
        let fixed = [&[0, 60, 0, 0][..], &[0; 8], &flags.to_be_bytes(), &[1, b'c']].concat();
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        frame(HEADER, &[&fixed[..], &length, content].concat())
    }

    /// What comes out of a filter that gets its bytes so many at once.
    fn filtered(bytes: &[u8], at_once: usize) -> Vec<u8> {
        let mut filter = Filter::default();
        let mut out = Vec::new();
        for some in bytes.chunks(at_once) {
            filter.take(some).unwrap();
            let mut into = [0; 5];
            loop {
                let count = filter.give(&mut into);
                if count == 0 {
                    break;
                }
                out.extend_from_slice(&into[..count]);
            }
        }
        out
    }

    fn depth(mut value: &[u8]) -> usize {
        let mut depth = 0;
        while matches!(value[0], b'F' | b'A') {
            depth += 1;
            value = if value[0] == b'F' { &value[5 + 2..] } else { &value[5..] };
        }
        depth
    }

    #[test]
    fn what_nests_no_deeper_than_it_may_stays_as_it_is() {
        let plain = [entry("id", b"S\0\0\0\x011"), entry("deep", &nested(b"FA", DEPTH_MAX - 1))].concat();
        let frames = [
            frame(METHOD, b"deliver"),
            header_frame(&plain),
            frame(BODY, b"body"),
            frame(HEARTBEAT, b""),
            header_frame(b""),
        ]
        .concat();
        for at_once in [1, 3, 7, 64, 100_000] {
            assert_eq!(filtered(&frames, at_once), frames);
        }
    }

    #[test]
    fn what_nests_deeper_becomes_bytes_and_all_else_stays() {
        for kinds in [&b"F"[..], b"A", b"FA", b"AAF"] {
            let content =
                [entry("id", b"S\0\0\0\x011"), entry("deep", &nested(kinds, 3_000)), entry("z", b"V")]
                    .concat();
            let sent = [header_frame(&content), frame(BODY, b"body")].concat();
            let came = filtered(&sent, 1_000);
            assert_eq!(came.len(), sent.len());
            let changed: Vec<usize> = (0..sent.len()).filter(|at| came[*at] != sent[*at]).collect();
            assert_eq!(changed.len(), 1, "{kinds:?}");
            assert_eq!(came[changed[0]], b'x');
            let value = came.len() - sent.len()
                + HEAD_BYTES
                + FIXED_BYTES
                + 2
                + 4
                + entry("id", b"S\0\0\0\x011").len()
                + 5;
            assert_eq!(depth(&came[value..]), DEPTH_MAX - 1, "{kinds:?}");
        }
    }

    #[test]
    fn headers_that_cannot_be_followed_become_bytes_altogether() {
        for content in [
            entry("odd", b"?\0\0\0\0\0\0\0"),
            entry("long", b"S\0\0\xff\xffabc"),
            entry("long", b"F\0\0\xff\xff\0\0\0\0"),
            vec![200, b'k', b't', 1, 0, 0, 0, 0],
        ] {
            let came = filtered(&header_frame(&content), 100);
            let at = HEAD_BYTES + FIXED_BYTES + 2 + 4;
            let rest = u32::try_from(content.len() - 6).unwrap().to_be_bytes();
            assert_eq!(came[at..at + 6], [&[0, b'x'][..], &rest].concat());
            assert_eq!(came.len(), header_frame(&content).len());
        }
    }

    #[test]
    fn what_is_no_conversation_in_frames_goes_through_and_endless_headers_do_not() {
        let other = b"AMQP\0\0\x09\x01 and more";
        assert_eq!(filtered(other, 3), other);
        let mut filter = Filter::default();
        assert!(filter.take(&[HEADER, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    /// How deep a value nests as the library reads it.
    fn depth_of(value: &AMQPValue) -> usize {
        match value {
            AMQPValue::FieldTable(table) => 1 + table.inner().values().map(depth_of).max().unwrap_or(0),
            AMQPValue::FieldArray(array) => 1 + array.as_slice().iter().map(depth_of).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// What comes out of a filter that is given so many bytes at once, and whether it took all.
    fn screened(bytes: &[u8], at_once: usize) -> (Vec<u8>, bool) {
        let mut filter = Filter::default();
        let taken = bytes.chunks(at_once).all(|some| filter.take(some).is_ok());
        let mut out = vec![0; bytes.len()];
        let count = filter.give(&mut out);
        out.truncate(count);
        (out, taken)
    }

    /// The payloads of header frames in a stream of frames.
    fn headers(mut stream: &[u8]) -> Vec<&[u8]> {
        let mut all = Vec::new();
        while let Some(size) = stream.get(3..).and_then(|rest| u32_at(rest, 0)) {
            let Some(end) = size.checked_add(HEAD_BYTES + 1).filter(|end| *end <= stream.len()) else {
                break;
            };
            match stream[0] {
                HEADER => all.push(&stream[HEAD_BYTES..end - 1]),
                METHOD | BODY | HEARTBEAT => {}
                _ => break,
            }
            stream = &stream[end..];
        }
        all
    }

    #[test]
    fn any_bytes_of_a_broker_are_read_without_deep_recursion_however_they_come() {
        let plain = [entry("id", b"S\0\0\0\x011"), entry("deep", &nested(b"FA", DEPTH_MAX - 1))].concat();
        let deep =
            [entry("a", b"D\x02\0\0\0\x07"), entry("deep", &nested(b"AF", 40)), entry("z", b"V")].concat();
        let known: [&[u8]; 3] = [
            &[frame(METHOD, b"deliver"), header_frame(&plain), frame(BODY, b"body")].concat(),
            &[header_frame(&deep), frame(HEARTBEAT, b""), header_frame(b"")].concat(),
            &[frame(BODY, b"\x02\0\x01\0\0\0\x05"), header_frame(&entry("n", &nested(b"F", 200)))].concat(),
        ];
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/amqp");
        sluice_fuzz::run("amqp", &corpus, 5_000, &known, &|input| {
            let (out, taken) = screened(input, usize::MAX);
            for at_once in [1, 6, 100] {
                assert_eq!(screened(input, at_once), (out.clone(), taken), "{at_once} at once");
            }
            assert!(out.len() <= input.len());
            assert!(!taken || screened(&out, usize::MAX).0 == out, "what is through is changed again");
            for payload in headers(&out) {
                // As the library does: what cannot be read is an error there, but what can must not be deep.
                let Some(rest) = payload.get(FIXED_BYTES - 2..) else { continue };
                let Ok((_, properties)) = lapin::protocol::basic::parse_properties(rest) else { continue };
                let values = properties.headers().iter().flat_map(|table| table.inner().values());
                assert!(values.map(depth_of).max().unwrap_or(0) < DEPTH_MAX);
            }
        });
    }
}
