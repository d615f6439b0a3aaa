//! The vectors of one collection in memory: one long row of numbers, searched from end to end.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::row;
use crate::contract::search::matches;
use crate::{Attributes, Match, Result};

/// Memory per entry beside its numbers and labels, in bytes: its id twice, the map, the headers.
const ENTRY_BYTES: usize = 128;

/// Normalised vectors, one after the other, with their ids and labels.
#[derive(Debug, Default)]
pub(super) struct Matrix {
    dimension: usize,
    numbers: Vec<f32>,
    ids: Vec<Arc<str>>,
    attributes: Vec<Bytes>,
    rows: HashMap<Arc<str>, usize>,
    other_bytes: usize,
}

impl Matrix {
    pub(super) fn new(dimension: usize) -> Self {
        Self { dimension, ..Self::default() }
    }

    pub(super) const fn dimension(&self) -> usize {
        self.dimension
    }

    /// Memory used, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.numbers.capacity() * size_of::<f32>() + self.other_bytes
    }

    /// Sets or replaces an entry from its row; a row of another dimension is left out.
    pub(super) fn set(&mut self, id: &str, value: &Bytes) -> Result<()> {
        let (numbers, attributes) = row::split(value)?;
        if numbers.len() != self.dimension {
            self.remove(id);
            return Ok(());
        }
        let attributes = Bytes::copy_from_slice(attributes);
        if let Some(&row) = self.rows.get(id) {
            let place = &mut self.numbers[row * self.dimension..][..self.dimension];
            place.iter_mut().zip(numbers.iter()).for_each(|(old, new)| *old = new);
            self.other_bytes = self.other_bytes - self.attributes[row].len() + attributes.len();
            self.attributes[row] = attributes;
            return Ok(());
        }
        let id: Arc<str> = id.into();
        self.other_bytes += ENTRY_BYTES + id.len() + attributes.len();
        if self.numbers.capacity() - self.numbers.len() < self.dimension {
            // By an eighth, not by doubling: the memory is counted and bounded.
            self.numbers.reserve_exact((self.numbers.len() / 8).max(self.dimension * 16));
        }
        self.numbers.extend(numbers.iter());
        self.rows.insert(Arc::clone(&id), self.ids.len());
        self.ids.push(id);
        self.attributes.push(attributes);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &str) {
        let Some(row) = self.rows.remove(id) else { return };
        let last = self.ids.len() - 1;
        self.other_bytes -= ENTRY_BYTES + id.len() + self.attributes[row].len();
        if row != last {
            let (front, back) = self.numbers.split_at_mut(last * self.dimension);
            front[row * self.dimension..][..self.dimension].copy_from_slice(back);
            self.rows.insert(Arc::clone(&self.ids[last]), row);
        }
        self.numbers.truncate(last * self.dimension);
        self.ids.swap_remove(row);
        self.attributes.swap_remove(row);
    }

    pub(super) fn ids_with_prefix(&self, prefix: &str) -> Vec<String> {
        self.ids.iter().filter(|id| id.starts_with(prefix)).map(|id| id.to_string()).collect()
    }

    /// Shows every entry to `best`.
    pub(super) fn search(&self, vector: &[f32], best: &mut Best) -> Result<()> {
        for (row, numbers) in self.numbers.chunks_exact(self.dimension.max(1)).enumerate() {
            let score = dot(vector, numbers);
            if best.wants(score) {
                best.offer(score, &self.ids[row], &self.attributes[row])?;
            }
        }
        Ok(())
    }
}

/// The sum of products, in lanes that the compiler turns into vector instructions.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The best entries seen so far.
pub(super) struct Best {
    limit: usize,
    filter: Attributes,
    /// The worst of them on top.
    kept: BinaryHeap<Candidate>,
}

struct Candidate {
    score: f32,
    id: Arc<str>,
    attributes: Attributes,
}

impl Best {
    pub(super) fn new(limit: usize, filter: Attributes) -> Self {
        Self { limit, filter, kept: BinaryHeap::new() }
    }

    /// Whether an entry of this score could be among the best.
    pub(super) fn wants(&self, score: f32) -> bool {
        self.kept.len() < self.limit || self.kept.peek().is_some_and(|worst| score >= worst.score)
    }

    /// Keeps an entry if it is among the best and fits the filter.
    pub(super) fn offer(&mut self, score: f32, id: &str, attributes: &[u8]) -> Result<()> {
        let attributes = row::attributes(attributes)?;
        if matches(&self.filter, &attributes) {
            self.kept.push(Candidate { score, id: id.into(), attributes });
            if self.kept.len() > self.limit {
                self.kept.pop();
            }
        }
        Ok(())
    }

    pub(super) fn into_matches(self) -> Vec<Match> {
        let to_match = |Candidate { score, id, attributes }| {
            let score = f32::clamp(score, -1.0, 1.0);
            Match { id: String::from(&*id), score, attributes }
        };
        self.kept.into_sorted_vec().into_iter().map(to_match).collect()
    }
}

impl Ord for Candidate {
    /// Worse is greater, so that a heap has the worst on top and sorting puts the best first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then_with(|| self.id.cmp(&other.id))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

#[cfg(test)]
mod tests {
    use super::*;

    fn best_ids(matrix: &Matrix, vector: &[f32], limit: usize) -> Vec<String> {
        let mut best = Best::new(limit, Attributes::new());
        matrix.search(vector, &mut best).unwrap();
        best.into_matches().into_iter().map(|found| found.id).collect()
    }

    #[test]
    fn entries_are_set_replaced_and_removed_in_place() {
        let row = |vector: &[f32]| Bytes::from(row::encode(vector, &Attributes::new()).unwrap());
        let mut matrix = Matrix::new(2);
        for (id, vector) in [("a", [1.0, 0.0]), ("b", [0.0, 1.0]), ("c", [-1.0, 0.0])] {
            matrix.set(id, &row(&vector)).unwrap();
        }
        assert_eq!(best_ids(&matrix, &[1.0, 0.0], 9), ["a", "b", "c"]);
        let bytes = matrix.bytes();

        matrix.remove("a");
        matrix.remove("a");
        assert_eq!(best_ids(&matrix, &[1.0, 0.0], 9), ["b", "c"]);
        matrix.set("c", &row(&[2.0, 0.0])).unwrap();
        assert_eq!(best_ids(&matrix, &[1.0, 0.0], 1), ["c"]);
        matrix.set("a", &row(&[1.0, 0.0])).unwrap();
        assert_eq!(best_ids(&matrix, &[1.0, 0.0], 9), ["a", "c", "b"]);
        assert_eq!(matrix.bytes(), bytes);
    }

    #[test]
    fn the_lanes_and_the_rest_are_summed() {
        let a: Vec<f32> = (0..35).map(|n| n as f32).collect();
        assert_eq!(dot(&a, &a), (0..35).map(|n| (n * n) as f32).sum::<f32>());
    }
}
