//! Where a model's bytes are.

mod map;

pub(crate) use map::Map;

use std::ops::Deref;

/// The bytes of a whole model file.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A file, mapped.
    Map(Map),
    /// Part of the program.
    #[cfg(feature = "bundled")]
    Program(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            #[cfg(feature = "bundled")]
            Self::Program(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// Says that the bytes are about to be read in order, again and again.
    pub(crate) fn expect_reads(&self) {
        match self {
            Self::Map(map) => map.expect_reads(),
            #[cfg(feature = "bundled")]
            Self::Program(_) => {}
        }
    }
}

/// A model file within the program, where the kernels want weights: on a cache line.
#[cfg(feature = "bundled")]
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// The bundled model.
#[cfg(feature = "bundled")]
pub(crate) fn bundled() -> &'static [u8] {
    static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../models/address-4m.elp"));
    &MODEL.0
}
