//! A pool of threads that run a job in parallel.
//!
//! A decode step has some dozens of jobs of about 50 microseconds, so handing one over must cost about one: a worker spins on an
//! atomic counter for a moment before it sleeps.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use elapid_core::kernels::Team;

use crate::Error;

/// Threads that a pool can have.
pub const MAX_THREADS: usize = 64;

/// How long a worker spins, waiting for the next job, before it sleeps: longer than the time between two jobs of a step.
const SPIN: Duration = Duration::from_micros(100);

/// A job as the workers see it. It is valid while `pending` is not 0.
type Job = *const (dyn Fn(usize) + Sync);

/// A value with cache lines of its own (two of 64 bytes: CPUs fetch them in pairs).
#[repr(align(128))]
struct CachePadded<T>(T);

struct Shared {
    /// Counts jobs.
    number: CachePadded<AtomicUsize>,
    /// For each worker the last job whose share of it was begun, by the worker itself or by the caller for it.
    begun: Vec<CachePadded<AtomicUsize>>,
    /// Shares of the job that are not finished, the caller's not counted.
    pending: CachePadded<AtomicUsize>,
    /// Workers that sleep, or are about to.
    asleep: CachePadded<AtomicUsize>,
    /// Written by the caller while `pending` is 0, read while it is not.
    job: UnsafeCell<Option<Job>>,
    /// The first panic in a share of this job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// How long a worker spins before it sleeps.
    spin: Duration,
}

// SAFETY: `job` is written only in `Pool::run`, under the pool's lock and while `pending` is 0. It is read only in
// `Shared::share`, by a thread that has begun a share of the current job and not yet finished it: `pending` is not 0.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to something `Sync`, and is used only while the call that it comes from waits.
unsafe impl Send for Shared {}

/// A pool of threads: the caller and its workers.
///
/// When the caller has finished its own share, it takes over the shares that no worker has begun, because the worker sleeps or
/// another program has its core.
///
/// Two threads may call it at the same time: the second one runs its job alone.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose job the workers do.
    busy: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.size()).finish()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cores that this process may use, at most [`MAX_THREADS`].
#[must_use]
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS))
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    ///
    /// # Errors
    /// [`Error::Threads`] for 0 or more than [`MAX_THREADS`], [`Error::StartThread`] where the system refuses one.
    pub fn new(threads: usize) -> Result<Self, Error> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::Threads { given: threads, most: MAX_THREADS });
        }
        // With more threads than cores, one that spins only keeps another from its core.
        let crowded = threads > default_threads();
        let shared = Arc::new(Shared {
            number: CachePadded(AtomicUsize::new(0)),
            begun: (1..threads).map(|_| CachePadded(AtomicUsize::new(0))).collect(),
            pending: CachePadded(AtomicUsize::new(0)),
            asleep: CachePadded(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            spin: if crowded { Duration::ZERO } else { SPIN },
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(threads - 1), busy: Mutex::new(()) };
        for worker in 0..threads - 1 {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name(format!("elapid-{worker}"));
            let thread = thread.spawn(move || shared.work(worker));
            // The workers started so far end when `pool` is dropped.
            let number = worker + 2;
            pool.workers.push(thread.map_err(|cause| Error::StartThread {
                thread: number,
                threads,
                cause,
            })?);
        }
        Ok(pool)
    }
}

impl Shared {
    /// What a worker runs until the pool is dropped.
    fn work(&self, worker: usize) {
        let mut number = 0;
        loop {
            number = self.next(number);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            self.share(worker, number);
        }
    }

