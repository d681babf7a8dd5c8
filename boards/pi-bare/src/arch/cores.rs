//! The four cores: who starts them, and who works on what.
//!
//! Core 0 runs the program. The others wait, each for a job of its own: a share of a step, or something that goes on beside
//! the program, such as reading the card.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use elapid_core::kernels::Team;
use elapid_pi_bare::storage::Bell;

use super::{mmu, stack};

/// Cores of every board that this kernel runs on.
pub const CORES: usize = 4;

/// Where the firmware's waiting cores look for an address to go to, one for each core.
const SPIN_TABLE: [usize; CORES] = [0xd8, 0xe0, 0xe8, 0xf0];

unsafe extern "C" {
    fn start_other_core() -> !;
    fn idle_while_equal(value: *const AtomicU64, seen: u64) -> u64;
}

/// A job as a worker sees it: valid while its number has been called and not finished.
type Job = *const (dyn Fn() + Sync);

/// What core 0 and one other core share, on a cache line of its own.
#[repr(align(64))]
struct Slot {
    /// Counts jobs that were called; 0 before the core has been started.
    called: AtomicU64,
    /// The last job that was finished.
    finished: AtomicU64,
    /// Written by core 0 while `called == finished`, read by the worker while they differ.
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written only where the worker does not read it, as its comment says, and what it points to is `Sync`.
unsafe impl Sync for Slot {}

static SLOTS: [Slot; CORES] =
    [const { Slot { called: AtomicU64::new(0), finished: AtomicU64::new(0), job: UnsafeCell::new(None) } };
        CORES];

/// Counts events. Whoever waits for the next one does so without using the memory or much power.
pub struct EventCount(AtomicU64);

impl EventCount {
    /// None so far.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Bell for EventCount {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Release);
        send_event();
    }
    fn wait(&self, seen: u64) {
        wait_for_change(&self.0, seen);
    }
}

/// Waits until `value` is no longer `seen`.
fn wait_for_change(value: &AtomicU64, seen: u64) -> u64 {
    // SAFETY: the function loads the atomic with acquiring order, and waits for events in between.
    unsafe { idle_while_equal(value, seen) }
}

/// Wakes whoever waits, after all writes so far.
fn send_event() {
    // SAFETY: a barrier and an event change no memory.
    unsafe { asm!("dsb ish", "sev", options(nostack, preserves_flags)) };
}

/// The life of a core other than 0. Called by `boot.s`, with the MMU off.
#[unsafe(no_mangle)]
extern "C" fn other_core(core: usize) -> ! {
    // SAFETY: core 0 wrote the tables before it started this one.
    unsafe { mmu::turn_on() };
    stack::paint(core);
    let slot = &SLOTS[core % CORES];
    let mut seen = 0;
    loop {
        seen = wait_for_change(&slot.called, seen);
        // SAFETY: `called` was read with acquiring order, and is not `finished`: core 0 has written the job and does not
        // touch it now.
        if let Some(job) = unsafe { *slot.job.get() } {
            // SAFETY: `Worker::call` and `Call::drop` keep the job alive until `finished` says so.
            unsafe { (*job)() };
        }
        slot.finished.store(seen, Ordering::Release);
        send_event();
    }
}

/// Called by `boot.s` on core 0, with the MMU off.
#[unsafe(no_mangle)]
extern "C" fn main_core() -> ! {
    // SAFETY: the first thing that core 0 does; the other cores wait in the firmware.
    unsafe {
        mmu::write_tables();
        mmu::turn_on();
    }
    with_memory()
}

/// Core 0 from when the MMU is on. Apart, so that nothing of it is done before: code from here on accesses memory at any
/// address, which the CPU allows only then.
#[inline(never)]
fn with_memory() -> ! {
    stack::paint(0);
    crate::main()
}

/// All cores but the one that runs the program.
pub struct Workers([Worker; CORES - 1]);

impl Workers {
    /// Starts the other cores. `None` the second time.
    #[must_use]
    pub fn start() -> Option<Self> {
        static STARTED: AtomicBool = AtomicBool::new(false);
        if STARTED.swap(true, Ordering::Relaxed) {
            return None;
        }
        for place in &SPIN_TABLE[1..] {
            let place = core::ptr::without_provenance_mut::<u64>(*place);
            // SAFETY: the firmware's spin table: RAM that is mapped and that nothing else uses. The waiting cores have
            // their caches off, so the line is written back to memory.
            unsafe {
                place.write_volatile(start_other_core as *const () as u64);
                asm!("dc civac, {}", "dsb sy", in(reg) place, options(nostack, preserves_flags));
            }
        }
        send_event();
        Some(Self([1, 2, 3].map(|core| Worker { slot: &SLOTS[core] })))
    }

