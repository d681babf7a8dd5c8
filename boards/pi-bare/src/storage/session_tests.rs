//! Sessions on a card that loses its power.

use elapid_core::model::snapshot::{Sink, Source};

use super::{BLOCK, Slot, SlotError, Slots};
use crate::storage::{Disk, File};

/// Blocks in memory. After so many that were written, the power fails: the last one is written in part.
struct Card {
    blocks: Vec<[u8; BLOCK]>,
    power: usize,
}

impl Disk for Card {
    type Fault = &'static str;

    fn read(&mut self, first: u32, into: &mut [u8]) -> Result<(), &'static str> {
        for (block, at) in into.chunks_mut(BLOCK).zip(first as usize..) {
            block.copy_from_slice(self.blocks.get(at).ok_or("past the end")?);
        }
        Ok(())
    }

    fn write(&mut self, first: u32, from: &[u8]) -> Result<(), &'static str> {
        for (block, at) in from.chunks(BLOCK).zip(first as usize..) {
            let to = self.blocks.get_mut(at).ok_or("past the end")?;
            if self.power == 0 {
                to[..BLOCK / 2].copy_from_slice(&block[..BLOCK / 2]);
                return Err("no power");
            }
            self.power -= 1;
            to.copy_from_slice(block);
        }
        Ok(())
    }

    fn blocks(&self) -> u32 {
        self.blocks.len() as u32
    }
}

const BYTES: usize = 10_000;

fn snapshot(seed: u8) -> Vec<u8> {
    (0..BYTES).map(|i| (i as u8).wrapping_mul(seed) ^ (i >> 8) as u8).collect()
}

fn save(slots: &Slots<'_>, card: &mut Card, seed: u8) -> Result<(), SlotError<&'static str>> {
    slots.save(card, BYTES as u64, seed.is_multiple_of(2), |writer| {
        snapshot(seed).chunks(777).try_for_each(|piece| writer.write(piece))
    })
}

/// The newest session, if there is one.
fn load(slots: &Slots<'_>, card: &mut Card) -> Option<(bool, Vec<u8>)> {
    let slot = slots.newest(card).unwrap()?;
    let mut bytes = vec![0; BYTES];
    let mut source = slots.source(card, &slot);
    bytes.chunks_mut(1000).for_each(|piece| source.read(piece).unwrap());
    assert_eq!(source.read(&mut [0]), Err(SlotError::Empty), "no more than was written");
    Some((slot.begun, bytes))
}

fn card() -> (Card, u32) {
    let size = Slots::file_bytes(BYTES as u64) as u32;
    (Card { blocks: vec![[0xa5; BLOCK]; size as usize / BLOCK + 3], power: usize::MAX }, size)
}

#[test]
fn the_newest_session_is_there() {
    let (mut card, size) = card();
    // In two pieces.
    let extents = File::extents(&[(0, 7), (9, size / 512 - 7)]);
    let file = File::of(size, &extents);
    let slots = Slots::new::<()>(&file, BYTES as u64).unwrap();
    assert_eq!(load(&slots, &mut card), None);
    for seed in 1..8 {
        save(&slots, &mut card, seed).unwrap();
        assert_eq!(load(&slots, &mut card), Some((seed % 2 == 0, snapshot(seed))));
    }
    assert_eq!((card.blocks[7], card.blocks[8]), ([0xa5; BLOCK], [0xa5; BLOCK]), "nothing else is written");
    let error = Slots::new::<()>(&file, BYTES as u64 + 300).err();
    assert!(matches!(error, Some(SlotError::Small { need, .. }) if need > u64::from(size)));
}

#[test]
fn a_power_failure_leaves_the_old_session_or_the_new_one() {
    let (mut card, size) = card();
    let extents = File::extents(&[(1, size / 512)]);
    let file = File::of(size, &extents);
    let slots = Slots::new::<()>(&file, BYTES as u64).unwrap();
    let blocks = 2 + BYTES.div_ceil(BLOCK);
    let mut old = None;
    let mut seed = 1;
    for _ in 0..3 {
        for power in 0..=blocks {
            card.power = power;
            let saved = save(&slots, &mut card, seed);
            card.power = usize::MAX;
            assert_eq!(saved.is_ok(), power == blocks, "{power}");
            let expected = if saved.is_ok() { Some((seed % 2 == 0, snapshot(seed))) } else { old.clone() };
            let there = load(&slots, &mut card);
            // Half of the header is all of it: the rest is 0.
            let new = Some((seed % 2 == 0, snapshot(seed)));
            assert!(there == expected || power + 1 == blocks && there == new, "{power}");
            old = there;
            seed += 1;
        }
    }
}

#[test]
fn a_damaged_session_gives_way_to_the_older_one() {
    let (mut card, size) = card();
    let extents = File::extents(&[(0, size / 512)]);
    let file = File::of(size, &extents);
    let slots = Slots::new::<()>(&file, BYTES as u64).unwrap();
    save(&slots, &mut card, 1).unwrap();
    save(&slots, &mut card, 2).unwrap();
    let start = size as usize / 2 / BLOCK;
    for block in start..start + 1 + BYTES.div_ceil(BLOCK) {
        let last = block == start + BYTES.div_ceil(BLOCK);
        for at in [0, 17, 33, if last { 100 } else { 511 }] {
            card.blocks[block][at] ^= 4;
            let expected = if block == start && at == 511 { 2 } else { 1 };
            // What is not known in a header must be 0.
            let expected = if block == start { 1 } else { expected };
            assert_eq!(load(&slots, &mut card), Some((false, snapshot(expected))), "{block} {at}");
            card.blocks[block][at] ^= 4;
        }
    }
    assert_eq!(load(&slots, &mut card), Some((true, snapshot(2))));
    // A header that lies about its length.
    let mut slot = slots.newest(&mut card).unwrap().unwrap();
    slot.bytes = u64::MAX;
    card.blocks[start] = slot.emit();
    assert_eq!(Slot::parse(&card.blocks[start], 1), Some(slot));
    assert_eq!(load(&slots, &mut card), Some((false, snapshot(1))));
}
