//! From a cap on memory to what is kept where: all that a model will take, before any of it is allocated.

use elapid_core::format::Layout;

use super::panels::panels_bytes;
use super::schedule::{READ, Schedule, Segment, segments, slot_bytes};
use crate::options::SessionOptions;

/// The program itself: the pages of its code and data that are in memory, the allocator, the main thread. Measured, with room to
/// spare, see docs/streaming.md.
pub(super) const PROGRAM: u64 = 13 << 19;
/// A thread's stack, as far as it is used, and what the system keeps of it.
const THREAD: u64 = 96 << 10;
/// What is never planned: a page here and there where buffers end, tables of pages.
const MARGIN: u64 = 512 << 10;
/// One part in so many of the cap is left alone too, for the system's tables of its pages.
const MARGIN_SHARE: u64 = 128;
/// What a buffer is rounded up by at most: it has whole pages, and blocks are whole pages of 4 KiB.
const ROUNDED: u64 = if cfg!(target_arch = "x86_64") { 0 } else { 12 << 10 };
/// Tokens of a chunk at most, whatever is asked for.
const MOST_CHUNK: u64 = 1 << 16;
/// Blocks of the ring: at the least one that is computed with, one that is there and one that comes.
const LEAST_SLOTS: u64 = 3;
/// Blocks of the ring where there is room: some megabytes of reading ahead hide the pauses of a computation.
const MOST_SLOTS: u64 = 16;

/// What a plan is made from, beside the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// Bytes that the process may take, all together.
    pub cap: u64,
    pub threads: u64,
    /// Reads under way at a time.
    pub reads: u64,
    /// Bytes that the sessions hold that are open.
    pub others: u64,
    /// Bytes of the program beyond [`PROGRAM`].
    pub beside: u64,
    /// Sessions that share the cap.
    pub sessions: u64,
    pub options: SessionOptions,
}

/// Why there is no plan, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLittle {
    /// The least cap that works.
    pub least: u64,
    /// What the session itself needs at least.
    pub needs: u64,
    /// What the cap leaves for it.
    pub left: u64,
}

/// Where a model's bytes and all that it needs will be, in bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The most that the process may take.
    pub cap_bytes: u64,
    /// The whole file is mapped: nothing is streamed, and the fields about reading are 0.
    pub mapped: bool,
    /// The program, its threads' stacks, what the caller and other sessions hold, and a margin.
    pub program_bytes: u64,
    /// Tokenizer, tables of checksums and segments, and the block through which the embedding is read.
    pub tables_bytes: u64,
    /// State of all layers, and the undo copy of one.
    pub state_bytes: u64,
    /// Working memory of a chunk, and logits.
    pub working_bytes: u64,
    /// Tokens of a chunk of a prompt.
    pub chunk: u64,
    /// The ring of blocks.
    pub ring_bytes: u64,
    /// Buffers of the ring.
    pub slots: u64,
    /// Bytes of each.
    pub slot_bytes: u64,
    /// Bytes read at once, where blocks are smaller.
    pub read_bytes: u64,
    /// Reads under way at a time.
    pub readers: usize,
    /// Weights that stay in memory.
    pub pinned_bytes: u64,
    /// Weights that a token needs: layers and head.
    pub weights_bytes: u64,
    /// Those that are read from storage for every token.
    pub streamed_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// What of all this is the session's own, and free again when it is dropped.
    #[serde(skip)]
    pub session_bytes: u64,
}

/// All that does not depend on the cap.
struct Fixed {
    program: u64,
    state: u64,
    held: u64,
    /// What all sessions share.
    shared: u64,
    others: u64,
    sessions: u64,
}

