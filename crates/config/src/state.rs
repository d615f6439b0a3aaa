//! What writes do: from the rows they touch to the rows they leave, with versions, notices and conflicts. Pure; several
//! writes are carried out one after the other on one state and committed together.

use std::collections::{BTreeMap, HashMap};

use sluice_schema::message::{ConfigPush, Error, Expectation, ScopedKey, WorkspaceChanges};
use sluice_schema::record;

use crate::layout::{self, Answered, Head, QUIET_BASE, Row, Size};
use crate::request::{Write, place};
use crate::sizes;

/// Marks of deletion kept at most, counted. With fewer, readers that were away longer fetch everything once.
pub(crate) const TOMBSTONES_MAX: u64 = 10_000;
/// How many marks are dropped in one go once there are too many.
pub(crate) const TRIM_COUNT: usize = 1_000;

/// Two types whose readers rebuild from both; whoever hears of one must hear of the other.
const TOLD_TOGETHER: [&str; 2] = ["tool", "tool-service"];

/// A config type that marks what was done once, in the platform's own workspace.
pub(crate) const INIT_STATE: &str = "init-state";

/// The mark that a workspace got its copy of the template.
pub(crate) fn provisioned_mark(workspace: &str) -> ScopedKey {
    ScopedKey {
        workspace: record::SYSTEM.to_owned(),
        r#type: INIT_STATE.to_owned(),
        key: format!("provision:{workspace}"),
    }
}

/// The head and the rows that a group of writes touches.
#[derive(Debug, Default)]
pub(crate) struct State {
    before: Head,
    head: Head,
    /// What this commit leaves beside its number.
    mark: u64,
    rows: HashMap<Vec<u8>, Touched>,
    /// How much is where, before and now, by key of the size table.
    sizes: BTreeMap<Vec<u8>, (Size, Size)>,
    notices: Vec<ConfigPush>,
    /// Requests that were carried out some time ago, where one of these writes was handed out before.
    known: HashMap<String, Written>,
    answered: Vec<(i64, Answered)>,
}

#[derive(Debug)]
struct Touched {
    before: Option<Row>,
    now: Option<Row>,
}

/// What a write came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    /// The version of what was written.
    pub(crate) version: i64,
    /// The version whose notice tells of it, if any does.
    pub(crate) notice: Option<i64>,
}

/// Rows to write and to remove, by table and key.
pub(crate) type Changes = BTreeMap<(&'static str, Vec<u8>), Option<Vec<u8>>>;

/// Every row that a write reads, as keys of the value table.
pub(crate) fn touched_by(write: &Write) -> impl Iterator<Item = Vec<u8>> + '_ {
    let expected = write.expect.iter().map(|e| layout::value_key(&expected_place(e)));
    let put = write.puts.iter().map(|p| layout::value_key(&p.at));
    let deleted = write.deletes.iter().map(layout::value_key);
    let marks = unregistered(write).map(|workspace| layout::value_key(&provisioned_mark(workspace)));
    expected.chain(put).chain(deleted).chain(marks)
}

/// Every key of the size table that a write counts for.
pub(crate) fn sized_by(write: &Write) -> impl Iterator<Item = Vec<u8>> + '_ {
    touched_by(write).filter_map(|key| layout::place_of(&key)).flat_map(|at| layout::size_keys(&at))
}

