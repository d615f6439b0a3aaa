//! Who calls, and whether they may: the identity service is asked over the bus, its word is kept for a minute.
//!
//! **Invariant: a failure to ask never means yes, and is never told as a refusal.** The caller is told that the identity
//! service or the bus is away, and may come again.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use sluice_bus::{Broker, Client, Error, Patience, Replies, property};
use sluice_schema::api::Reply;
use sluice_schema::message::{self, IamRequest, IamResponse};
use sluice_schema::{WorkspaceId, exchange, system, wire};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use crate::cache::Cache;
use crate::connections::{self, Connection, Stage};
use crate::metrics::Metrics;
use crate::refusal::{IAM_UNAVAILABLE, Refusal};
use crate::tries::Tries;

const IDENTITIES_MAX: usize = 10_000;
const DECISIONS_MAX: usize = 50_000;
/// How long a credential that was accepted counts as one that is not guessed.
const ACCEPTED_BEFORE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long it is remembered that nobody is let in without a credential.
const CLOSED_FOR: Duration = Duration::from_secs(5);
/// How long a refused credential is refused again without asking; it is no new guess.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// Credentials never accepted before that the identity service is asked about at once; more wait.
const NEW_CREDENTIALS_MAX: usize = 64;
const NEW_CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failure to ask, the next question is put this much later; until then the answer is the same.
const AWAY_PAUSE: Duration = Duration::from_millis(500);
/// In the words of the log.
const NOT_PERMITTED: &str = "the identity service does not permit what it asks for";
/// How long a look at the identity service may take, and how long its good outcome holds.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_HOLDS: Duration = Duration::from_secs(1);

/// An authenticated caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) handle: Arc<str>,
    /// Where the caller works unless a call says otherwise.
    pub(crate) workspace: WorkspaceId,
}

/// What a caller shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Nothing.
    Absent,
    /// A token, not looked at yet.
    Token(Token),
    /// Something that has been refused; only a new one helps.
    Refused,
}

/// A token with its digest, which is made once and not for each call of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    text: Arc<str>,
    digest: [u8; 32],
}

impl Credential {
    /// An empty token is none.
    pub(crate) fn from_token(token: Option<&str>) -> Self {
        match token.map(str::trim) {
            None | Some("") => Self::Absent,
            Some(token) => Self::Token(Token { text: token.into(), digest: Sha256::digest(token).into() }),
        }
    }
}

/// Where a call comes from, and the connection it came over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(crate) request_id: Arc<str>,
    /// Behind a trusted proxy, the proxy's client.
    pub(crate) client: Option<IpAddr>,
    /// Our end of the connection, as far as that is known.
    pub(crate) local: Option<SocketAddr>,
    pub(crate) connection: Option<Arc<Connection>>,
}

impl Origin {
    /// The address as limits see it.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.client.map(connections::network)
    }

    /// A credential that was accepted before came on this connection, which does not give way to strangers while it is asked
    /// whether it still is. The connection with the stage to go back to, if it was a stranger's.
    fn recognised(&self) -> Option<(&Arc<Connection>, Stage)> {
        let connection = self.connection.as_ref().filter(|connection| !connection.is_known())?;
        let stage = connection.stage();
        connection.known();
        Some((connection, stage))
    }

    /// A credential was accepted on this connection.
    fn known(&self) {
        if let Some(connection) = &self.connection
            && !connection.is_known()
        {
            connection.known();
        }
    }
}

/// A question of permission.
pub(crate) struct Permission<'a> {
    pub(crate) capability: &'a str,
    /// The workspace and flow that the call touches; neither for the system itself.
    pub(crate) workspace: Option<&'a str>,
    pub(crate) flow: Option<&'a str>,
    /// The workspace that a user or key operation is about.
    pub(crate) about: Option<&'a str>,
}

impl Permission<'_> {
    fn resource(&self) -> String {
        match (self.flow, self.workspace) {
            (Some(flow), Some(workspace)) => json!({"flow": flow, "workspace": workspace}).to_string(),
            (_, Some(workspace)) => json!({"workspace": workspace}).to_string(),
            (_, None) => "{}".to_owned(),
        }
    }

    fn parameters(&self) -> String {
        self.about.map_or_else(|| "{}".to_owned(), |workspace| json!({"workspace": workspace}).to_string())
    }

    fn cache_key(&self, handle: &str) -> String {
        let parts = [Some(handle), Some(self.capability), self.workspace, self.flow, self.about];
        let mut key = String::with_capacity(parts.iter().flatten().map(|part| part.len() + 1).sum());
        for part in parts {
            key.push_str(part.unwrap_or("\u{1}"));
            key.push('\0');
        }
        key
    }
}

