//! Which weights stay in memory, and which are read anew for every token.

use elapid_core::format::{Layout, Section};

/// Blocks that are read ahead, where memory allows: enough that the card never waits for the computation.
const MOST_BUFFERS: usize = 8;
/// One that is computed with and one that is read into.
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
    /// Blocks that are read ahead; 0 where everything is held.
    pub buffers: usize,
    /// Bytes of weights held.
    pub held: u64,
    /// Bytes read from the card for every token.
    pub streamed: u64,
}

/// Memory that a section takes.
fn bytes(layout: &Layout, section: Section) -> u64 {
    layout.section(section).length.next_multiple_of(ALIGN)
}

impl Plan {
    /// A plan for `memory` bytes.
    ///
    /// # Errors
    /// The least number of bytes that works.
    pub fn new(layout: &Layout, memory: u64) -> Result<Self, u64> {
        let config = layout.config();
        let layer = bytes(layout, Section::Layer(0));
        let norm = bytes(layout, Section::FinalNorm);
        let embedding = bytes(layout, Section::Embedding);
        let head = if config.tied { 0 } else { bytes(layout, Section::Head) };
        let all = embedding + u64::from(config.n_layer) * layer + norm + head;
        let everything = Self {
            layers: config.n_layer,
            final_norm: true,
            head: true,
            embedding: true,
            buffers: 0,
            held: all,
            streamed: 0,
        };
        if all <= memory {
            return Ok(everything);
        }
        // One buffer more is for the block of the embedding that holds a token's row.
        let buffer = u64::from(config.block_bytes);
        let least = buffer * (LEAST_BUFFERS as u64 + 1);
        if memory < least {
            return Err(least.min(all));
        }
        let mut buffers = LEAST_BUFFERS;
        // Up to a quarter of the memory reads ahead.
        while buffers < MOST_BUFFERS && buffer * (buffers as u64 + 2) <= memory / 4 {
            buffers += 1;
        }
        let mut left = memory - buffer * (buffers as u64 + 1);
        let mut hold = |size: u64| {
            let fits = size <= left;
            left -= if fits { size } else { 0 };
            fits
        };
        // All is needed for every token, but for the embedding, of which it is one block.
        let mut plan = Self { buffers, layers: 0, embedding: false, ..everything };
        plan.final_norm = hold(norm);
        plan.head = hold(if config.tied { embedding } else { head });
        while plan.layers < config.n_layer && hold(layer) {
            plan.layers += 1;
        }
        plan.embedding = if config.tied { plan.head } else { hold(embedding) };
        let sections = layout.sections().filter(|section| plan.holds(layout, *section));
        plan.held =
            sections.filter(|section| is_weights(*section)).map(|section| bytes(layout, section)).sum();
        let not_streamed = plan.held + if config.tied || plan.embedding { 0 } else { embedding };
        plan.streamed = all - not_streamed + if plan.embedding { 0 } else { buffer };
        Ok(plan)
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
        self.buffers > 0
    }
}

pub(super) const fn is_weights(section: Section) -> bool {
    matches!(section, Section::Embedding | Section::Layer(_) | Section::FinalNorm | Section::Head)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Plan;
    use elapid_core::format::{Header, Layout, Section};

    fn layout() -> Layout {
        let bytes =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/address-4m.elp")).unwrap();
        *Header::parse(&bytes).unwrap().layout()
    }

    #[test]
    fn any_memory_gives_a_plan_that_fits_it_or_an_error() {
        let layout = layout();
        let least = Plan::new(&layout, 0).unwrap_err();
        let mut last = (0, u64::MAX);
        for memory in (least..8 << 20).step_by(50_000) {
            let plan = Plan::new(&layout, memory).unwrap();
            let block = u64::from(layout.config().block_bytes);
            let buffers = if plan.streams() { block * (plan.buffers as u64 + 1) } else { 0 };
            assert!(plan.held + buffers <= memory, "{memory}: {plan:?}");
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
