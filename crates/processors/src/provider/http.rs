//! One provider over HTTP: questions asked again with growing pauses while it is busy or away, bounded waits, and answers
//! in one piece or as a stream of frames. Dropping a future or a [`Stream`] closes the connection, so the provider sees that
//! nobody wants its answer any more.

use std::future::Future;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use serde_json::Value;
use sluice_schema::address;
use sluice_sdk::Backoff;
use tokio::time::{Instant, timeout_at};

use super::frames::{Frames, Framing};
use super::{Dialect, ModelConfig, ModelError, Secret};

/// Longest pause between tries when the provider asks for none.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Bytes of an answer at most.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a refusal that are read, and characters of it that are passed on.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
const REASON_CHARS_MAX: usize = 300;

/// A provider that can be asked.
pub(crate) struct Service {
    http: reqwest::Client,
    /// The base URL without anything that could be a password, for messages.
    shown: String,
    root: String,
    pub(crate) config: ModelConfig,
}

/// What is asked: a path below the dialect's root, and a body to post or nothing to get.
pub(crate) struct Question {
    pub(crate) path: &'static str,
    pub(crate) body: Option<Value>,
}

/// How a try ended.
pub(crate) struct Failed {
    pub(crate) error: ModelError,
    /// Whether another try may help, after the pause that the provider asked for.
    again: Option<Option<Duration>>,
}

impl Failed {
    /// It stays so.
    pub(crate) const fn for_good(error: ModelError) -> Self {
        Self { error, again: None }
    }

    /// Another try may help.
    pub(crate) const fn for_now(error: ModelError, asked_pause: Option<Duration>) -> Self {
        Self { error, again: Some(asked_pause) }
    }
}

/// What a question that may be streamed got.
pub(crate) enum Opened {
    Stream(Box<Stream>),
    /// All at once, although parts were asked for.
    Whole(String),
}

