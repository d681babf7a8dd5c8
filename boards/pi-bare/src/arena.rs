//! Memory that is given out once, in pieces sized at run time: all that a model needs is taken when it is opened, and all
//! of it is free again when the arena is made anew.
#![allow(unsafe_code)]

use core::fmt;
use core::mem::MaybeUninit;

/// Pieces start on a line of the cache, where the kernels want weights.
const ALIGN: usize = 64;

/// Some regions of memory, used from their starts on.
#[derive(Debug)]
pub struct Arena<'a> {
    regions: [&'a mut [u8]; 2],
}

/// There is not enough memory left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// What for.
    pub what: &'static str,
    /// Bytes that it needs.
    pub need: u64,
    /// Bytes that are left in one piece.
    pub have: u64,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, need, have } = self;
        write!(f, "not enough memory for {what}: it needs {} and {} are left", Size(*need), Size(*have))
    }
}

/// A number of bytes, to be read by people.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes < 1 << 10 => write!(f, "{bytes} bytes"),
            bytes if bytes < 1 << 20 => write!(f, "{} KiB", bytes.div_ceil(1 << 10)),
            // Tenths, rounded up.
            bytes => {
                let tenths = (u128::from(bytes) * 10).div_ceil(1 << 20);
                write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
            }
        }
    }
}

impl<'a> Arena<'a> {
    /// An arena of `regions`, of which at most `limit` bytes are used.
    #[must_use]
    pub fn new(regions: [&'a mut [u8]; 2], limit: u64) -> Self {
        let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            regions: regions.map(|region| {
                let length = region.len().min(left);
                left -= length;
                &mut region[..length]
            }),
        }
    }

    /// Bytes that are left in one piece.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.regions.iter().map(|region| usable(region).1).max().unwrap_or(0) as u64
    }

    /// Bytes that can be taken in all, if no piece is larger than `piece`.
    #[must_use]
    pub fn usable_for(&self, piece: u64) -> u64 {
        let sizes = self.regions.each_ref().map(|region| usable(region).1 as u64);
        // What is left of a region when nothing fits it any more is less than a piece.
        let all = sizes.iter().sum::<u64>().saturating_sub(2 * (piece + ALIGN as u64));
        all.max(self.largest())
    }

    /// `len` elements, each of them `value`.
    ///
    /// # Errors
    /// If no region has so much left; nothing is taken then.
    pub fn take<T: Copy>(
        &mut self,
        what: &'static str,
        len: usize,
        value: T,
    ) -> Result<&'a mut [T], OutOfMemory> {
        const { assert!(align_of::<T>() <= ALIGN && size_of::<T>() > 0) };
        let bytes = len.saturating_mul(size_of::<T>());
        if bytes == 0 {
            // Takes nothing, also where a region has no aligned address any more.
            return Ok(&mut []);
        }
        let have = self.largest();
        let fits = |region: &&mut &'a mut [u8]| usable(region).1 >= bytes;
        let region = self.regions.iter_mut().find(fits);
        let region = region.ok_or(OutOfMemory { what, need: bytes as u64, have })?;
        let (skip, _) = usable(region);
        let (piece, rest) = core::mem::take(region)[skip..].split_at_mut(bytes);
        *region = rest;
        let start = piece.as_mut_ptr().cast::<MaybeUninit<T>>();
        // SAFETY: `piece` is borrowed exclusively for 'a and is `len` times the size of a T, from an address that is a
        // multiple of its alignment.
        let piece = unsafe { core::slice::from_raw_parts_mut(start, len) };
        piece.iter_mut().for_each(|element| {
            element.write(value);
        });
        // SAFETY: every element has just been written; nothing is dropped, as T is Copy.
        Ok(unsafe { &mut *(core::ptr::from_mut(piece) as *mut [T]) })
    }
}

/// Bytes of a region before the first aligned address, and those behind it.
fn usable(region: &[u8]) -> (usize, usize) {
    let skip = (region.as_ptr() as usize).wrapping_neg() % ALIGN;
    (skip, region.len().saturating_sub(skip))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{ALIGN, Arena, OutOfMemory, Size, usable};
    use std::string::ToString;

    #[test]
    fn pieces_are_aligned_apart_and_counted() {
        let (mut first, mut second) = ([0xffu8; 1000], [0xffu8; 4000]);
        let mut arena = Arena::new([&mut first, &mut second], u64::MAX);
        let a = arena.take("a", 3, 7u32).unwrap();
        let b = arena.take("b", 5, 1.5f32).unwrap();
        let c = arena.take("c", 3000, 9u8).unwrap();
        assert!((a.as_ptr() as usize).is_multiple_of(ALIGN) && (b.as_ptr() as usize).is_multiple_of(ALIGN));
        b.fill(2.5);
        c.fill(1);
        assert_eq!((&*a, &*b), (&[7; 3][..], &[2.5; 5][..]));
        let error = arena.take("d", 3000, 0u8).unwrap_err();
        assert!(
            error.have < 1100 && error.to_string().contains("not enough memory for d: it needs 3 KiB"),
            "{error}"
        );
        assert!(arena.take("all", usize::MAX, 0u64).is_err());
        let most = arena.largest() as usize;
        assert!(arena.take("e", most, 0u8).is_ok());
    }

    #[test]
    fn nothing_can_be_taken_from_nothing() {
        let (mut first, mut second) = ([0u8; 100], [0u8; 100]);
        // Neither region has an aligned address.
        let first = &mut first[..];
        let first = {
            let skip = usable(first).0;
            &mut first[skip + 1..][..9]
        };
        let mut arena = Arena::new([first, &mut second[..0]], u64::MAX);
        assert_eq!(arena.largest(), 0);
        assert_eq!(arena.take("nothing", 0, 0u64), Ok(&mut [][..]));
        assert!(arena.take("a byte", 1, 0u8).is_err());
    }

    #[test]
    fn the_limit_holds() {
        let (mut first, mut second) = ([0u8; 1000], [0u8; 1000]);
        let mut arena = Arena::new([&mut first, &mut second], 1200);
        assert!(arena.take("a", 900, 0u8).is_ok());
        let error = arena.take("b", 201, 0u8).unwrap_err();
        assert!(matches!(error, OutOfMemory { what: "b", need: 201, have: ..=200 }), "{error:?}");
    }

    #[test]
    fn sizes_are_rounded_up() {
        let shown = |bytes| Size(bytes).to_string();
        assert_eq!([shown(1023), shown(1025), shown((1 << 20) + 1)], ["1023 bytes", "2 KiB", "1.1 MiB"]);
    }
}