/// Asks the identity service through one long-lived client.
pub(crate) struct Gatekeeper {
    replies: Replies,
    client: OnceCell<Client<exchange::Iam>>,
    known: Cache<[u8; 32], Arc<Identity>>,
    accepted_before: Cache<[u8; 32], ()>,
    refused: Cache<[u8; 32], ()>,
    decisions: Cache<String, bool>,
    /// Until when it is known that nobody is let in without a credential.
    closed_until: Mutex<Option<Instant>>,
    /// The last failure to ask, and until when it stands for the next.
    away: Mutex<Option<(Refusal, Instant)>>,
    new_credentials: Semaphore,
    /// When the identity service was last seen to answer.
    seen: tokio::sync::Mutex<Option<Instant>>,
    pub(crate) tries: Tries,
    timeout: Duration,
    trust_timeout: Duration,
    metrics: Metrics,
}

impl Gatekeeper {
    pub(crate) fn new(
        replies: Replies,
        timeout: Duration,
        trust_timeout: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            replies,
            client: OnceCell::new(),
            known: Cache::new(IDENTITIES_MAX),
            accepted_before: Cache::new(IDENTITIES_MAX),
            refused: Cache::new(IDENTITIES_MAX),
            decisions: Cache::new(DECISIONS_MAX),
            closed_until: Mutex::default(),
            away: Mutex::default(),
            new_credentials: Semaphore::new(NEW_CREDENTIALS_MAX),
            seen: tokio::sync::Mutex::default(),
            tries: Tries::default(),
            timeout,
            trust_timeout: trust_timeout.min(Duration::from_secs(60)),
            metrics,
        }
    }

    /// Who shows this credential. Every refused one looks the same from outside.
    pub(crate) async fn authenticate(
        &self,
        credential: &Credential,
        origin: &Origin,
    ) -> Result<Arc<Identity>, Refusal> {
        let (token, digest) = match credential {
            Credential::Refused => return Err(Refusal::Unauthenticated),
            Credential::Absent => ("", Sha256::digest("").into()),
            Credential::Token(token) => (&*token.text, token.digest),
        };
        let identity = match self.known.get(&digest) {
            Some(identity) => identity,
            // In a box, as is all that calls wait for seldom: the future of a call is moved and allocated with each one.
            None => {
                let was = self.accepted_before.get(&digest).and_then(|()| origin.recognised());
                let resolved = Box::pin(self.resolve(token, digest, origin)).await;
                if let (Err(_), Some((connection, stage))) = (&resolved, was) {
                    connection.enter(stage);
                }
                resolved?
            }
        };
        origin.known();
        Ok(identity)
    }

    async fn resolve(
        &self,
        token: &str,
        digest: [u8; 32],
        origin: &Origin,
    ) -> Result<Arc<Identity>, Refusal> {
        let is_key = token.starts_with("tg_");
        // A system without authentication takes any token; any other refuses the anonymous caller, whatever the token.
        let (operation, api_key) =
            if is_key { ("resolve-api-key", token) } else { ("authenticate-anonymous", "") };
        let reason = match (is_key, token.is_empty()) {
            (true, _) => "invalid-api-key",
            (false, true) => "anonymous-rejected",
            (false, false) => "malformed-credential",
        };
        if self.refused.get(&digest).is_some() {
            self.metrics.auth_failed(reason);
            return Err(Refusal::Unauthenticated);
        }
        let was_accepted = self.accepted_before.get(&digest).is_some();
        if !token.is_empty() && !was_accepted {
            self.tries.check(origin)?;
        }
        if !is_key && self.is_closed() {
            return Err(self.refuse(token, digest, reason, origin));
        }
        let _turn = if was_accepted { None } else { Some(self.turn().await?) };
        if !token.is_empty() && !was_accepted {
            // Those that waited with it may have used up the tries of its address.
            self.tries.check(origin)?;
        }
        let question = IamRequest {
            operation: operation.to_owned(),
            api_key: api_key.to_owned(),
            ..self.question(origin)
        };
        let answer = self.ask(&question, origin).await?;
        if answer.error.as_ref().is_some_and(is_failure) {
            tracing::error!(error = ?answer.error, operation, "the identity service could not answer");
            return Err(could_not_answer());
        }
        let identity = Some(answer).filter(|answer| answer.error.is_none()).and_then(resolved);
        let Some(identity) = identity.map(Arc::new) else {
            if !is_key {
                *lock(&self.closed_until) = Some(Instant::now() + CLOSED_FOR);
            }
            return Err(self.refuse(token, digest, reason, origin));
        };
        self.known.put(digest, identity.clone(), self.trust_timeout);
        if !token.is_empty() {
            self.accepted_before.put(digest, (), ACCEPTED_BEFORE);
        }
        Ok(identity)
    }

    fn refuse(&self, token: &str, digest: [u8; 32], reason: &'static str, origin: &Origin) -> Refusal {
        self.metrics.auth_failed(reason);
        if !token.is_empty() {
            self.refused.put(digest, (), REFUSED_FOR);
            self.tries.failed(origin, reason);
        }
        Refusal::Unauthenticated
    }

    fn is_closed(&self) -> bool {
        lock(&self.closed_until).is_some_and(|until| Instant::now() < until)
    }

    /// A turn for a credential that was never accepted, so that guesses do not keep the identity service from others.
    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Refusal> {
        let turn = tokio::time::timeout(NEW_CREDENTIALS_TIMEOUT, self.new_credentials.acquire()).await;
        let busy = Refusal::CannotAsk {
            kind: IAM_UNAVAILABLE,
            reason: "too many new credentials are being looked at; try again in a moment".into(),
        };
        turn.ok().and_then(Result::ok).ok_or(busy)
    }

    /// Whether the caller may.
    pub(crate) async fn authorise(
        &self,
        caller: &Identity,
        permission: &Permission<'_>,
        origin: &Origin,
    ) -> Result<(), Refusal> {
        let key = permission.cache_key(&caller.handle);
        if let Some(allowed) = self.decisions.get(key.as_str()) {
            return self.verdict(allowed, caller, permission, origin);
        }
        Box::pin(self.decide(key, caller, permission, origin)).await
    }

    /// Asks whether the caller may, and keeps the answer.
    async fn decide(
        &self,
        key: String,
        caller: &Identity,
        permission: &Permission<'_>,
        origin: &Origin,
    ) -> Result<(), Refusal> {
        let question = IamRequest {
            operation: "authorise".to_owned(),
            user_id: caller.handle.to_string(),
            capability: permission.capability.to_owned(),
            resource_json: permission.resource(),
            parameters_json: permission.parameters(),
            ..self.question(origin)
        };
        let answer = self.ask(&question, origin).await.inspect_err(|_| self.metrics.decided("error"))?;
        match answer.error {
            None => {
                let ttl = Duration::from_secs(u64::try_from(answer.decision_ttl_seconds).unwrap_or(0));
                self.decisions.put(key, answer.decision_allow, ttl.min(self.trust_timeout));
                self.verdict(answer.decision_allow, caller, permission, origin)
            }
            Some(error) if is_failure(&error) => {
                tracing::error!(?error, "the identity service could not decide");
                self.metrics.decided("error");
                Err(could_not_answer())
            }
            // It does not know the caller any more, or nothing of what was asked.
            Some(_) => {
                self.metrics.decided("error");
                self.tries.denied(origin, &caller.handle, permission);
                Err(Refusal::Unauthenticated)
            }
        }
    }

    fn verdict(
        &self,
        allowed: bool,
        caller: &Identity,
        permission: &Permission<'_>,
        origin: &Origin,
    ) -> Result<(), Refusal> {
        self.metrics.decided(if allowed { "allow" } else { "deny" });
        if allowed {
            return Ok(());
        }
        self.tries.denied(origin, &caller.handle, permission);
        Err(Refusal::Denied)
    }

    /// Looks whether an answer of the identity service turns its caller down, whichever door it goes out by.
    pub(crate) fn hears(&self, origin: &Origin, service: &str, reply: &Reply) {
        match reply.error.as_ref().filter(|_| service == "iam").map(|error| error.r#type.as_str()) {
            Some("auth-failed") => self.tries.failed(origin, "login-rejected"),
            Some("operation-not-permitted") => self.tries.refused(origin, NOT_PERMITTED),
            _ => {}
        }
    }

    /// An empty question that tells where it comes from.
    pub(crate) fn question(&self, origin: &Origin) -> IamRequest {
        IamRequest {
            request_id: origin.request_id.to_string(),
            client_ip: origin.client.map_or_else(String::new, |client| client.to_string()),
            ..IamRequest::default()
        }
    }

    /// One question to the identity service. After a failure to ask, those that follow at once fail the same way.
    pub(crate) async fn ask(&self, question: &IamRequest, origin: &Origin) -> Result<IamResponse, Refusal> {
        if let Some((refusal, until)) = &*lock(&self.away)
            && Instant::now() < *until
        {
            return Err(refusal.clone());
        }
        let asked = async {
            let client = self.client.get_or_try_init(|| self.connect()).await?;
            let question =
                sluice_bus::Message::new(wire::encode(question)).with(property::TRACE, &origin.request_id);
            let mut call = client.stream_message(question, Patience::total(self.timeout)).await?;
            call.next().await.map(Option::unwrap_or_default)
        };
        // A broker that holds publishers back may do so for longer than an answer takes.
        let answer = tokio::time::timeout(self.timeout, asked).await.unwrap_or_else(|_| {
            let after_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
            Err(Error::TimedOut { what: "the identity service".to_owned(), after_ms })
        });
        answer.map_err(|error| {
            tracing::error!(%error, operation = question.operation, "the identity service does not answer");
            let refusal = cannot_ask(&error, &**self.replies.broker());
            *lock(&self.away) = Some((refusal.clone(), Instant::now() + AWAY_PAUSE));
            refusal
        })
    }

    async fn connect(&self) -> sluice_bus::Result<Client<exchange::Iam>> {
        Client::new(&self.replies, system::iam_request(), &system::iam_response()).await
    }

    /// Whether the identity service answers. Many who want to know at once ask it once.
    pub(crate) async fn look(&self) -> Result<(), Refusal> {
        let mut seen = self.seen.lock().await;
        if seen.is_some_and(|seen| seen.elapsed() < LOOK_HOLDS) {
            return Ok(());
        }
        *seen = None;
        let broker = &**self.replies.broker();
        if broker.trouble().is_some() {
            return Err(Refusal::bus_unavailable(broker));
        }
        let question = IamRequest { operation: "bootstrap-status".to_owned(), ..IamRequest::default() };
        let origin = Origin::default();
        match tokio::time::timeout(LOOK_TIMEOUT, self.ask(&question, &origin)).await {
            Ok(Ok(answer)) if answer.error.as_ref().is_some_and(is_failure) => Err(could_not_answer()),
            Ok(Ok(_)) => {
                *seen = Some(Instant::now());
                Ok(())
            }
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => Err(no_answer(broker)),
        }
    }
}