impl Service {
    pub(crate) fn new(config: ModelConfig) -> Result<Self, ModelError> {
        let url = Url::parse(config.base_url.trim()).map_err(|e| ModelError::BadUrl(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(ModelError::BadUrl("it begins with neither http:// nor https://".to_owned()));
        }
        let is_sendable = |key: &Secret| HeaderValue::from_str(key.reveal()).is_ok();
        if !config.api_key.as_ref().is_none_or(is_sendable) {
            let reason = "the key of the model's provider cannot be sent: it holds a line break or another character that no \
                          header can have";
            return Err(ModelError::Unfit(reason.to_owned()));
        }
        // Somebody else in the process may have installed one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().connect_timeout(config.connect_timeout).build();
        let http = http.map_err(|e| ModelError::NoClient(causes(&e)))?;
        Ok(Self { http, root: root(config.dialect, &url), shown: shown(&config.base_url), config })
    }

    /// Asks, and reads the answer in one piece, until there is one, a final refusal, no try left or no time.
    pub(crate) async fn ask(&self, question: &Question) -> Result<String, ModelError> {
        let deadline = Instant::now() + self.config.total_timeout;
        self.retrying(deadline, || async {
            let mut answer = self.send(question).await?;
            self.body(&mut answer, BODY_BYTES_MAX).await.map_err(Failed::for_good)
        })
        .await
    }

    /// One try to ask for an answer in parts.
    pub(crate) async fn open(
        &self,
        question: &Question,
        framing: Framing,
        deadline: Instant,
    ) -> Result<Opened, Failed> {
        let mut answer = self.send(question).await?;
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if framing == Framing::Events && kind.starts_with("application/json") {
            let whole = self.body(&mut answer, BODY_BYTES_MAX).await.map_err(Failed::for_good)?;
            return Ok(Opened::Whole(whole));
        }
        let (frames, idle) = (Frames::new(framing), self.config.idle_timeout);
        let stream = Stream { answer, frames, idle, deadline, shown: self.shown.clone(), ended: false };
        Ok(Opened::Stream(Box::new(stream)))
    }

    /// Repeats tries while they fail for now, with growing pauses, up to the deadline.
    pub(crate) async fn retrying<T, Fut>(
        &self,
        deadline: Instant,
        attempt: impl Fn() -> Fut,
    ) -> Result<T, ModelError>
    where
        Fut: Future<Output = Result<T, Failed>>,
    {
        let started = Instant::now();
        let backoff = Backoff { min: self.config.retry_pause, max: RETRY_PAUSE_MAX };
        let mut attempts = 0;
        let mut last = None;
        loop {
            let Ok(tried) = timeout_at(deadline, attempt()).await else {
                return Err(last.unwrap_or_else(|| self.late("answer", deadline - started)));
            };
            let (error, asked_pause) = match tried {
                Ok(answer) => return Ok(answer),
                Err(Failed { error, again: None }) => return Err(error),
                Err(Failed { error, again: Some(asked_pause) }) => (error, asked_pause),
            };
            attempts += 1;
            // More than asked for, each call its own bit, or all that wait come back at once.
            let pause = asked_pause.unwrap_or_default() + backoff.pause(attempts - 1);
            if attempts >= self.config.attempts_max
                || asked_pause.is_some_and(|asked| asked > self.config.retry_after_max)
                || Instant::now() + pause > deadline
            {
                return Err(error);
            }
            tracing::warn!(%error, attempt = attempts, ?pause, "a model is asked again");
            last = Some(error);
            tokio::time::sleep(pause).await;
        }
    }

    /// One try, up to the headers of a good answer.
    async fn send(&self, question: &Question) -> Result<reqwest::Response, Failed> {
        let url = format!("{}/{}", self.root, question.path);
        let request = match &question.body {
            Some(body) => self.http.post(url).json(body),
            None => self.http.get(url),
        };
        let request = match (&self.config.api_key, self.config.dialect) {
            (None, _) => request,
            (Some(key), Dialect::Anthropic) => request.header("x-api-key", key.reveal()),
            (Some(key), Dialect::OpenAi | Dialect::Ollama) => request.bearer_auth(key.reveal()),
        };
        let request = match self.config.dialect {
            Dialect::Anthropic => request.header("anthropic-version", "2023-06-01"),
            Dialect::OpenAi | Dialect::Ollama => request,
        };
        let sent = tokio::time::timeout(self.config.idle_timeout, request.send()).await;
        let mut answer = match sent {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Failed::for_now(self.unavailable(&causes(&error)), None)),
            Err(_) => return Err(Failed::for_good(self.late("begin to answer", self.config.idle_timeout))),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let pause = retry_after(answer.headers(), SystemTime::now());
        let body = self.body(&mut answer, REFUSAL_BYTES_MAX).await.unwrap_or_default();
        Err(self.refusal(status, pause, &body))
    }

    fn refusal(&self, status: StatusCode, pause: Option<Duration>, body: &str) -> Failed {
        let mut reason = format!("{} {}", status.as_u16(), self.reason(body));
        if let Some(pause) = pause.filter(|pause| *pause > self.config.retry_after_max) {
            reason.push_str(&format!(" (it wants a pause of {} s)", pause.as_secs()));
        }
        match status.as_u16() {
            // No pause brings back money that is spent.
            429 if body.contains("insufficient_quota") => Failed::for_good(self.refused(&reason)),
            429 | 529 => Failed::for_now(self.rate_limited(&reason), pause),
            408 | 500 | 502..=504 => Failed::for_now(self.unavailable(&reason), pause),
            _ => Failed::for_good(self.refused(&reason)),
        }
    }

    /// A failure that was told in an answer that had begun.
    pub(crate) fn told(&self, kind: &str, reason: &str) -> Failed {
        let reason = self.reason(reason);
        let has = |parts: &[&str]| parts.iter().any(|part| kind.contains(part) || reason.contains(part));
        if has(&["overloaded", "rate_limit", "rate limit"]) {
            Failed::for_now(self.rate_limited(&reason), None)
        } else if has(&["api_error", "server_error", "internal"]) {
            Failed::for_now(self.unavailable(&reason), None)
        } else {
            Failed::for_good(self.refused(&reason))
        }
    }

    async fn body(&self, answer: &mut reqwest::Response, bytes_max: usize) -> Result<String, ModelError> {
        let idle = self.config.idle_timeout;
        let mut body = Vec::new();
        loop {
            match tokio::time::timeout(idle, answer.chunk()).await {
                Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(broke_off(&self.shown, causes(&error))),
                Err(_) => return Err(self.late("go on answering", idle)),
            }
            if body.len() > bytes_max {
                let reason = format!("it is longer than {bytes_max} bytes");
                return Err(self.garbage("a short answer", &reason));
            }
        }
        String::from_utf8(body).map_err(|_| self.garbage("text", "it is not UTF-8"))
    }

    /// What a provider's answer says is wrong: the message of an error object, else the beginning of the text.
    fn reason(&self, body: &str) -> String {
        let json: Value = serde_json::from_str(body).unwrap_or_default();
        let pointers = ["/error/message", "/error", "/message", "/detail"];
        let message = pointers.iter().find_map(|pointer| json.pointer(pointer)?.as_str()).unwrap_or(body);
        let mut reason: String = message.trim().chars().take(REASON_CHARS_MAX).collect();
        if let Some(key) = self.config.api_key.as_ref().filter(|key| !key.reveal().is_empty()) {
            reason = reason.replace(key.reveal(), "***");
        }
        reason
    }

    pub(crate) fn garbage(&self, wanted: &'static str, reason: &str) -> ModelError {
        ModelError::Garbage { url: self.shown.clone(), wanted, reason: reason.to_string() }
    }

    pub(crate) fn broke_off(&self, reason: &str) -> ModelError {
        broke_off(&self.shown, reason.to_owned())
    }

    fn unavailable(&self, reason: &str) -> ModelError {
        ModelError::Unavailable { url: self.shown.clone(), reason: reason.to_owned() }
    }

    fn rate_limited(&self, reason: &str) -> ModelError {
        ModelError::RateLimited { url: self.shown.clone(), reason: reason.to_owned() }
    }

    fn refused(&self, reason: &str) -> ModelError {
        ModelError::Refused { url: self.shown.clone(), reason: reason.to_owned() }
    }

    fn late(&self, what: &'static str, timeout: Duration) -> ModelError {
        late(&self.shown, what, timeout)
    }
}

/// An answer that comes in frames.
pub(crate) struct Stream {
    answer: reqwest::Response,
    frames: Frames,
    idle: Duration,
    deadline: Instant,
    shown: String,
    ended: bool,
}

impl Stream {
    /// The next frame; `None` at the end of the body.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, ModelError> {
        let garbage =
            |reason| ModelError::Garbage { url: self.shown.clone(), wanted: "a stream of parts", reason };
        loop {
            if let Some(frame) = self.frames.next() {
                return frame.map(Some).map_err(garbage);
            }
            if self.ended {
                return Ok(None);
            }
            let started = Instant::now();
            let until = self.deadline.min(started + self.idle);
            match timeout_at(until, self.answer.chunk()).await {
                Ok(Ok(Some(bytes))) => self.frames.push(&bytes).map_err(garbage)?,
                Ok(Ok(None)) => {
                    self.ended = true;
                    self.frames.end();
                }
                Ok(Err(error)) => return Err(broke_off(&self.shown, causes(&error))),
                Err(_) => return Err(late(&self.shown, "go on answering", until - started)),
            }
        }
    }
}