    /// Does a worker's share of job `number`, unless it was begun before.
    fn share(&self, worker: usize, number: usize) {
        let last = number.wrapping_sub(1);
        let begun = &self.begun[worker].0;
        // All shares of the last job were begun before this one was called out. That fails where this share was begun,
        // and where the job is long over.
        if begun.compare_exchange(last, number, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        // SAFETY: this share of the current job is begun and not finished, so `pending` is not 0 and nobody writes. The
        // caller's write came before `number`, which this thread has read with acquiring order, or wrote itself.
        let job = unsafe { *self.job.get() };
        if let Some(job) = job {
            // SAFETY: `Pool::run` does not return before `pending` is 0, so what the pointer was made of still lives.
            let job = unsafe { &*job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker + 1))) {
                locked(&self.panic).get_or_insert(panic);
            }
        }
        self.pending.0.fetch_sub(1, Ordering::Release);
    }

    /// Waits for a job after `done` and returns its number.
    fn next(&self, done: usize) -> usize {
        let seen = || Some(self.number.0.load(Ordering::SeqCst)).filter(|number| *number != done);
        let start = Instant::now();
        while start.elapsed() < self.spin {
            for _ in 0..64 {
                if let Some(number) = seen() {
                    return number;
                }
                std::hint::spin_loop();
            }
        }
        // Either this thread sees the new number below, or the caller sees it asleep and wakes it: both orders are
        // sequentially consistent.
        self.asleep.0.fetch_add(1, Ordering::SeqCst);
        let number = loop {
            if let Some(number) = seen() {
                break number;
            }
            thread::park();
        };
        self.asleep.0.fetch_sub(1, Ordering::SeqCst);
        number
    }
}

impl Pool {
    /// Announces a new job.
    fn call(&self) -> usize {
        let number = self.shared.number.0.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        if self.shared.asleep.0.load(Ordering::SeqCst) > 0 {
            for worker in &self.workers {
                worker.thread().unpark();
            }
        }
        number
    }
}

/// Waits until all shares of the job are finished, also when the caller's own panics.
struct Finish<'a> {
    shared: &'a Shared,
    /// The caller's own share did not panic.
    completed: bool,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let (start, mut round) = (Instant::now(), 0u32);
        while self.shared.pending.0.load(Ordering::Acquire) != 0 {
            round = round.wrapping_add(1);
            if round.is_multiple_of(64) && start.elapsed() >= self.shared.spin {
                // A worker that takes this long may be waiting for this core.
                round = round.wrapping_sub(1);
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        if !self.completed {
            // One panic is enough.
            locked(&self.shared.panic).take();
        }
    }
}

impl Team for Pool {
    fn size(&self) -> usize {
        self.workers.len() + 1
    }

    /// Less than a core reads in two microseconds: a second core has caches and misses of its own, so that a convolution or
    /// dt_proj of mamba-130m pays, too.
    fn grain(&self) -> usize {
        24 << 10
    }

