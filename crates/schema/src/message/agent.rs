//! Agents, tool services and pass-through.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Error, Triple};

message! {
    /// One step of an agent plan.
    pub struct PlanStep {
        goal: String,
        tool_hint: String,
        /// Steps by their place in the plan, counted from 0.
        depends_on: Vec<i64>,
        status: String = "pending".to_owned(),
        result: String,
    }
}

message! {
    /// One turn of an agent.
    pub struct AgentStep {
        thought: String,
        action: String,
        /// Argument → text.
        arguments: BTreeMap<String, String>,
        observation: String,
        step_type: String,
        plan: Vec<PlanStep>,
        subagent_results: BTreeMap<String, String>,
    }
}

message! {
    /// A question for an agent.
    pub struct AgentRequest {
        question: String,
        state: String,
        group: Option<Vec<String>>,
        history: Vec<AgentStep>,
        collection: String = "default".to_owned(),
        streaming: bool,
        session_id: String,
        conversation_id: String,
        pattern: String,
        task_type: String,
        framing: String,
        correlation_id: String,
        parent_session_id: String,
        subagent_goal: String,
        expected_siblings: i64,
    }
}

message! {
    /// A thought, action, observation or answer of an agent.
    pub struct AgentResponse {
        /// `thought`, `action`, `observation`, `answer`, `explain` or `error`.
        message_type: String,
        content: String,
        /// This piece completes a thought, an observation or the answer.
        end_of_message: bool,
        /// Nothing follows.
        end_of_dialog: bool,
        explain_id: Option<String>,
        explain_graph: Option<String>,
        explain_triples: Vec<Triple>,
        /// IRI under which the message is recorded as provenance.
        message_id: String,
        error: Option<Error>,
        in_token: Option<i64>,
        out_token: Option<i64>,
        model: Option<String>,
    }
}

message! {
    /// A call of an external tool service.
    pub struct ToolServiceRequest {
        /// JSON text of an object.
        config: String,
        /// JSON text of an object.
        arguments: String,
    }
}

message! {
    /// What an external tool service gave back.
    pub struct ToolServiceResponse {
        error: Option<Error>,
        response: String,
        end_of_stream: bool,
    }
}

message! {
    /// A body handed through as it is.
    pub struct PassthroughRequest {
        payload: Map<String, Value>,
    }
}

message! {
    /// A body handed back as it is.
    pub struct PassthroughResponse {
        payload: Map<String, Value>,
        error: Option<Error>,
        is_final: bool = true,
    }
}
