//! GGML's quantized types: blocks of 32 or 256 values, dequantized as its reference code does, in the same order of operations.

use elapid_core::format::Quant;
use half::f16;

/// A quantized type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are GGML's.
pub enum Block {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

/// Values of a small block, which is also a packed file's group.
pub(super) const SMALL: usize = 32;
/// Values of a super-block.
const SUPER: usize = 256;

/// The values that IQ4_NL's and IQ4_XS's four bits stand for.
const NON_LINEAR: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// A group of weights as it is stored: integers and the scale that they share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoredGroup {
    /// The scale.
    pub scale: f16,
    /// The integers.
    pub integers: [i8; SMALL],
}

impl StoredGroup {
    /// The weights, exactly.
    pub fn dequantize(&self, out: &mut [f32]) {
        let scale = self.scale.to_f32();
        out.iter_mut().zip(self.integers).for_each(|(out, q)| *out = f32::from(q) * scale);
    }
}

impl Block {
    /// Values and bytes of a block.
    #[must_use]
    pub fn piece(self) -> (usize, usize) {
        match self {
            Self::Q4_0 | Self::Iq4Nl => (SMALL, 18),
            Self::Q4_1 => (SMALL, 20),
            Self::Q5_0 => (SMALL, 22),
            Self::Q5_1 => (SMALL, 24),
            Self::Q8_0 => (SMALL, 34),
            Self::Q2K => (SUPER, 84),
            Self::Q3K => (SUPER, 110),
            Self::Q4K => (SUPER, 144),
            Self::Q5K => (SUPER, 176),
            Self::Q6K => (SUPER, 210),
            Self::Iq4Xs => (SUPER, 136),
        }
    }

    /// GGML's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
        }
    }

    /// Converts whole blocks. What an f16 scale holds comes through, NaN and infinity too.
    pub(super) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let (length, size) = self.piece();
        for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(length)) {
            match self {
                Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::Iq4Nl => {
                    if let Some(group) = self.group(block) {
                        group.dequantize(out);
                    }
                }
                Self::Q4_1 => with_minimum(block, &[0; 4], 4, out),
                Self::Q5_1 => with_minimum(block, bytes_at(block, 4), 8, out),
                Self::Q2K => q2_k(block, out),
                Self::Q3K => q3_k(block, out),
                Self::Q4K => q4_k(block, out),
                Self::Q5K => q5_k(block, out),
                Self::Q6K => q6_k(block, out),
                Self::Iq4Xs => iq4_xs(block, out),
            }
        }
    }

    /// The packed types that hold the type's scales and integers as they are.
    pub(super) fn kept_as(self) -> &'static [Quant] {
        match self {
            Self::Q4_0 => &[Quant::Q4, Quant::Q5, Quant::Q8],
            Self::Q5_0 => &[Quant::Q5, Quant::Q8],
            Self::Q8_0 | Self::Iq4Nl => &[Quant::Q8],
            _ => &[],
        }
    }

    /// What a block of a type that [`Block::kept_as`] something holds; `None` for the others.
    pub(super) fn group(self, block: &[u8]) -> Option<StoredGroup> {
        let mut integers = [0; SMALL];
        match self {
            Self::Q8_0 => {
                for (to, from) in integers.iter_mut().zip(block.get(2..)?) {
                    *to = *from as i8;
                }
            }
            Self::Q4_0 => nibbles(block.get(2..)?, &mut integers, |_, q| q as i8 - 8),
            Self::Iq4Nl => nibbles(block.get(2..)?, &mut integers, |_, q| non_linear(q)),
            Self::Q5_0 => {
                let high = u32::from_le_bytes(*bytes_at(block, 2));
                let fifth = |i: usize| (high >> i & 1) as i8 * 16;
                nibbles(block.get(6..)?, &mut integers, |i, q| q as i8 + fifth(i) - 16);
            }
            _ => return None,
        }
        Some(StoredGroup { scale: half_at(block, 0), integers })
    }
}

/// Bytes at a place in a block, which is long enough.
fn bytes_at<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block.get(at..).and_then(|rest| rest.first_chunk()).unwrap_or(&[0; N])
}

fn half_at(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes(*bytes_at(block, at))
}

fn non_linear(q: u8) -> i8 {
    NON_LINEAR[usize::from(q & 15)]
}

/// The 32 values of 16 bytes: the low halves are the first 16. `value` makes an integer of a value's index and its four bits.
fn nibbles<T>(bytes: &[u8], out: &mut [T], value: impl Fn(usize, u8) -> T) {
    let (first, second) = out.split_at_mut(SMALL / 2);
    for (i, ((byte, low), high)) in bytes.iter().zip(first).zip(second).enumerate() {
        *low = value(i, byte & 15);
        *high = value(i + SMALL / 2, byte >> 4);
    }
}

/// Q4_1 and Q5_1: integers from 0, a scale and a minimum. `high` are the fifth bits.
fn with_minimum(block: &[u8], high: &[u8; 4], start: usize, out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0).to_f32(), half_at(block, 2).to_f32());
    let high = u32::from_le_bytes(*high);
    let value = |i: usize, q: u8| f32::from(q + (high >> i & 1) as u8 * 16) * scale + minimum;
    nibbles(bytes_at::<16>(block, start), out, value);
}

