//! What a case is, and the cases of the matrix product.

use elapid_core::format::{MatrixShape, Quant};
use elapid_core::kernels::{GROUP, Input, Kernels, LANES, Scale, TOKEN_BLOCK};

use crate::random::{Kind, Random};

/// Half a unit in the last place, relative: the error of one rounding.
pub const U: f64 = 1.0 / (1 << 24) as f64;
/// What underflow can add to the error of one rounding.
pub const TINY: f64 = 1.5e-45;

/// What the definition gives, and how far from it the result may be.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub exact: f64,
    pub error: f64,
}

/// Data for one kernel.
pub trait Case {
    /// All results, integers and flags as floats, in an order that does not depend on `chunk`: the most tokens that
    /// the kernel is given at a time.
    fn run(&self, kernels: &dyn Kernels, chunk: usize) -> Vec<f32>;

    /// What `run` should give.
    fn bounds(&self) -> Vec<Bound>;
}

/// The tokens of a case with this index.
pub fn tokens_of(index: usize) -> usize {
    1 + index % 29
}

/// Vectors of tokens as a reader thinks of them, `[T][d]`; `d` a multiple of 16.
pub struct Vectors {
    pub d: usize,
    pub x: Vec<f32>,
}

impl Vectors {
    pub fn random(random: &mut Random, kind: Kind, tokens: usize, d: usize) -> Self {
        Self { d, x: random.floats(tokens * d, kind) }
    }
    pub fn tokens(&self) -> usize {
        self.x.len() / self.d
    }
    /// The vector of a token.
    pub fn of(&self, token: usize) -> &[f32] {
        &self.x[token * self.d..][..self.d]
    }
    /// As kernels want a chunk of them, `[d/16][T][16]`.
    pub fn panels(&self, first: usize, tokens: usize) -> Vec<f32> {
        let panel = |p: usize| (first..first + tokens).flat_map(move |t| &self.of(t)[p * LANES..][..LANES]);
        (0..self.d / LANES).flat_map(panel).copied().collect()
    }
}

/// Appends a chunk `[d/16][T][16]` to vectors `[T][d]`.
pub fn append(to: &mut Vec<f32>, panels: &[f32], tokens: usize) {
    for t in 0..tokens {
        to.extend(panels.chunks_exact(tokens * LANES).flat_map(|panel| &panel[t * LANES..][..LANES]));
    }
}

/// The first token and the length of each chunk.
pub fn chunks(tokens: usize, chunk: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tokens).step_by(chunk.min(tokens)).map(move |first| (first, chunk.min(tokens - first)))
}

/// Floats as bytes of a model file.
pub fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

struct Matmul {
    shape: MatrixShape,
    panels: Vec<u8>,
    x: Vectors,
    /// `[T][cols]`
    q: Vec<i8>,
    /// `[T][cols/32]`
    scales: Vec<Scale>,
}

pub fn matmul(random: &mut Random, kind: Kind, index: usize) -> Box<dyn Case> {
    let quant = Quant::ALL[index / 29 % Quant::ALL.len()];
    // Now and then so wide that a kernel works on stretches of columns.
    let wide = index.is_multiple_of(5);
    let (rows, cols) = if wide {
        (random.between(1, 40), random.between(1000, 2300))
    } else {
        (random.between(1, 70), random.between(1, 200))
    };
    let bias = index / 29 / Quant::ALL.len() % 2 == 1;
    let shape = MatrixShape::new(rows as u32, cols as u32, quant, bias).unwrap();
    matmul_of(random, kind, index, shape, tokens_of(index))
}

/// A matrix of some shape times some tokens.
pub fn matmul_of(
    random: &mut Random,
    kind: Kind,
    index: usize,
    shape: MatrixShape,
    tokens: usize,
) -> Box<dyn Case> {
    let quant = shape.quant();
    let (rows, cols) = (shape.rows() as usize, shape.cols() as usize);
    let mut panels = Vec::new();
    // Now and then all weights are -128, the one integer without an opposite, or all are the largest, and the activations 127 in
    // one token and -127 in the next: whole sums then, which no infinite scale hides.
    let lowest = kind == Kind::Wild && index.is_multiple_of(3);
    let highest = kind == Kind::Wild && index % 3 == 1;
    let kind = if highest { Kind::Tame } else { kind };
    let byte = |random: &mut Random, least, most| match (lowest, highest) {
        (true, _) => least,
        (_, true) => most,
        _ => random.bits() as u8,
    };
    for _ in 0..rows / LANES {
        for _ in 0..shape.scale_bytes() / 2 {
            panels.extend(random.f16(kind).to_le_bytes());
        }
        for _ in 0..cols * LANES {
            match quant {
                Quant::F32 => panels.extend(random.float(kind).to_le_bytes()),
                Quant::F16 => panels.extend(random.f16(kind).to_le_bytes()),
                Quant::Q8 => panels.push(byte(random, 0x80, 0x7f)),
                Quant::Q5 | Quant::Q4 | Quant::Q3 => {}
            }
        }
        if quant.is_coarse() {
            panels.extend((0..shape.weight_bytes()).map(|_| byte(random, 0, 0xff)));
        }
        if shape.has_bias() {
            panels.extend(bytes_of(&random.floats(LANES, kind)));
        }
    }
    let x = Vectors::random(random, kind, tokens, cols);
    let sign = |at: usize| if (at / cols).is_multiple_of(2) { 127 } else { -127 };
    let q: Vec<i8> =
        (0..tokens * cols).map(|at| if highest { sign(at) } else { random.int8(kind) }).collect();
    let scale = |q: &[i8]| Scale {
        scale: if kind == Kind::Tame { random.uniform(0.0, 0.1) } else { random.float(kind).abs() },
        sum: q.iter().map(|&q| i32::from(q)).sum(),
    };
    let scales = q.chunks_exact(GROUP).map(scale).collect();
    Box::new(Matmul { shape, panels, x, q, scales })
}

