//! Random data, the same in every run.

/// xorshift64* (Vigna 2016, arXiv 1402.6246).
pub struct Random(u64);

/// What numbers look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As in a model: a few units at most.
    Tame,
    /// Zeros of both signs, subnormals, the largest numbers, any exponent; integers at the ends of their ranges.
    Wild,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Tame, Self::Wild];
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// From `low` to `high`, both among them.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.bits() as usize % (high - low + 1)
    }

    /// From `low` to `high`.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.bits() >> 8) as f32 / 16_777_216.0
    }

    /// A finite number.
    pub fn float(&mut self, kind: Kind) -> f32 {
        if kind == Kind::Tame {
            return self.uniform(-3.0, 3.0);
        }
        match self.bits() % 16 {
            0 => 0.0,
            1 => -0.0,
            2 => f32::MAX,
            3 => f32::MIN,
            4 => f32::from_bits(self.bits() & 0x807f_ffff),
            5..8 => {
                let x = f32::from_bits(self.bits());
                if x.is_finite() { x } else { 1.0 }
            }
            8 => self.uniform(-100.0, 100.0),
            _ => self.uniform(-3.0, 3.0),
        }
    }

    pub fn floats(&mut self, count: usize, kind: Kind) -> Vec<f32> {
        (0..count).map(|_| self.float(kind)).collect()
    }

    /// A finite f16.
    pub fn f16(&mut self, kind: Kind) -> half::f16 {
        if kind == Kind::Tame {
            return half::f16::from_f32(self.uniform(-2.0, 2.0));
        }
        let x = half::f16::from_bits(self.bits() as u16);
        if x.is_finite() { x } else { half::f16::MIN_POSITIVE_SUBNORMAL }
    }

    /// Within ±127.
    pub fn int8(&mut self, kind: Kind) -> i8 {
        match self.bits() % 4 {
            0 if kind == Kind::Wild => 127,
            1 if kind == Kind::Wild => -127,
            _ => (self.between(0, 254) as i16 - 127) as i8,
        }
    }
}
