//! Which weights stay in memory, and which are read anew for every token.

use elapid_core::format::{Layout, Section};

/// Buffers at most.
pub(super) const MOST_BUFFERS: usize = 15;
/// Buffers for the largest blocks, at least: one that is computed with and one that is read into.
const LEAST_BUFFERS: usize = 2;
/// Pieces of memory start at multiples of this.
const ALIGN: u64 = 64;

/// What is held in memory. All sections follow from a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Layers held, spread evenly over all.
    pub layers: u32,
    /// The final norm is held.
    pub final_norm: bool,
    /// The head is held (for a tied one: the embedding).
    pub head: bool,
    /// The embedding is held.
    pub embedding: bool,
    /// Bytes of the largest block that is read while the model runs; 0 where everything is held.
    largest: u64,
    /// Bytes that may be read ahead, beside the least.
    ahead: u64,
    /// Bytes of all buffers for blocks read ahead.
    pub reading: u64,
    /// Bytes of the buffer for a block of the embedding, which can't be read ahead: which one follows from the token.
    pub urgent: u64,
    /// Bytes of weights held.
    pub held: u64,
    /// Bytes read from the card for every token.
    pub streamed: u64,
}

const fn rounded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN)
}

/// Memory that a section takes.
fn bytes(layout: &Layout, section: Section) -> u64 {
    rounded(layout.section(section).length)
}

/// Memory that the largest block of a section takes.
fn largest(layout: &Layout, section: Section) -> u64 {
    let blocks = (0..layout.section(section).blocks).filter_map(|index| layout.block(section, index));
    blocks.map(|block| rounded(block.length)).max().unwrap_or(0)
}

impl Plan {
    /// A plan for `memory` bytes.
    ///
    /// # Errors
    /// The least number of bytes that works.
    pub fn new(layout: &Layout, memory: u64) -> Result<Self, u64> {
        let sections = layout.sections().filter(|section| is_weights(*section));
        let all = sections.map(|section| bytes(layout, section)).sum();
        if all <= memory {
            return Ok(Self {
                layers: layout.config().n_layer,
                final_norm: true,
                head: true,
                embedding: true,
                largest: 0,
                ahead: 0,
                reading: 0,
                urgent: 0,
                held: all,
                streamed: 0,
            });
        }
        // The head has the largest blocks, and all of it is needed for every token: it is held before any layer.
        Self::streaming(layout, memory, true).or_else(|with| {
            Self::streaming(layout, memory, false).map_err(|without| with.min(without).min(all))
        })
    }

    /// A plan for less memory than all weights take, with or without the head in it; or the least that it takes.
    fn streaming(layout: &Layout, memory: u64, head: bool) -> Result<Self, u64> {
        let config = layout.config();
        let (head_section, _) = layout.head();
        let read = [Section::Layer(0), Section::FinalNorm, head_section];
        let largest = read[..if head { 2 } else { 3 }].iter().map(|section| largest(layout, *section)).max();
        let largest = largest.unwrap_or(0);
        let urgent = if config.tied && head { 0 } else { self::largest(layout, Section::Embedding) };
        let least =
            LEAST_BUFFERS as u64 * largest + urgent + if head { bytes(layout, head_section) } else { 0 };
        let mut left = memory.checked_sub(least).ok_or(least)?;
        // Up to a quarter of the memory reads ahead.
        let ahead = (memory / 4).saturating_sub(LEAST_BUFFERS as u64 * largest).min(left);
        let mut plan = Self {
            layers: 0,
            final_norm: false,
            head,
            embedding: config.tied && head,
            largest,
            ahead,
            reading: 0,
            urgent,
            held: 0,
            streamed: 0,
        };
        plan.reading = plan.buffers(layout).sum::<usize>() as u64;
        left -= plan.reading - LEAST_BUFFERS as u64 * largest;
        let mut hold = |section| {
            let size = bytes(layout, section);
            let fits = size <= left;
            left -= if fits { size } else { 0 };
            fits
        };
        plan.final_norm = hold(Section::FinalNorm);
        while plan.layers < config.n_layer && hold(Section::Layer(0)) {
            plan.layers += 1;
        }
        // Of the embedding a token needs one block.
        plan.embedding = plan.embedding || !config.tied && hold(Section::Embedding);
        for section in layout.sections().filter(|section| is_weights(*section)) {
            if plan.holds(layout, section) {
                plan.held += bytes(layout, section);
            } else if config.tied || section != Section::Embedding {
                plan.streamed += bytes(layout, section);
            }
        }
        plan.streamed += if plan.embedding { 0 } else { urgent };
        Ok(plan)
    }

