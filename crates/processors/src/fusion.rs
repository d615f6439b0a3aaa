//! Joins rankings: several lists, each best first, become one.

use std::collections::HashMap;

/// How fast the weight of a rank falls: the higher, the more the lower ranks count.
const RANK_OFFSET: f64 = 60.0;

/// One list of keys, best first, and how much it counts.
pub struct Ranking<'a> {
    /// Keys, best first.
    pub keys: Vec<&'a str>,
    /// How much this list counts beside the others.
    pub weight: f64,
}

/// Weighted reciprocal rank fusion: a key scores the sum of `weight / (60 + rank)` over the lists it is in. At most
/// `limit` keys, best first; ties keep the order in which keys were first seen.
#[must_use]
pub fn fuse<'a>(rankings: &[Ranking<'a>], limit: usize) -> Vec<(&'a str, f64)> {
    let mut fused: Vec<(&str, f64)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for ranking in rankings {
        for (rank, key) in (1_u32..).zip(&ranking.keys) {
            let place = *places.entry(key).or_insert_with(|| {
                fused.push((key, 0.0));
                fused.len() - 1
            });
            fused[place].1 += ranking.weight / (RANK_OFFSET + f64::from(rank));
        }
    }
    fused.sort_by(|a, b| b.1.total_cmp(&a.1));
    fused.truncate(limit);
    fused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_lists_name_comes_before_what_one_names() {
        let lists = [
            Ranking { keys: vec!["a", "b", "c"], weight: 1.0 },
            Ranking { keys: vec!["d", "c", "e"], weight: 1.0 },
        ];
        let keys: Vec<&str> = fuse(&lists, 4).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["c", "a", "d", "b"]);
    }

    #[test]
    fn a_weight_decides_between_equal_ranks_and_zero_silences_a_list() {
        let lists = [Ranking { keys: vec!["a"], weight: 1.0 }, Ranking { keys: vec!["b"], weight: 2.0 }];
        assert_eq!(fuse(&lists, 9)[0].0, "b");
        assert!((fuse(&lists, 9)[0].1 - 2.0 / 61.0).abs() < 1e-12);
        assert!(fuse(&[], 9).is_empty());
    }
}
