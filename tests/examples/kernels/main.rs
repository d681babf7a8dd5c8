//! How fast each kernel is on one core, beside a bare loop of the dot products it is made of.
//!
//! `cargo run --release -p elapid-tests --example kernels [KERNELS]` prints a Markdown table; KERNELS is the name of an
//! instruction set, the best if left out.

mod peak;

use std::time::{Duration, Instant};

use elapid_core::format::{MatrixShape, Quant};
use elapid_core::kernels::{
    GROUP, Input, Kernels, LANES, Scale, ScanInput, SsmState, TOKEN_BLOCK, detect, for_each_available,
};

/// Tokens of a chunk in prefill.
const TOKENS: usize = 240;
/// Bytes of weights beyond every cache, so that they come from memory.
const FAR: usize = 160 << 20;

/// The fastest of many runs.
fn fastest(mut run: impl FnMut()) -> Duration {
    let (start, mut best, mut runs) = (Instant::now(), Duration::MAX, 0);
    while runs < 3 || start.elapsed() < Duration::from_millis(400) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed());
        runs += 1;
    }
    best
}

/// Bytes that look random enough; as f16 scales they are small numbers.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x3f
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn floats(len: usize, from: f32, to: f32) -> Vec<f32> {
    bytes(len).into_iter().map(|b| from + (to - from) * f32::from(b) / 64.0).collect()
}

struct Activations {
    x: Vec<f32>,
    q: Vec<i8>,
    scales: Vec<Scale>,
}

impl Activations {
    fn new(cols: usize, tokens: usize) -> Self {
        let q: Vec<i8> = bytes(cols * tokens).into_iter().map(|b| b as i8 - 32).collect();
        let sum = |q: &[i8]| Scale { scale: 0.01, sum: q.iter().map(|&q| i32::from(q)).sum() };
        let scales = q.chunks_exact(GROUP).map(sum).collect();
        Self { x: floats(cols * tokens, -1.0, 1.0), q, scales }
    }
    fn input(&self, tokens: usize) -> Input<'_> {
        Input { tokens, x: &self.x, q: &self.q, scales: &self.scales }
    }
}

/// Seconds that a matrix takes for some tokens, by the weights that `panels` holds.
fn matmul(kernels: &dyn Kernels, shape: &MatrixShape, panels: &[u8], tokens: usize) -> f64 {
    let activations = Activations::new(shape.cols() as usize, tokens);
    let rows = panels.len() / shape.panel_bytes() as usize * LANES;
    let mut y = vec![0.0; rows * tokens];
    fastest(|| kernels.matmul(shape, panels, &activations.input(tokens), &mut y)).as_secs_f64()
}

/// Reads bytes in order as fast as they come.
fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for line in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

fn main() {
    let mut kernels = detect();
    if let Some(name) = std::env::args().nth(1) {
        for_each_available(&mut |k| {
            if k.name().eq_ignore_ascii_case(&name) {
                kernels = k;
            }
        });
    }
    println!("kernels: {}", kernels.name());
    let peak = {
        let mut products = 0;
        let time = fastest(|| products = peak::bare_dots(kernels.name(), 1 << 16));
        products as f64 / time.as_secs_f64() / 1e9
    };
    println!("bare dot products: {peak:.1} G products/s\n");
    println!("| prefill | rows | cols | type | G products/s | of the bare loop |\n|---|---|---|---|---|---|");
    for (rows, cols) in [(3072, 768), (768, 1536), (8192, 2048), (2048, 4096), (4096, 4096), (4096, 8192)] {
        for quant in [Quant::Q8, Quant::Q4, Quant::F16] {
            let shape = MatrixShape::new(rows, cols, quant, false).expect("within the limits");
            let panels = bytes((shape.panel_bytes() * shape.panels()) as usize / 2);
            let tokens = if quant == Quant::F16 { 24 } else { TOKENS };
            let time = matmul(kernels, &shape, &panels, tokens);
            let rate = f64::from(rows / 2 * cols) * tokens as f64 / time / 1e9;
            println!(
                "| {tokens} tokens | {} | {cols} | {} | {rate:.1} | {:.0}% |",
                rows / 2,
                quant.name(),
                100.0 * rate / peak
            );
        }
    }

    println!("\n| decode from memory | cols | type | GB/s | reading alone |\n|---|---|---|---|---|");
    for quant in [Quant::Q8, Quant::Q4] {
        let shape = MatrixShape::new(16, 2048, quant, false).expect("within the limits");
        let panel = shape.panel_bytes() as usize;
        let panels = bytes(FAR / panel * panel);
        let rate = |seconds: f64| panels.len() as f64 / seconds / 1e9;
        let alone = fastest(|| {
            std::hint::black_box(read(&panels));
        });
        let own = matmul(kernels, &shape, &panels, 1);
        println!(
            "| 1 token | 2048 | {} | {:.1} | {:.1} |",
            quant.name(),
            rate(own),
            rate(alone.as_secs_f64())
        );
        let eight = matmul(kernels, &shape, &panels, 8);
        println!(
            "| 8 tokens | 2048 | {} | {:.1} | {:.1} |",
            quant.name(),
            rate(eight),
            rate(alone.as_secs_f64())
        );
    }

    println!("\n| elementwise, 1536 channels | tokens | ns a channel and token |\n|---|---|---|");
    let d = 1536;
    for tokens in [1, TOKENS] {
        let row = |name: &str, time: Duration| {
            println!("| {name} | {tokens} | {:.3} |", time.as_secs_f64() * 1e9 / (d * tokens) as f64);
        };
        let x = floats(d * tokens, -2.0, 2.0);
        let (mut inv, mut y) = (vec![0.0; tokens], vec![0.0; d * tokens]);
        row("rms_inv", fastest(|| kernels.rms_inv(&x, tokens, 0, d as u32, 1e-5, &mut inv)));
        let weight: Vec<u8> = floats(d, 0.5, 1.5).iter().flat_map(|w| w.to_le_bytes()).collect();
        row("normalize", fastest(|| kernels.normalize(&x, &weight, &inv, &mut y)));
        let (mut q, mut scales) = (vec![0; d * tokens], vec![Scale::default(); d * tokens / GROUP]);
        row(
            "quantize",
            fastest(|| {
                for first in (0..tokens).step_by(TOKEN_BLOCK) {
                    let block = first..(first + TOKEN_BLOCK).min(tokens);
                    kernels.quantize(
                        tokens,
                        block,
                        &x,
                        &mut q[first * d..],
                        &mut scales[first * d / GROUP..],
                    );
                }
            }),
        );
        let conv: Vec<u8> = floats(d * 5, -1.0, 1.0).iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut state = vec![0.0; d * 3];
        row("conv_silu", fastest(|| kernels.conv_silu(4, tokens, 0..tokens, &conv, &mut state, &x, &mut y)));
        let (n, b) = (16, floats(16 * tokens, -1.0, 1.0));
        let a: Vec<u8> = floats(d * (n + 1), -4.0, -0.1).iter().flat_map(|w| w.to_le_bytes()).collect();
        let input = ScanInput { tokens, range: 0..tokens, d_state: n, b: &b, c: &b };
        let (dt, mut h, mut h16) = (floats(d * tokens, -4.0, 0.0), vec![0.0; d * n], vec![0; d * n]);
        row("scan", fastest(|| kernels.scan(&a, SsmState::F32(&mut h), &input, &dt, &x, &mut y)));
        y.fill(0.5);
        row(
            "scan, f16 state",
            fastest(|| kernels.scan(&a, SsmState::F16(&mut h16), &input, &dt, &x, &mut y)),
        );
    }
}