    /// The other cores, for a team of all cores, or to be divided.
    pub fn all(&mut self) -> &mut [Worker] {
        &mut self.0
    }
}

/// A core that waits for work. Whoever holds it exclusively may give it some.
pub struct Worker {
    slot: &'static Slot,
}

/// A job under way. Dropping it waits for its end.
struct Call<'a> {
    worker: &'a Worker,
    number: u64,
}

impl Worker {
    /// Starts a job.
    ///
    /// # Safety
    /// The worker must have finished its last job, nobody else may call it at the same time, and the returned `Call` must
    /// be dropped before `job` ends.
    unsafe fn call<'a>(&'a self, job: &'a (dyn Fn() + Sync)) -> Call<'a> {
        let number = self.slot.called.load(Ordering::Relaxed) + 1;
        let job: *const (dyn Fn() + Sync + 'a) = job;
        // SAFETY: only the lifetime changes; the contract keeps the job alive for as long as the worker may use it.
        let job = unsafe { core::mem::transmute::<*const (dyn Fn() + Sync + 'a), Job>(job) };
        // SAFETY: the last job is finished, so that the worker does not read; and nobody else writes.
        unsafe { *self.slot.job.get() = Some(job) };
        self.slot.called.store(number, Ordering::Release);
        Call { worker: self, number }
    }

    /// Lets the worker do `side` while `main` runs here. Returns when both have ended; `main` must see to it that `side` does.
    pub fn beside<R>(&mut self, side: impl FnOnce() + Send, main: impl FnOnce() -> R) -> R {
        let once = Once(UnsafeCell::new(Some(side)));
        let job = || once.run();
        // SAFETY: the worker is held exclusively, so its last job has ended; the call is dropped before this returns, and
        // a panic does not unwind.
        let call = unsafe { self.call(&job) };
        send_event();
        let result = main();
        drop(call);
        result
    }
}

/// Something that one other core does once.
struct Once<F>(UnsafeCell<Option<F>>);

// SAFETY: only the worker that the job is given to looks inside, and only that job does so.
unsafe impl<F: Send> Sync for Once<F> {}

impl<F: FnOnce()> Once<F> {
    fn run(&self) {
        // SAFETY: as above; the call that made it does not look inside while the job runs.
        if let Some(work) = unsafe { (*self.0.get()).take() } {
            work();
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let finished = &self.worker.slot.finished;
        let mut seen = finished.load(Ordering::Acquire);
        while seen != self.number {
            seen = wait_for_change(finished, seen);
        }
    }
}

/// The calling core and some workers as a team.
pub struct Cores<'a> {
    workers: &'a [Worker],
    busy: AtomicBool,
}

impl<'a> Cores<'a> {
    /// A team of the calling core and `workers`, which nobody else can use meanwhile.
    pub fn new(workers: &'a mut [Worker]) -> Self {
        Self { workers, busy: AtomicBool::new(false) }
    }
}

impl Team for Cores<'_> {
    fn size(&self) -> usize {
        self.workers.len() + 1
    }

    /// A hand-over is some two hundred instructions, with no operating system in between; this many bytes of weights are three
    /// hundred.
    fn grain(&self) -> usize {
        1 << 10
    }

    /// All cores of a Raspberry Pi are alike, and nothing else runs on them.
    fn fixed_ranges(&self) -> bool {
        true
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.busy.swap(true, Ordering::Acquire) {
            // A job within a job.
            return (0..self.size()).for_each(job);
        }
        let shares: [_; CORES - 1] = core::array::from_fn(|i| move || job(i + 1));
        {
            let mut calls = [const { None::<Call<'_>> }; CORES - 1];
            for ((call, worker), share) in calls.iter_mut().zip(self.workers).zip(&shares) {
                // SAFETY: the team holds the workers exclusively and `busy` was not set, so that their last jobs have
                // ended and nobody else calls them. The calls are dropped at the end of this block, before the shares.
                *call = Some(unsafe { worker.call(share) });
            }
            send_event();
            job(0);
        }
        self.busy.store(false, Ordering::Release);
    }
}
