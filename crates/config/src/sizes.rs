//! Ceilings: how much a value, a type and a workspace may hold, and the count of what they do.
//!
//! Only what grows is refused: what a folder holds beyond a ceiling can be read, made smaller and deleted. What the flow
//! service writes about a flow that is there already is never refused, since a stop has to work.

use std::collections::BTreeMap;

use sluice_schema::message::{Error, ScopedKey};
use sluice_schema::{ceilings, record};
use sluice_store::{Batch, Found, KeyRange, Tables, contract::Read as Look};

use crate::layout::{self, COUNTED_KEY, HEAD, HEAD_KEY, SIZE, Size, VALUE};
use crate::reader::{place_at, row_of};

/// Rows counted in one go.
const ROWS_MAX: usize = 1_000;
/// How often counting starts over because somebody wrote meanwhile.
const RACES_MAX: usize = 100;
/// Prompt records.
const PROMPT: &str = "prompt";
/// What the flow service keeps of a flow that runs.
const WISH: &str = "flow-wish";

/// Whether ceilings bind what is written here.
pub(crate) fn binds(at: &ScopedKey, is_there: bool) -> bool {
    match at.workspace.as_str() {
        record::FLOWS => at.r#type == WISH && !is_there,
        record::TEMPLATE | record::WORKSPACES => true,
        workspace if workspace.starts_with('_') => false,
        _ => !(is_there && record::is_managed_type(&at.r#type)),
    }
}

/// Refuses a value that is too large and larger than what is there.
pub(crate) fn check_value(at: &ScopedKey, value: &str, before: Option<u64>) -> Result<(), Error> {
    let is_no_larger = before.is_some_and(|before| layout::bytes_of(at, value) <= before);
    if at.workspace == record::FLOWS || is_no_larger {
        return Ok(());
    }
    let what = format_args!("the value of {}", crate::request::place(at));
    if at.r#type == PROMPT {
        // What could not be used is not taken in.
        ceilings::within(what, value.len(), ceilings::PROMPT_RECORD_BYTES_MAX)?;
    }
    ceilings::within(what, ceilings::json_bytes(value), ceilings::value_bytes_max(&at.r#type))
}

/// Refuses what a type or a workspace would hold after it grew.
pub(crate) fn check_size(size_key: &[u8], size: Size) -> Result<(), Error> {
    let text = String::from_utf8_lossy(size_key);
    let (workspace, config_type) = text.split_once('\0').unwrap_or((&text, ""));
    let bytes = usize::try_from(size.bytes).unwrap_or(usize::MAX);
    if config_type.is_empty() {
        let what = format_args!("the config of workspace '{workspace}'");
        return ceilings::within(what, bytes, ceilings::WORKSPACE_BYTES_MAX);
    }
    let what = format!("config of type '{config_type}' in workspace '{workspace}'");
    if size.keys > ceilings::TYPE_KEYS_MAX {
        let (keys, keys_max) = (size.keys, ceilings::TYPE_KEYS_MAX);
        let told = format!("{what} would hold {keys} keys; the limit is {keys_max}. Delete some first");
        return Err(Error::new(Error::TOO_LARGE, told));
    }
    let is_wish = config_type == WISH;
    let bytes_max = if is_wish { ceilings::WORKSPACE_BYTES_MAX } else { ceilings::TYPE_BYTES_MAX };
    ceilings::within(what, bytes, bytes_max)
}

/// Counts everything, once per store; from then on each write keeps the count.
pub(crate) async fn count(tables: &dyn Tables) -> Result<(), sluice_store::Error> {
    for race in 0.. {
        let looks = vec![Look::get(HEAD, HEAD_KEY), Look::get(SIZE, COUNTED_KEY)];
        let mut found = tables.read(looks).await?.into_iter().map(Found::into_value);
        let (head, counted) = (found.next().flatten(), found.next().flatten());
        if counted.is_some() {
            return Ok(());
        }
        let mut sizes: BTreeMap<Vec<u8>, Size> = BTreeMap::new();
        let mut range = KeyRange::all();
        loop {
            let found = tables.read(vec![Look::range(VALUE, range.clone(), ROWS_MAX)]).await?.pop();
            let rows = found.map(Found::into_rows).unwrap_or_default();
            for (key, raw) in &rows.rows {
                let (at, row) = (place_at(key)?, row_of(key, raw)?);
                let Some(value) = row.value else { continue };
                for size_key in layout::size_keys(&at) {
                    let size = sizes.entry(size_key).or_default();
                    *size = size.after(None, Some(layout::bytes_of(&at, &value)));
                }
            }
            match rows.rows.last() {
                Some((last, _)) if rows.more => range = range.after(last),
                _ => break,
            }
        }
        let mut batch = Batch::new();
        batch.expect(HEAD, HEAD_KEY, head).expect_absent(SIZE, COUNTED_KEY).delete_prefix(SIZE, b"");
        for (key, size) in sizes {
            batch.put(SIZE, key, size.encode());
        }
        batch.put(SIZE, COUNTED_KEY, Vec::new());
        match tables.commit(batch).await {
            Err(error) if error.is_conflict() && race < RACES_MAX => {}
            done => return done,
        }
    }
    Ok(())
}
