//! The named cases that every set of stores passes: the contracts as something that can fail.
//!
//! A backend's tests walk [`cases`] and hand each a fresh, empty set of stores. A case panics where the contract is
//! broken.

mod blobs;
mod search;
mod tables;
mod triples;

use crate::{BoxFuture, Stores};

/// One promise of the contracts.
#[derive(Clone, Copy)]
pub struct Case {
    /// The promise, as a sentence.
    pub name: &'static str,
    /// Puts stores to the test; panics if they fail.
    pub run: fn(Stores) -> BoxFuture<'static, ()>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every case.
#[must_use]
pub fn cases() -> Vec<Case> {
    [tables::CASES, blobs::CASES, search::CASES, triples::CASES].concat()
}

/// The cases of blobs alone, for backends that keep only those.
#[must_use]
pub fn blob_cases() -> Vec<Case> {
    blobs::CASES.to_vec()
}

/// A list of cases from async functions: their names are the promises.
macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        pub(super) const CASES: &[super::Case] = &[
            $(super::Case { name: stringify!($name), run: |stores| Box::pin($name(stores)) }),*
        ];
    };
}
use promises;

/// What a case expects to work.
trait Works<T> {
    fn works(self) -> T;
}

impl<T> Works<T> for crate::Result<T> {
    #[track_caller]
    fn works(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("a call failed that must work: {error} ({error:?})"),
        }
    }
}

/// What a case expects to fail.
#[track_caller]
fn fails<T: std::fmt::Debug>(result: crate::Result<T>) -> crate::Error {
    match result {
        Ok(value) => panic!("a call worked that must fail: {value:?}"),
        Err(error) => error,
    }
}