    /// A panic in any thread is resumed in the caller when all have finished.
    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        let _busy = match self.busy.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another caller, or a job within a job.
            Err(TryLockError::WouldBlock) => return (0..self.size()).for_each(job),
        };
        if self.workers.is_empty() {
            return job(0);
        }
        let job_pointer: *const (dyn Fn(usize) + Sync + '_) = job;
        // SAFETY: only the lifetime changes; `Finish` keeps this call from ending, by return or by panic, while a worker
        // may use the pointer.
        let job_pointer =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job_pointer) };
        // SAFETY: `busy` is held and `pending` is 0, so no worker reads it now.
        unsafe { *self.shared.job.get() = Some(job_pointer) };
        self.shared.pending.0.store(self.workers.len(), Ordering::Relaxed);
        let mut finish = Finish { shared: &self.shared, completed: false };
        let number = self.call();
        job(0);
        for worker in 0..self.workers.len() {
            self.shared.share(worker, number);
        }
        finish.completed = true;
        drop(finish);
        let panic = locked(&self.shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.call();
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's own panics are caught: there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elapid_core::kernels::{share, split};

    #[test]
    fn every_thread_runs_every_job_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            let jobs = if threads <= default_threads() { 100_000 } else { 2_000 };
            for _ in 0..jobs {
                pool.run(&|thread| {
                    counts[thread].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == jobs), "{threads} threads");
        }
    }

    #[test]
    fn jobs_write_what_they_borrow() {
        let pool = Pool::new(2).unwrap();
        let mut numbers = vec![0u32; 1000];
        for round in 1..=20_000u32 {
            let len = round as usize % numbers.len();
            let part = &mut numbers[..len];
            share(&pool, len, 1 << 20, split(part, 1), |_, part| part.iter_mut().for_each(|n| *n = round));
            assert!(numbers[..len].iter().all(|n| *n == round));
        }
    }

    #[test]
    fn a_slow_thread_is_helped() {
        const ITEMS: usize = 128;
        let pool = Pool::new(3).unwrap();
        let names = ["the caller", "elapid-0", "elapid-1"];
        let name =
            || thread::current().name().filter(|name| names.contains(name)).unwrap_or(names[0]).to_owned();
        for slow in names {
            let (by_slow, by_others) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let mut done = vec![0u8; ITEMS];
            share(&pool, ITEMS, 1 << 20, split(&mut done, 1), |_, part| {
                let by = if name() == slow { &by_slow } else { &by_others };
                // The slow one ends its piece when all others are done, or when nobody helps.
                let patience = Instant::now() + Duration::from_secs(20);
                while name() == slow
                    && by_others.load(Ordering::Relaxed) + part.len() < ITEMS
                    && Instant::now() < patience
                {
                    thread::sleep(Duration::from_millis(1));
                }
                by.fetch_add(part.len(), Ordering::Relaxed);
                part.iter_mut().for_each(|item| *item += 1);
            });
            assert!(done.iter().all(|count| *count == 1), "{slow}");
            // One piece. Alone with its range of a third it would do 42.
            let by_slow = by_slow.into_inner();
            assert!(by_slow <= ITEMS / 8, "{slow} did {by_slow} of {ITEMS}");
        }
    }

    #[test]
    fn workers_wake_from_sleep() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        for _ in 0..20 {
            thread::sleep(3 * SPIN);
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.into_inner(), 60);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for victim in [0, 2, 1, 0] {
            let finished = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|thread| {
                    assert_ne!(thread, victim, "as the test wants it");
                    finished.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert!(result.is_err());
            assert_eq!(finished.load(Ordering::Relaxed), 2);
            let after = AtomicUsize::new(0);
            pool.run(&|_| {
                after.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(after.into_inner(), 3);
        }
    }

    #[test]
    fn a_panic_reaches_a_caller_that_unwinds() {
        struct AtTheEnd<'a>(&'a Pool, &'a AtomicUsize);
        impl Drop for AtTheEnd<'_> {
            fn drop(&mut self) {
                for victim in [1, 0] {
                    let job = |thread| assert_ne!(thread, victim, "as the test wants it");
                    let result = catch_unwind(AssertUnwindSafe(|| self.0.run(&job)));
                    self.1.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
                }
            }
        }
        let (pool, caught) = (Pool::new(2).unwrap(), AtomicUsize::new(0));
        let result = catch_unwind(AssertUnwindSafe(|| {
            let _end = AtTheEnd(&pool, &caught);
            panic!("as the test wants it");
        }));
        assert!(result.is_err());
        assert_eq!(caught.into_inner(), 2);
    }

    #[test]
    fn a_job_within_a_job_and_two_callers() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        let inner = |_: usize| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        pool.run(&|_| pool.run(&inner));
        assert_eq!(count.load(Ordering::Relaxed), 4);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..10_000).for_each(|_| pool.run(&inner)));
            }
        });
        assert_eq!(count.into_inner(), 4 + 2 * 2 * 10_000);
    }

    #[test]
    fn bad_sizes_are_refused() {
        for given in [0, MAX_THREADS + 1] {
            assert!(matches!(Pool::new(given), Err(Error::Threads { .. })), "{given}");
        }
    }
}
