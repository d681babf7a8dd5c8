//! One reader that keeps several reads under way, through io_uring.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, types};

use super::readers::{ReaderEnd, Shared};
use super::ring::Order;
use super::storage::Storage;

/// A queue for `depth` reads, and the file that they read, where the storage is a file and the kernel allows it (containers often
/// don't).
pub(super) fn queue(storage: &dyn Storage, depth: usize) -> Option<(IoUring, RawFd)> {
    let file = storage.file()?.as_raw_fd();
    let queue = IoUring::new(depth as u32).ok()?;
    let mut probe = Probe::new();
    queue.submitter().register_probe(&mut probe).ok()?;
    probe.is_supported(opcode::Read::CODE).then_some((queue, file))
}

/// What the kernel reads. However the reader ends, the buffers go only when the kernel has done with them.
struct Flight {
    queue: IoUring,
    /// The orders that were given to the kernel, each at the place that is its entry's number.
    orders: Vec<Option<Order>>,
}

impl Flight {
    /// Waits until the kernel has done something, and says so for each order that comes back.
    fn wait(&mut self, mut back: impl FnMut(Order, i32)) {
        match self.queue.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The kernel is short of something. What is under way still comes.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        while let Some(entry) = self.queue.completion().next() {
            if let Some(order) = self.orders.get_mut(entry.user_data() as usize).and_then(Option::take) {
                back(order, entry.result());
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.orders.iter().all(Option::is_none)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        while !self.is_empty() {
            self.wait(|_, _| {});
        }
    }
}

/// The reader's life. What does not come whole and sound at once is read again the plain way, by [`Shared::fetch`].
pub(super) fn read(shared: &Shared, queue: IoUring, file: RawFd, depth: usize) {
    let mut flight = Flight { queue, orders: (0..depth).map(|_| None).collect() };
    // Ends before the flight does, so that nobody waits for a kernel that takes its time.
    let _end = ReaderEnd(shared);
    while fill(shared, &mut flight, file) {
        flight.wait(|mut order, result| {
            let segment = &shared.schedule.segments[order.segment];
            let bytes = &mut order.buffer[..segment.len as usize];
            let blocks = segment.first..segment.end;
            let whole = result == segment.len as i32;
            let outcome = match whole && shared.sound(segment.section, blocks.clone(), bytes) {
                true => Ok(()),
                false => {
                    match result {
                        _ if whole => shared.log.reread(),
                        0.. => shared.log.partial(),
                        code => shared.log.failed(&io::Error::from_raw_os_error(-code)),
                    }
                    shared.fetch(segment.section, blocks, bytes)
                }
            };
            shared.deliver(order, outcome);
        });
    }
}

/// Gives the kernel all orders that there are buffers for; waits for one if none is under way. Returns whether any is: at the
/// end there is none.
fn fill(shared: &Shared, flight: &mut Flight, file: RawFd) -> bool {
    let mut ring = shared.ring();
    loop {
        for (place, slot) in flight.orders.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
            let Some(mut order) = (if ring.stop { None } else { ring.order(&shared.schedule) }) else {
                break;
            };
            let segment = &shared.schedule.segments[order.segment];
            let bytes = &mut order.buffer[..segment.len as usize];
            // The file is open as long as `shared`. If it were not, the kernel would report an error or read another file's bytes,
            // whose checksums don't match.
            let read = opcode::Read::new(types::Fd(file), bytes.as_mut_ptr(), segment.len);
            let entry = read.offset(segment.offset).build().user_data(place as u64);
            *slot = Some(order);
            // SAFETY: the entry's memory is that of the order's buffer, which stays mapped at its address while the order is in
            // `orders`, and is touched by nobody else: it is taken out only when the kernel has reported this entry, also
            // where this thread panics, as `Flight` is dropped only when none is left.
            let pushed = unsafe { flight.queue.submission().push(&entry) };
            // The queue has room for as many entries as there are places, and each push is of a place that was empty.
            debug_assert!(pushed.is_ok());
        }
        if !flight.is_empty() {
            return true;
        }
        if ring.stop {
            return false;
        }
        ring = shared.wait_for_work(ring);
    }
}