impl Plan {
    /// Plans for a model. `mappable` is whether a file that is streamed could be mapped, and [`None`] where all of it is in
    /// memory anyway.
    ///
    /// # Errors
    /// If the cap is too small.
    pub(crate) fn new(layout: &Layout, wish: &Wish, mappable: Option<bool>) -> Result<Self, TooLittle> {
        let (config, options) = (layout.config(), &wish.options);
        let most_chunk = (options.chunk_of(config) as u64).clamp(1, MOST_CHUNK);
        let one = options.state_bytes(config, 1) as u64;
        let all = options.state_bytes(config, config.n_layer as usize) as u64;
        let shared = PROGRAM.saturating_add(wish.beside).saturating_add(THREAD * wish.threads);
        let fixed = Fixed {
            program: shared.saturating_add(THREAD * wish.reads),
            state: one.saturating_add(all),
            held: (options.held as u64).saturating_add(wish.others),
            shared: shared.saturating_add(tables_bytes(layout, 0)),
            others: wish.others,
            sessions: wish.sessions.max(1),
        };
        let cap = (wish.cap - wish.cap / MARGIN_SHARE).saturating_sub(MARGIN);
        let margin = wish.cap - cap;
        if mappable != Some(false)
            && let Some(plan) = Self::mapped(layout, wish, &fixed, (cap, margin), most_chunk)
        {
            return Ok(plan);
        }
        if mappable.is_none() {
            let least = mapped_bytes(layout, wish, &fixed, 1);
            return Err(fixed.too_little(least, cap, layout.file_bytes()));
        }

        // The least: a chunk of one token, a short ring, nothing pinned. Small slots only where large ones do not fit.
        let least_of = |read: u64| {
            let slot = slot_bytes(layout, read);
            let tables = tables_bytes(layout, segments(layout, read).count() as u64);
            let known = fixed.program.saturating_add(fixed.state).saturating_add(fixed.held);
            let least = known.saturating_add(tables).saturating_add(working_bytes(layout, wish, 1));
            (read, slot, tables, least.saturating_add(LEAST_SLOTS * slot))
        };
        let ways = [READ, READ / 4, 1].map(least_of);
        let share = fixed.limit(cap, 0);
        let (read, slot, tables, least) = ways.into_iter().find(|way| way.3 <= share).ok_or_else(|| {
            // A small file takes less as a whole than what reads it.
            let whole = if mappable == Some(true) { mapped_bytes(layout, wish, &fixed, 1) } else { u64::MAX };
            let streamed = ways.into_iter().fold(u64::MAX, |least, way| least.min(way.3));
            let file = if whole <= streamed { layout.file_bytes() } else { 0 };
            fixed.too_little(whole.min(streamed), cap, file)
        })?;

        let mut rest = share - least;
        let slots = LEAST_SLOTS + (rest / 2 / slot).min(MOST_SLOTS - LEAST_SLOTS);
        rest -= (slots - LEAST_SLOTS) * slot;
        // Beyond the tokens that step together.
        let together = (options.sequences() as u64).min(MOST_CHUNK);
        let each = working_bytes(layout, wish, together + 1) - working_bytes(layout, wish, together);
        let chunk = 1 + (rest / 4 / each.max(1)).min(most_chunk - 1);
        rest -= (chunk - 1) * each;
        // Buffers are whole pages, of up to 16 KiB.
        let count = segments(layout, read).count() as u64;
        let schedule = Schedule::new(layout, read, rest.saturating_sub(count.min(rest / slot + 1) * ROUNDED));
        let plan = Self {
            cap_bytes: wish.cap,
            mapped: false,
            program_bytes: fixed.program + margin + fixed.held,
            tables_bytes: tables,
            state_bytes: fixed.state,
            working_bytes: working_bytes(layout, wish, chunk),
            chunk,
            ring_bytes: slots * slot,
            slots,
            slot_bytes: slot,
            read_bytes: read,
            readers: wish.reads.min(slots - 1) as usize,
            pinned_bytes: schedule.pinned_bytes,
            weights_bytes: schedule.bytes,
            streamed_bytes: schedule.streamed_bytes(),
            file_bytes: layout.file_bytes(),
            session_bytes: 0,
        };
        Ok(plan.with_session(margin + fixed.shared + fixed.others))
    }

    /// The plan that a model with this layout would have for its only session on another machine: under `cap` bytes, with so many
    /// threads, and reads under way at a time.
    ///
    /// # Errors
    /// The least cap that works, in bytes.
    pub fn predict(
        layout: &Layout,
        cap: u64,
        threads: u64,
        reads: u64,
        options: &SessionOptions,
    ) -> Result<Self, u64> {
        let wish = Wish { cap, threads, reads, others: 0, beside: 0, sessions: 1, options: *options };
        Self::new(layout, &wish, Some(true)).map_err(|lacking| lacking.least)
    }

