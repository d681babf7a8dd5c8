//! Kernels read nothing past the end of what they are given, where a map of memory ends too.

use std::io::{Seek, SeekFrom, Write};

use elapid_core::format::{MatrixShape, Quant};
use elapid_core::kernels::{
    GROUP, Input, Kernels, LANES, Scalar, Scale, ScanInput, SsmState, for_each_available,
};
use memmap2::{Mmap, MmapOptions};

use crate::case::bytes_of;
use crate::difference;
use crate::random::{Kind, Random};

/// No machine has larger pages.
const PAGE: usize = 65_536;

/// Bytes behind which a page has no memory: reading it ends the program with a signal.
struct Guarded {
    map: Mmap,
    start: usize,
    len: usize,
}

impl Guarded {
    fn new(bytes: &[u8]) -> Self {
        let whole = bytes.len().next_multiple_of(PAGE);
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(whole as u64).unwrap();
        file.seek(SeekFrom::End(-(bytes.len() as i64))).unwrap();
        file.write_all(bytes).unwrap();
        // SAFETY: nobody else has the file; of the map, only what lies in the file is handed out.
        let map = unsafe { MmapOptions::new().len(whole + PAGE).map(&file) }.unwrap();
        Self { map, start: whole - bytes.len(), len: bytes.len() }
    }

    fn bytes(&self) -> &[u8] {
        &self.map[self.start..][..self.len]
    }

    /// The bytes as numbers of which all bits are some value.
    fn of<T: Number>(&self) -> &[T] {
        // SAFETY: every pattern of bits is a `T`; the end is that of a page, and so aligned for a whole number of them.
        unsafe { core::slice::from_raw_parts(self.bytes().as_ptr().cast(), self.len / size_of::<T>()) }
    }
}

/// Numbers of which all bits are some value.
trait Number {}
impl Number for i8 {}
impl Number for f32 {}
impl Number for Scale {}

fn floats(random: &mut Random, count: usize) -> Guarded {
    Guarded::new(&bytes_of(&random.floats(count, Kind::Tame)))
}

/// That all kernels give what the portable ones do.
fn compare(what: &str, run: impl Fn(&dyn Kernels) -> Vec<f32>) {
    let expected = run(&Scalar);
    for_each_available(&mut |kernels| {
        assert_eq!(difference(&expected, &run(kernels)), None, "{} {what}", kernels.name());
    });
}

#[test]
fn products_read_nothing_past_the_end() {
    let (rows, cols) = (48, 96);
    for (index, quant) in Quant::ALL.into_iter().enumerate() {
        for tokens in [1, 2, 3, 4, 13] {
            let mut random = Random::new((100 * index + tokens) as u64);
            let shape = MatrixShape::new(rows, cols, quant, false).unwrap();
            let bytes = rows as usize / LANES * shape.panel_bytes() as usize;
            let panels = Guarded::new(&(0..bytes).map(|_| random.bits() as u8).collect::<Vec<_>>());
            let q: Vec<i8> = (0..tokens * cols as usize).map(|_| random.int8(Kind::Tame)).collect();
            let scales = q.chunks_exact(GROUP).flat_map(|q| {
                let sum = q.iter().map(|&q| i32::from(q)).sum::<i32>();
                [0.01f32.to_ne_bytes(), sum.to_ne_bytes()].concat()
            });
            let scales = Guarded::new(&scales.collect::<Vec<_>>());
            let q = Guarded::new(&q.iter().map(|&q| q as u8).collect::<Vec<_>>());
            let x = floats(&mut random, tokens * cols as usize);
            compare(&format!("{}, {tokens} tokens", quant.name()), |kernels| {
                let input = Input { tokens, x: x.of(), q: q.of(), scales: scales.of() };
                let mut y = vec![0.0; rows as usize * tokens];
                kernels.matmul(&shape, panels.bytes(), &input, &mut y);
                y
            });
        }
    }
}

#[test]
fn scans_read_nothing_past_the_end() {
    for d_state in [1usize, 5, 16, 17, 32] {
        for tokens in [1, 2, 5] {
            let mut random = Random::new((10 * d_state + tokens) as u64);
            let (d, padded) = (2 * LANES, d_state.next_multiple_of(LANES));
            let weights = floats(&mut random, d * (d_state + 1));
            let [b, c] = [(); 2].map(|()| floats(&mut random, tokens * padded));
            let [dt, z, u] = [(); 3].map(|()| floats(&mut random, tokens * d));
            compare(&format!("scan, {d_state} states, {tokens} tokens"), |kernels| {
                let (mut state, mut u) = (vec![0.5; d * d_state], u.of().to_vec());
                let input = ScanInput { tokens, range: 0..tokens, d_state, b: b.of(), c: c.of() };
                kernels.scan(weights.bytes(), SsmState::F32(&mut state), &input, dt.of(), z.of(), &mut u);
                u.extend(state);
                u
            });
        }
    }
}
