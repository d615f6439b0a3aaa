//! The admin API: calls, and what its answers mean.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::LOCATION;
use reqwest::{Certificate, Method, Response, StatusCode, redirect};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_bus::{Error, Result};
use url::Url;

use super::Options;
use super::address::Address;
use crate::Secret;

/// The largest answer that is read: the names of some hundred thousand topics.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long an unused connection is kept: less than the broker's 30 s, or a call would meet its end.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How often a call may be sent on to another broker.
const REDIRECTS_MAX: usize = 8;

pub(super) struct Rest {
    client: reqwest::Client,
    base: Url,
    token: Option<Secret>,
}

/// A call: to a path under the admin API.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) path: &'a [&'a str],
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) body: Option<Value>,
}

impl<'a> Call<'a> {
    pub(super) const fn get(path: &'a [&'a str]) -> Self {
        Self { method: Method::GET, path, query: &[], body: None }
    }

    pub(super) const fn put(path: &'a [&'a str], body: Value) -> Self {
        Self { method: Method::PUT, path, query: &[], body: Some(body) }
    }

    pub(super) const fn post(path: &'a [&'a str], body: Value) -> Self {
        Self { method: Method::POST, path, query: &[], body: Some(body) }
    }

    pub(super) const fn delete(path: &'a [&'a str], query: &'a [(&'a str, &'a str)]) -> Self {
        Self { method: Method::DELETE, path, query, body: None }
    }

    /// For people.
    fn what(&self) -> String {
        format!("a call of the broker's admin API ({} {})", self.method, self.path.join("/"))
    }
}

/// What the API answered.
pub(super) struct Answer {
    what: String,
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    pub(super) fn is_done(&self) -> bool {
        self.status.is_success()
    }

    pub(super) fn is_absent(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    pub(super) fn is_there_already(&self) -> bool {
        self.status == StatusCode::CONFLICT
    }

    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::Unavailable { reason: format!("{}: {error}", self.what) })
    }

    /// What it means that it was not done.
    pub(super) fn error(&self) -> Error {
        let said = serde_json::from_slice::<Value>(&self.body).ok();
        let said = said.as_ref().and_then(|said| said["reason"].as_str()).map_or_else(
            || String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).into_owned(),
            str::to_owned,
        );
        let reason = format!("{}: {} {said}", self.what, self.status.as_u16());
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::Refused { reason: format!("the broker does not allow this user {reason}") }
            }
            StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_ACCEPTABLE => {
                Error::Refused { reason }
            }
            _ => Error::Unavailable { reason },
        }
    }
}

impl Rest {
    pub(super) fn new(address: &Address, options: &Options) -> Result<Self> {
        let refused = |error: &dyn std::fmt::Display| Error::Refused {
            reason: format!("no client for the broker's admin API: {error}"),
        };
        let mut client =
            reqwest::Client::builder().redirect(redirect::Policy::none()).pool_idle_timeout(IDLE_MAX);
        if let Some(pem) = &options.ca_pem {
            let certificates =
                Certificate::from_pem_bundle(pem.as_bytes()).map_err(|error| refused(&error))?;
            client = certificates.into_iter().fold(client, reqwest::ClientBuilder::add_root_certificate);
        }
        let client = client.build().map_err(|error| refused(&error))?;
        Ok(Self { client, base: address.admin().clone(), token: address.token().cloned() })
    }

    /// Makes a call; the answer may say that it was not done.
    ///
    /// # Errors
    /// Where there is no answer.
    pub(super) async fn call(&self, call: &Call<'_>, within: Duration) -> Result<Answer> {
        let what = call.what();
        match tokio::time::timeout(within, self.follow(call, &what)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::TimedOut { what, after_ms: within.as_millis() as u64 }),
        }
    }

    /// The broker that is asked may send on to the one that serves the topic.
    async fn follow(&self, call: &Call<'_>, what: &str) -> Result<Answer> {
        let mut url = self.url(call)?;
        for _ in 0..REDIRECTS_MAX {
            let response = self.send(call, url.clone(), what).await?;
            let next = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            match next.map(|next| url.join(next)) {
                Some(Ok(next)) if response.status().is_redirection() => url = next,
                _ => return answer(response, what).await,
            }
        }
        Err(Error::Unavailable { reason: format!("{what} is sent from broker to broker") })
    }

    fn url(&self, call: &Call<'_>) -> Result<Url> {
        let mut url = self.base.clone();
        let refused = |()| Error::Refused { reason: "the admin URL cannot have a path".to_owned() };
        url.path_segments_mut().map_err(refused)?.pop_if_empty().extend(["admin", "v2"]).extend(call.path);
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(call.query);
        }
        Ok(url)
    }

    async fn send(&self, call: &Call<'_>, url: Url, what: &str) -> Result<Response> {
        let mut request = self.client.request(call.method.clone(), url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        request.send().await.map_err(|error| {
            let (is_begun, reason) = (!error.is_connect(), described(&error));
            if is_begun && call.method != Method::GET {
                return Error::OutcomeUnknown { what: what.to_owned(), reason };
            }
            Error::Unavailable { reason: format!("{what}: {reason}") }
        })
    }
}

async fn answer(mut response: Response, what: &str) -> Result<Answer> {
    let status = response.status();
    let cut = |reason: String| Error::Unavailable { reason: format!("{what}: {reason}") };
    let mut body = BytesMut::new();
    while let Some(part) = response.chunk().await.map_err(|error| cut(described(&error)))? {
        if body.len() + part.len() > ANSWER_BYTES_MAX {
            return Err(cut(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&part);
    }
    Ok(Answer { what: what.to_owned(), status, body: body.freeze() })
}

/// With what lies behind it, and without the URL.
fn described(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        causes.push(next.to_string());
        cause = next.source();
    }
    if causes.is_empty() { "no answer".to_owned() } else { causes.join(": ") }
}