fn no_answer(broker: &dyn Broker) -> Refusal {
    if broker.trouble().is_some() {
        return Refusal::bus_unavailable(broker);
    }
    Refusal::CannotAsk {
        kind: IAM_UNAVAILABLE,
        reason: "the identity service does not answer in time, or the message broker holds messages back; try again later"
            .into(),
    }
}

pub(crate) fn could_not_answer() -> Refusal {
    Refusal::CannotAsk {
        kind: IAM_UNAVAILABLE,
        reason: "the identity service failed to answer; its log says why; try again later".into(),
    }
}

/// A failure to ask the identity service, in words for strangers; the cause is in the log.
pub(crate) fn cannot_ask(error: &Error, broker: &dyn Broker) -> Refusal {
    let reason = match error {
        Error::TimedOut { .. } => return no_answer(broker),
        Error::NoTopic { .. }
        | Error::NoSubscription { .. }
        | Error::NoReader { .. }
        | Error::Unroutable { .. }
        | Error::QuestionLost { .. }
        | Error::NoInbox { .. } => "the identity service is not there; start it, or try again in a moment",
        Error::Full { .. } => "the identity service has too many questions waiting; try again in a moment",
        Error::Refused { .. } => return Refusal::bus_refuses(),
        Error::TooLarge { .. } | Error::Mismatch { .. } | Error::Decode(_) => {
            "the identity service cannot be asked; its log and the gateway's say why"
        }
        Error::Unavailable { .. }
        | Error::Disk { .. }
        | Error::Log { .. }
        | Error::LogUnopened { .. }
        | Error::InUse { .. }
        | Error::Held { .. }
        | Error::HoldLost { .. }
        | Error::OutcomeUnknown { .. } => return Refusal::bus_unavailable(broker),
    };
    Refusal::CannotAsk { kind: IAM_UNAVAILABLE, reason: reason.into() }
}

/// Whether an answer of the identity service says that it failed, and nothing of who asked.
pub(crate) fn is_failure(error: &message::Error) -> bool {
    !matches!(
        error.r#type.as_str(),
        "auth-failed"
            | "not-found"
            | "invalid-argument"
            | "operation-not-permitted"
            | "duplicate"
            | "disabled"
            | "weak-password"
    )
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resolved(answer: IamResponse) -> Option<Identity> {
    let (handle, workspace) = (answer.resolved_user_id, answer.resolved_default_workspace);
    let workspace =
        (!handle.is_empty() && !workspace.is_empty()).then(|| WorkspaceId::existing(&workspace))?;
    Some(Identity { handle: handle.into(), workspace })
}
