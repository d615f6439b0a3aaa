//! Audit and policy events.

message! {
    /// Something that happened, for auditors, on `notify:tg:audit-events`.
    pub struct AuditEvent {
        schema_version: i64 = 1,
        event_id: String,
        event_type: String,
        timestamp: String,
        producer: String,
        payload_json: String,
    }
}

message! {
    /// A policy decision, on `notify:tg:policy-events`.
    pub struct PolicyEvent {
        schema_version: i64 = 1,
        event_id: String,
        event_type: String,
        timestamp: String,
        producer: String,
        payload_json: String,
    }
}
