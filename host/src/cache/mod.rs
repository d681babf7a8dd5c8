//! A cache of prompts' prefixes: copies of states, so that what was fed once is not fed again.

mod disk;
mod tree;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use elapid_core::format::Fingerprint;

use crate::history;
use crate::model::Lease;
use crate::past::{SPACING, Snapshot};
use crate::session::InParts;
use crate::{Batch, Error, Model, Numbers, Reused, Session, SessionOptions, Watch};

use disk::Disk;
pub use tree::Eviction;
use tree::{Found, Tree};

/// Tokens that a copy at a branching point must save, at least.
const LEAST: usize = 4;

/// What states have in common that go on from each other.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    fingerprint: Fingerprint,
    numbers: Numbers,
    owner: u64,
}

impl Key {
    fn of(session: &Session) -> Self {
        Self::new(session.model(), session.numbers(), 0)
    }

    fn new(model: &Model, numbers: Numbers, owner: u64) -> Self {
        Self { fingerprint: model.header().fingerprint(), numbers, owner }
    }
}

/// What a cache had of a prompt: see [`PrefixCache::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prefix {
    /// Tokens that the sequence now has.
    pub cached: usize,
    /// Tokens after which a copy is worth keeping on the way, because other prompts diverge there.
    branch: Option<usize>,
    /// Tokens between two copies on a long way.
    spacing: usize,
}

impl Prefix {
    fn new(cached: usize, shared: usize, chunk: usize) -> Self {
        let branch = Some(shared).filter(|shared| *shared >= cached + LEAST);
        Self { cached, branch, spacing: SPACING.next_multiple_of(chunk) }
    }

    /// The number of tokens after which the next copy is worth keeping, besides the one at the prompt's end: after those that are cached,
    /// or after the last copy, which was kept after `at` tokens.
    #[must_use]
    pub fn next_copy(&self, at: usize) -> usize {
        let spaced = at + self.spacing;
        self.branch.filter(|branch| *branch > at).map_or(spaced, |branch| branch.min(spaced))
    }
}

/// What a cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Prompts of [`PrefixCache::feed_to`].
    pub requests: u64,
    /// Those of which a part came from the cache.
    pub hits: u64,
    /// Tokens that came from the cache, or were in the session.
    pub cached: u64,
    /// Tokens that were fed.
    pub computed: u64,
    /// Copies that were evicted.
    pub evicted: u64,
    /// Copies there are.
    pub entries: usize,
    /// Bytes of memory that they take, with their tokens and the tree, and with what is remembered of the files.
    pub bytes: usize,
    /// Files there are in the folder of [`PrefixCache::on_disk`].
    pub files: usize,
    /// What the files are counted as, in bytes.
    pub file_bytes: u64,
}

/// Copies of sessions' states, with the logits after their last tokens, by the tokens that led to them: of prompts that begin alike, only
/// what differs is computed. Any number of models and threads may share it.
///
/// It never takes more memory than it was given. When there is no room, it drops the least valuable copy, by the tokens that would have to
/// be fed again without it, how often and how recently it was used, and its size. A short prompt does not displace a long chat.
///
/// Where a model has a cap, [`PrefixCache::count_in`] makes the cache's budget a part of it. A streamed model reads its weights once more
/// for each part of a prompt after which a copy is kept.
///
/// ```
/// # fn main() -> Result<(), elapid::Error> {
/// use std::ops::ControlFlow;
/// use elapid::{Model, ModelOptions, PrefixCache, SessionOptions};
///
/// let model = Model::bundled(&ModelOptions::default())?;
/// let cache = PrefixCache::new(64 << 20);
/// let prompt = model.encode("My fellow citizens, I am here")?;
/// for computed in [prompt.len(), 0] {
///     let mut session = model.session(&SessionOptions::default())?;
///     let fed = cache.feed_to(&mut session, &prompt, &mut |_| ControlFlow::Continue(()))?;
///     assert_eq!(fed.computed, computed);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PrefixCache {
    inner: Mutex<Inner>,
    /// Copies that outlive the process.
    disk: Option<Disk>,
    /// Bytes of memory, with what is remembered of the files.
    budget: usize,
    eviction: Eviction,
    /// What counts its memory under the models' caps.
    leases: Vec<Lease>,
}