impl Case for Matmul {
    fn run(&self, kernels: &dyn Kernels, chunk: usize) -> Vec<f32> {
        let mut results = Vec::new();
        let groups = self.x.d / GROUP;
        for (first, tokens) in chunks(self.x.tokens(), chunk) {
            let mut q = Vec::new();
            let mut scales = Vec::new();
            for (start, block) in chunks(tokens, TOKEN_BLOCK) {
                for group in 0..groups {
                    for token in first + start..first + start + block {
                        q.extend(&self.q[(token * groups + group) * GROUP..][..GROUP]);
                        scales.push(self.scales[token * groups + group]);
                    }
                }
            }
            let x = self.x.panels(first, tokens);
            let input = Input { tokens, x: &x, q: &q, scales: &scales };
            let mut y = vec![f32::NAN; self.shape.rows() as usize * tokens];
            // Two members of a team, each with its own panels.
            let half = self.shape.panels() as usize / 2;
            let (weights, more_weights) = self.panels.split_at(half * self.shape.panel_bytes() as usize);
            let (some, more) = y.split_at_mut(half * tokens * LANES);
            kernels.matmul(&self.shape, weights, &input, some);
            kernels.matmul(&self.shape, more_weights, &input, more);
            append(&mut results, &y, tokens);
        }
        results
    }

    fn bounds(&self) -> Vec<Bound> {
        let mut bounds = Vec::new();
        let groups = self.x.d / GROUP;
        for t in 0..self.x.tokens() {
            for row in 0..self.shape.rows() as usize {
                let panel = &self.panels[row / LANES * self.shape.panel_bytes() as usize..];
                let weights = Weights { shape: &self.shape, panel, row: row % LANES };
                let bias = weights.bias();
                let (mut exact, mut size) = (bias, bias.abs());
                let roundings = if self.shape.quant().is_integer() {
                    for group in 0..groups {
                        let columns = group * GROUP..(group + 1) * GROUP;
                        let dot: i32 =
                            columns.map(|c| weights.int(c) * i32::from(self.q[t * self.x.d + c])).sum();
                        let scale = weights.scale(group) * f64::from(self.scales[t * groups + group].scale);
                        exact += f64::from(dot) * scale;
                        size += (f64::from(dot) * scale).abs();
                    }
                    groups + 1
                } else {
                    for (c, &x) in self.x.of(t).iter().enumerate() {
                        exact += weights.float(c) * f64::from(x);
                        size += (weights.float(c) * f64::from(x)).abs();
                    }
                    self.x.d
                };
                bounds.push(Bound { exact, error: roundings as f64 * (U * size * 1.001 + TINY) });
            }
        }
        bounds
    }
}

/// A row of a panel, read as `docs/format.md` says.
struct Weights<'a> {
    shape: &'a MatrixShape,
    panel: &'a [u8],
    row: usize,
}

impl Weights<'_> {
    fn f32_at(&self, at: usize) -> f64 {
        f32::from_le_bytes(*self.panel[at..].first_chunk().expect("within the panel")).into()
    }
    fn f16_at(&self, at: usize) -> f64 {
        half::f16::from_le_bytes(*self.panel[at..].first_chunk().expect("within the panel")).into()
    }
    fn scale(&self, group: usize) -> f64 {
        self.f16_at((group * LANES + self.row) * 2)
    }
    fn float(&self, column: usize) -> f64 {
        let at = column * LANES + self.row;
        if self.shape.quant() == Quant::F32 { self.f32_at(4 * at) } else { self.f16_at(2 * at) }
    }
    fn int(&self, column: usize) -> i32 {
        let weights = &self.panel[self.shape.scale_bytes() as usize..];
        if self.shape.quant() == Quant::Q8 {
            return i32::from(weights[column / 4 * 64 + 4 * self.row + column % 4] as i8);
        }
        let (tile, at) = (column % GROUP / 4, 4 * self.row + column % 4);
        if self.shape.quant() == Quant::Q5 {
            let group = &weights[column / GROUP * 320..];
            let low = group[64 * (tile / 2) + at] >> (4 * (tile % 2)) & 15;
            let high = group[256 + at] >> tile & 1;
            return i32::from(low + 16 * high) - 16;
        }
        if self.shape.quant() == Quant::Q3 {
            let group = &weights[column / GROUP * 192..];
            let low = group[64 * (tile / 4) + at] >> (2 * (tile % 4)) & 3;
            let high = group[128 + at] >> tile & 1;
            return i32::from(low + 4 * high) - 4;
        }
        let byte = weights[column / 8 * 64 + 4 * self.row + column % 4];
        i32::from(if column % 8 < 4 { byte & 15 } else { byte >> 4 }) - 8
    }
    fn bias(&self) -> f64 {
        if !self.shape.has_bias() {
            return 0.0;
        }
        let before = self.shape.scale_bytes() + self.shape.weight_bytes();
        self.f32_at(before as usize + 4 * self.row)
    }
}
