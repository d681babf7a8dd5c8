//! Matrices of at most four bits times several tokens with AVX2, in an order for 16 registers of 32 bytes.
//!
//! A slice of a panel, 16 groups of columns, at a time: its weights are unpacked to bytes and its scales to floats, once for all tokens. The sums of all
//! tokens lie in `y` between groups of columns, so that the registers are left to the dot products of six tokens. No order
//! changes a bit: groups are still joined in theirs.

use core::arch::asm;
use core::arch::x86_64::*;
use core::ops::Range;

use super::float::{Avx2, halves, op};
use super::unpack::{nibbles, store_tile, three_bits};
use crate::cpu::x86_64::PREFETCH_DISTANCE;
use crate::format::{MatrixShape, Quant};
use crate::kernels::float::isa::Isa;
use crate::kernels::float::matmul::{self, Block, CACHED_TOKENS, Panel, blocks};
use crate::kernels::float::operands::{Input, Scale, TOKEN_BLOCK};
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// Groups in a slice: 8 KiB of unpacked weights, and half a KiB of activations a token.
const SLICE: usize = 16;
/// Fewer tokens than this don't pay for unpacking.
const FEWEST: usize = 4;

/// A group of 16 rows, each weight a byte that is 8 too large.
type Bytes = [[u8; TILE]; TILES];

/// What is prepared of a slice before the tokens pass. Tiles come first: they are read as aligned registers.
#[repr(C, align(64))]
struct Slice {
    tiles: [Bytes; SLICE],
    scales: [[f32; LANES]; SLICE],
}

/// `y = W x + bias` for some panels.
#[inline(always)]
pub(in crate::kernels::float) fn matmul(
    s: Avx2,
    shape: &MatrixShape,
    panels: &[u8],
    x: &Input<'_>,
    y: &mut [f32],
) {
    // Inputs that end early are worked on as far as the common order does.
    let whole = x.is_whole(shape);
    match shape.quant() {
        // SAFETY: the token exists only where the CPU has these features.
        Quant::Q4 if whole && x.tokens >= FEWEST => unsafe {
            many_tokens(s, shape, panels, x, y, unpack_q4);
        },
        // SAFETY: as above.
        Quant::Q3 if whole && x.tokens >= FEWEST => unsafe {
            many_tokens(s, shape, panels, x, y, unpack_q3);
        },
        _ => matmul::matmul(s, shape, panels, x, y),
    }
}

/// Nibbles are 8 too large as they are.
#[inline(always)]
fn unpack_q4(s: Avx2, from: &[[u8; TILE]; TILES / 2], to: &mut Bytes) {
    for (pair, [low, high]) in from.iter().zip(to.as_chunks_mut().0) {
        let [a, b] = nibbles(s, pair);
        store_tile(s, a, low);
        store_tile(s, b, high);
    }
}

/// 3-bit weights are 4 too large, and made so by 4 more: both types then share what follows.
#[inline(always)]
fn unpack_q3(s: Avx2, from: &[[u8; TILE]; 3], to: &mut Bytes) {
    for (tile, to) in three_bits(s, from).into_iter().zip(to) {
        store_tile(s, halves!(s, |tile| _mm256_add_epi8(tile, _mm256_set1_epi8(4))), to);
    }
}

/// `unpack` widens a group, whose weights lie in `LINES` lines. The activations are whole. On its own, so that one token has no
/// part in the slice's stack.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn many_tokens<const LINES: usize>(
    s: Avx2,
    shape: &MatrixShape,
    panels: &[u8],
    x: &Input<'_>,
    y: &mut [f32],
    unpack: impl Fn(Avx2, &[[u8; TILE]; LINES], &mut Bytes),
) {
    let (all, tokens) = (shape.cols() as usize / GROUP, x.tokens);
    let mut slice = Slice { tiles: [[[0; TILE]; TILES]; SLICE], scales: [[0.0; LANES]; SLICE] };
    let y = y.as_chunks_mut::<LANES>().0;
    // Few tokens take a panel whole, as it comes from memory; many a slice of all panels.
    let few = tokens <= TOKEN_BLOCK;
    for columns in blocks(0..all, if few { all } else { SLICE }) {
        for cached in blocks(0..tokens, CACHED_TOKENS) {
            let panels = panels.chunks_exact(shape.panel_bytes() as usize);
            for (bytes, y) in panels.zip(y.chunks_exact_mut(tokens)) {
                let (panel, y) = (Panel::new(shape, bytes), &mut y[cached.clone()]);
                if columns.start == 0 {
                    let [start] = panel.start(s);
                    y.iter_mut().for_each(|y| s.store(start, y));
                }
                let scales: &[[u8; 2 * LANES]] = panel.scales.as_chunks().0;
                let weights: &[[[u8; TILE]; LINES]] = panel.weights.as_chunks().0.as_chunks().0;
                for groups in blocks(columns.clone(), SLICE) {
                    let scales = scales.get(groups.clone()).unwrap_or_default();
                    for (from, to) in scales.iter().zip(&mut slice.scales) {
                        s.store(s.load_f16_bytes(from), to);
                    }
                    let weights = weights.get(groups.clone()).unwrap_or_default();
                    for (from, to) in weights.iter().zip(&mut slice.tiles) {
                        unpack(s, from, to);
                    }
                    let given = scales.len().min(weights.len());
                    // A panel's bytes in order, as many a group as it has, ahead of what is unpacked next; or, where slices
                    // are taken of many panels, the weights of the next one's.
                    let (weights, whole) = (TILE * LINES, TILE * LINES + 2 * LANES);
                    let (distance, step) = if few {
                        (
                            groups.start * whole + panel.scales.len() + weights * SLICE + PREFETCH_DISTANCE,
                            whole,
                        )
                    } else {
                        (bytes.len() + panel.scales.len() + groups.start * weights, weights)
                    };
                    let later = Later { at: bytes.as_ptr().wrapping_add(distance), step };
                    all_blocks(s, &slice, given, &later, x, (all, &groups, cached.start), y);
                }
            }
        }
    }
}