#[derive(Debug)]
struct Inner {
    tree: Tree<Key, Snapshot>,
    stats: CacheStats,
}

impl PrefixCache {
    /// Bytes of a cache's memory for what is remembered of the files in a folder.
    pub const BESIDE_FILES: usize = disk::MEMORY;

    /// An empty cache that takes `bytes` bytes at most. One without room for a copy of a model's state keeps none of it.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::with_eviction(bytes, Eviction::Value)
    }

    /// As [`PrefixCache::new`], with another choice of what goes first.
    #[must_use]
    pub fn with_eviction(bytes: usize, eviction: Eviction) -> Self {
        let inner = Inner { tree: Tree::new(bytes, eviction), stats: CacheStats::default() };
        Self { inner: Mutex::new(inner), disk: None, budget: bytes, eviction, leases: Vec::new() }
    }

    /// Keeps copies in a folder, too, for later processes and for others at the same time. The folder is made where it is missing. Its
    /// files take at most `bytes` bytes, also those of several processes; the least valuable goes first.
    /// [`PrefixCache::BESIDE_FILES`] of the cache's memory are for what is remembered of them: a cache with a folder has at least these.
    ///
    /// A file that is damaged is removed and serves nothing. That and a file that can't be written are no errors:
    /// [`PrefixCache::take_warnings`] tells them.
    ///
    /// # Errors
    /// [`Error::File`] if the folder can't be made or written to.
    pub fn on_disk(mut self, folder: &Path, bytes: u64) -> Result<Self, Error> {
        let copies = self.budget.saturating_sub(disk::MEMORY);
        self.disk = Some(Disk::open(folder, bytes, self.eviction)?);
        self.budget = copies + disk::MEMORY;
        self.inner().tree = Tree::new(copies, self.eviction);
        Ok(self)
    }

    /// What went wrong with files since this was asked last: those that were damaged, and those that could not be written. A cache
    /// works all the same.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<Error> {
        self.disk.as_ref().map_or(Vec::new(), Disk::take_warnings)
    }

    /// Counts the whole budget under the model's cap ([`ModelOptions::ram`](crate::ModelOptions::ram)) until the cache is dropped: sessions that
    /// are made from now on are planned beside it, as beside other sessions.
    #[must_use]
    pub fn count_in(mut self, model: &Model) -> Self {
        self.leases.push(model.set_aside(self.budget()));
        self
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of memory that it takes at most.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let (files, file_bytes) = self.disk.as_ref().map_or((0, 0), Disk::count);
        let remembered = self.disk.as_ref().map_or(0, Disk::memory);
        let inner = self.inner();
        let (entries, bytes) = (inner.tree.len(), inner.tree.bytes() + remembered);
        CacheStats { entries, bytes, files, file_bytes, ..inner.stats }
    }

    /// Makes `tokens` the tokens that the session was fed, as [`Session::feed_to`] does. It starts from their longest prefix that the cache or
    /// the session has, and computes only the rest, with the same bits. Copies are kept at the end, where the tokens diverge from what the
    /// cache has, and at intervals on long prompts.
    ///
    /// # Errors
    /// As [`Session::feed_to`].
    pub fn feed_to(
        &self,
        session: &mut Session,
        tokens: &[u32],
        watch: &mut Watch<'_>,
    ) -> Result<Reused, Error> {
        crate::session::check_tokens(session.model(), tokens)?;
        if session.sequence.memory.suspended() {
            session.resume(watch)?;
        }
        let (base, shared) = self.start(session, tokens, watch)?;
        let prefix = Prefix::new(base, shared, session.sequence.chunk);
        self.count(base, tokens.len() - base);
        let layers = u64::from(session.model().config().n_layer);
        let mut parts = InParts::new(watch, (tokens.len() - base) as u64 * layers);
        let mut at = base;
        while at < tokens.len() {
            let next = prefix.next_copy(at).min(tokens.len());
            let work = (next - at) as u64 * layers;
            parts.part(work, |watch| session.feed_watched(&tokens[at..next], watch))?;
            at = next;
            self.keep(session)?;
        }
        self.keep(session)?;
        Ok(Reused::new(base, tokens.len() - base))
    }

    /// The longest prefix that a copy in memory has, from which all of `tokens` can be reached.
    fn find(&self, key: &Key, tokens: &[u32]) -> Found<Snapshot> {
        let mut inner = self.inner();
        let mut found = inner.tree.find(key, tokens);
        if found.best.as_ref().is_some_and(|(at, copy)| *at == tokens.len() && copy.logits().is_none()) {
            // Without logits it is good only for what goes on from it.
            found.best = inner.tree.find(key, &tokens[..tokens.len() - 1]).best;
        }
        found
    }

    /// Lets the session stand at the longest prefix that the cache or the session has. Returns its length, and how many tokens the cache
    /// knows.
    fn start(
        &self,
        session: &mut Session,
        tokens: &[u32],
        watch: &mut Watch<'_>,
    ) -> Result<(usize, usize), Error> {
        let key = Key::of(session);
        let Found { best, mut shared } = self.find(&key, tokens);
        let known = best.as_ref().map_or(0, |(at, _)| *at).max(session.reaches(tokens));
        while let Some(disk) = &self.disk {
            let found = disk.find(&key, tokens);
            shared = shared.max(found.shared);
            let Some((at, name)) = found.best.filter(|(at, _)| *at > known) else { break };
            if disk.load(&key, &tokens[..at], &name, |path| session.load_prefix(path, &tokens[..at]))? {
                self.keep(session)?;
                return Ok((at, shared));
            }
        }
        // What can't be read twice clears the session.
        let own = session.reaches(tokens);
        match best {
            Some((at, snapshot)) if at > own => {
                session.stand(&tokens[..at], snapshot)?;
                Ok((at, shared))
            }
            _ => {
                session.truncate_watched(own, watch)?;
                Ok((own, shared))
            }
        }
    }

    /// Keeps a copy of the session's state, such as at the end of an answer. Does nothing where one of the same tokens is there, or where
    /// it is worth less than what would have to go.
    ///
    /// # Errors
    /// As [`Session::mark`].
    pub fn keep(&self, session: &mut Session) -> Result<(), Error> {
        let model = session.model().clone();
        session.sequence.memory.check_ready(&model)?;
        let (key, tokens) = (Key::of(session), session.past.tokens.clone());
        let kept = self.admit(key, &tokens, copy_bytes(&model, session.options), || session.snapshot())?;
        if let Some(disk) = &self.disk {
            let bytes = history::prefix_bytes(&model, &mut session.sequence, &tokens)?;
            disk.keep(&key, &tokens, bytes, |path| {
                let known = kept.as_ref().and_then(Snapshot::logits);
                let computed = if known.is_none() { session.last_logits()? } else { None };
                let logits = known.or(computed.as_ref());
                history::save_prefix(&model, &mut session.sequence, &tokens, logits, path)
            })?;
        }
        Ok(())
    }

    /// Puts a sequence of a batch at the longest prefix of `tokens` that the cache has for this `owner`; at none if there is none. Owners
    /// share nothing, so that nobody learns from the time that an answer takes what others asked. Where the whole prompt was there,
    /// [`Batch::logits`] gives the logits after it. Otherwise feed the rest, and call [`PrefixCache::keep_in`] after it.
    ///
    /// # Errors
    /// As [`Batch::clear`], and [`Error::Step`] for a token that the model does not know.
    pub fn begin(
        &self,
        batch: &mut Batch,
        sequence: usize,
        owner: u64,
        tokens: &[u32],
    ) -> Result<Prefix, Error> {
        crate::session::check_tokens(batch.model(), tokens)?;
        batch.clear(sequence)?;
        let key = Key::new(batch.model(), batch.numbers, owner);
        let Found { mut best, mut shared } = self.find(&key, tokens);
        let mut cached = best.as_ref().map_or(0, |(at, _)| *at);
        while let Some(disk) = &self.disk {
            let found = disk.find(&key, tokens);
            shared = shared.max(found.shared);
            let Some((at, name)) = found.best.filter(|(at, _)| *at > cached) else { break };
            if disk
                .load(&key, &tokens[..at], &name, |path| batch.load_prefix(sequence, path, &tokens[..at]))?
            {
                self.keep_in(batch, sequence, owner, &tokens[..at])?;
                (cached, best) = (at, None);
            }
        }
        if let Some((_, snapshot)) = best {
            batch.restore(sequence, &snapshot)?;
        }
        self.count(cached, tokens.len() - cached);
        Ok(Prefix::new(cached, shared, batch.chunk()))
    }

    /// Keeps a copy of the state of a sequence that was fed `tokens` since it was empty, as [`PrefixCache::keep`] does. The logits after its last
    /// token are kept if [`Batch::logits`] gives them.
    ///
    /// # Errors
    /// [`Error::Memory`], and what [`Batch::logits`] returns.
    pub fn keep_in(
        &self,
        batch: &mut Batch,
        sequence: usize,
        owner: u64,
        tokens: &[u32],
    ) -> Result<(), Error> {
        let model = batch.model().clone();
        let bytes = copy_bytes(&model, SessionOptions::default().numbers(batch.numbers));
        self.admit(Key::new(&model, batch.numbers, owner), tokens, bytes, || batch.snapshot(sequence))
            .map(drop)
    }

    /// Writes all copies in memory of the batch's model and numbers, of every owner, to the folder of [`PrefixCache::on_disk`]: call it when
    /// a server ends, because [`PrefixCache::keep_in`] writes no files. It clears the batch's first sequence.
    ///
    /// # Errors
    /// As [`Batch::clear`].
    pub fn save(&self, batch: &mut Batch) -> Result<(), Error> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let model = batch.model().clone();
        let own = Key::new(&model, batch.numbers, 0);
        let places = self.inner().tree.places();
        for place in places {
            let found = self.inner().tree.at(place).map(|(key, tokens, snapshot)| (*key, tokens, snapshot));
            let Some((key, tokens, snapshot)) = found.filter(|(key, ..)| Key { owner: 0, ..*key } == own)
            else {
                continue;
            };
            // A file has them always.
            let Some(logits) = snapshot.logits() else { continue };
            batch.restore(0, &snapshot)?;
            let bytes = history::prefix_bytes(&model, &mut batch.sequence, &tokens)?;
            disk.keep(&key, &tokens, bytes, |path| {
                history::save_prefix(&model, &mut batch.sequence, &tokens, Some(logits), path)
            })?;
        }
        batch.clear(0)
    }

    /// Counts a prompt.
    fn count(&self, cached: usize, computed: usize) {
        let stats = &mut self.inner().stats;
        stats.requests += 1;
        stats.hits += u64::from(cached > 0);
        stats.cached += cached as u64;
        stats.computed += computed as u64;
    }

    /// Makes room in memory for a copy of `bytes` bytes, and puts it in. Returns it if it was worth it.
    fn admit(
        &self,
        key: Key,
        tokens: &[u32],
        bytes: usize,
        snapshot: impl FnOnce() -> Result<Snapshot, Error>,
    ) -> Result<Option<Snapshot>, Error> {
        let mut gone = Vec::new();
        let admitted = {
            let mut inner = self.inner();
            let admitted = inner.tree.admit(key, tokens, bytes, &mut gone);
            inner.stats.evicted += gone.len() as u64;
            admitted
        };
        // Other threads need not wait while memory is given back, and taken.
        drop(gone);
        if !admitted {
            return Ok(None);
        }
        let snapshot = snapshot().inspect_err(|_| drop(self.inner().tree.take_out(&key, tokens)))?;
        self.inner().tree.fill(&key, tokens, snapshot.clone());
        Ok(Some(snapshot))
    }
}

/// Bytes of a copy of a sequence's state: numbers, logits, and what holds them.
fn copy_bytes(model: &Model, options: SessionOptions) -> usize {
    options.mark_bytes(model.config()).saturating_add(512)
}
