//! What every backend needs of its own side.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_bus::Error;

/// The error of everything after the end.
pub(crate) fn stopped() -> Error {
    Error::Unavailable { reason: "this process has disconnected from the broker".to_owned() }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pauses between attempts to connect or attach: they double up to a bound, and are spread so that many do not come at
/// once.
pub(crate) struct Pauses(Duration);

impl Pauses {
    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(2);

    pub(crate) const fn new() -> Self {
        Self(Self::MIN)
    }

    pub(crate) fn next(&mut self) -> Duration {
        let spread = rand::Rng::random_range(&mut rand::rng(), 0.5..1.0);
        let pause = self.0.mul_f64(spread);
        self.0 = (self.0 * 2).min(Self::MAX);
        pause
    }
}

/// Resolves `%XX`; `None` when the result is not text.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}
