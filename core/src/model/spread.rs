//! A matrix, spread over the spans that a source lends and the threads of a team.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

use super::StepError;
use super::numbers::{Operations, Panels, Pass};
use super::span::{Span, for_each_span, for_each_span_to_check};
use crate::format::Part;
use crate::kernels::{TOKEN_BLOCK, share};

/// What sixteen lanes of one token cost, in the unit of [`share`]: rough, and only to tell little work from much.
pub mod cost {
    /// An operation or two on a row.
    pub const ROW: usize = 64;
    /// Elements of the embedding, one by one.
    pub const ELEMENTS: usize = 2048;
    /// Convolution and silu.
    pub const CONV: usize = 512;
    /// One state of the scan.
    pub const STATE: usize = 256;
}

/// Calls `work` with all panels of a matrix and the part of `y` that each gives, on the threads of the team. `cost` is what a
/// panel costs.
pub fn multiply<N: Operations, V: Panels>(
    p: &mut Pass<'_, N>,
    part: Part,
    cost: usize,
    y: &mut V::Of<'_>,
    work: impl Fn(&[u8], V::Of<'_>) + Sync,
) -> Result<(), StepError> {
    let (team, tokens) = (p.model.team, p.tokens);
    let multiply = |span: &Span<'_>, panels: Range<usize>, y: &mut V::Of<'_>, before: usize| {
        for (at, bytes) in span.pieces(panels) {
            work(bytes, V::part(y, before + at.start..before + at.end, tokens));
        }
    };
    if tokens > TOKEN_BLOCK {
        for_each_span(p, part, |span| {
            let y = V::share(y, span.first, 1, tokens);
            share(team, span.panels, cost, y, |range, mut y| multiply(span, range, &mut y, 0));
        })?;
        return Ok(());
    }
    // A few tokens wait for memory: a block is checked by the thread that multiplies it, on its way into the caches.
    for_each_span_to_check(p, part, |span| {
        let Some(each) = span.block_to_check() else {
            let y = V::share(y, span.first, 1, tokens);
            share(team, span.panels, cost, y, |range, mut y| multiply(span, range, &mut y, 0));
            return None;
        };
        let damaged = AtomicU32::new(u32::MAX);
        let y = V::share(y, span.first, each, tokens);
        share(team, span.blocks, cost.saturating_mul(each), y, |blocks, mut y| {
            for (i, block) in blocks.enumerate() {
                if span.is_sound(block) {
                    let panels = block * each..((block + 1) * each).min(span.panels);
                    multiply(span, panels, &mut y, i * each);
                } else {
                    damaged.fetch_min(block as u32, Ordering::Relaxed);
                }
            }
        });
        Some(damaged.into_inner()).filter(|damaged| *damaged != u32::MAX)
    })?;
    Ok(())
}
