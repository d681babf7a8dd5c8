//! Where the bytes of a snapshot go, and where they come from.

use core::fmt;

/// The destination of bytes.
pub trait Sink {
    /// Why they could not.
    type Error;
    /// Takes all of the bytes.
    ///
    /// # Errors
    /// If it can't.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// The origin of bytes.
pub trait Source {
    /// Why they could not.
    type Error;
    /// Fills all of `bytes`.
    ///
    /// # Errors
    /// If it can't, or if there are fewer.
    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error>;
}

/// A [`Source`] over bytes ended before the snapshot did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the saved state ends too early: it was cut short, use another copy")
    }
}

impl Source for &[u8] {
    type Error = Cut;

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Cut> {
        let (taken, rest) = self.split_at_checked(bytes.len()).ok_or(Cut)?;
        bytes.copy_from_slice(taken);
        *self = rest;
        Ok(())
    }
}