    /// The least caps in bytes under which such a model runs, and under which nothing is streamed.
    #[must_use]
    pub fn least_caps(layout: &Layout, threads: u64, reads: u64, options: &SessionOptions) -> [u64; 2] {
        let predict = |cap| Self::predict(layout, cap, threads, reads, options);
        let least = predict(1).map_or_else(|least| least, |plan| plan.cap_bytes);
        let wish = Wish { cap: 1, threads, reads, others: 0, beside: 0, sessions: 1, options: *options };
        // No file in storage: the whole of it must be in memory.
        let whole =
            Self::new(layout, &wish, None).map_or_else(|lacking| lacking.least, |plan| plan.cap_bytes);
        [least, whole]
    }

    /// The plan for a file that fits as a whole.
    fn mapped(
        layout: &Layout,
        wish: &Wish,
        fixed: &Fixed,
        (cap, margin): (u64, u64),
        most_chunk: u64,
    ) -> Option<Self> {
        let limit = fixed.limit(cap, layout.file_bytes());
        let room = |chunk: &u64| mapped_bytes(layout, wish, fixed, *chunk) <= limit;
        let chunk = [most_chunk, most_chunk / 4, 1].into_iter().map(|chunk| chunk.max(1)).find(room)?;
        let plan = Self {
            cap_bytes: wish.cap,
            mapped: true,
            program_bytes: fixed.program + margin + fixed.held,
            tables_bytes: tables_bytes(layout, 0),
            state_bytes: fixed.state,
            working_bytes: working_bytes(layout, wish, chunk),
            chunk,
            ring_bytes: 0,
            slots: 0,
            slot_bytes: 0,
            read_bytes: 0,
            readers: 0,
            pinned_bytes: 0,
            weights_bytes: segments(layout, READ).map(|segment| u64::from(segment.len)).sum(),
            streamed_bytes: 0,
            file_bytes: layout.file_bytes(),
            session_bytes: 0,
        };
        Some(plan.with_session(margin + fixed.shared + fixed.others + layout.file_bytes()))
    }

    /// Sets the session's own bytes: all but `others`.
    fn with_session(self, others: u64) -> Self {
        Self { session_bytes: self.total_bytes().saturating_sub(others), ..self }
    }

    /// Seconds that a token takes where storage of `rate` bytes a second bounds it.
    #[must_use]
    pub fn seconds_per_token(&self, rate: f64) -> f64 {
        self.streamed_bytes as f64 / rate
    }

    /// All memory of the plan, the margin included.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let file = if self.mapped { self.file_bytes } else { 0 };
        let weights = self.ring_bytes + self.pinned_bytes + file;
        self.program_bytes + self.tables_bytes + self.state_bytes + self.working_bytes + weights
    }
}

impl Fixed {
    /// What a session may fill of `cap`, with all that is shared and held, a mapped file of `file` bytes among it.
    fn limit(&self, cap: u64, file: u64) -> u64 {
        let shared = self.shared.saturating_add(file);
        let each = cap.saturating_sub(shared) / self.sessions;
        cap.min(shared.saturating_add(self.others).saturating_add(each))
    }

    /// What is lacking where `least` bytes are needed of `cap`, a mapped file of `file` bytes among them.
    fn too_little(&self, least: u64, cap: u64, file: u64) -> TooLittle {
        let shared = self.shared.saturating_add(file);
        let held = shared.saturating_add(self.others);
        let needs = least.saturating_sub(held);
        TooLittle {
            least: with_margin(shared.saturating_add(needs.saturating_mul(self.sessions))),
            needs,
            left: self.limit(cap, file).saturating_sub(held),
        }
    }
}

/// Bytes of all but the margin where a file is in memory as a whole.
fn mapped_bytes(layout: &Layout, wish: &Wish, fixed: &Fixed, chunk: u64) -> u64 {
    let known = fixed.program.saturating_add(fixed.state).saturating_add(fixed.held);
    let file = layout.file_bytes().saturating_add(tables_bytes(layout, 0));
    known.saturating_add(file).saturating_add(working_bytes(layout, wish, chunk))
}

/// The least cap, in whole MiB, as caps are given, within which `bytes` and the margin fit.
fn with_margin(bytes: u64) -> u64 {
    let bytes = bytes.saturating_add(MARGIN);
    let cap = bytes.saturating_add(bytes.div_ceil(MARGIN_SHARE - 1));
    cap.checked_next_multiple_of(1 << 20).unwrap_or(u64::MAX)
}

