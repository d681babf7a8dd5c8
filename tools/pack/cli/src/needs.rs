//! What a packed model needs of a machine.

use elapid::{Plan, SessionOptions};
use elapid_core::format::Layout;

/// Reads under way at a time, as a fast card has them.
pub(crate) const READS: u64 = 4;
/// Threads, as most boards have cores.
pub(crate) const THREADS: u64 = 4;

/// The least caps in bytes under which a model runs, and under which nothing is streamed.
pub(crate) fn least_caps(layout: &Layout) -> [u64; 2] {
    Plan::least_caps(layout, THREADS, READS, &SessionOptions::default())
}

/// The same as text.
pub(crate) fn text(layout: &Layout) -> String {
    let [least, whole] = least_caps(layout).map(|bytes| bytes >> 20);
    if least >= whole {
        return format!("runs with --ram {least}M");
    }
    format!("runs with --ram {least}M by streaming, without streaming with --ram {whole}M")
}