/// Scales of 4 bits each, and minima; weights of 2 bits.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 80).to_f32(), half_at(block, 82).to_f32());
    let (scales, weights) = (bytes_at::<16>(block, 0), bytes_at::<64>(block, 16));
    for (sub, (out, packed)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
        let (scale, minimum) = (scale * f32::from(packed & 15), minimum * f32::from(packed >> 4));
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(two_bits(weights, 16 * sub + i)) - minimum;
        }
    }
}

/// Value `i` of 256 that lie in 64 bytes: each half in 32 bytes, four runs of 32 values by pairs of bits.
fn two_bits(weights: &[u8; 64], i: usize) -> u8 {
    weights[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// Signed scales of 6 bits; weights of 3 bits, whose highest is stored apart.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let all = half_at(block, 108).to_f32();
    let (high, weights) = (bytes_at::<32>(block, 0), bytes_at::<64>(block, 32));
    let packed = bytes_at::<12>(block, 96);
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let low = packed[sub % 8] >> (sub / 8 * 4) & 15;
        let upper = packed[8 + sub % 4] >> (sub / 4 * 2) & 3;
        let scale = all * (f32::from(low | upper << 4) - 32.0);
        for (i, out) in out.iter_mut().enumerate() {
            let at = 16 * sub + i;
            let third = high[at % 32] >> (at / 32) & 1;
            *out = scale * (f32::from(two_bits(weights, at)) - if third == 1 { 0.0 } else { 4.0 });
        }
    }
}

/// Scale and minimum `j` of 8, of 6 bits each, in the 12 bytes of Q4_K and Q5_K.
fn scale_and_minimum(packed: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// Eight runs of 32 values with a scale and a minimum each; `value` gives the integer at an index.
fn runs_of_32(block: &[u8], out: &mut [f32], value: impl Fn(usize) -> u8) {
    let (all, all_minima) = (half_at(block, 0).to_f32(), half_at(block, 2).to_f32());
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(bytes_at(block, 4), sub);
        let (scale, minimum) = (all * f32::from(scale), all_minima * f32::from(minimum));
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(value(32 * sub + i)) - minimum;
        }
    }
}

/// Value `i` of 256 nibbles: 64 values in 32 bytes, the first half of them in the low halves.
fn nibble(weights: &[u8; 128], i: usize) -> u8 {
    weights[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let weights = bytes_at(block, 16);
    runs_of_32(block, out, |i| nibble(weights, i));
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (high, weights) = (bytes_at::<32>(block, 16), bytes_at(block, 48));
    runs_of_32(block, out, |i| nibble(weights, i) | (high[i % 32] >> (i / 32) & 1) << 4);
}

/// Signed scales of 8 bits for 16 values each; weights of 6 bits, whose upper two are stored apart.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let all = half_at(block, 208).to_f32();
    let (low, high, scales) =
        (bytes_at::<128>(block, 0), bytes_at::<64>(block, 128), bytes_at::<16>(block, 192));
    for (sub, (out, scale)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
        let scale = all * f32::from(*scale as i8);
        for (i, out) in out.iter_mut().enumerate() {
            let at = 16 * sub + i;
            // Of 128 values the first 64 are in the low halves of 64 bytes.
            let lower = low[at / 128 * 64 + at % 64] >> (at % 128 / 64 * 4) & 15;
            *out = scale * (f32::from(lower | two_bits(high, at) << 4) - 32.0);
        }
    }
}

/// As IQ4_NL, with scales of 6 bits for 32 values each.
fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let all = half_at(block, 0).to_f32();
    let (high, low) = (u16::from_le_bytes(*bytes_at(block, 2)), bytes_at::<4>(block, 4));
    let runs = block.get(8..).unwrap_or_default().chunks_exact(SMALL / 2);
    for (sub, (out, weights)) in out.chunks_exact_mut(SMALL).zip(runs).enumerate() {
        let scale = low[sub / 2] >> (sub % 2 * 4) & 15 | ((high >> (2 * sub) & 3) << 4) as u8;
        let scale = all * (f32::from(scale) - 32.0);
        nibbles(weights, out, |_, q| scale * f32::from(non_linear(q)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of random bytes and what the Python package `gguf` makes of them: tests/data/ggml_blocks.py.
    const GOLDEN: &[u8] = include_bytes!("../../tests/data/ggml_blocks.safetensors");

    #[test]
    fn every_type_dequantizes_to_the_bits_of_the_reference() {
        let golden = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
        let types = [
            Block::Q4_0,
            Block::Q4_1,
            Block::Q5_0,
            Block::Q5_1,
            Block::Q8_0,
            Block::Q2K,
            Block::Q3K,
            Block::Q4K,
            Block::Q5K,
            Block::Q6K,
            Block::Iq4Nl,
            Block::Iq4Xs,
        ];
        assert_eq!(golden.len(), 2 * types.len());
        for block in types {
            let tensor = |what: &str| golden.tensor(&format!("{}.{what}", block.name())).unwrap();
            let expected: Vec<u32> = tensor("values")
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|bytes| u32::from_le_bytes(*bytes))
                .collect();
            let mut out = vec![f32::NAN; expected.len()];
            block.dequantize(tensor("bytes").data(), &mut out);
            assert_eq!(expected.len() % block.piece().0, 0);
            let found: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
            assert!(found == expected, "{}", block.name());
        }
    }
}