/// Tokenizer and other data, header, checksums, segments, the embedding's panels.
fn tables_bytes(layout: &Layout, count: u64) -> u64 {
    let d = layout.config().data;
    let data = [d.tokenizer, d.chat_template, d.role_table, d.generation].into_iter().map(u64::from);
    let checksums = 4 * u64::from(layout.block_count());
    // A segment, and the places of its buffer with the readers and with the computation.
    let segment = (size_of::<Segment>() + 2 * size_of::<Option<super::storage::Buffer>>()) as u64;
    let panels = if count > 0 { panels_bytes(layout) } else { 0 };
    data.sum::<u64>() + layout.header_bytes() + 2 * checksums + count * segment + panels
}

/// Working memory of chunks of `chunk` tokens, and the logits.
fn working_bytes(layout: &Layout, wish: &Wish, chunk: u64) -> u64 {
    let (config, options) = (layout.config(), &wish.options);
    let row = 4 * u64::from(config.padded_vocab());
    let scratch = options.scratch_bytes(config, usize::try_from(chunk).unwrap_or(usize::MAX));
    let each = row.saturating_add(options.numbers.integer_logits_bytes(config) as u64);
    let rows = if options.rows { row.saturating_add(each.saturating_mul(chunk)) } else { 0 };
    let sequences = options.sequences() as u64;
    // A row to take them from, where several step together.
    let logits = row.saturating_mul(sequences.saturating_add(u64::from(sequences > 1)));
    (scratch as u64).saturating_add(logits).saturating_add(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elapid_core::fixed;
    use elapid_core::format::{Arch, Config, DataSizes, Fields, PerMatrix, Quant, Quants};
    use elapid_core::model::StateKind;

    use crate::numbers::Numbers;

    /// falcon-mamba-7b in q4.
    fn falcon() -> Layout {
        let (q4, q8) = (Quant::Q4, Quant::Q8);
        let quants = Quants { embedding: q4, in_proj: q4, x_proj: q8, dt_proj: q8, out_proj: q4, head: q4 };
        let config = Config::new(Fields {
            arch: Arch::FalconMamba,
            d_model: 4096,
            d_inner: 8192,
            d_state: 16,
            d_conv: 4,
            dt_rank: 256,
            n_layer: 64,
            vocab: 65024,
            norm_eps: 1e-5,
            bcdt_eps: Some(1e-6),
            tied: false,
            bias: false,
            conv_bias: true,
            compact: false,
            quants,
            exponents: PerMatrix::default(),
            logit_exponent: 0,
            block_bytes: 1 << 20,
            data: DataSizes { tokenizer: 3 << 20, ..DataSizes::default() },
        });
        Layout::new(config.unwrap()).unwrap()
    }

    fn wish(cap: u64, state: StateKind) -> Wish {
        let options = SessionOptions::default().numbers(Numbers::Float(state)).chunk(256);
        Wish { cap, threads: 4, reads: 4, others: 0, beside: 0, sessions: 1, options }
    }

    #[test]
    fn plans_stay_within_the_cap_and_use_it() {
        let layout = falcon();
        let mut streamed = u64::MAX;
        for mb in [96, 128, 200, 256, 512, 1024, 2048, 3500, 4000, 4600, 8000] {
            let plan = Plan::new(&layout, &wish(mb << 20, StateKind::F32), Some(true)).unwrap();
            let total = plan.total_bytes();
            assert!(total <= mb << 20, "{mb}: {plan:?}");
            // What the buffers of pinned segments may be rounded up by is left alone.
            let rounded = (plan.pinned_bytes / (1 << 20) * 103 / 100 + 4) * ROUNDED;
            let idle = (3 << 20) + (mb << 13) + rounded;
            assert!(plan.mapped || total + idle > mb << 20, "{mb}: wasted, {plan:?}");
            assert!(plan.streamed_bytes <= streamed);
            streamed = plan.streamed_bytes;
            assert_eq!(plan.mapped, mb >= 4600, "{mb}");
            if !plan.mapped {
                assert_eq!(plan.streamed_bytes + plan.pinned_bytes, plan.weights_bytes);
            }
        }
    }

    #[test]
    fn the_least_is_the_least() {
        let layout = falcon();
        for state in [StateKind::F32, StateKind::F16] {
            let least = Plan::new(&layout, &wish(1, state), Some(true)).unwrap_err().least;
            assert!((20 << 20..80 << 20).contains(&least), "{least}");
            let plan = Plan::new(&layout, &wish(least, state), Some(true)).unwrap();
            assert!(plan.slots >= 3 && plan.chunk >= 1);
            let less = Plan::new(&layout, &wish(least - (1 << 20), state), Some(true)).unwrap_err();
            assert_eq!(less.least, least);
            assert!(less.needs > less.left, "{less:?}");
        }
    }

    #[test]
    fn the_least_caps_are_the_least() {
        let layout = falcon();
        let options = SessionOptions::default();
        let [least, whole] = Plan::least_caps(&layout, 4, 2, &options);
        let predict = |cap| Plan::predict(&layout, cap, 4, 2, &options);
        assert!(least < whole && predict(least).is_ok_and(|plan| !plan.mapped));
        assert_eq!(predict(least - (1 << 20)), Err(least));
        assert!(predict(whole).is_ok_and(|plan| plan.mapped));
        assert!(predict(whole - (1 << 20)).is_ok_and(|plan| !plan.mapped));
    }

    #[test]
    fn the_margin_is_exact() {
        let fits = |cap: u64, bytes| (cap - cap / MARGIN_SHARE).saturating_sub(MARGIN) >= bytes;
        // Around what just fits, where a byte decides about a MiB.
        for mib in [1, 2, 7, 127, 128, 4000] {
            let cap = mib << 20;
            let most = cap - cap / MARGIN_SHARE - MARGIN;
            for bytes in most - 2..most + 3 {
                let least = with_margin(bytes);
                assert_eq!(least, if bytes <= most { cap } else { cap + (1 << 20) }, "{bytes}");
                assert!(fits(least, bytes) && !fits(least - (1 << 20), bytes), "{bytes}");
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_had_do_not_overflow() {
        let layout = falcon();
        let most = SessionOptions::default().chunk(usize::MAX).rows(true);
        let wish =
            |cap, options| Wish { cap, threads: 4, reads: 4, others: 0, beside: 0, sessions: 1, options };
        for options in [most.held(usize::MAX), most] {
            assert!(Plan::new(&layout, &wish(1 << 20, options), Some(true)).is_err());
        }
        for options in [most, most.numbers(Numbers::Fixed(fixed::StateKind::I16))] {
            assert!(Plan::new(&layout, &wish(u64::MAX, options), Some(true)).is_ok_and(|plan| plan.mapped));
        }
    }

    #[test]
    fn sessions_share_a_cap() {
        let layout = falcon();
        for (cap, sessions) in [(512 << 20, 1), (512 << 20, 3), (8 << 30, 1), (8 << 30, 3)] {
            let options = SessionOptions::default().chunk(8);
            let mut wish = Wish { options, sessions, ..wish(cap, StateKind::F32) };
            let first = Plan::new(&layout, &wish, Some(true)).unwrap();
            for others in 1..sessions {
                wish.others += first.session_bytes;
                let next = Plan::new(&layout, &wish, Some(true)).unwrap();
                assert_eq!(next.session_bytes, first.session_bytes, "all alike");
                assert_eq!(next.total_bytes(), first.total_bytes() + others * first.session_bytes);
                assert!(next.total_bytes() <= cap);
            }
            wish.others += first.session_bytes;
            match Plan::new(&layout, &wish, Some(true)) {
                Ok(one_more) => assert!(one_more.mapped && one_more.total_bytes() <= cap),
                Err(TooLittle { needs, left, .. }) => assert!(!first.mapped && needs > left),
            }
        }
    }

    #[test]
    fn the_least_for_several_sessions_is_the_least() {
        let layout = falcon();
        for sessions in [2, 5] {
            let wish = |cap| Wish { sessions, ..wish(cap, StateKind::F32) };
            let least = Plan::new(&layout, &wish(1), Some(true)).unwrap_err().least;
            assert!(Plan::new(&layout, &wish(least), Some(true)).is_ok());
            let less = Plan::new(&layout, &wish(least - (1 << 20)), Some(true)).unwrap_err();
            assert!(less.least == least && less.needs > less.left, "{less:?}");
        }
    }
}
