//! Finds where a list would have to be cut if it were sorted, without sorting it.

/// Where a list ordered by key, largest first and equals in the order of the list, is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Everything with a larger key is kept.
    key: u32,
    /// So many with this key are kept, the first ones.
    ties: u64,
}

impl Cut {
    /// Whether the next element of the list is kept. Elements must be asked for in the list's order.
    pub(super) fn keeps(&mut self, key: u32) -> bool {
        let tie = key == self.key && self.ties > 0;
        self.ties -= u64::from(tie);
        tie || key > self.key
    }
}

/// The cut that keeps as little as has a total measure of `target`, which is above 0 and at most that of all.
///
/// Equal keys have equal measures. One pass a byte of the key, from the top: a histogram says in which bin the target
/// is reached, and the next pass looks into that bin only.
pub(super) fn cut(keys: impl Iterator<Item = u32> + Clone, measure: impl Fn(u32) -> u64, target: u64) -> Cut {
    let mut prefix = 0u32;
    let mut missing = target;
    for shift in [24, 16, 8, 0] {
        let mut bins = [0u64; 256];
        let high = !(u32::MAX >> (24 - shift));
        for key in keys.clone().filter(|key| key & high == prefix) {
            bins[(key >> shift & 255) as usize] += measure(key);
        }
        let mut bin = 255;
        while bin > 0 && bins[bin] < missing {
            missing -= bins[bin];
            bin -= 1;
        }
        prefix |= (bin as u32) << shift;
    }
    Cut { key: prefix, ties: missing.div_ceil(measure(prefix).max(1)) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::cut;
    use std::vec::Vec;

    /// Indices that are kept, by sorting.
    fn naive(keys: &[u32], measure: impl Fn(u32) -> u64, target: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by(|&a, &b| keys[b].cmp(&keys[a]).then(a.cmp(&b)));
        let mut sum = 0;
        let mut kept = Vec::new();
        for i in order {
            if sum >= target {
                break;
            }
            sum += measure(keys[i]);
            kept.push(i);
        }
        kept.sort_unstable();
        kept
    }

    #[test]
    fn keeps_what_sorting_keeps() {
        let mut rng = super::super::pcg::Pcg32::new(7);
        for round in 0..400 {
            let len = 1 + rng.next_u32() as usize % 300;
            // Few distinct keys in some rounds, so that there are ties in every byte.
            let mask = [u32::MAX, 0x0101_0101, 3, 0xff00_0000, 0][round % 5];
            let keys: Vec<u32> = (0..len).map(|_| rng.next_u32() & mask).collect();
            for weighted in [false, true] {
                let measure = |key: u32| if weighted { u64::from(key) + 1 } else { 1 };
                let total: u64 = keys.iter().map(|&k| measure(k)).sum();
                let target = 1 + rng.below(total);
                let mut cut = cut(keys.iter().copied(), measure, target);
                let kept: Vec<usize> = (0..len).filter(|&i| cut.keeps(keys[i])).collect();
                assert_eq!(kept, naive(&keys, measure, target), "{keys:?} {target}");
            }
        }
    }
}
