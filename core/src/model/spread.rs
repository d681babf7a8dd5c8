//! A matrix product, divided among the spans of a source and the threads of a team.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

use super::StepError;
use super::operations::{Operations, Panels, Pass};
use super::span::spans;
use crate::format::Part;
use crate::kernels::{MAX_TEAM, TOKEN_BLOCK, share};

/// The cost of sixteen lanes of one token, in the unit of [`share`]: a rough estimate, to tell little work from much.
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

/// Calls `work` with all panels of a matrix and the part of `y` that each computes, on the threads of the team. `cost` is the cost
/// of a panel.
pub fn multiply<N: Operations, V: Panels>(
    p: &mut Pass<'_, N>,
    part: Part,
    cost: usize,
    y: &mut V::Of<'_>,
    work: impl Fn(&[u8], V::Of<'_>) + Sync,
) -> Result<(), StepError> {
    let (team, tokens) = (p.model.team, p.tokens);
    // With few tokens memory is the bottleneck, so the thread that multiplies a block also checks it, on its way into the caches.
    // Where a team can only have one thread, this code is left out.
    spans(p, part, MAX_TEAM > 1 && tokens <= TOKEN_BLOCK, |span| {
        let each = span.block_to_check().filter(|_| MAX_TEAM > 1);
        let (items, panels_each) = each.map_or((span.panels, 1), |each| (span.blocks, each));
        let damaged = AtomicU32::new(u32::MAX);
        let y = V::share(y, span.first, panels_each, tokens);
        share(team, items, cost.saturating_mul(panels_each), y, |range, mut y| {
            let mut multiply = |panels: Range<usize>, before: usize| {
                for (at, bytes) in span.pieces(panels) {
                    work(bytes, V::part(&mut y, before + at.start..before + at.end, tokens));
                }
            };
            let Some(each) = each else { return multiply(range, 0) };
            for (i, block) in range.enumerate() {
                if span.is_sound(block) {
                    multiply(block * each..((block + 1) * each).min(span.panels), i * each);
                } else {
                    damaged.fetch_min(block as u32, Ordering::Relaxed);
                }
            }
        });
        Some(damaged.into_inner()).filter(|damaged| *damaged != u32::MAX)
    })?;
    Ok(())
}