fn expected_place(e: &Expectation) -> ScopedKey {
    ScopedKey { workspace: e.workspace.clone(), r#type: e.r#type.clone(), key: e.key.clone() }
}

fn is_registry(at: &ScopedKey) -> bool {
    at.workspace == record::WORKSPACES && at.r#type == record::WORKSPACE
}

fn unregistered(write: &Write) -> impl Iterator<Item = &str> {
    write.deletes.iter().filter(|at| is_registry(at)).map(|at| at.key.as_str())
}

/// Whether a write changes which workspaces there are.
pub(crate) fn touches_registry(write: &Write) -> bool {
    write.puts.iter().map(|p| &p.at).chain(&write.deletes).any(is_registry)
}

impl State {
    /// The state at a head, for a commit that leaves this mark.
    pub(crate) fn new(head: Head, mark: u64) -> Self {
        Self { before: head, head, mark, rows: HashMap::new(), ..Self::default() }
    }

    /// Whether marks of deletion should be dropped before going on.
    pub(crate) fn is_over_full(head: &Head) -> bool {
        head.tombstones > TOMBSTONES_MAX
    }

    /// Takes in a row as it rests in the store. Every row a write touches must be taken in before the write.
    pub(crate) fn load(&mut self, value_key: Vec<u8>, row: Option<Row>) {
        self.rows.entry(value_key).or_insert_with(|| Touched { before: row.clone(), now: row });
    }

    /// Takes in how much is somewhere. Whatever a write counts for must be taken in before the write.
    pub(crate) fn load_size(&mut self, size_key: Vec<u8>, size: Size) {
        self.sizes.entry(size_key).or_insert((size, size));
    }

    /// Takes in a request that was carried out.
    pub(crate) fn remember(&mut self, answered: Answered) {
        let Answered { id, version, notice } = answered;
        self.known.insert(id, Written { version, notice });
    }

    /// Forgets one mark of deletion, which must be loaded.
    pub(crate) fn forget(&mut self, value_key: &[u8]) {
        let Some(touched) = self.rows.get_mut(value_key) else { return };
        if let Some(Row { value: None, at, .. }) = touched.now {
            touched.now = None;
            self.head.horizon = self.head.horizon.max(at);
            self.head.tombstones = self.head.tombstones.saturating_sub(1);
        }
    }

    /// Carries out one write, or tells why not and leaves everything as it was.
    pub(crate) fn write(&mut self, write: &Write) -> Result<Written, Error> {
        if let Some(asked) = write.asked.as_ref().filter(|asked| asked.is_repeated) {
            if let Some(written) = self.known.get(&asked.id) {
                return Ok(written.clone());
            }
            if !write.expect.is_empty() {
                let told = "this write was handed out twice, and it is not known whether it was refused the first time; read again before writing";
                return Err(Error::new(Error::OUTCOME_UNKNOWN, told));
            }
        }
        let before = self.head;
        let written = self.carry_out(write)?;
        if let (Some(asked), true) = (&write.asked, self.head != before) {
            let Written { version, notice } = written;
            let answered = Answered { id: asked.id.clone(), version, notice };
            self.answered.push((self.head.version + self.head.quiet, answered));
            self.known.insert(asked.id.clone(), written.clone());
        }
        Ok(written)
    }

    fn carry_out(&mut self, write: &Write) -> Result<Written, Error> {
        for expectation in &write.expect {
            self.check(expectation)?;
        }
        if write.idle_when_empty && write.puts.is_empty() && write.deletes.is_empty() {
            return Ok(Written { version: self.head.version, notice: None });
        }
        if write.asked.is_some() {
            self.check_ceilings(write)?;
        }
        let (version, at) = self.next_version(write.quiet);
        for key in &write.deletes {
            self.delete(&layout::value_key(key), version, at);
        }
        for workspace in unregistered(write) {
            self.delete(&layout::value_key(&provisioned_mark(workspace)), version, at);
        }
        for put in &write.puts {
            let row = Row { version, at, value: Some(put.value.clone()) };
            self.set(layout::value_key(&put.at), row);
        }
        if write.quiet {
            return Ok(Written { version, notice: None });
        }
        self.notices.push(notice(version, write));
        Ok(Written { version, notice: Some(version) })
    }

    fn check(&self, expectation: &Expectation) -> Result<(), Error> {
        let at = expected_place(expectation);
        let found = match self.now(&layout::value_key(&at)) {
            Some(Row { version, value: Some(_), .. }) => *version,
            _ => 0,
        };
        if found == expectation.version {
            return Ok(());
        }
        let told =
            |version: i64| if version == 0 { "absent".to_owned() } else { format!("version {version}") };
        let message = format!("{} is {}, expected {}", place(&at), told(found), told(expectation.version));
        Err(Error::new("version-conflict", message))
    }

    fn now(&self, value_key: &[u8]) -> Option<&Row> {
        self.rows.get(value_key).and_then(|touched| touched.now.as_ref())
    }

    /// Whether everything stays within its ceilings; what does not grow is not looked at.
    fn check_ceilings(&self, write: &Write) -> Result<(), Error> {
        let mut last: BTreeMap<Vec<u8>, (&ScopedKey, Option<u64>)> = BTreeMap::new();
        for at in &write.deletes {
            last.insert(layout::value_key(at), (at, None));
        }
        for put in &write.puts {
            let key = layout::value_key(&put.at);
            sizes::check_value(&put.at, &put.value, self.bytes_now(&key, &put.at))?;
            last.insert(key, (&put.at, Some(layout::bytes_of(&put.at, &put.value))));
        }
        let mut after: BTreeMap<Vec<u8>, (Size, bool)> = BTreeMap::new();
        for (key, (at, now)) in last {
            let before = self.bytes_now(&key, at);
            let grows = now > before && sizes::binds(at, before.is_some());
            for size_key in layout::size_keys(at) {
                let size = self.sizes.get(&size_key).map(|(_, now)| *now).unwrap_or_default();
                let entry = after.entry(size_key).or_insert((size, false));
                *entry = (entry.0.after(before, now), entry.1 || grows);
            }
        }
        for (size_key, (size, grows)) in after {
            if grows {
                sizes::check_size(&size_key, size)?;
            }
        }
        Ok(())
    }

    /// What a key takes now, if it has a value.
    fn bytes_now(&self, value_key: &[u8], at: &ScopedKey) -> Option<u64> {
        self.now(value_key)?.value.as_deref().map(|value| layout::bytes_of(at, value))
    }

    /// Counts a key that takes something else from now on.
    fn count(&mut self, value_key: &[u8], before: Option<u64>, now: Option<u64>) {
        let Some(at) = layout::place_of(value_key) else { return };
        for size_key in layout::size_keys(&at) {
            let (_, size) = self.sizes.entry(size_key).or_default();
            *size = size.after(before, now);
        }
    }

    fn next_version(&mut self, quiet: bool) -> (i64, i64) {
        if quiet {
            self.head.quiet += 1;
            (QUIET_BASE + self.head.quiet, self.head.version + 1)
        } else {
            self.head.version += 1;
            (self.head.version, self.head.version)
        }
    }

    fn delete(&mut self, value_key: &[u8], version: i64, at: i64) {
        let before = layout::place_of(value_key).and_then(|at| self.bytes_now(value_key, &at));
        self.count(value_key, before, None);
        if let Some(touched) = self.rows.get_mut(value_key)
            && touched.now.as_ref().is_some_and(|row| row.value.is_some())
        {
            touched.now = Some(Row { version, at, value: None });
            self.head.tombstones += 1;
        }
    }

    fn set(&mut self, value_key: Vec<u8>, row: Row) {
        if let Some(at) = layout::place_of(&value_key) {
            let before = self.bytes_now(&value_key, &at);
            let now = row.value.as_deref().map(|value| layout::bytes_of(&at, value));
            self.count(&value_key, before, now);
        }
        let touched = self.rows.entry(value_key).or_insert(Touched { before: None, now: None });
        if touched.now.as_ref().is_some_and(|old| old.value.is_none()) {
            self.head.tombstones = self.head.tombstones.saturating_sub(1);
        }
        touched.now = Some(row);
    }

    /// Whether there is anything to commit.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.head == self.before
    }

    /// The head as it will be.
    pub(crate) const fn head(&self) -> &Head {
        &self.head
    }

    /// All that has to be committed, in one step.
    pub(crate) fn into_changes(self) -> Changes {
        let mut changes = Changes::new();
        for (value_key, Touched { before, now }) in self.rows {
            if before == now {
                continue;
            }
            let Some(at) = layout::place_of(&value_key) else { continue };
            if let Some(row) = &before {
                changes.insert((row.history(), layout::history_key(row.at, &value_key)), None);
            }
            if let Some(row) = &now {
                changes.insert((row.history(), layout::history_key(row.at, &value_key)), Some(Vec::new()));
            }
            let is_live = |row: &Option<Row>| row.as_ref().is_some_and(|row| row.value.is_some());
            match (is_live(&before), is_live(&now)) {
                (false, true) => {
                    drop(changes.insert((layout::PLACE, layout::place_key(&at)), Some(Vec::new())))
                }
                (true, false) => drop(changes.insert((layout::PLACE, layout::place_key(&at)), None)),
                _ => {}
            }
            changes.insert((layout::VALUE, value_key), now.map(|row| row.encode()));
        }
        for (size_key, (before, now)) in self.sizes {
            if before != now {
                let row = (now != Size::default()).then(|| now.encode());
                changes.insert((layout::SIZE, size_key), row);
            }
        }
        for push in self.notices {
            let body = sluice_schema::wire::encode(&push).to_vec();
            changes.insert((layout::OUTBOX, layout::outbox_key(push.version)), Some(body));
        }
        for (number, answered) in self.answered {
            let body = sluice_schema::wire::encode(&answered).to_vec();
            changes.insert((layout::ASKED, layout::asked_key(number).to_vec()), Some(body));
        }
        let head = Head { mark: self.mark, ..self.head };
        changes.insert((layout::MARK, head.place().key().to_vec()), Some(head.place().encode()));
        let head = sluice_schema::wire::encode(&head).to_vec();
        changes.insert((layout::HEAD, layout::HEAD_KEY.to_vec()), Some(head));
        changes
    }
}

