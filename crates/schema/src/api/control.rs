//! Config, flows, collections, identity.

use serde_json::{Map, Value};

use super::field::{Field, Shape, field, flag, int, text};
use super::{ApiError, Caller, Service, row};
use crate::message as m;
use crate::operation::Level;
use crate::system;

const KEY: &[Field] = &[text("type").required(), text("key").required()];
const SCOPED_KEY: &[Field] = &[text("workspace"), text("type"), text("key")];
const VALUE_IN: &[Field] = &[text("type").required(), text("key").required(), text("value").required()];
const VALUE_OUT: &[Field] =
    &[text("type"), text("key"), text("value"), text("workspace").if_filled(), int("version").if_filled()];
const EXPECTATION: &[Field] =
    &[text("workspace"), text("type").required(), text("key").required(), int("version").required()];

const USER_IN: &[Field] = &[
    text("username"),
    text("name"),
    text("email"),
    text("password"),
    field("roles", Shape::Texts),
    flag("enabled"),
    flag("must_change_password"),
];
const USER_OUT: &[Field] = &[
    text("id"),
    text("default_workspace"),
    text("username"),
    text("name"),
    text("email"),
    field("roles", Shape::Texts),
    flag("enabled"),
    flag("must_change_password"),
    text("created"),
];
const WORKSPACE_IN: &[Field] = &[text("id"), text("name"), flag("enabled")];
const WORKSPACE_OUT: &[Field] = &[text("id"), text("name"), flag("enabled"), text("created")];
const API_KEY_IN: &[Field] = &[text("user_id"), text("name"), text("expires")];
const API_KEY_OUT: &[Field] = &[
    text("id"),
    text("user_id"),
    text("name"),
    text("prefix"),
    text("expires"),
    text("created"),
    text("last_used"),
];
const GROUP: &[Field] = &[text("name"), text("description"), flag("enabled")];
const GRANT: &[Field] = &[text("capability"), text("workspace")];

const FLOW_ROW: &[Field] =
    &[text("id"), text("phase"), text("run"), text("blueprint"), text("description"), text("last-error")];
const FINDING: &[Field] = &[
    text("code"),
    text("severity"),
    text("flow"),
    text("topic"),
    text("subscription"),
    text("text"),
    text("next"),
];

const COLLECTION: &[Field] =
    &[text("collection"), text("name"), text("description"), field("tags", Shape::Texts)];

pub(super) const SERVICES: &[Service] = &[
    row::<m::ConfigRequest>(
        "config",
        &[
            text("operation").required(),
            text("workspace"),
            field("keys", Shape::Records(KEY)),
            text("type"),
            field("values", Shape::Records(VALUE_IN)),
            field("if", Shape::Records(EXPECTATION)),
            field("types", Shape::Texts),
            int("since"),
            int("bytes_max"),
            text("cursor"),
        ],
        &[
            int("version"),
            field("values", Shape::Records(VALUE_OUT)),
            field("directory", Shape::Texts),
            field("config", Shape::Object),
            field("skipped", Shape::Records(KEY)).if_filled(),
            int("since").if_filled(),
            field("deleted", Shape::Records(SCOPED_KEY)).if_filled(),
            text("cursor").if_filled(),
        ],
    )
    .at(Level::Workspace, |w| (system::config_request(Some(w)), system::config_response(Some(w)))),
    row::<m::FlowRequest>(
        "flow",
        &[
            text("operation").required(),
            text("blueprint-name"),
            text("blueprint-definition"),
            text("description"),
            text("flow-id"),
            field("parameters", Shape::Object),
            field("drain", Shape::TextLike),
            int("bytes_max"),
            text("cursor"),
        ],
        &[
            field("blueprint-names", Shape::Texts),
            field("flow-ids", Shape::Texts),
            text("blueprint-definition").if_set(),
            text("flow"),
            text("description"),
            field("parameters", Shape::Object),
            text("status").if_filled(),
            field("warnings", Shape::Texts).if_filled(),
            field("flows", Shape::Records(FLOW_ROW)).if_filled(),
            field("findings", Shape::Records(FINDING)).if_filled(),
            text("cursor").if_filled(),
        ],
    )
    .at(Level::Workspace, |w| (system::flow_request(w), system::flow_response(w))),
    row::<m::CollectionManagementRequest>(
        "collection-management",
        &[
            text("operation").required(),
            text("collection"),
            text("timestamp"),
            text("name"),
            text("description"),
            field("tags", Shape::Texts),
            field("tag_filter", Shape::Texts),
            int("limit"),
            int("bytes_max"),
            text("cursor"),
        ],
        &[text("timestamp"), field("collections", Shape::Records(COLLECTION)), text("cursor").if_filled()],
    )
    .at(Level::Workspace, |w| (system::collection_request(w), system::collection_response(w))),
    row::<m::IamRequest>(
        "iam",
        &[
            text("operation").required(),
            text("workspace"),
            text("actor"),
            text("user_id"),
            text("username"),
            text("key_id"),
            text("password"),
            text("new_password"),
            field("user", Shape::Record(USER_IN)),
            field("workspace_record", Shape::Record(WORKSPACE_IN)),
            field("key", Shape::Record(API_KEY_IN)),
            text("group_id"),
            text("member_type"),
            text("member_id"),
            field("group", Shape::Record(GROUP)),
            field("grant", Shape::Record(GRANT)),
            text("user_context_json"),
            field("update_mask", Shape::Texts),
            int("bytes_max"),
            text("cursor"),
        ],
        &[
            field("user", Shape::Record(USER_OUT)).if_set(),
            field("users", Shape::Records(USER_OUT)).if_filled(),
            field("workspace", Shape::Record(WORKSPACE_OUT)).if_set(),
            field("workspaces", Shape::Records(WORKSPACE_OUT)).if_filled(),
            text("api_key_plaintext").if_filled(),
            field("api_key", Shape::Record(API_KEY_OUT)).if_set(),
            field("api_keys", Shape::Records(API_KEY_OUT)).if_filled(),
            text("jwt").if_filled(),
            text("jwt_expires").if_filled(),
            text("temporary_password").if_filled(),
            text("bootstrap_admin_user_id").if_filled(),
            text("bootstrap_admin_api_key").if_filled(),
            flag("bootstrap_available"),
            text("group_json").if_filled(),
            text("groups_json").if_filled(),
            text("members_json").if_filled(),
            text("grants_json").if_filled(),
            text("effective_permissions_json").if_filled(),
            text("cursor").if_filled(),
        ],
    )
    .at(Level::System, |_| (system::iam_request(), system::iam_response()))
    .prepared(on_behalf_of_the_caller),
];

/// The actor is who is asking, not who the body says; a new user without a workspace gets the asker's; an update says
/// which members it really has, since on the bus the absent ones look like defaults.
fn on_behalf_of_the_caller(body: &mut Map<String, Value>, caller: &Caller<'_>) -> Result<(), ApiError> {
    body.insert("actor".to_owned(), caller.handle.into());
    let operation = body.get("operation").and_then(Value::as_str).unwrap_or_default();
    if operation == "create-user" && !body.get("workspace").is_some_and(super::field::is_filled) {
        body.insert("workspace".to_owned(), caller.default_workspace.as_str().into());
    } else if operation == "update-user" {
        let user = body.get("user").and_then(Value::as_object);
        let given = user.into_iter().flatten().filter(|(_, value)| !value.is_null());
        let mask: Value = given.map(|(name, _)| Value::from(name.as_str())).collect();
        body.insert("update_mask".to_owned(), mask);
        return Ok(());
    }
    body.remove("update_mask");
    Ok(())
}
