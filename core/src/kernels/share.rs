//! Work split among the threads of a team, each writing its own part of the output.

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The most threads a team can have. On a microcontroller one core computes, and the code that hands work out, a few
/// kilobytes, is left out.
pub const MAX_TEAM: usize = if cfg!(all(target_arch = "arm", target_os = "none")) { 1 } else { 64 };

/// Threads that run the same job side by side, each on a core.
pub trait Team: Sync {
    /// Threads, at least 1.
    fn size(&self) -> usize;

    /// Calls `job(0)` to `job(size - 1)`, once each, and returns when all have returned.
    fn run(&self, job: &(dyn Fn(usize) + Sync));

    /// The grain: the least work for which handing some of it to one more thread pays, in the unit of [`share`]'s cost, bytes
    /// of weights times tokens. The default is about a microsecond of a desktop's core.
    fn grain(&self) -> usize {
        64 << 10
    }

    /// Whether a thread does its own range and steals no work. Right where cores are alike and nothing else runs on them: each
    /// is done when the others are. Otherwise threads that are done first steal from the others.
    fn fixed_ranges(&self) -> bool {
        false
    }
}

/// A team of one: the calling core.
#[derive(Clone, Copy, Debug)]
pub struct Solo;

impl Team for Solo {
    fn size(&self) -> usize {
        1
    }
    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        job(0);
    }
}

/// Something that can be cut into disjoint parts, one a range of items.
pub trait Share: Sync {
    /// What a thread gets for a range of items.
    type Part;

    /// The part of `items`. A range past the end is cut short; one that ends before it starts is empty.
    ///
    /// # Safety
    /// Parts that exist at the same time must be of disjoint ranges.
    unsafe fn part(&self, items: &Range<usize>) -> Self::Part;
}

/// A slice shared out in pieces of `stride` elements an item. See [`split`].
#[derive(Debug)]
pub struct Split<'a, T> {
    start: *mut T,
    len: usize,
    stride: usize,
    slice: PhantomData<&'a mut [T]>,
}

/// Shares out a slice that has `stride` elements an item.
pub fn split<T>(slice: &mut [T], stride: usize) -> Split<'_, T> {
    Split { start: slice.as_mut_ptr(), len: slice.len(), stride, slice: PhantomData }
}

// SAFETY: a Split only hands out disjoint parts of a slice that it borrows exclusively.
unsafe impl<T: Send> Sync for Split<'_, T> {}

impl<'a, T: Send> Share for Split<'a, T> {
    type Part = &'a mut [T];

    unsafe fn part(&self, items: &Range<usize>) -> &'a mut [T] {
        let end = items.end.saturating_mul(self.stride).min(self.len);
        let start = items.start.saturating_mul(self.stride).min(end);
        // SAFETY: in bounds by the lines above; the caller keeps parts disjoint, and items don't overlap.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }
}

/// A slice of several rows, each shared out in pieces of `stride` elements an item. See [`split_rows`].
#[derive(Debug)]
pub struct SplitRows<'a, T> {
    slice: Split<'a, T>,
    row: usize,
    within: Range<usize>,
}

/// Shares out the elements `within` each row of `row` elements, `stride` of them an item: a thread gets its items of every
/// row.
pub fn split_rows<T>(slice: &mut [T], row: usize, within: Range<usize>, stride: usize) -> SplitRows<'_, T> {
    let within = within.start.min(row)..within.end.min(row);
    SplitRows { slice: split(slice, stride), row, within }
}

/// A thread's items of every row.
#[derive(Debug)]
pub struct RowsPart<'a, T> {
    start: *mut T,
    len: usize,
    row: usize,
    /// Of each row; it does not end before it starts.
    range: Range<usize>,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a set of disjoint parts of a slice that it borrows exclusively.
unsafe impl<T: Send> Send for RowsPart<'_, T> {}

impl<T> RowsPart<'_, T> {
    /// The items of one row; empty if there is no such row.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        let start = row.saturating_mul(self.row);
        let range = start.saturating_add(self.range.start)..start.saturating_add(self.range.end);
        if range.end > self.len {
            return &mut [];
        }
        // SAFETY: in bounds by the lines above; `self` is borrowed, so no other row is borrowed, and other threads have
        // other ranges within the rows.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl<'a, T: Send> Share for SplitRows<'a, T> {
    type Part = RowsPart<'a, T>;

    unsafe fn part(&self, items: &Range<usize>) -> RowsPart<'a, T> {
        let Split { start, len, stride, .. } = self.slice;
        let at =
            |item: usize| item.saturating_mul(stride).saturating_add(self.within.start).min(self.within.end);
        let end = at(items.end);
        RowsPart { start, len, row: self.row, range: at(items.start).min(end)..end, slice: PhantomData }
    }
}

impl Share for () {
    type Part = ();

    unsafe fn part(&self, _items: &Range<usize>) {}
}

impl<A: Share, B: Share> Share for (A, B) {
    type Part = (A::Part, B::Part);

