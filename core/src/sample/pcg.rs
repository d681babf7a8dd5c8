//! The random numbers that tokens are drawn with.

/// PCG-XSH-RR with 64 bits of state and 32 of output (O'Neill 2014, "PCG: A Family of Simple Fast Space-Efficient
/// Statistically Good Algorithms for Random Number Generation", section 6.3): the reference generator `pcg32`.
#[derive(Clone, Debug)]
pub(super) struct Pcg32 {
    state: u64,
    increment: u64,
}

impl Pcg32 {
    const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
    /// The stream of the reference's demonstration; any would do, but it is part of what a seed means.
    const STREAM: u64 = 54;

    /// The generator that the reference's `pcg32_srandom(seed, 54)` makes.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Self { state: 0, increment: Self::STREAM << 1 | 1 };
        rng.next_u32();
        rng.state = rng.state.wrapping_add(seed);
        rng.next_u32();
        rng
    }

    /// Where the generator stands.
    pub(super) const fn state(&self) -> u64 {
        self.state
    }

    /// The generator where one of its states was.
    pub(super) const fn at(state: u64) -> Self {
        Self { state, increment: Self::STREAM << 1 | 1 }
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(Self::MULTIPLIER).wrapping_add(self.increment);
        let shifted = ((old >> 18 ^ old) >> 27) as u32;
        shifted.rotate_right((old >> 59) as u32)
    }

    /// An integer below `bound`, from 64 random bits: the chances differ from each other by less than `bound / 2^64`
    /// of themselves. 0 if `bound` is.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let high = u64::from(self.next_u32());
        let random = high << 32 | u64::from(self.next_u32());
        ((u128::from(random) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::Pcg32;

    /// The first output of the reference's pcg32-demo, whose seed is 42 and whose stream is 54.
    #[test]
    fn agrees_with_the_reference() {
        let mut rng = Pcg32::new(42);
        let expected = [0xa15c_02b7u32, 0x7b47_f409, 0xba1d_3330, 0x83d2_f293, 0xbfa4_784b, 0xcbed_606e];
        assert_eq!(expected.map(|_| rng.next_u32()), expected);
    }

    #[test]
    fn draws_below_its_bound() {
        let mut rng = Pcg32::new(1);
        assert_eq!(rng.below(0), 0);
        for bound in [1, 2, 3, 1 << 40, u64::MAX] {
            assert!((0..1000).all(|_| rng.below(bound) < bound));
        }
        let mut seen = [0u32; 3];
        (0..3000).for_each(|_| seen[rng.below(3) as usize] += 1);
        assert!(seen.iter().all(|n| (900..1100).contains(n)), "{seen:?}");
    }
}
