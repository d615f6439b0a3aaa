//! Audit and policy events.

message! {
    /// Something that happened, for auditors, on `notify:tg:audit-events`.
    pub struct AuditEvent {
        schema_version: i64 = 1,
        event_id: String,
        event_type: String,
        /// ISO 8601.
        timestamp: String,
        producer: String,
        /// JSON text.
        payload_json: String,
    }
}

message! {
    /// A policy decision, on `notify:tg:policy-events`.
    pub struct PolicyEvent {
        schema_version: i64 = 1,
        event_id: String,
        event_type: String,
        /// ISO 8601.
        timestamp: String,
        producer: String,
        /// JSON text.
        payload_json: String,
    }
}