/// What is read from memory later. Each group prefetches five lines, as many as one needs at most, a step further on.
/// The address need not exist.
struct Later {
    at: *const u8,
    step: usize,
}

/// The first `given` groups of a slice times the tokens that `y` has sums of, from token `start` on.
#[inline(always)]
fn all_blocks(
    s: Avx2,
    slice: &Slice,
    given: usize,
    later: &Later,
    x: &Input<'_>,
    (all, groups, start): (usize, &Range<usize>, usize),
    y: &mut [[f32; LANES]],
) {
    for (i, y) in y.chunks_mut(TOKEN_BLOCK).enumerate() {
        let Some(x) = Block::new(x, start + i * TOKEN_BLOCK, all, groups) else { return };
        let (mut first, tokens) = (0, x.tokens.min(y.len()));
        while first < tokens {
            let later = Some(later).filter(|_| first == 0 && i == 0);
            macro_rules! tile_of {
                ($tokens:literal) => {{
                    micro_kernel::<$tokens>(s, slice, given, later, &x, first, y);
                    first += $tokens;
                }};
            }
            match tokens - first {
                // Two of four are faster than six and two.
                left @ 6.. if left != 8 => tile_of!(6),
                4.. => tile_of!(4),
                2.. => tile_of!(2),
                _ => tile_of!(1),
            }
        }
    }
}

/// Sixteen ones, by which `vpmaddwd` adds neighbours.
#[repr(align(32))]
struct Ones([i16; 16]);
static ONES: Ones = Ones([1; 16]);

/// Four columns of a group times some tokens: sixteen products of a byte up to 15 and an int8 that meet in one i16 reach
/// 16 * 15 * 127 = 30,480, so that a whole group is added up there.
macro_rules! columns {
    (0, $([$t:literal $a:literal $b:literal])+) => {
        concat!(
            "vmovdqa ymm12, [{w}]\n",
            "vmovdqa ymm13, [{w} + 32]\n",
            $(
                "vpbroadcastd ymm14, [{x} + 32 * ", $t, "]\n",
                "vpmaddubsw ", $a, ", ymm12, ymm14\n",
                "vpmaddubsw ", $b, ", ymm13, ymm14\n",
            )+
        )
    };
    ($k:literal, $([$t:literal $a:literal $b:literal])+) => {
        concat!(
            "vmovdqa ymm12, [{w} + 64 * ", $k, "]\n",
            "vmovdqa ymm13, [{w} + 64 * ", $k, " + 32]\n",
            $(
                "vpbroadcastd ymm14, [{x} + 32 * ", $t, " + 4 * ", $k, "]\n",
                "vpmaddubsw ymm15, ymm12, ymm14\n",
                "vpmaddubsw ymm14, ymm13, ymm14\n",
                "vpaddw ", $a, ", ", $a, ", ymm15\n",
                "vpaddw ", $b, ", ", $b, ", ymm14\n",
            )+
        )
    };
}