/// What to tell of a write. Reserved workspaces are never named.
fn notice(version: i64, write: &Write) -> ConfigPush {
    let mut changes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut tell = |config_type: &str, workspace: &str| {
        if workspace.starts_with('_') {
            return;
        }
        let types =
            if TOLD_TOGETHER.contains(&config_type) { &TOLD_TOGETHER[..] } else { &[config_type][..] };
        for told in types {
            let workspaces = changes.entry((*told).to_owned()).or_default();
            if !workspaces.iter().any(|known| known == workspace) {
                workspaces.push(workspace.to_owned());
            }
        }
    };
    for at in write.puts.iter().map(|p| &p.at).chain(&write.deletes) {
        tell(&at.r#type, &at.workspace);
    }
    for (config_type, workspace) in &write.announce {
        tell(config_type, workspace);
    }
    let named = |keys: &mut dyn Iterator<Item = &ScopedKey>| {
        let mut ids: Vec<String> = Vec::new();
        for at in keys.filter(|at| is_registry(at)) {
            if !ids.contains(&at.key) {
                ids.push(at.key.clone());
            }
        }
        ids
    };
    let created = named(&mut write.puts.iter().map(|p| &p.at));
    let deleted = named(&mut write.deletes.iter());
    let lifecycle = !created.is_empty() || !deleted.is_empty();
    let workspace_changes = lifecycle.then_some(WorkspaceChanges { created, deleted });
    ConfigPush { version, changes, workspace_changes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Put;

    fn at(workspace: &str, config_type: &str, key: &str) -> ScopedKey {
        ScopedKey { workspace: workspace.into(), r#type: config_type.into(), key: key.into() }
    }

    fn put(workspace: &str, config_type: &str, key: &str) -> Put {
        Put { at: at(workspace, config_type, key), value: "v".into() }
    }

    fn state() -> State {
        State::new(Head { version: 41, ..Head::default() }, 7)
    }

    fn run(state: &mut State, write: &Write) -> Result<Written, Error> {
        for key in touched_by(write) {
            state.load(key, None);
        }
        state.write(write)
    }

    #[test]
    fn notices_follow_the_table() {
        let check = |write: Write, expected: &str| {
            let push = notice(42, &write);
            assert_eq!(String::from_utf8(sluice_schema::wire::encode(&push).to_vec()).unwrap(), expected);
        };
        check(
            Write { puts: vec![put("acme", "flow", "a"), put("acme", "flow", "b")], ..Write::default() },
            r#"{"version":42,"changes":{"flow":["acme"]},"workspace_changes":null}"#,
        );
        check(
            Write { puts: vec![put("__system__", "x", "a")], ..Write::default() },
            r#"{"version":42,"changes":{},"workspace_changes":null}"#,
        );
        check(
            Write { deletes: vec![at("acme", "tool-service", "a")], ..Write::default() },
            r#"{"version":42,"changes":{"tool":["acme"],"tool-service":["acme"]},"workspace_changes":null}"#,
        );
        check(
            Write { puts: vec![put("__workspaces__", "workspace", "acme")], ..Write::default() },
            r#"{"version":42,"changes":{},"workspace_changes":{"created":["acme"],"deleted":[]}}"#,
        );
        check(
            Write { deletes: vec![at("__workspaces__", "workspace", "acme")], ..Write::default() },
            r#"{"version":42,"changes":{},"workspace_changes":{"created":[],"deleted":["acme"]}}"#,
        );
        check(
            Write { puts: vec![put("__workspaces__", "other", "acme")], ..Write::default() },
            r#"{"version":42,"changes":{},"workspace_changes":null}"#,
        );
    }

    #[test]
    fn a_write_that_is_handed_out_again_is_answered_as_before_and_not_carried_out() {
        let asked = |is_repeated| Some(crate::request::Asked { id: "r1".into(), is_repeated });
        let write = |is_repeated| Write {
            puts: vec![put("a", "t", "k")],
            asked: asked(is_repeated),
            ..Write::default()
        };
        let mut first = state();
        let written = run(&mut first, &write(false)).unwrap();
        let changes = first.into_changes();
        let body = changes[&(layout::ASKED, layout::asked_key(42).to_vec())].as_ref().unwrap();
        let mut later = State::new(Head { version: 99, ..Head::default() }, 8);
        later.remember(sluice_schema::wire::decode(body).unwrap());
        assert_eq!(run(&mut later, &write(true)).unwrap(), written);
        assert!(later.is_unchanged());
        // Another one of that id, or one that nobody remembers, is a write like any other.
        assert_eq!(run(&mut state(), &write(true)).unwrap().version, 42);
        // In one group too, and a check that writes nothing takes no other's place.
        let mut group = state();
        let once = run(&mut group, &write(false)).unwrap();
        let check = Write {
            asked: Some(crate::request::Asked { id: "r2".into(), is_repeated: false }),
            idle_when_empty: true,
            ..Write::default()
        };
        run(&mut group, &check).unwrap();
        let other = Write { puts: vec![put("a", "t", "k")], ..Write::default() };
        assert_eq!(run(&mut group, &other).unwrap().version, 43);
        assert_eq!(run(&mut group, &write(true)).unwrap(), once);
        let changes = group.into_changes();
        let kept = |number| changes.get(&(layout::ASKED, layout::asked_key(number).to_vec()));
        let body = kept(42).unwrap().as_ref().unwrap();
        assert_eq!(sluice_schema::wire::decode::<Answered>(body).unwrap().id, "r1");
        assert!(kept(43).is_none());
        // But whoever expected something may have been told that it was not so.
        let absent = Expectation { workspace: "a".into(), r#type: "t".into(), key: "k".into(), version: 0 };
        let doubtful = run(&mut state(), &Write { expect: vec![absent], ..write(true) }).unwrap_err();
        assert_eq!(doubtful.r#type, Error::OUTCOME_UNKNOWN);
    }

    #[test]
    fn a_conflict_names_the_key_and_both_versions_and_changes_nothing() {
        let mut state = state();
        run(&mut state, &Write { puts: vec![put("a", "t", "k")], ..Write::default() }).unwrap();
        let expect =
            vec![Expectation { workspace: "a".into(), r#type: "t".into(), key: "k".into(), version: 5 }];
        let error = run(&mut state, &Write { expect, puts: vec![put("a", "t", "z")], ..Write::default() })
            .unwrap_err();
        assert_eq!(error.r#type, "version-conflict");
        assert_eq!(error.message, "'t/k' in workspace 'a' is version 42, expected version 5");
        assert_eq!(state.head().version, 42);
        assert_eq!(state.now(&layout::value_key(&at("a", "t", "z"))), None);
    }

    #[test]
    fn a_quiet_write_changes_the_key_and_not_the_version() {
        let mut state = state();
        let quiet = Write { puts: vec![put("a", "t", "k")], quiet: true, ..Write::default() };
        let first = run(&mut state, &quiet).unwrap();
        let second = run(&mut state, &quiet).unwrap();
        assert_eq!((first.notice, second.version), (None, first.version + 1));
        assert_eq!(state.head().version, 41);
        let row = state.now(&layout::value_key(&at("a", "t", "k"))).unwrap();
        assert_eq!((row.version, row.at), (second.version, 42));
    }

    #[test]
    fn an_empty_put_counts_and_an_empty_apply_only_checks() {
        let mut state = state();
        assert_eq!(run(&mut state, &Write::default()).unwrap(), Written { version: 42, notice: Some(42) });
        let check = Write { idle_when_empty: true, ..Write::default() };
        assert_eq!(run(&mut state, &check).unwrap(), Written { version: 42, notice: None });
    }

    #[test]
    fn marks_of_deletion_are_counted_and_forgetting_moves_the_horizon() {
        let mut state = state();
        let key = layout::value_key(&at("a", "t", "k"));
        run(&mut state, &Write { puts: vec![put("a", "t", "k")], ..Write::default() }).unwrap();
        let delete = Write { deletes: vec![at("a", "t", "k"), at("a", "t", "absent")], ..Write::default() };
        run(&mut state, &delete).unwrap();
        assert_eq!((state.head().tombstones, state.head().version), (1, 43));
        state.forget(&key);
        assert_eq!((state.head().tombstones, state.head().horizon), (0, 43));
        let changes = state.into_changes();
        assert!(!changes.contains_key(&(layout::VALUE, key)), "never was in the store, so nothing to remove");
    }
}
