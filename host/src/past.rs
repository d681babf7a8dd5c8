//! What a session was fed, and copies of its state on the way: marks, from which any earlier point is a bounded replay away.

use std::sync::Arc;

use elapid_core::sample::Sampler;

use crate::state::{Kept, Logits};

/// Tokens between two copies of a state that are kept while a long prompt is read, at least.
pub(crate) const SPACING: usize = 512;
/// Marks that are never thinned out: the newest.
const RECENT: usize = 2;

/// A copy of a state and of the logits after its last token, if they were computed.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot(Arc<(Kept, Option<Logits>)>);

impl Snapshot {
    pub(crate) fn new(kept: Kept, logits: Option<Logits>) -> Self {
        Self(Arc::new((kept, logits)))
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.0.0
    }

    pub(crate) fn logits(&self) -> Option<&Logits> {
        self.0.1.as_ref()
    }
}

/// Values at some points of a sequence of tokens, within a budget of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Marks<T> {
    /// With the tokens before them, in ascending order.
    list: Vec<(usize, T)>,
    budget: usize,
    /// Bytes of one.
    each: usize,
}

impl<T: Clone> Marks<T> {
    /// None yet; `each` takes so many bytes.
    pub(crate) fn new(budget: usize, each: usize) -> Self {
        Self { list: Vec::new(), budget, each: each.max(1) }
    }

    /// As many as the budget has room for.
    fn room(&self) -> usize {
        self.budget / self.each
    }

    /// Whether there is room for any.
    pub(crate) fn wanted(&self) -> bool {
        self.room() > 0
    }

    /// The next point at which a mark is due on a way without any: the further on, the sparser, so that the marks that there is room
    /// for are not used up.
    pub(crate) fn due(&self) -> Option<usize> {
        let last = self.list.last().map_or(0, |(at, _)| *at);
        self.wanted().then(|| last + SPACING.max(2 * last / self.room().max(1)))
    }

    /// The points, in ascending order.
    pub(crate) fn points(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.list.iter().map(|(at, _)| *at)
    }

    /// Marks the point after `at` tokens, which is not before any other. Beyond the budget, the mark goes without which the way between
    /// its neighbours is the shortest, but none of the newest.
    pub(crate) fn set(&mut self, at: usize, value: T) {
        if !self.wanted() {
            return;
        }
        self.forget_after(at.saturating_sub(1));
        self.list.push((at, value));
        while self.list.len() > self.room() {
            let before = |i: usize| if i == 0 { 0 } else { self.list[i - 1].0 };
            let old = self.list.len().saturating_sub(RECENT);
            let gap = |i: &usize| self.list.get(i + 1).map_or(usize::MAX, |(next, _)| next - before(*i));
            let least = (0..old).min_by_key(gap).unwrap_or(0);
            self.list.remove(least);
        }
    }

    /// The last mark at or before a point that `fits`.
    pub(crate) fn last_before(&self, at: usize, fits: impl Fn(usize, &T) -> bool) -> Option<(usize, T)> {
        let found = self.list.iter().rev().find(|(place, value)| *place <= at && fits(*place, value));
        found.cloned()
    }

    /// Forgets the marks after `at` tokens.
    pub(crate) fn forget_after(&mut self, at: usize) {
        self.list.retain(|(place, _)| *place <= at);
    }
}

/// What a session was fed.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    /// Every token, those of a step that was interrupted too.
    pub tokens: Vec<u32>,
    pub marks: Marks<Snapshot>,
    /// What comes before anything that is fed next: the rest of a prompt, or the token that a generation chose last.
    pub pending: Vec<u32>,
    /// The sampler of the last generation as it stands, and its seed.
    pub sampler: Option<(Sampler, u64)>,
    /// Tokens that the call that was interrupted had fed before the part in which it was.
    pub before: usize,
}

impl Past {
    /// Nothing yet. Marks take `each` bytes, `budget` in all.
    pub(crate) fn new(budget: usize, each: usize) -> Self {
        let marks = Marks::new(budget, each);
        Self { tokens: Vec::new(), marks, pending: Vec::new(), sampler: None, before: 0 }
    }

    /// Records the first `taken` of `tokens`, before which `before` of the same call were.
    pub(crate) fn take(&mut self, before: usize, tokens: &[u32], taken: usize) {
        self.tokens.extend(tokens.iter().take(taken));
        self.before = before;
        if taken > 0 {
            self.pending.clear();
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.marks.forget_after(0);
        self.pending.clear();
        (self.sampler, self.before) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stay_within_their_budget_and_near_every_point() {
        for room in [3, 4, 10, 33] {
            let mut marks = Marks::new(room * 100 + 99, 100);
            let (mut at, mut seed) = (0, 12345_u64);
            for _ in 0..3000 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Messages of some length, and long prompts in which marks are set as they are due.
                let end = at + if seed >> 60 == 0 { 20_000 } else { 20 + (seed >> 54) as usize % 300 };
                while let Some(due) = marks.due().filter(|due| *due < end) {
                    marks.set(due, due);
                }
                marks.set(end, end);
                at = end;
                let points: Vec<usize> = marks.points().collect();
                assert!(points.len() <= room && points.is_sorted());
                assert_eq!(points.last(), Some(&at), "the newest is there");
                let gaps = points.iter().zip([0].iter().chain(&points)).map(|(next, before)| next - before);
                let most = SPACING.max(4 * at / (room - 2));
                assert!(gaps.max() <= Some(most), "{room}: {points:?}");
            }
            assert_eq!(marks.last_before(at - 1, |_, _| true).map(|(at, value)| at == value), Some(true));
            marks.forget_after(700);
            assert!(marks.points().all(|at| at <= 700));
        }
        let mut none = Marks::new(99, 100);
        none.set(5, 5);
        assert_eq!((none.due(), none.points().count()), (None, 0));
    }
}
