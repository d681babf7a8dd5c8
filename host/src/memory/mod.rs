//! Where a model's bytes are: within the program, mapped, or in storage from which they are streamed.

mod direct;
mod file;
mod map;
mod panels;
mod plan;
mod readers;
mod ring;
mod schedule;
mod storage;
mod stream;
mod streamed;
#[cfg(target_os = "linux")]
mod uring;

pub(crate) use direct::DirectFile;
pub(crate) use map::Map;
pub use plan::Plan;
pub(crate) use plan::{TooLittle, Wish};
pub use storage::{Incidents, Storage};
pub use stream::ReadBy;
pub(crate) use stream::Streamer;
pub(crate) use streamed::Streamed;

use elapid_core::format::Layout;
use elapid_core::source::{LayerSource, SliceSource, SourceError};

use crate::options::Verify;

/// The bytes of a model file.
pub(crate) enum Bytes {
    /// A file, mapped.
    Map(Map),
    /// Part of the program.
    #[cfg(feature = "bundled")]
    Program(&'static [u8]),
    /// In storage.
    Streamed(Box<Streamed>),
}

impl Bytes {
    /// The whole file, where it is in memory.
    pub(crate) fn whole(&self) -> Option<&[u8]> {
        match self {
            Self::Map(map) => Some(map),
            #[cfg(feature = "bundled")]
            Self::Program(bytes) => Some(bytes),
            Self::Streamed(streamed) => streamed.map().map(|map| &map[..]),
        }
    }

    /// Says that the bytes are about to be read in order, again and again.
    pub(crate) fn expect_reads(&self) {
        match self {
            Self::Map(map) => map.expect_reads(),
            Self::Streamed(streamed) => streamed.map().into_iter().for_each(Map::expect_reads),
            #[cfg(feature = "bundled")]
            Self::Program(_) => {}
        }
    }
}

/// Either source of a session's weights.
pub(crate) enum Source<'a> {
    /// A whole file in memory, with its blocks checked once, or in every pass.
    Slice(SliceSource<'a>, Verify),
    /// A file in storage.
    Stream(&'a mut Streamer),
}

impl Source<'_> {
    /// The blocks.
    pub(crate) fn blocks(&mut self) -> &mut dyn LayerSource {
        match self {
            Self::Slice(slice, _) => slice,
            Self::Stream(streamer) => *streamer,
        }
    }

    /// A pass over the weights begins.
    pub(crate) fn begin_pass(&mut self) {
        if let Self::Slice(slice, Verify::Always) = self {
            slice.forget();
        }
    }

    /// Says that the next `passes` passes end with the layers, and the one after them with the head.
    pub(crate) fn expect_bare(&self, passes: usize) {
        if let Self::Stream(streamer) = self {
            streamer.expect_bare(passes as u64);
        }
    }

    /// Gives all blocks of a pass, while `more` wants them.
    pub(crate) fn skim(
        &mut self,
        layout: &Layout,
        more: &mut dyn FnMut() -> bool,
    ) -> Result<(), SourceError> {
        for section in schedule::sections(layout) {
            let blocks = layout.section(section).blocks;
            let mut next = 0;
            while next < blocks && more() {
                let mut borrowed = self.blocks().borrow(section, next..blocks)?.len() as u64;
                while let Some(block) = layout.block(section, next).filter(|block| block.length <= borrowed) {
                    borrowed -= block.length;
                    next += 1;
                }
            }
        }
        Ok(())
    }

    /// Bytes that came from storage so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        if let Self::Stream(streamer) = self { streamer.read_bytes() } else { 0 }
    }
}

/// A model file within the program, where the kernels want weights: on a cache line.
#[cfg(feature = "bundled")]
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// The bundled model.
#[cfg(feature = "bundled")]
pub(crate) fn bundled() -> &'static [u8] {
    static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/address-4m.elp"));
    &MODEL.0
}
