//! Reading a request: from a body and the door it came through to an operation that can be carried out, or an error that
//! says what is wrong with which element. Pure.

use std::sync::Arc;

use sluice_schema::message::{ConfigKey, ConfigRequest, ConfigValue, Error, Expectation, ScopedKey};
use sluice_schema::{record, wire};

use crate::pages::{Paging, Since};

/// Elements of one request at most.
const ELEMENTS_MAX: usize = 100_000;
/// Bytes of a workspace, type or key at most.
const NAME_BYTES_MAX: usize = 1_024;

/// The queue a request came through. It decides whose values can be reached.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    /// `request:tg:config`: internal callers, every workspace.
    System,
    /// `request:tg:config:<workspace>`: users of one workspace; what the body says about workspaces is ignored.
    Workspace(Arc<str>),
}

/// What a request asks for.
#[derive(Debug)]
pub(crate) enum Operation {
    Read(Read, Paging),
    Write(Write),
}

/// Questions. Each is answered from one snapshot.
#[derive(Debug, Clone)]
pub(crate) enum Read {
    Get { workspace: String, keys: Vec<ConfigKey> },
    List { workspace: String, config_type: String },
    Values { workspace: String, config_type: String },
    Everywhere { config_type: String, with_values: bool },
    Many { types: Vec<String>, since: Since },
    Dump { workspace: String },
}

/// A change, all or nothing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Write {
    pub(crate) expect: Vec<Expectation>,
    pub(crate) puts: Vec<Put>,
    pub(crate) deletes: Vec<ScopedKey>,
    /// No version and no notice.
    pub(crate) quiet: bool,
    /// It may use the room that is kept for removals.
    pub(crate) essential: bool,
    /// What the door let nobody write, told in the answer.
    pub(crate) skipped: Vec<ConfigKey>,
    /// (type, workspace) pairs to announce beside those written.
    pub(crate) announce: Vec<(String, String)>,
    /// Whether to leave the version alone when there is nothing to write: a pure check.
    pub(crate) idle_when_empty: bool,
    /// The request that asks for it; `None` for the service's own.
    pub(crate) asked: Option<Asked>,
}

impl Write {
    /// Whether it has to work on a full disk.
    pub(crate) const fn is_essential(&self) -> bool {
        self.essential || self.puts.is_empty() && !self.deletes.is_empty()
    }
}

/// A request, as the broker hands it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) id: String,
    /// It was handed out before.
    pub(crate) is_repeated: bool,
}

/// One value to write.
#[derive(Debug, Clone)]
pub(crate) struct Put {
    pub(crate) at: ScopedKey,
    pub(crate) value: String,
}

fn refuse(kind: &str, message: impl Into<String>) -> Error {
    Error::new(kind, message)
}

fn config_error(message: impl Into<String>) -> Error {
    refuse("config-error", message)
}

/// Reads a body.
pub(crate) fn parse(door: &Door, body: &str) -> Result<Operation, Error> {
    let request: ConfigRequest = wire::decode(body.as_bytes()).map_err(|e| unreadable(&e))?;
    operation(door, request)
}

fn unreadable(error: &wire::DecodeError) -> Error {
    let shape = [
        ("`values`", "values must be a list of {type,key,value} with texts"),
        ("`puts`", "puts must be a list of {workspace,type,key,value} with texts"),
        ("`keys`", "keys must be a list of {type,key} with texts"),
        ("`deletes`", "deletes must be a list of {workspace,type,key} with texts"),
        ("`if`", "if must be a list of {workspace,type,key,version}"),
        ("`types`", "types must be a list of texts"),
    ];
    let hint = shape.iter().find(|(field, _)| error.reason.starts_with(&format!("field {field}")));
    match hint {
        Some((_, hint)) => config_error(format!("{hint}: {}", error.reason)),
        None => config_error(error.to_string()),
    }
}

