//! Tables in memory, shared by the instances of a service, with commits that fail, or happen without anybody hearing of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sluice_store::{Batch, BoxFuture, Error, Expected, Found, KeyRange, Op, Read, Result, Rows, Tables};

use crate::chance::{Chance, Fault};

type Content = BTreeMap<(String, Bytes), Bytes>;

/// What was in the tables at some moment.
pub(crate) struct Copy(Content);

#[derive(Clone)]
pub(crate) struct Memory {
    content: Arc<Mutex<Content>>,
    chance: Arc<Chance>,
    /// Whose handle it is.
    process: &'static str,
}

impl Memory {
    pub(crate) fn new(chance: Arc<Chance>) -> Self {
        Self { content: Arc::default(), chance, process: "" }
    }

    /// A process's handle on the same tables.
    pub(crate) fn of(&self, process: &'static str) -> Self {
        Self { process, ..self.clone() }
    }

    /// All that is in them now.
    pub(crate) fn copy(&self) -> Copy {
        Copy(self.content().clone())
    }

    /// Everything is as it was when the copy was made.
    pub(crate) fn restore(&self, copy: Copy) {
        *self.content() = copy.0;
    }

    fn content(&self) -> std::sync::MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn rows(content: &Content, table: &str, range: &KeyRange, rows_max: usize, reverse: bool) -> Rows {
    let inside = |key: &Bytes| *key >= range.from && range.to.as_ref().is_none_or(|to| key < to);
    let from = (table.to_owned(), range.from.clone());
    let mut rows: Vec<_> = content
        .range(from..)
        .take_while(|((of, _), _)| of == table)
        .filter(|((_, key), _)| inside(key))
        .map(|((_, key), value)| (key.clone(), value.clone()))
        .collect();
    if reverse {
        rows.reverse();
    }
    let more = rows.len() > rows_max;
    rows.truncate(rows_max);
    Rows { rows, more }
}

fn apply(content: &mut Content, batch: &Batch) -> Result<()> {
    for expect in &batch.expects {
        let now = content.get(&(expect.table.to_string(), expect.key.clone()));
        let holds = match &expect.is {
            Expected::Absent => now.is_none(),
            Expected::Value(value) => now == Some(value),
        };
        if !holds {
            let key = String::from_utf8_lossy(&expect.key).into_owned();
            let (table, raw_key) = (expect.table.to_string(), expect.key.clone());
            return Err(Error::Conflict { table, key, raw_key });
        }
    }
    for op in &batch.ops {
        match op {
            Op::Put { table, key, value } => {
                content.insert((table.to_string(), key.clone()), value.clone());
            }
            Op::Delete { table, key } => {
                content.remove(&(table.to_string(), key.clone()));
            }
            Op::DeletePrefix { table, prefix } => {
                content.retain(|(of, key), _| of != table || !key.starts_with(prefix));
            }
        }
    }
    Ok(())
}

impl Tables for Memory {
    fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, Result<Vec<Found>>> {
        Box::pin(async move {
            self.chance.pause().await;
            let content = self.content();
            let found = reads.into_iter().map(|read| match read {
                Read::Get { table, key } => Found::Value(content.get(&(table.into_owned(), key)).cloned()),
                Read::Range { table, range, rows_max, reverse } => {
                    Found::Rows(rows(&content, &table, &range, rows_max, reverse))
                }
            });
            Ok(found.collect())
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.chance.pause().await;
            let befalls = self.chance.befalls(self.process, "commit");
            match befalls {
                Some(Fault::FailBefore) => {
                    return Err(Error::Unavailable { reason: "a fault before the commit".to_owned() });
                }
                Some(Fault::CrashBefore) => self.chance.dies(self.process).await,
                Some(Fault::TimeOut) => {
                    let reason = "no word within its time".to_owned();
                    return Err(Error::OutcomeUnknown { what: "a write", reason });
                }
                Some(Fault::FailAfter | Fault::CrashAfter) | None => {}
            }
            if self.chance.strikes("commit fails", 2) {
                return Err(Error::Unavailable { reason: "a fault before the commit".to_owned() });
            }
            apply(&mut self.content(), &batch)?;
            if befalls == Some(Fault::CrashAfter) {
                self.chance.dies(self.process).await;
            }
            self.chance.pause().await;
            if befalls == Some(Fault::FailAfter) || self.chance.strikes("commit unheard", 2) {
                let reason = "a fault after the commit".to_owned();
                return Err(Error::OutcomeUnknown { what: "a write", reason });
            }
            Ok(())
        })
    }
}