fn broke_off(url: &str, reason: String) -> ModelError {
    ModelError::BrokeOff { url: url.to_owned(), reason }
}

fn late(url: &str, what: &'static str, timeout: Duration) -> ModelError {
    ModelError::TimedOut { url: url.to_owned(), what, timeout_ms: timeout.as_millis() }
}

/// A base URL without anything that could be a secret.
pub(crate) fn shown(url: &str) -> String {
    address::shown(url).unwrap_or_else(|| "the address that was given".to_owned())
}

/// Where a dialect's paths begin, whether or not the base URL says it.
fn root(dialect: Dialect, url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    let path = url.path().trim_end_matches('/');
    let path = match dialect {
        Dialect::OpenAi if path.is_empty() && url.host_str() == Some("api.openai.com") => "/v1".to_owned(),
        Dialect::OpenAi => path.to_owned(),
        Dialect::Anthropic => format!("{}/v1", path.trim_end_matches("/v1")),
        Dialect::Ollama => format!("{}/api", path.trim_end_matches("/api").trim_end_matches("/v1")),
    };
    url.set_path(&path);
    url.as_str().trim_end_matches('/').to_owned()
}

/// The pause that a provider asks for: milliseconds, seconds, or until a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim());
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1_000.0).ok();
    }
    let text = text("retry-after")?;
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