/// The groups of a slice times some tokens, whose two registers of dot products are named.
///
/// One loop in assembly: the compiler would take more registers than there are, and reach two thirds of the speed. The upper
/// halves of registers are cleared at its end, because the compiler does not know of them.
macro_rules! groups {
    ($slice:ident, $groups:ident, $x:ident, $first:ident, $y:ident, $([$t:literal $a:literal $b:literal])+; $($later:ident)?) => {
        // SAFETY: the caller has the token of AVX2 with FMA, and has seen to it that there are so many groups in the slice and
        // in both slices of the block, whose tokens end behind `first` and the last of these, and a row of `y` for each.
        unsafe {
            asm!(
                "2:",
                $(concat!(
                    "prefetcht0 [{", stringify!($later), "}]\n",
                    "prefetcht0 [{", stringify!($later), "} + 64]\n",
                    "prefetcht0 [{", stringify!($later), "} + 128]\n",
                    "prefetcht0 [{", stringify!($later), "} + 192]\n",
                    "prefetcht0 [{", stringify!($later), "} + 256]\n",
                    "add {", stringify!($later), "}, {step}",
                ),)?
                columns!(0, $([$t $a $b])+),
                columns!(1, $([$t $a $b])+),
                columns!(2, $([$t $a $b])+),
                columns!(3, $([$t $a $b])+),
                columns!(4, $([$t $a $b])+),
                columns!(5, $([$t $a $b])+),
                columns!(6, $([$t $a $b])+),
                columns!(7, $([$t $a $b])+),
                // Less 8 times the sum of the activations, times both scales.
                concat!($(
                    "vpbroadcastd ymm14, [{xs} + 8 * ", $t, " + 4]\n",
                    "vpslld ymm14, ymm14, 3\n",
                    "vpmaddwd ", $a, ", ", $a, ", [{ones}]\n",
                    "vpmaddwd ", $b, ", ", $b, ", [{ones}]\n",
                    "vpsubd ", $a, ", ", $a, ", ymm14\n",
                    "vpsubd ", $b, ", ", $b, ", ymm14\n",
                    "vcvtdq2ps ", $a, ", ", $a, "\n",
                    "vcvtdq2ps ", $b, ", ", $b, "\n",
                    "vbroadcastss ymm14, [{xs} + 8 * ", $t, "]\n",
                    "vmulps ymm15, ymm14, [{ws}]\n",
                    "vmulps ymm14, ymm14, [{ws} + 32]\n",
                    "vfmadd213ps ", $a, ", ymm15, [{y} + 64 * ", $t, "]\n",
                    "vfmadd213ps ", $b, ", ymm14, [{y} + 64 * ", $t, " + 32]\n",
                    "vmovups [{y} + 64 * ", $t, "], ", $a, "\n",
                    "vmovups [{y} + 64 * ", $t, " + 32], ", $b, "\n",
                )+),
                "add {w}, 512",
                "add {ws}, 64",
                "lea {x}, [{x} + 4 * {stride}]",
                "add {xs}, {stride}",
                "dec {groups}",
                "jnz 2b",
                "vzeroupper",
                w = inout(reg) $slice.tiles.as_ptr() => _,
                ws = inout(reg) $slice.scales.as_ptr() => _,
                x = inout(reg) $x.q.as_ptr().add($first) => _,
                xs = inout(reg) $x.scales.as_ptr().add($first) => _,
                stride = in(reg) size_of::<Scale>() * $x.tokens,
                y = in(reg) $y.as_mut_ptr(),
                ones = in(reg) ONES.0.as_ptr(),
                groups = inout(reg) $groups => _,
                $($later = inout(reg) $later.at => _, step = in(reg) $later.step,)?
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(nostack)
            );
        }
    };
}

/// Adds `given` groups of a slice times `T` tokens (6, 4, 2 or 1), from a block's token `first` on, to their sums.
#[inline(never)]
fn micro_kernel<const T: usize>(
    _: Avx2,
    slice: &Slice,
    given: usize,
    later: Option<&Later>,
    x: &Block<'_>,
    first: usize,
    y: &mut [[f32; LANES]],
) {
    let (groups, activations) = (given.min(SLICE), x.q.len().min(x.scales.len()));
    let Some(y) = y.get_mut(first..).and_then(|y| y.first_chunk_mut::<T>()) else { return };
    if groups == 0 || first + T > x.tokens || groups * x.tokens > activations {
        return;
    }
    macro_rules! tokens {
        ($([$t:literal $a:literal $b:literal])+) => {
            match later {
                Some(later) => groups!(slice, groups, x, first, y, $([$t $a $b])+; later),
                None => groups!(slice, groups, x, first, y, $([$t $a $b])+;),
            }
        };
    }
    match T {
        6 => tokens!([0 "ymm0" "ymm1"] [1 "ymm2" "ymm3"] [2 "ymm4" "ymm5"]
            [3 "ymm6" "ymm7"] [4 "ymm8" "ymm9"] [5 "ymm10" "ymm11"]),
        4 => tokens!([0 "ymm0" "ymm1"] [1 "ymm2" "ymm3"] [2 "ymm4" "ymm5"] [3 "ymm6" "ymm7"]),
        2 => tokens!([0 "ymm0" "ymm1"] [1 "ymm2" "ymm3"]),
        1 => tokens!([0 "ymm0" "ymm1"]),
        _ => const { assert!(matches!(T, 6 | 4 | 2 | 1), "there is no such tile") },
    }
}
