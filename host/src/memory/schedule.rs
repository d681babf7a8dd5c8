//! What a pass over the weights reads, in order, and what of it stays in memory.

use elapid_core::format::{Layout, Section};

/// Bytes that are read at once, where blocks are smaller: enough that a drive does not notice the gaps.
pub(crate) const READ: u64 = 1 << 20;

/// Blocks that lie together, are read together and borrowed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub section: Section,
    pub first: u32,
    pub end: u32,
    pub offset: u64,
    pub len: u32,
    /// It is read once and kept.
    pub pinned: bool,
}

impl Segment {
    pub(crate) fn holds(&self, section: Section, block: u32) -> bool {
        self.section == section && (self.first..self.end).contains(&block)
    }
}

/// All segments of a pass: the layers, then the final norm and the head.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub segments: Vec<Segment>,
    /// The first segment after the layers.
    pub head: usize,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Bytes of those that are pinned.
    pub pinned_bytes: u64,
}

/// The sections of a pass, in order.
pub(crate) fn sections(layout: &Layout) -> impl Iterator<Item = Section> + use<> {
    let layers = (0..layout.config().n_layer).map(Section::Layer);
    layers.chain([Section::FinalNorm, layout.head().0])
}

/// Bytes of the longest segment if blocks are gathered up to `read` bytes.
pub(crate) fn slot_bytes(layout: &Layout, read: u64) -> u64 {
    segments(layout, read).map(|segment| u64::from(segment.len)).max().unwrap_or(0)
}

/// The segments, without a thought of pinning.
pub(crate) fn segments(layout: &Layout, read: u64) -> impl Iterator<Item = Segment> + use<'_> {
    sections(layout).flat_map(move |section| {
        let blocks = layout.section(section).blocks;
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = next;
            let start = layout.block(section, first).filter(|_| first < blocks)?.offset;
            let mut end = start;
            while let Some(block) = layout.block(section, next) {
                // Blocks of a section lie one after the other without gaps.
                if next > first && block.offset + block.length - start > read {
                    break;
                }
                end = block.offset + block.length;
                next += 1;
            }
            let len = (end - start) as u32;
            Some(Segment { section, first, end: next, offset: start, len, pinned: false })
        })
    })
}

impl Schedule {
    /// Gathers blocks up to `read` bytes, and pins up to `pin` bytes of them, spread evenly: between two pinned segments
    /// the drive always finds something to read.
    pub(crate) fn new(layout: &Layout, read: u64, pin: u64) -> Self {
        let mut segments: Vec<Segment> = segments(layout, read).collect();
        let is_layer = |segment: &Segment| matches!(segment.section, Section::Layer(_));
        let head = segments.iter().position(|segment| !is_layer(segment)).unwrap_or(segments.len());
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let (mut owed, mut pinned_bytes) = (0u128, 0);
        for segment in &mut segments {
            // As a line is drawn in pixels: a segment is pinned when a whole one is owed.
            let len = u128::from(segment.len);
            owed += len * u128::from(pin.min(bytes));
            if owed >= len * u128::from(bytes) {
                owed -= len * u128::from(bytes);
                segment.pinned = true;
                pinned_bytes += u64::from(segment.len);
            }
        }
        Self { segments, head, bytes, pinned_bytes }
    }

    /// The segment that holds a block; `after` is where it probably is.
    pub(crate) fn find(&self, section: Section, block: u32, after: usize) -> Option<usize> {
        let likely = [after, after + 1, self.head, 0].into_iter();
        let is = |i: &usize| self.segments.get(*i).is_some_and(|s| s.holds(section, block));
        likely.filter(|i| *i < self.segments.len()).find(is).or_else(|| (0..self.segments.len()).find(is))
    }

    /// Bytes that a token reads.
    pub(crate) fn streamed_bytes(&self) -> u64 {
        self.bytes - self.pinned_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elapid_core::format::Header;

    fn layout() -> Layout {
        let bytes = include_bytes!("../../models/address-300k.elp");
        *Header::parse(bytes).unwrap().layout()
    }

    #[test]
    fn segments_hold_every_block_of_a_pass_once() {
        let layout = layout();
        for read in [1, 4096, 64 << 10, READ] {
            let schedule = Schedule::new(&layout, read, 0);
            let mut blocks =
                sections(&layout).flat_map(|s| (0..layout.section(s).blocks).map(move |b| (s, b)));
            for segment in &schedule.segments {
                let range = layout.blocks(segment.section, segment.first..segment.end).unwrap();
                assert_eq!(range, segment.offset..segment.offset + u64::from(segment.len));
                for block in segment.first..segment.end {
                    assert_eq!(blocks.next(), Some((segment.section, block)));
                }
                assert!(segment.len as u64 <= read || segment.end == segment.first + 1);
            }
            assert_eq!(blocks.next(), None);
            assert!(
                schedule.segments[..schedule.head].iter().all(|s| matches!(s.section, Section::Layer(_)))
            );
        }
    }

    #[test]
    fn pinned_segments_are_spread_and_stay_within_what_is_given() {
        let layout = layout();
        let all = Schedule::new(&layout, 1, 0);
        assert_eq!(all.pinned_bytes, 0);
        for share in 1..=20 {
            let pin = all.bytes * share / 20;
            let schedule = Schedule::new(&layout, 1, pin);
            assert!(schedule.pinned_bytes <= pin, "{share}");
            // Nowhere along the pass is more pinned than its share, and no less than that but for two segments.
            let (mut pinned, mut passed, mut largest) = (0, 0, 0);
            for segment in &schedule.segments {
                passed += u64::from(segment.len);
                largest = largest.max(u64::from(segment.len));
                pinned += if segment.pinned { u64::from(segment.len) } else { 0 };
                let due = passed * share / 20;
                assert!(pinned <= due + largest && pinned + 2 * largest >= due, "{share}: {pinned} of {due}");
            }
        }
        assert_eq!(Schedule::new(&layout, 1, all.bytes).pinned_bytes, all.bytes);
    }
}