    unsafe fn part(&self, items: &Range<usize>) -> Self::Part {
        // SAFETY: handed on to the caller.
        unsafe { (self.0.part(items), self.1.part(items)) }
    }
}

/// Chunks of a thread's range at most: after stealing, one of them is all that is left to wait for at the end.
const CHUNKS: usize = 16;

/// A counter in a cache line of its own.
#[repr(align(64))]
struct Next(AtomicUsize);

/// How items are cut: a contiguous range a thread, and each range into chunks in order.
#[derive(Clone, Copy, Debug)]
struct Cut {
    items: usize,
    threads: usize,
    /// Items of a chunk.
    chunk: usize,
}

impl Cut {
    /// For a team of `team` threads, of which each shall get work of a `grain` at least.
    fn new(items: usize, cost: usize, team: usize, grain: usize) -> Self {
        let grains = items.saturating_mul(cost) / grain.max(1);
        let threads = team.clamp(1, MAX_TEAM).min(items).min(grains).max(1);
        let chunks = (grains / threads).clamp(1, CHUNKS);
        // Even, because some kernels take items in pairs.
        let chunk = (items / threads).div_ceil(chunks).checked_next_multiple_of(2).unwrap_or(usize::MAX);
        Self { items, threads, chunk }
    }

    fn for_team(items: usize, cost: usize, team: &dyn Team) -> Self {
        // Without a call where there is nobody else.
        let (size, grain) = if MAX_TEAM == 1 { (1, 1) } else { (team.size(), team.grain()) };
        Self::new(items, cost, size, grain)
    }

    /// Where a thread's range starts, without products that could wrap: ranges must not overlap, however many items there
    /// are.
    fn start(&self, thread: usize) -> usize {
        self.items / self.threads * thread + (self.items % self.threads).min(thread)
    }

    /// A chunk of a thread's range, none behind its last.
    fn chunk(&self, thread: usize, chunk: usize) -> Option<Range<usize>> {
        let (start, end) = (self.start(thread), self.start(thread + 1));
        let from = start.checked_add(chunk.checked_mul(self.chunk)?).filter(|from| *from < end)?;
        Some(from..from.saturating_add(self.chunk).min(end))
    }
}

/// Cuts `items` into one contiguous range a thread, in order, and lets the team work on all of them.
///
/// A thread works through its own range chunk by chunk, then steals chunks from threads that have not finished: a slow core,
/// or one that another program uses, delays the rest by one chunk at most. A team may rule stealing out
/// ([`Team::fixed_ranges`]).
///
/// `cost` is what an item costs, in the time that a byte of weights takes to be read and multiplied: with little to do,
/// fewer threads take part. Results can't depend on how many do: `work` is given whole items, and what it does for an item
/// may not depend on which other items it was given.
pub fn share<P: Share>(
    team: &dyn Team,
    items: usize,
    cost: usize,
    parts: P,
    work: impl Fn(Range<usize>, P::Part) + Sync,
) {
    let cut = Cut::for_team(items, cost, team);
    if cut.threads == 1 {
        // SAFETY: the only part.
        return work(0..items, unsafe { parts.part(&(0..items)) });
    }
    if team.fixed_ranges() {
        in_ranges(team, &cut, &parts, &work);
    } else {
        in_chunks(team, &cut, &parts, &work);
    }
}

/// Every thread does its own range.
#[inline(never)]
fn in_ranges<P: Share>(
    team: &dyn Team,
    cut: &Cut,
    parts: &P,
    work: &(impl Fn(Range<usize>, P::Part) + Sync),
) {
    let taken = [const { AtomicBool::new(false) }; MAX_TEAM];
    team.run(&|thread| {
        let mine = taken.get(thread).filter(|_| thread < cut.threads);
        if mine.is_some_and(|taken| !taken.swap(true, Ordering::Relaxed)) {
            let range = cut.start(thread)..cut.start(thread + 1);
            // SAFETY: ranges are disjoint, and each is taken once, whatever the team does.
            let part = unsafe { parts.part(&range) };
            work(range, part);
        }
    });
}

