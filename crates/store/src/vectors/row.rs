//! A vector as it rests in a table: how many numbers, the numbers, the labels as JSON.

use bytes::Bytes;

use crate::{Attributes, Error, Result};

const NUMBER_BYTES: usize = size_of::<f32>();

/// Scales a vector to length 1; one of length 0 stays.
pub(super) fn normalised(vector: &[f32]) -> Result<Vec<f32>> {
    if vector.is_empty() {
        return Err(Error::Refused { reason: "a vector must have at least one number".to_owned() });
    }
    if !vector.iter().all(|number| number.is_finite()) {
        return Err(Error::Refused { reason: "a vector must have finite numbers only".to_owned() });
    }
    let length = vector.iter().map(|&number| f64::from(number) * f64::from(number)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    Ok(vector.iter().map(|&number| (f64::from(number) * scale) as f32).collect())
}

pub(super) fn encode(vector: &[f32], attributes: &Attributes) -> Result<Vec<u8>> {
    let numbers = normalised(vector)?;
    let mut row = Vec::with_capacity(NUMBER_BYTES * (numbers.len() + 1) + 32);
    row.extend_from_slice(&dimension_bytes(numbers.len()));
    for number in numbers {
        row.extend_from_slice(&number.to_le_bytes());
    }
    if !attributes.is_empty() {
        serde_json::to_writer(&mut row, attributes)
            .map_err(|e| Error::Refused { reason: format!("labels do not serialise: {e}") })?;
    }
    Ok(row)
}

/// The numbers and the labels of a row, still as bytes.
pub(super) fn split(row: &[u8]) -> Result<(&[u8], &[u8])> {
    let parts = row.split_first_chunk().and_then(|(dimension, rest)| {
        let bytes = usize::try_from(u32::from_le_bytes(*dimension)).ok()?.checked_mul(NUMBER_BYTES)?;
        rest.split_at_checked(bytes)
    });
    parts.ok_or_else(|| Error::damaged("a vector", &"it is cut short"))
}

pub(super) fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<NUMBER_BYTES>().0.iter().map(|number| f32::from_le_bytes(*number))
}

pub(super) fn attributes(bytes: &[u8]) -> Result<Attributes> {
    if bytes.is_empty() {
        return Ok(Attributes::new());
    }
    serde_json::from_slice(bytes).map_err(|e| Error::damaged("the labels of an entry", &e))
}

/// The row of a collection: how many numbers its vectors have.
pub(super) fn dimension_bytes(dimension: usize) -> [u8; 4] {
    u32::try_from(dimension).unwrap_or(u32::MAX).to_le_bytes()
}

pub(super) fn dimension(row: &Bytes) -> Result<usize> {
    let bytes = row[..].try_into().map_err(|e| Error::damaged("a vector collection", &e))?;
    usize::try_from(u32::from_le_bytes(bytes)).map_err(|e| Error::damaged("a vector collection", &e))
}
