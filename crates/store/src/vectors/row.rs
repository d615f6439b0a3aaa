//! A vector as it rests in a table: how many numbers, the numbers, the labels as JSON.
//!
//! Its length is 1, so no number is beyond 1: 16 bits each, in steps of 1/32767, keep a score to three digits, mostly to five, and let
//! three vectors of 512 numbers rest in a page instead of one. Rows of earlier versions have numbers of 32 bits.

use bytes::Bytes;

use crate::{Attributes, Error, Result};

/// Set beside how many numbers there are, where they have 16 bits.
const SHORT: u32 = 1 << 31;
/// The number 1, in the steps of numbers of 16 bits.
const ONE: f32 = i16::MAX as f32;

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
    let count = u32::try_from(numbers.len()).ok().filter(|count| count & SHORT == 0);
    let count = count.ok_or_else(|| Error::Refused { reason: "a vector has too many numbers".to_owned() })?;
    let mut row = Vec::with_capacity(size_of::<i16>() * numbers.len() + 64);
    row.extend_from_slice(&(count | SHORT).to_le_bytes());
    for number in numbers {
        row.extend_from_slice(&((number * ONE).round() as i16).to_le_bytes());
    }
    if !attributes.is_empty() {
        serde_json::to_writer(&mut row, attributes)
            .map_err(|e| Error::Refused { reason: format!("labels do not serialise: {e}") })?;
    }
    Ok(row)
}

/// The numbers of a row, still as bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Numbers<'a> {
    Short(&'a [[u8; 2]]),
    /// As earlier versions kept them.
    Long(&'a [[u8; 4]]),
}

impl Numbers<'_> {
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Short(numbers) => numbers.len(),
            Self::Long(numbers) => numbers.len(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = f32> + '_ {
        (0..self.len()).map(|at| match self {
            Self::Short(numbers) => f32::from(i16::from_le_bytes(numbers[at])) / ONE,
            Self::Long(numbers) => f32::from_le_bytes(numbers[at]),
        })
    }
}

/// The numbers of a row, and its labels, still as bytes.
pub(super) fn split(row: &[u8]) -> Result<(Numbers<'_>, &[u8])> {
    let parts = row.split_first_chunk().and_then(|(count, rest)| {
        let count = u32::from_le_bytes(*count);
        let is_short = count & SHORT != 0;
        let width = if is_short { size_of::<i16>() } else { size_of::<f32>() };
        let bytes = usize::try_from(count & !SHORT).ok()?.checked_mul(width)?;
        let (numbers, labels) = rest.split_at_checked(bytes)?;
        let numbers = match is_short {
            true => Numbers::Short(numbers.as_chunks().0),
            false => Numbers::Long(numbers.as_chunks().0),
        };
        Some((numbers, labels))
    });
    parts.ok_or_else(|| Error::damaged("a vector", &"it is cut short"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_rests_in_sixteen_bits_a_number_and_is_the_same_but_for_the_last_of_them() {
        let vector: Vec<f32> = (0..512).map(|n| ((n * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let row = encode(&vector, &Attributes::new()).unwrap();
        assert_eq!(row.len(), 4 + 512 * 2);
        let (numbers, labels) = split(&row).unwrap();
        assert!(labels.is_empty());
        assert_eq!(numbers.len(), 512);
        for (found, kept) in numbers.iter().zip(normalised(&vector).unwrap()) {
            assert!((found - kept).abs() <= 0.5 / ONE, "{found} for {kept}");
        }
        let edges = encode(&[-3.0, 0.0], &Attributes::new()).unwrap();
        assert_eq!(split(&edges).unwrap().0.iter().collect::<Vec<_>>(), [-1.0, 0.0]);
    }

    #[test]
    fn a_vector_of_an_earlier_version_is_read_and_one_that_is_cut_is_damaged() {
        let earlier = [2_u32.to_le_bytes(), 0.6_f32.to_le_bytes(), (-0.8_f32).to_le_bytes()].concat();
        let labelled = [&earlier[..], b"{}"].concat();
        let (numbers, labels) = split(&labelled).unwrap();
        assert_eq!((numbers.iter().collect::<Vec<_>>(), labels), (vec![0.6, -0.8], &b"{}"[..]));
        let now = encode(&[0.6, -0.8], &Attributes::new()).unwrap();
        for row in [&earlier[..earlier.len() - 1], &now[..now.len() - 1], &now[..3], &[0xff; 4][..]] {
            assert!(split(row).is_err(), "{row:?}");
        }
    }
}