fn operation(door: &Door, mut request: ConfigRequest) -> Result<Operation, Error> {
    let everywhere = matches!(door, Door::System);
    let bad_operation = || refuse("bad-operation", "Bad operation");
    let longest = [
        request.keys.len(),
        request.values.len(),
        request.r#if.len(),
        request.types.len(),
        request.puts.len(),
        request.deletes.len(),
    ]
    .into_iter()
    .max()
    .unwrap_or(0);
    if longest > ELEMENTS_MAX {
        return Err(config_error(format!(
            "a list of {longest} elements is longer than the limit of {ELEMENTS_MAX}; send several requests"
        )));
    }
    let paging = Paging { bytes_max: request.bytes_max, cursor: std::mem::take(&mut request.cursor) };
    let read = match request.operation.as_str() {
        "get" => Read::Get { workspace: workspace(door, &request)?, keys: request.keys },
        "list" => Read::List { workspace: workspace(door, &request)?, config_type: request.r#type },
        "getvalues" => Read::Values { workspace: workspace(door, &request)?, config_type: request.r#type },
        "config" => Read::Dump { workspace: workspace(door, &request)? },
        "getvalues-all-ws" if everywhere => {
            Read::Everywhere { config_type: request.r#type, with_values: true }
        }
        "getkeys-all-ws" if everywhere => {
            Read::Everywhere { config_type: request.r#type, with_values: false }
        }
        "getvalues-many" if everywhere => Read::Many {
            types: request.types,
            since: Since { version: request.since, history: request.history },
        },
        "put" => return put(door, request).map(Operation::Write),
        "delete" => return delete(door, request).map(Operation::Write),
        "apply" if everywhere => return apply(request).map(Operation::Write),
        _ => return Err(bad_operation()),
    };
    Ok(Operation::Read(read, paging))
}

/// The workspace that a request is about: the queue's, or on the system queue the body's.
fn workspace(door: &Door, request: &ConfigRequest) -> Result<String, Error> {
    match door {
        Door::Workspace(workspace) => Ok(workspace.to_string()),
        Door::System if request.workspace.is_empty() => Err(refuse("bad-request", "Workspace is required")),
        Door::System => Ok(request.workspace.clone()),
    }
}

fn quiet(door: &Door, request: &ConfigRequest) -> Result<bool, Error> {
    match door {
        Door::Workspace(_) if request.quiet => {
            Err(refuse("bad-request", "quiet writes are for internal callers; leave out 'quiet'"))
        }
        _ => Ok(request.quiet),
    }
}

fn put(door: &Door, request: ConfigRequest) -> Result<Write, Error> {
    let workspace = workspace(door, &request)?;
    let quiet = quiet(door, &request)?;
    let expect = expectations(door, request.r#if, &workspace)?;
    let asked = request.values.len();
    let (mut puts, mut skipped) = (Vec::with_capacity(asked), Vec::new());
    for (at, value) in request.values.into_iter().enumerate() {
        let put = checked_put(format_args!("values[{at}]"), workspace.clone(), value)?;
        if is_closed(door, &put.at.r#type) {
            skipped.push(ConfigKey { r#type: put.at.r#type, key: put.at.key });
        } else {
            puts.push(put);
        }
    }
    if puts.is_empty() && !skipped.is_empty() {
        return Err(managed(&skipped));
    }
    Ok(Write { expect, puts, quiet, skipped, ..Write::default() })
}

fn delete(door: &Door, request: ConfigRequest) -> Result<Write, Error> {
    let workspace = workspace(door, &request)?;
    let quiet = quiet(door, &request)?;
    let expect = expectations(door, request.r#if, &workspace)?;
    let (mut deletes, mut skipped) = (Vec::with_capacity(request.keys.len()), Vec::new());
    for (at, key) in request.keys.into_iter().enumerate() {
        checked(format_args!("keys[{at}]"), "type", &key.r#type)?;
        checked(format_args!("keys[{at}]"), "key", &key.key)?;
        if is_closed(door, &key.r#type) {
            skipped.push(key);
        } else {
            deletes.push(ScopedKey { workspace: workspace.clone(), r#type: key.r#type, key: key.key });
        }
    }
    if deletes.is_empty() && !skipped.is_empty() {
        return Err(managed(&skipped));
    }
    Ok(Write { expect, deletes, quiet, skipped, ..Write::default() })
}

/// Writes across workspaces; elements without a workspace are meant for the request's.
fn apply(request: ConfigRequest) -> Result<Write, Error> {
    let common = request.workspace;
    let expect = expectations(&Door::System, request.r#if, &common)?;
    let mut puts = Vec::with_capacity(request.puts.len());
    for (at, value) in request.puts.into_iter().enumerate() {
        let workspace = if value.workspace.is_empty() { common.clone() } else { value.workspace.clone() };
        puts.push(checked_put(format_args!("puts[{at}]"), workspace, value)?);
    }
    let mut deletes = Vec::with_capacity(request.deletes.len());
    for (at, mut key) in request.deletes.into_iter().enumerate() {
        if key.workspace.is_empty() {
            key.workspace.clone_from(&common);
        }
        checked_place(format_args!("deletes[{at}]"), &key)?;
        deletes.push(key);
    }
    let twice = {
        let names: std::collections::HashSet<_> =
            puts.iter().map(|p| (&p.at.workspace, &p.at.r#type, &p.at.key)).collect();
        deletes.iter().find(|d| names.contains(&(&d.workspace, &d.r#type, &d.key)))
    };
    if let Some(key) = twice {
        return Err(config_error(format!("{} is both put and deleted; name it once", place(key))));
    }
    Ok(Write {
        expect,
        puts,
        deletes,
        quiet: request.quiet,
        essential: request.essential,
        idle_when_empty: true,
        ..Write::default()
    })
}

fn checked_put(which: std::fmt::Arguments<'_>, workspace: String, value: ConfigValue) -> Result<Put, Error> {
    let at = ScopedKey { workspace, r#type: value.r#type, key: value.key };
    checked_place(which, &at)?;
    let Some(value) = value.value else {
        return Err(config_error(format!(
            "{which} ({}) has no value; a value is a text, by convention JSON",
            place(&at)
        )));
    };
    Ok(Put { at, value })
}

fn expectations(door: &Door, asked: Vec<Expectation>, workspace: &str) -> Result<Vec<Expectation>, Error> {
    let mut expect = asked;
    for (at, expectation) in expect.iter_mut().enumerate() {
        if matches!(door, Door::Workspace(_)) || expectation.workspace.is_empty() {
            workspace.clone_into(&mut expectation.workspace);
        }
        let which = format_args!("if[{at}]").to_string();
        checked(format_args!("{which}"), "workspace", &expectation.workspace)?;
        checked(format_args!("{which}"), "type", &expectation.r#type)?;
        checked(format_args!("{which}"), "key", &expectation.key)?;
    }
    Ok(expect)
}

fn checked_place(which: std::fmt::Arguments<'_>, at: &ScopedKey) -> Result<(), Error> {
    checked(which, "workspace", &at.workspace)?;
    checked(which, "type", &at.r#type)?;
    checked(which, "key", &at.key)
}

/// Names are non-empty, bounded, and free of the character that separates them in the store.
fn checked(which: std::fmt::Arguments<'_>, field: &str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(config_error(format!("{which} has no {field}; each element needs one")));
    }
    if text.len() > NAME_BYTES_MAX {
        let bytes = text.len();
        return Err(config_error(format!(
            "{which} has a {field} of {bytes} bytes; the limit is {NAME_BYTES_MAX}"
        )));
    }
    if text.contains('\0') {
        return Err(config_error(format!("{which} has a NUL character in its {field}; use printable text")));
    }
    Ok(())
}

fn is_closed(door: &Door, config_type: &str) -> bool {
    matches!(door, Door::Workspace(_)) && record::is_managed_type(config_type)
}

fn managed(skipped: &[ConfigKey]) -> Error {
    let named = skipped.first().map(|k| format!("{}/{}", k.r#type, k.key)).unwrap_or_default();
    config_error(format!(
        "'{named}' is managed by the flow service and cannot be written here; use start-flow and stop-flow instead"
    ))
}

/// A key as people name it in errors.
pub(crate) fn place(at: &ScopedKey) -> String {
    format!("'{}/{}' in workspace '{}'", at.r#type, at.key, at.workspace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme() -> Door {
        Door::Workspace("acme".into())
    }

    fn refused(door: &Door, body: &str) -> Error {
        parse(door, body).expect_err(body)
    }

    fn written(door: &Door, body: &str) -> Write {
        match parse(door, body).expect(body) {
            Operation::Write(write) => write,
            Operation::Read(read, _) => panic!("{read:?}"),
        }
    }

    #[test]
    fn a_malformed_request_says_what_it_should_be() {
        let check = |door: &Door, body: &str, kind: &str, text: &str| {
            let error = refused(door, body);
            assert_eq!(error.r#type, kind, "{body}: {}", error.message);
            assert!(error.message.contains(text), "{body}: {}", error.message);
        };
        check(&acme(), "[1]", "config-error", "JSON object");
        check(&acme(), "{}", "bad-operation", "Bad operation");
        check(&acme(), r#"{"operation":"destroy"}"#, "bad-operation", "Bad operation");
        for internal in ["getvalues-all-ws", "getkeys-all-ws", "getvalues-many", "apply"] {
            check(&acme(), &format!(r#"{{"operation":"{internal}"}}"#), "bad-operation", "Bad operation");
        }
        for scoped in ["get", "list", "getvalues", "put", "delete", "config"] {
            let body = format!(r#"{{"operation":"{scoped}","workspace":null}}"#);
            check(&Door::System, &body, "bad-request", "Workspace is required");
        }
        check(
            &acme(),
            r#"{"operation":"put","values":"x"}"#,
            "config-error",
            "values must be a list of {type,key,value}",
        );
        check(
            &acme(),
            r#"{"operation":"put","values":[{"type":"t","key":"k","value":1}]}"#,
            "config-error",
            "values must be",
        );
        check(
            &acme(),
            r#"{"operation":"put","values":[{"type":"t","key":"k","value":null}]}"#,
            "config-error",
            "values[0] ('t/k' in workspace 'acme') has no value",
        );
        check(
            &acme(),
            r#"{"operation":"put","values":[{"key":"k","value":"v"}]}"#,
            "config-error",
            "values[0] has no type",
        );
        check(
            &acme(),
            r#"{"operation":"delete","keys":[{"type":"t"}]}"#,
            "config-error",
            "keys[0] has no key",
        );
        check(
            &acme(),
            r#"{"operation":"get","keys":[1]}"#,
            "config-error",
            "keys must be a list of {type,key}",
        );
        check(&acme(), r#"{"operation":"put","quiet":true}"#, "bad-request", "quiet");
        check(
            &acme(),
            r#"{"operation":"put","values":[{"type":"a\u0000b","key":"k","value":"v"}]}"#,
            "config-error",
            "NUL",
        );
        check(
            &Door::System,
            r#"{"operation":"apply","puts":[{"type":"t","key":"k","value":"v"}]}"#,
            "config-error",
            "puts[0] has no workspace",
        );
        check(
            &Door::System,
            r#"{"operation":"apply","workspace":"a","puts":[{"type":"t","key":"k","value":"v"}],"deletes":[{"type":"t","key":"k"}]}"#,
            "config-error",
            "both put and deleted",
        );
    }

    #[test]
    fn a_workspace_queue_reaches_its_own_workspace_only() {
        let write = written(
            &acme(),
            r#"{"operation":"put","workspace":"evil","values":[{"type":"t","key":"k","value":"v","workspace":"evil"}],
                "if":[{"workspace":"evil","type":"t","key":"k","version":3}]}"#,
        );
        assert_eq!(write.puts[0].at.workspace, "acme");
        assert_eq!(write.expect[0].workspace, "acme");
        assert!(matches!(
            parse(&acme(), r#"{"operation":"config","workspace":"evil"}"#),
            Ok(Operation::Read(Read::Dump { workspace }, _)) if workspace == "acme"
        ));
    }

    #[test]
    fn users_cannot_write_what_the_flow_service_manages() {
        let error =
            refused(&acme(), r#"{"operation":"put","values":[{"type":"flow","key":"f","value":"{}"}]}"#);
        assert!(error.r#type == "config-error" && error.message.contains("flow service"), "{error:?}");
        let error = refused(&acme(), r#"{"operation":"delete","keys":[{"type":"processor:x","key":"f"}]}"#);
        assert!(error.message.contains("processor:x/f"), "{error:?}");
        let mixed = written(
            &acme(),
            r#"{"operation":"put","values":[{"type":"flow","key":"f","value":"{}"},{"type":"tool","key":"t","value":"{}"}]}"#,
        );
        assert_eq!((mixed.puts.len(), mixed.skipped.len()), (1, 1));
        let system = written(
            &Door::System,
            r#"{"operation":"put","workspace":"acme","values":[{"type":"flow","key":"f","value":"{}"}]}"#,
        );
        assert!(system.skipped.is_empty());
    }

    #[test]
    fn null_and_absent_are_alike() {
        let write =
            written(&acme(), r#"{"operation":"put","workspace":null,"keys":null,"type":null,"values":null}"#);
        assert!(write.puts.is_empty() && !write.idle_when_empty);
        assert!(matches!(
            parse(&Door::System, r#"{"operation":"getvalues-all-ws","type":null}"#),
            Ok(Operation::Read(Read::Everywhere { with_values: true, .. }, _))
        ));
    }
}
