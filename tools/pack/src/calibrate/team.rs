//! Threads for the length of a job.

use elapid_core::kernels::Team;

/// A team whose threads live as long as one job: what they work on here takes milliseconds.
pub(super) struct Threads(pub(super) usize);

impl Team for Threads {
    fn size(&self) -> usize {
        self.0
    }
    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for member in 1..self.0 {
                scope.spawn(move || job(member));
            }
            job(0);
        });
    }
}
