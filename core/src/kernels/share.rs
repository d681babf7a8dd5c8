//! Work split among the cores of a team, each writing its own part of the output.

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

/// The most members a team can have.
pub const MAX_TEAM: usize = 64;

/// Cores that run the same job side by side.
pub trait Team: Sync {
    /// Members, at least 1.
    fn size(&self) -> usize;

    /// Calls `job(0)` to `job(size - 1)`, once each, and returns when all have returned.
    fn run(&self, job: &(dyn Fn(usize) + Sync));
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

    /// The part of `items`; a range past the end is cut short.
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
    /// Of each row.
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
        RowsPart { start, len, row: self.row, range: at(items.start)..at(items.end), slice: PhantomData }
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

/// Work that a member must get for the hand-over to pay, about a microsecond each: this many bytes of weights times
/// tokens, or as much time.
const WORTH: usize = 64 << 10;

/// Cuts `items` into one contiguous range a member, in order, and lets the team work on all of them.
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
    let worth = items.saturating_mul(cost) / WORTH;
    let members = team.size().clamp(1, MAX_TEAM).min(items).min(worth).max(1);
    if members == 1 {
        // SAFETY: the only part.
        return work(0..items, unsafe { parts.part(&(0..items)) });
    }
    let taken = [const { AtomicBool::new(false) }; MAX_TEAM];
    team.run(&|member| {
        let first_time = taken.get(member).is_some_and(|t| !t.swap(true, Ordering::Relaxed));
        if member < members && first_time {
            // Without products that could wrap: ranges must not overlap, however many items there are.
            let start = |m: usize| items / members * m + (items % members).min(m);
            let range = start(member)..start(member + 1);
            // SAFETY: members' ranges are disjoint, and `taken` lets each member in once, whatever the team does.
            let part = unsafe { parts.part(&range) };
            work(range, part);
        }
    });
}
