//! Work split among the cores of a team, each writing its own part of the output.

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The most members a team can have. On a microcontroller one core computes, and the code that hands work out, a few kilobytes,
/// is left out.
pub const MAX_TEAM: usize = if cfg!(all(target_arch = "arm", target_os = "none")) { 1 } else { 64 };

/// Cores that run the same job side by side.
pub trait Team: Sync {
    /// Members, at least 1.
    fn size(&self) -> usize;

    /// Calls `job(0)` to `job(size - 1)`, once each, and returns when all have returned.
    fn run(&self, job: &(dyn Fn(usize) + Sync));

    /// Work that a member must get for the hand-over to it to pay, in the unit of [`share`]'s cost: bytes of weights times
    /// tokens. What is said here is about a microsecond of a desktop's core.
    fn worth(&self) -> usize {
        64 << 10
    }

    /// Whether a member does its own range and no more. Right where cores are alike and nothing else runs on them: each is
    /// done when the others are. Otherwise those that are done first help.
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
    /// What a member gets for a range of items.
    type Part;

    /// The part of `items`. A range past the end is cut short; one that ends before it starts is empty.
    ///
    /// # Safety
    /// Parts that exist at the same time must be of disjoint ranges.
    unsafe fn part(&self, items: &Range<usize>) -> Self::Part;
}

/// A slice shared out in runs of `stride` elements an item. See [`split`].
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

/// A slice of several rows, each shared out in runs of `stride` elements an item. See [`split_rows`].
#[derive(Debug)]
pub struct SplitRows<'a, T> {
    slice: Split<'a, T>,
    row: usize,
    within: Range<usize>,
}

/// Shares out the elements `within` each row of `row` elements, `stride` of them an item: a member gets its items of every
/// row.
pub fn split_rows<T>(slice: &mut [T], row: usize, within: Range<usize>, stride: usize) -> SplitRows<'_, T> {
    let within = within.start.min(row)..within.end.min(row);
    SplitRows { slice: split(slice, stride), row, within }
}

/// A member's items of every row.
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
        // SAFETY: in bounds by the lines above; `self` is borrowed, so no other row is lent, and other members have
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

/// Pieces of a member's range at most: what is left to wait for at the end, when others have helped, is one of them.
const PIECES: usize = 16;

/// A counter in a cache line of its own.
#[repr(align(64))]
struct Next(AtomicUsize);

/// How items are cut: a contiguous range a member, and each range into pieces in order.
#[derive(Clone, Copy, Debug)]
struct Cut {
    items: usize,
    members: usize,
    /// Items of a piece.
    grain: usize,
}

impl Cut {
    /// For a team of `team` members, of which each shall get work of `worth`.
    fn new(items: usize, cost: usize, team: usize, worth: usize) -> Self {
        let worth = items.saturating_mul(cost) / worth.max(1);
        let members = team.clamp(1, MAX_TEAM).min(items).min(worth).max(1);
        let pieces = (worth / members).clamp(1, PIECES);
        // Even, because some kernels take items in pairs.
        let grain = (items / members).div_ceil(pieces).checked_next_multiple_of(2).unwrap_or(usize::MAX);
        Self { items, members, grain }
    }

    fn for_team(items: usize, cost: usize, team: &dyn Team) -> Self {
        // Without a call where there is nobody else.
        let (size, worth) = if MAX_TEAM == 1 { (1, 1) } else { (team.size(), team.worth()) };
        Self::new(items, cost, size, worth)
    }

    /// Where a member's range starts, without products that could wrap: ranges must not overlap, however many items there
    /// are.
    fn start(&self, member: usize) -> usize {
        self.items / self.members * member + (self.items % self.members).min(member)
    }

    /// A piece of a member's range, none behind its last.
    fn piece(&self, member: usize, piece: usize) -> Option<Range<usize>> {
        let (start, end) = (self.start(member), self.start(member + 1));
        let from = start.checked_add(piece.checked_mul(self.grain)?).filter(|from| *from < end)?;
        Some(from..from.saturating_add(self.grain).min(end))
    }
}

