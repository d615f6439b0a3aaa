//! Who calls, and whether they may: the identity service is asked over the bus, its word is kept for a minute.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use sluice_bus::{Client, Patience, Replies, property};
use sluice_schema::message::{IamRequest, IamResponse};
use sluice_schema::{WorkspaceId, exchange, system, wire};
use tokio::sync::OnceCell;

use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::refusal::Refusal;

const IDENTITIES_MAX: usize = 10_000;
const DECISIONS_MAX: usize = 50_000;

/// An authenticated caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) handle: String,
    /// Where the caller works unless a call says otherwise.
    pub(crate) workspace: WorkspaceId,
}

/// What a caller shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Nothing.
    Absent,
    /// A token, not looked at yet.
    Token(String),
    /// Something that has been refused; only a new one helps.
    Refused,
}

impl Credential {
    /// An empty token is none.
    pub(crate) fn from_token(token: Option<&str>) -> Self {
        match token.map(str::trim) {
            None | Some("") => Self::Absent,
            Some(token) => Self::Token(token.to_owned()),
        }
    }
}

/// Where a call comes from, as the identity service's log wants it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(crate) request_id: Arc<str>,
    pub(crate) client_ip: Arc<str>,
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
    decisions: Cache<String, bool>,
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
            decisions: Cache::new(DECISIONS_MAX),
            timeout,
            trust_timeout: trust_timeout.min(Duration::from_secs(60)),
            metrics,
        }
    }

    /// Who shows this credential. Every failure looks the same from outside.
    pub(crate) async fn authenticate(
        &self,
        credential: &Credential,
        origin: &Origin,
    ) -> Result<Arc<Identity>, Refusal> {
        let token = match credential {
            Credential::Refused => return Err(Refusal::Unauthenticated),
            Credential::Absent => "",
            Credential::Token(token) => token,
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(identity) = self.known.get(&digest) {
            return Ok(identity);
        }
        let is_key = token.starts_with("tg_");
        // A system without authentication takes any token; any other refuses the anonymous caller, whatever the token.
        let (operation, api_key) =
            if is_key { ("resolve-api-key", token) } else { ("authenticate-anonymous", "") };
        let question = IamRequest {
            operation: operation.to_owned(),
            api_key: api_key.to_owned(),
            ..self.question(origin)
        };
        let answer = self.ask(&question, origin).await;
        let identity = answer.ok().filter(|answer| answer.error.is_none()).and_then(resolved);
        let Some(identity) = identity.map(Arc::new) else {
            let reason = match (is_key, token.is_empty()) {
                (true, _) => "invalid-api-key",
                (false, true) => "anonymous-rejected",
                (false, false) => "malformed-credential",
            };
            self.metrics.auth_failed(reason);
            return Err(Refusal::Unauthenticated);
        };
        self.known.put(digest, identity.clone(), self.trust_timeout);
        Ok(identity)
    }

    /// Whether the caller may. A failing identity service never means yes.
    pub(crate) async fn authorise(
        &self,
        caller: &Identity,
        permission: &Permission<'_>,
        origin: &Origin,
    ) -> Result<(), Refusal> {
        let key = permission.cache_key(&caller.handle);
        if let Some(allowed) = self.decisions.get(key.as_str()) {
            return self.verdict(allowed);
        }
        let question = IamRequest {
            operation: "authorise".to_owned(),
            user_id: caller.handle.clone(),
            capability: permission.capability.to_owned(),
            resource_json: permission.resource(),
            parameters_json: permission.parameters(),
            ..self.question(origin)
        };
        match self.ask(&question, origin).await {
            Ok(answer) if answer.error.is_none() => {
                let ttl = Duration::from_secs(u64::try_from(answer.decision_ttl_seconds).unwrap_or(0));
                self.decisions.put(key, answer.decision_allow, ttl.min(self.trust_timeout));
                self.verdict(answer.decision_allow)
            }
            Ok(answer) => {
                tracing::warn!(error = ?answer.error, "the identity service could not decide");
                self.metrics.decided("error");
                Err(Refusal::Unauthenticated)
            }
            Err(_) => {
                self.metrics.decided("error");
                Err(Refusal::Unauthenticated)
            }
        }
    }

    fn verdict(&self, allowed: bool) -> Result<(), Refusal> {
        self.metrics.decided(if allowed { "allow" } else { "deny" });
        if allowed { Ok(()) } else { Err(Refusal::Denied) }
    }

    /// An empty question that tells where it comes from.
    pub(crate) fn question(&self, origin: &Origin) -> IamRequest {
        IamRequest {
            request_id: origin.request_id.to_string(),
            client_ip: origin.client_ip.to_string(),
            ..IamRequest::default()
        }
    }

    /// One question to the identity service.
    pub(crate) async fn ask(
        &self,
        question: &IamRequest,
        origin: &Origin,
    ) -> sluice_bus::Result<IamResponse> {
        let asked = async {
            let client = self.client.get_or_try_init(|| self.connect()).await?;
            let question =
                sluice_bus::Message::new(wire::encode(question)).with(property::TRACE, &origin.request_id);
            let mut call = client.stream_message(question, Patience::total(self.timeout)).await?;
            call.next().await.map(Option::unwrap_or_default)
        };
        asked.await.inspect_err(|error| {
            tracing::error!(%error, operation = question.operation, "the identity service does not answer");
        })
    }

    async fn connect(&self) -> sluice_bus::Result<Client<exchange::Iam>> {
        Client::new(&self.replies, system::iam_request(), &system::iam_response()).await
    }
}

fn resolved(answer: IamResponse) -> Option<Identity> {
    let (handle, workspace) = (answer.resolved_user_id, answer.resolved_default_workspace);
    let workspace =
        (!handle.is_empty() && !workspace.is_empty()).then(|| WorkspaceId::existing(&workspace))?;
    Some(Identity { handle, workspace })
}
