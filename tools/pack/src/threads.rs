//! Threads for the length of a job.

use std::thread;

use elapid_core::kernels::Team;

/// A team whose threads live as long as one job: what they work on here takes milliseconds.
pub(crate) struct Threads(pub(crate) usize);

impl Team for Threads {
    fn size(&self) -> usize {
        self.0
    }
    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        thread::scope(|scope| {
            let start = |member: &usize| {
                let member = *member;
                thread::Builder::new().spawn_scoped(scope, move || job(member)).is_ok()
            };
            // This thread does the work of those that can't be started.
            let started = (1..self.0).take_while(start).count();
            job(0);
            (started + 1..self.0).for_each(job);
        });
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    const LIMITED: &str = "ELAPID_TEST_LIMITED";

    /// Does nothing in a test: it is the program that the other test starts.
    #[test]
    fn program() {
        if std::env::var_os(LIMITED).is_none() {
            return;
        }
        let (done, all_started) = (AtomicUsize::new(0), AtomicBool::new(false));
        Threads(8).run(&|member| {
            if member == 0 {
                all_started.store(true, Ordering::Relaxed);
            }
            while !all_started.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            done.fetch_add(member, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 7 * 8 / 2);
    }

    #[test]
    fn members_without_a_thread_are_not_left_out() {
        // Two stacks of 1 GiB fit, and seven don't.
        let name = concat!(module_path!(), "::program");
        let name = name.split_once("::").unwrap().1;
        let script = format!("ulimit -v 3000000 && exec \"$0\" --exact {name}");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .env(LIMITED, "")
            .env("RUST_MIN_STACK", "1073741824");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