/// Cuts `items` into one contiguous range a member, in order, and lets the team work on all of them.
///
/// A member takes its range piece by piece, and then pieces of those that are not done with theirs: a slow core, or one that
/// another program holds, keeps the rest waiting for the piece that it has begun, no more. Where the team says that this
/// can't be, a member takes its range as a whole ([`Team::fixed_ranges`]).
///
/// `cost` is what an item costs, in the time that a byte of weights takes to be read and multiplied: with little to do,
/// fewer members take part. Results can't depend on how many do: `work` is given whole items, and what it does for an item
/// may not depend on which other items it was given.
pub fn share<P: Share>(
    team: &dyn Team,
    items: usize,
    cost: usize,
    parts: P,
    work: impl Fn(Range<usize>, P::Part) + Sync,
) {
    let cut = Cut::for_team(items, cost, team);
    if cut.members == 1 {
        // SAFETY: the only part.
        return work(0..items, unsafe { parts.part(&(0..items)) });
    }
    if team.fixed_ranges() {
        in_ranges(team, &cut, &parts, &work);
    } else {
        in_pieces(team, &cut, &parts, &work);
    }
}

/// Every member does its own range.
#[inline(never)]
fn in_ranges<P: Share>(
    team: &dyn Team,
    cut: &Cut,
    parts: &P,
    work: &(impl Fn(Range<usize>, P::Part) + Sync),
) {
    let taken = [const { AtomicBool::new(false) }; MAX_TEAM];
    team.run(&|member| {
        let mine = taken.get(member).filter(|_| member < cut.members);
        if mine.is_some_and(|taken| !taken.swap(true, Ordering::Relaxed)) {
            let range = cut.start(member)..cut.start(member + 1);
            // SAFETY: ranges are disjoint, and each is taken once, whatever the team does.
            let part = unsafe { parts.part(&range) };
            work(range, part);
        }
    });
}

/// Apart from its caller, so that a team of one needs no stack for the counters.
#[inline(never)]
fn in_pieces<P: Share>(
    team: &dyn Team,
    cut: &Cut,
    parts: &P,
    work: &(impl Fn(Range<usize>, P::Part) + Sync),
) {
    let mut next = [const { MaybeUninit::<Next>::uninit() }; MAX_TEAM];
    // Those of the members only: all would be 4 KiB for every job.
    let next = next.get_mut(..cut.members).unwrap_or_default();
    next.iter_mut().for_each(|next| {
        next.write(Next(AtomicUsize::new(0)));
    });
    // SAFETY: all of these were written.
    let next = unsafe { &*(core::ptr::from_ref(next) as *const [Next]) };
    let take = |member: usize| {
        let next = &next.get(member)?.0;
        // Looked at first, so that the counter stays near its end however often it is asked.
        cut.piece(member, next.load(Ordering::Relaxed))?;
        cut.piece(member, next.fetch_add(1, Ordering::Relaxed))
    };
    team.run(&|member| {
        if member >= cut.members {
            return;
        }
        for owner in (member..cut.members).chain(0..member) {
            while let Some(range) = take(owner) {
                // SAFETY: pieces are disjoint, and `take` hands each out once, whatever the team does.
                let part = unsafe { parts.part(&range) };
                work(range, part);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORTH: usize = 64 << 10;

    /// Calls every member several times, in some order, from one thread.
    struct Odd {
        calls: &'static [usize],
        fixed: bool,
    }

    impl Team for Odd {
        fn size(&self) -> usize {
            4
        }
        fn run(&self, job: &(dyn Fn(usize) + Sync)) {
            self.calls.iter().for_each(|member| job(*member));
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
    fn in_fixed_ranges_a_member_does_its_own_and_nobody_does_one_twice() {
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
    fn pieces_cover_the_items_in_order_and_little_work_stays_whole() {
        for items in (0..300).chain([usize::MAX - 1, usize::MAX]) {
            for (team, cost) in
                [(1, 0), (1, 1 << 16), (2, 1 << 16), (3, 1 << 16), (64, 1 << 20), (100, 1 << 16)]
            {
                let cut = Cut::new(items, cost, team, WORTH);
                assert_eq!((cut.start(0), cut.start(cut.members)), (0, items), "{cut:?}");
                let mut at = 0;
                for member in 0..cut.members {
                    assert_eq!(cut.start(member), at, "{cut:?}");
                    let mut pieces = 0;
                    while let Some(piece) = cut.piece(member, pieces) {
                        assert_eq!(piece.start, at, "{cut:?}");
                        assert!(!piece.is_empty(), "{cut:?}");
                        (at, pieces) = (piece.end, pieces + 1);
                    }
                    assert!(pieces <= PIECES + 1, "{cut:?}");
                    assert_eq!(cut.piece(member, usize::MAX), None);
                }
                assert_eq!(at, items, "{cut:?}");
            }
        }
        let small = Cut::new(4, WORTH / 2, 2, WORTH);
        assert_eq!((small.members, small.piece(0, 0), small.piece(0, 1)), (2, Some(0..2), None));
    }
}