/// An error with its causes, since the first one seldom says what happened.
fn causes(error: &reqwest::Error) -> String {
    let mut text = if error.is_connect() { "no connection".to_owned() } else { without_url(error) };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What happened, without the URL, which may hold a password.
fn without_url(error: &reqwest::Error) -> String {
    let text = error.to_string();
    match error.url() {
        Some(url) => text.replace(url.as_str(), &shown(url.as_str())),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_completed_for_its_dialect() {
        for (dialect, url, expected) in [
            (Dialect::OpenAi, "https://api.openai.com", "https://api.openai.com/v1"),
            (Dialect::OpenAi, "http://localhost:1234/v1/", "http://localhost:1234/v1"),
            (Dialect::OpenAi, "http://localhost:8080", "http://localhost:8080"),
            (Dialect::Anthropic, "https://api.anthropic.com/v1", "https://api.anthropic.com/v1"),
            (Dialect::Anthropic, "https://x/anthropic?a=b", "https://x/anthropic/v1"),
            (Dialect::Ollama, "http://localhost:11434/", "http://localhost:11434/api"),
            (Dialect::Ollama, "http://localhost:11434/api", "http://localhost:11434/api"),
            (Dialect::Ollama, "http://localhost:11434/v1", "http://localhost:11434/api"),
        ] {
            assert_eq!(root(dialect, &Url::parse(url).unwrap()), expected, "{dialect} {url}");
        }
    }

    #[test]
    fn a_pause_may_be_asked_for_in_three_ways() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (name, text, expected) in [
            ("retry-after", "7", Some(7_000)),
            ("retry-after", "0.5", Some(500)),
            ("retry-after-ms", "20", Some(20)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT", Some(20_000)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("retry-after", "soon", None),
            ("retry-after", "-1", None),
            ("other", "1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, text.parse().unwrap());
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_millis), "{name}: {text}");
        }
    }

    #[test]
    fn passwords_and_keys_are_not_told() {
        for wrong in ["https://u:hush@h:99999/v1", "u:hush@h/v1", "https//u:hush@h", "ftp://u:hush@h"] {
            let told = Service::new(ModelConfig::new(wrong)).err().map(|error| error.to_string());
            assert!(told.as_ref().is_some_and(|told| !told.contains("hush")), "{wrong}: {told:?}");
        }
        let mut config = ModelConfig::new("http://me:pw@host:1/v1?key=abc");
        config.api_key = Some(Secret::new("hush\nhush"));
        let told = Service::new(config.clone()).err().map(|error| error.to_string()).unwrap();
        assert!(told.contains("cannot be sent") && !told.contains("hush"), "{told}");
        config.api_key = Some(Secret::new("sk-1"));
        assert_eq!(Service::new(config.clone()).unwrap().shown, "http://host:1/v1");
        let service = Service::new(config).unwrap();
        let body = r#"{"error": {"message": "Incorrect API key provided: sk-1."}}"#;
        assert_eq!(service.reason(body), "Incorrect API key provided: ***.");
        assert_eq!(service.reason(r#"{"error": "no such model"}"#), "no such model");
        assert_eq!(service.reason("<html>"), "<html>");
    }
}
