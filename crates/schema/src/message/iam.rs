//! Identity and access, and the user context that policy reads.

use std::collections::BTreeMap;

use super::Error;

message! {
    /// A user to create or change.
    pub struct UserInput {
        username: String,
        name: String,
        email: String,
        password: String,
        roles: Vec<String>,
        enabled: bool = true,
        must_change_password: bool,
    }
}

message! {
    /// A user.
    pub struct UserRecord {
        id: String,
        default_workspace: String,
        username: String,
        name: String,
        email: String,
        roles: Vec<String>,
        enabled: bool = true,
        must_change_password: bool,
        created: String,
    }
}

message! {
    /// A workspace to create or change.
    pub struct WorkspaceInput {
        id: String,
        name: String,
        enabled: bool = true,
    }
}

message! {
    /// A workspace.
    pub struct WorkspaceRecord {
        id: String,
        name: String,
        enabled: bool = true,
        created: String,
    }
}

message! {
    /// An API key to create.
    pub struct ApiKeyInput {
        user_id: String,
        name: String,
        /// ISO 8601; empty = never.
        expires: String,
    }
}

message! {
    /// An API key without its secret.
    pub struct ApiKeyRecord {
        id: String,
        user_id: String,
        name: String,
        /// The first characters of the secret, to tell keys apart.
        prefix: String,
        expires: String,
        created: String,
        last_used: String,
    }
}

message! {
    /// A group to create or change.
    pub struct GroupInput {
        name: String,
        description: String,
        enabled: bool = true,
    }
}

message! {
    /// A capability granted in a workspace.
    pub struct GrantInput {
        capability: String,
        workspace: String,
    }
}

message! {
    /// A call to identity and access, on `request:tg:iam`.
    pub struct IamRequest {
        operation: String,
        workspace: String,
        /// Handle of who asks; the gateway sets it, whatever the client says.
        actor: String,
        user_id: String,
        username: String,
        key_id: String,
        api_key: String,
        password: String,
        new_password: String,
        user: Option<UserInput>,
        workspace_record: Option<WorkspaceInput>,
        key: Option<ApiKeyInput>,
        group_id: String,
        member_type: String,
        member_id: String,
        group: Option<GroupInput>,
        grant: Option<GrantInput>,
        request_id: String,
        client_ip: String,
        /// A [`UserContext`] as JSON text.
        user_context_json: String,
        capability: String,
        /// `authorise`: JSON text of `{}`, `{"workspace"}` or `{"workspace", "flow"}`.
        resource_json: String,
        /// `authorise`: JSON text of an object. `prove-key`: of `{"nonce", "address", "proof"}`.
        parameters_json: String,
        /// `authorise-many`: JSON text of a list of checks.
        authorise_checks: String,
        /// Additive: the members of `user` that the caller of `update-user` really gave; empty = not told.
        #[additive] update_mask: Vec<String>,
        /// Additive: a list comes in pages of about so many bytes; 0 = in one answer, or not at all.
        #[additive] bytes_max: i64,
        /// Additive: the `cursor` of the page before, for the next one. All else is as in the first request.
        #[additive] cursor: String,
    }
}

message! {
    /// The answer of identity and access.
    pub struct IamResponse {
        user: Option<UserRecord>,
        users: Vec<UserRecord>,
        workspace: Option<WorkspaceRecord>,
        workspaces: Vec<WorkspaceRecord>,
        /// The secret; told once, when the key is made.
        api_key_plaintext: String,
        api_key: Option<ApiKeyRecord>,
        api_keys: Vec<ApiKeyRecord>,
        jwt: String,
        /// ISO 8601.
        jwt_expires: String,
        /// PEM.
        signing_key_public: String,
        resolved_user_id: String,
        resolved_default_workspace: String,
        resolved_roles: Vec<String>,
        temporary_password: String,
        bootstrap_admin_user_id: String,
        bootstrap_admin_api_key: String,
        bootstrap_available: bool,
        decision_allow: bool,
        /// How long a decision may be kept.
        decision_ttl_seconds: i64,
        decisions_json: String,
        group_json: String,
        groups_json: String,
        members_json: String,
        grants_json: String,
        effective_permissions_json: String,
        error: Option<Error>,
        /// Additive, `prove-key`: the code by which the service shows that it knows the admin key.
        #[additive] proof: String,
        /// Additive: where the next page of a list begins; absent on the last.
        #[additive] cursor: String,
    }
}

message! {
    /// What a user is assigned to.
    pub struct Assignment {
        resource: String,
        scope: String,
        status: String,
        valid_from: String,
        valid_to: String,
        qualifiers: BTreeMap<String, String>,
    }
}

message! {
    /// What a user may reach.
    pub struct Entitlement {
        resource_scope: String,
        access_level: String,
        valid_from: String,
        valid_to: String,
    }
}

message! {
    /// What a user may override.
    pub struct OverrideAuthority {
        policy_area: String,
        condition: String,
    }
}

message! {
    /// On whose behalf a user acts.
    pub struct Delegation {
        delegator_id: String,
        scope: String,
    }
}

message! {
    /// Attributes of the user that policy reads.
    pub struct UserContext {
        user_id: String,
        roles: Vec<String>,
        assignments: Vec<Assignment>,
        entitlements: Vec<Entitlement>,
        organisational_units: Vec<String>,
        override_authorities: Vec<OverrideAuthority>,
        delegation: Option<Delegation>,
        purpose: String,
    }
}
