//! From blocks on a card to a model's weights.

mod fat;
mod load;
mod plan;
mod session;
mod source;

pub use fat::{Directory, Disk, DiskError, Entry, File, MAX_NAME};
pub use load::{LoadError, Model, Weights};
pub use plan::Plan;
pub use session::{SESSION_FILE, Slot, SlotError, Slots};
pub use source::{Bell, Channel, Figures, Reader, StreamSource, WeightSource};