    /// Bytes of each buffer for blocks read ahead: two of the largest, then one for each block of a layer in their order, as
    /// memory allows. With all of them a whole layer is read while another is computed with.
    pub fn buffers(&self, layout: &Layout) -> impl Iterator<Item = usize> + use<> {
        let section = Section::Layer(0);
        let layout = *layout;
        let blocks =
            (0..layout.section(section).blocks).filter_map(move |index| layout.block(section, index));
        let mut left = self.ahead;
        let more = blocks.map(|block| rounded(block.length)).filter(move |size| {
            let fits = *size <= left;
            left -= if fits { *size } else { 0 };
            fits
        });
        let least = core::iter::repeat_n(self.largest, if self.streams() { LEAST_BUFFERS } else { 0 });
        least.chain(more).take(MOST_BUFFERS).map(|size| size as usize)
    }

    /// Whether a section of weights is held in memory.
    #[must_use]
    pub fn holds(&self, layout: &Layout, section: Section) -> bool {
        match section {
            Section::Layer(layer) => {
                let all = u64::from(layout.config().n_layer);
                let until = |layer: u64| layer * u64::from(self.layers) / all;
                until(u64::from(layer) + 1) > until(u64::from(layer))
            }
            Section::Embedding => self.embedding,
            Section::FinalNorm => self.final_norm,
            Section::Head => self.head,
            _ => false,
        }
    }

    /// Whether weights are read from the card while the model runs.
    #[must_use]
    pub const fn streams(&self) -> bool {
        self.largest > 0
    }
}

pub(super) const fn is_weights(section: Section) -> bool {
    matches!(section, Section::Embedding | Section::Layer(_) | Section::FinalNorm | Section::Head)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::{Plan, is_weights};
    use elapid_core::format::{Header, Layout, Section};

    fn layout() -> Layout {
        let bytes =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../host/models/address-4m.elp")).unwrap();
        *Header::parse(&bytes).unwrap().layout()
    }

    #[test]
    fn any_memory_gives_a_plan_that_fits_it_or_an_error() {
        let layout = layout();
        let least = Plan::new(&layout, 0).unwrap_err();
        let mut last = (0, u64::MAX);
        for memory in (least..8 << 20).step_by(50_000) {
            let plan = Plan::new(&layout, memory).unwrap();
            assert!(plan.held + plan.reading + plan.urgent <= memory, "{memory}: {plan:?}");
            let buffers: Vec<_> = plan.buffers(&layout).collect();
            assert_eq!(buffers.iter().sum::<usize>() as u64, plan.reading, "{plan:?}");
            // Every block that may be asked for fits one of two.
            for section in layout.sections().filter(|s| is_weights(*s) && !plan.holds(&layout, *s)) {
                let blocks = (0..layout.section(section).blocks).filter_map(|i| layout.block(section, i));
                for length in blocks.map(|block| block.length as usize) {
                    assert!(buffers.iter().filter(|size| **size >= length).count() >= 2, "{plan:?}");
                    assert!(section != Section::Embedding || length as u64 <= plan.urgent, "{plan:?}");
                }
            }
            let held =
                (0..layout.config().n_layer).filter(|l| plan.holds(&layout, Section::Layer(*l))).count();
            assert_eq!(held, plan.layers as usize);
            assert_eq!(plan.streams(), plan.streamed > 0, "{plan:?}");
            last = (plan.held.max(last.0), plan.streamed);
        }
        assert_eq!(last.1, 0);
        assert!(last.0 > 4_000_000);
        assert_eq!(Plan::new(&layout, least - 1), Err(least));
    }

    #[test]
    fn held_layers_are_spread() {
        let layout = layout();
        let n = layout.config().n_layer;
        for layers in 0..=n {
            let plan = Plan { layers, ..Plan::new(&layout, u64::MAX).unwrap() };
            let held = |l: u32| plan.holds(&layout, Section::Layer(l));
            assert_eq!((0..n).filter(|l| held(*l)).count(), layers as usize);
            // No half of the layers holds much more than the other.
            let first = (0..n / 2).filter(|l| held(*l)).count();
            assert!(first.abs_diff(layers as usize - first) <= 1 + (n % 2) as usize, "{layers}: {first}");
        }
    }
}