/// Apart from its caller, so that a team of one needs no stack for the counters.
#[inline(never)]
fn in_chunks<P: Share>(
    team: &dyn Team,
    cut: &Cut,
    parts: &P,
    work: &(impl Fn(Range<usize>, P::Part) + Sync),
) {
    let mut next = [const { MaybeUninit::<Next>::uninit() }; MAX_TEAM];
    // Those of the threads that take part only: all would be 4 KiB for every job.
    let next = next.get_mut(..cut.threads).unwrap_or_default();
    next.iter_mut().for_each(|next| {
        next.write(Next(AtomicUsize::new(0)));
    });
    // SAFETY: all of these were written.
    let next = unsafe { &*(core::ptr::from_ref(next) as *const [Next]) };
    let take = |thread: usize| {
        let next = &next.get(thread)?.0;
        // Looked at first, so that the counter stays near its end however often it is asked.
        cut.chunk(thread, next.load(Ordering::Relaxed))?;
        cut.chunk(thread, next.fetch_add(1, Ordering::Relaxed))
    };
    team.run(&|thread| {
        if thread >= cut.threads {
            return;
        }
        for owner in (thread..cut.threads).chain(0..thread) {
            while let Some(range) = take(owner) {
                // SAFETY: chunks are disjoint, and `take` hands each out once, whatever the team does.
                let part = unsafe { parts.part(&range) };
                work(range, part);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAIN: usize = 64 << 10;

    /// Calls every thread's job several times, in some order, from one thread.
    struct Odd {
        calls: &'static [usize],
        fixed: bool,
    }

    impl Team for Odd {
        fn size(&self) -> usize {
            4
        }
        fn run(&self, job: &(dyn Fn(usize) + Sync)) {
            self.calls.iter().for_each(|thread| job(*thread));
        }
        fn fixed_ranges(&self) -> bool {
            self.fixed
        }
    }

    #[test]
    fn every_item_is_worked_on_once_whatever_the_team_does() {
        for calls in [&[0, 1, 2, 3][..], &[3, 3, 0, 1, 1, 2], &[0], &[1, 70, 4, usize::MAX]] {
            for items in [1, 2, 3, 7, 64, 65, 100] {
                for cost in [0, 1, 1 << 12, 1 << 16, 1 << 20, usize::MAX] {
                    let mut counts = [0u8; 100];
                    let counts = &mut counts[..items];
                    share(&Odd { calls, fixed: false }, items, cost, split(counts, 1), |range, part| {
                        assert_eq!(range.len(), part.len());
                        part.iter_mut().for_each(|count| *count += 1);
                    });
                    assert!(counts.iter().all(|count| *count == 1), "{calls:?} {items} {cost}: {counts:?}");
                }
            }
        }
    }

    #[test]
    fn in_fixed_ranges_a_thread_does_its_own_and_nobody_does_one_twice() {
        for calls in [&[0, 1, 2, 3][..], &[3, 3, 0, 1, 1, 2], &[2, 70, 0, 3, 1, usize::MAX]] {
            for items in [1, 2, 3, 7, 64, 65, 100] {
                for cost in [0, 1, 1 << 12, 1 << 16, 1 << 20, usize::MAX] {
                    let mut counts = [0u8; 100];
                    let counts = &mut counts[..items];
                    let ranges = AtomicUsize::new(0);
                    share(&Odd { calls, fixed: true }, items, cost, split(counts, 1), |range, part| {
                        assert_eq!(range.len(), part.len());
                        ranges.fetch_add(1, Ordering::Relaxed);
                        part.iter_mut().for_each(|count| *count += 1);
                    });
                    assert!(counts.iter().all(|count| *count == 1), "{calls:?} {items} {cost}: {counts:?}");
                    assert!(ranges.into_inner() <= 4, "{calls:?} {items} {cost}");
                }
            }
        }
    }

    /// What ends before it starts is empty, and no pointer to it leaves the slice.
    #[test]
    fn an_inverted_range_is_empty() {
        let mut slice = [0u8; 10];
        #[expect(clippy::reversed_empty_ranges)]
        let inverted = [3..1, 4..0, usize::MAX..2, 1..0];
        for items in inverted {
            // SAFETY: the only part.
            assert!(unsafe { split(&mut slice, 1).part(&items) }.is_empty(), "{items:?}");
            for within in [0..4, 1..3, 3..9] {
                // SAFETY: as above.
                let mut part = unsafe { split_rows(&mut slice, 4, within, 1).part(&items) };
                assert!(part.range.start <= part.range.end, "{items:?}: {part:?}");
                assert!((0..4).all(|row| part.row(row).is_empty()), "{items:?}");
            }
        }
    }

    #[test]
    fn chunks_cover_the_items_in_order_and_little_work_stays_whole() {
        for items in (0..300).chain([usize::MAX - 1, usize::MAX]) {
            for (team, cost) in
                [(1, 0), (1, 1 << 16), (2, 1 << 16), (3, 1 << 16), (64, 1 << 20), (100, 1 << 16)]
            {
                let cut = Cut::new(items, cost, team, GRAIN);
                assert_eq!((cut.start(0), cut.start(cut.threads)), (0, items), "{cut:?}");
                let mut at = 0;
                for thread in 0..cut.threads {
                    assert_eq!(cut.start(thread), at, "{cut:?}");
                    let mut chunks = 0;
                    while let Some(chunk) = cut.chunk(thread, chunks) {
                        assert_eq!(chunk.start, at, "{cut:?}");
                        assert!(!chunk.is_empty(), "{cut:?}");
                        (at, chunks) = (chunk.end, chunks + 1);
                    }
                    assert!(chunks <= CHUNKS + 1, "{cut:?}");
                    assert_eq!(cut.chunk(thread, usize::MAX), None);
                }
                assert_eq!(at, items, "{cut:?}");
            }
        }
        let small = Cut::new(4, GRAIN / 2, 2, GRAIN);
        assert_eq!((small.threads, small.chunk(0, 0), small.chunk(0, 1)), (2, Some(0..2), None));
    }
}
