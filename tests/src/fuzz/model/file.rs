//! Packed files in memory: models of any small shape, with any damage, and the right checksums.

use arbitrary::{Arbitrary, Unstructured};
use elapid_core::format::{
    Arch, Config, DataSizes, Fields, Header, Layout, MatrixShape, Part, PerMatrix, Quant, Quants, Section,
    checksum, emit_header, emit_table_entry,
};
use elapid_core::source::SliceSource;
use half::f16;

use crate::forge::{forge, forge_header};
use crate::fuzz::{mostly, up_to};

/// The largest file that is made: damaged headers can ask for any size.
const LARGEST: u64 = 2 << 20;
const HEADER: usize = Header::BYTES;

/// A model and its damage.
#[derive(Arbitrary, Debug)]
pub(super) struct File {
    shape: Shape,
    /// Bytes of the header that are overwritten: in few inputs, as most are then refused.
    #[arbitrary(with = |u: &mut Unstructured<'_>| mostly(u, Vec::new()))]
    header: Vec<(u8, u8)>,
    weights: u32,
    /// All weights and scales are powers of two: sums then lie where rounding changes the number of bits.
    #[arbitrary(with = |u: &mut Unstructured<'_>| u.ratio(1, 4))]
    powers: bool,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 6))]
    edits: Vec<Edit>,
}

#[derive(Arbitrary, Debug)]
struct Shape {
    falcon: bool,
    #[arbitrary(with = |u: &mut Unstructured<'_>| size(u, 80))]
    d_model: u32,
    #[arbitrary(with = |u: &mut Unstructured<'_>| size(u, 80))]
    d_inner: u32,
    #[arbitrary(with = |u: &mut Unstructured<'_>| size(u, 40))]
    d_state: u32,
    #[arbitrary(with = |u: &mut Unstructured<'_>| u.int_in_range(1..=8))]
    d_conv: u32,
    #[arbitrary(with = |u: &mut Unstructured<'_>| size(u, 40))]
    dt_rank: u32,
    #[arbitrary(with = |u: &mut Unstructured<'_>| u.int_in_range(1..=3))]
    n_layer: u32,
    #[arbitrary(with = |u: &mut Unstructured<'_>| size(u, 40))]
    vocab: u32,
    #[arbitrary(with = |u: &mut Unstructured<'_>| mostly(u, Float::Usual))]
    norm_eps: Float,
    #[arbitrary(with = |u: &mut Unstructured<'_>| mostly(u, Some(Float::Usual)))]
    bcdt_eps: Option<Float>,
    /// Types of embedding, in_proj, x_proj, dt_proj, out_proj and head; of one kind where the fixed path is wanted.
    #[arbitrary(with = quants)]
    quants: [Quant; 6],
    /// Which of them have an exponent for each row.
    #[arbitrary(with = |u: &mut Unstructured<'_>| mostly(u, [false; 6]))]
    exponents: [bool; 6],
    #[arbitrary(with = |u: &mut Unstructured<'_>| mostly(u, 0))]
    logit_exponent: i8,
    tied: bool,
    bias: bool,
    conv_bias: bool,
    compact: bool,
    #[arbitrary(with = |u: &mut Unstructured<'_>| u.int_in_range(1..=4))]
    block: u32,
}

/// Mostly up to two panels, and multiples of what kernels take at a time.
fn size(u: &mut Unstructured<'_>, most: u32) -> arbitrary::Result<u32> {
    Ok(match u.int_in_range(0..=3)? {
        0 => *u.choose(&[1, 15, 16, 17, 31, 32, 33, 48, 64])?,
        1 => u.int_in_range(1..=most)?,
        _ => u.int_in_range(1..=20)?,
    }
    .min(most))
}

fn quants(u: &mut Unstructured<'_>) -> arbitrary::Result<[Quant; 6]> {
    // Half of the models are such as the fixed path takes.
    let of: &[Quant] = if u.arbitrary()? { &[Quant::Q8, Quant::Q4] } else { &Quant::ALL };
    let mut quants = [Quant::Q8; 6];
    for quant in &mut quants {
        *quant = *u.choose(of)?;
    }
    // x_proj and dt_proj are never coarser than q8.
    for i in [2, 3] {
        if quants[i].is_coarse() {
            quants[i] = Quant::Q8;
        }
    }
    Ok(quants)
}

/// Values at which arithmetic goes wrong first.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Float {
    Usual,
    Zero,
    NegativeZero,
    One,
    Huge,
    Largest,
    Infinite,
    NegativeInfinite,
    NotANumber,
    Subnormal,
    Least,
    Bits(u32),
}

impl Float {
    fn get(self) -> f32 {
        match self {
            Self::Usual => 1e-5,
            Self::Zero => 0.0,
            Self::NegativeZero => -0.0,
            Self::One => 1.0,
            Self::Huge => 1e30,
            Self::Largest => f32::MAX,
            Self::Infinite => f32::INFINITY,
            Self::NegativeInfinite => f32::NEG_INFINITY,
            Self::NotANumber => f32::NAN,
            Self::Subnormal => f32::from_bits(3),
            Self::Least => f32::MIN_POSITIVE,
            Self::Bits(bits) => f32::from_bits(bits),
        }
    }
}

/// A run of values of a part that are overwritten.
#[derive(Arbitrary, Debug)]
struct Edit {
    layer: u8,
    part: u8,
    place: u16,
    /// Values; in some inputs all from there on.
    #[arbitrary(with = |u: &mut Unstructured<'_>| Ok(if u.arbitrary()? { usize::from(u.arbitrary::<u8>()?) + 1 } else { usize::MAX }))]
    count: usize,
    value: Value,
}

#[derive(Arbitrary, Debug)]
enum Value {
    F32(Float),
    F16(Float),
    Byte(u8),
}

/// Numbers that look random.
struct Random {
    state: u64,
    powers: bool,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state >> 32
    }

    /// A byte of integer weights: one, or several of few bits.
    fn byte(&mut self) -> u8 {
        const POWERS: [u8; 8] = [0x40, 0xc0, 0x00, 0x88, 0x80, 0x01, 0x48, 0x84];
        let byte = self.next() as u8;
        if self.powers { POWERS[usize::from(byte % 8)] } else { byte }
    }

    /// From `-most` to `most`.
    fn float(&mut self, most: f32) -> f32 {
        (self.next() as i32 as f32) / 2f32.powi(31) * most
    }

    /// `value`, or the power of two below it.
    fn rounded(&self, value: f32) -> f32 {
        if self.powers { f32::from_bits(value.to_bits() & 0xff80_0000) } else { value }
    }
}

impl Shape {
    fn layout(&self) -> Option<Layout> {
        let [embedding, in_proj, x_proj, dt_proj, out_proj, head] = self.quants;
        let config = Config::new(Fields {
            arch: if self.falcon { Arch::FalconMamba } else { Arch::Mamba },
            d_model: self.d_model,
            d_inner: self.d_inner,
            d_state: self.d_state,
            d_conv: self.d_conv,
            dt_rank: self.dt_rank,
            n_layer: self.n_layer,
            vocab: self.vocab,
            norm_eps: self.norm_eps.get(),
            bcdt_eps: self.bcdt_eps.filter(|_| self.falcon).map(Float::get),
            tied: self.tied,
            bias: self.bias,
            conv_bias: self.conv_bias,
            compact: self.compact,
            quants: Quants {
                embedding,
                in_proj,
                x_proj,
                dt_proj,
                out_proj,
                head: if self.tied { embedding } else { head },
            },
            exponents: {
                let [embedding, in_proj, x_proj, dt_proj, out_proj, head] = self.exponents;
                let head = if self.tied { embedding } else { head };
                PerMatrix { embedding, in_proj, x_proj, dt_proj, out_proj, head }
            },
            logit_exponent: self.logit_exponent,
            block_bytes: self.block << 14,
            data: DataSizes::default(),
        });
        Layout::new(config.ok()?).ok()
    }
}

impl File {
    /// A file that is whole, or `None` if the header asks for what can't be or for too much.
    pub(super) fn make(&self) -> Option<(Vec<u8>, Header)> {
        let layout = self.shape.layout()?;
        let mut start = emit_header(&layout, 0, 0);
        for (at, byte) in &self.header {
            if let Some(to) = start[8..252].get_mut(usize::from(*at)) {
                *to = *byte;
            }
        }
        forge_header(&mut start);
        let layout = *Header::parse(&start).ok()?.layout();
        if layout.file_bytes() > LARGEST {
            return None;
        }
        let mut file = vec![0; layout.file_bytes() as usize];
        let mut random = Random { state: u64::from(self.weights), powers: self.powers };
        for (section, part) in parts(&layout) {
            fill(&layout, part, &mut file[place(&layout, section, part)], &mut random);
        }
        let layers = u32::from(u8::MAX).min(layout.config().n_layer);
        for edit in &self.edits {
            let all: Vec<_> = parts(&layout).filter(|(section, _)| section.index() < layers).collect();
            let wanted = usize::from(edit.layer) * Part::LAYER.len() + usize::from(edit.part);
            let (section, part) = all[wanted % all.len()];
            edit.apply(&mut file[place(&layout, section, part)]);
        }
        let entries: Vec<u8> = layout.sections().flat_map(|s| emit_table_entry(&layout, s)).collect();
        file[..HEADER].copy_from_slice(&emit_header(&layout, checksum(&entries), 0));
        file[HEADER..][..entries.len()].copy_from_slice(&entries);
        let header = Header::parse(&file).expect("it was parsed before");
        forge(&mut file, &header);
        let header = Header::parse(&file).expect("checksums are right");
        SliceSource::new(&file, &header, &mut []).expect("tables are right");
        Some((file, header))
    }
}

/// All parts of a file.
fn parts(layout: &Layout) -> impl Iterator<Item = (Section, Part)> + use<> {
    let head = (!layout.config().tied).then_some((Section::Head, Part::Head));
    let layers = (0..layout.config().n_layer)
        .flat_map(|i| Part::LAYER.into_iter().map(move |part| (Section::Layer(i), part)));
    let whole = [(Section::Embedding, Part::Embedding), (Section::FinalNorm, Part::FinalNorm)];
    layers.chain(whole).chain(head)
}

/// Where a part lies in the file.
fn place(layout: &Layout, section: Section, part: Part) -> std::ops::Range<usize> {
    let geometry = layout.part(part);
    let start = (layout.section(section).offset + geometry.offset) as usize;
    start..start + geometry.bytes() as usize
}

fn matrix(config: &Config, part: Part) -> Option<MatrixShape> {
    Some(match part {
        Part::InProj => config.in_proj(),
        Part::XProj => config.x_proj(),
        Part::DtProj => config.dt_proj(),
        Part::OutProj => config.out_proj(),
        Part::Embedding => config.embedding(),
        Part::Head => config.head(),
        Part::Norm | Part::FinalNorm | Part::Conv | Part::Scan => return None,
    })
}

/// Writes weights with which activations stay of order one.
fn fill(layout: &Layout, part: Part, bytes: &mut [u8], random: &mut Random) {
    let geometry = layout.part(part);
    let config = layout.config();
    for block in bytes.chunks_mut(geometry.block_stride as usize) {
        for panel in block.chunks_exact_mut(geometry.panel_bytes as usize) {
            match matrix(config, part) {
                Some(shape) => fill_panel(&shape, part == Part::DtProj, panel, random),
                None => {
                    for (row, values) in panel.as_chunks_mut::<64>().0.iter_mut().enumerate() {
                        let value = |random: &mut Random| match part {
                            Part::Scan if row < config.d_state as usize => -8.0 - random.float(7.9),
                            Part::Conv => random.float(0.5),
                            _ => 1.0 + random.float(0.5),
                        };
                        floats(values, value, random);
                    }
                }
            }
        }
    }
}

fn random_value(value: &dyn Fn(&mut Random) -> f32, random: &mut Random) -> f32 {
    let value = value(random);
    random.rounded(value)
}

fn floats(bytes: &mut [u8], value: impl Fn(&mut Random) -> f32, random: &mut Random) {
    for four in bytes.as_chunks_mut::<4>().0 {
        *four = random_value(&value, random).to_le_bytes();
    }
}

fn fill_panel(shape: &MatrixShape, rates: bool, panel: &mut [u8], random: &mut Random) {
    let step = match shape.quant() {
        Quant::F32 | Quant::F16 => 1.0,
        Quant::Q8 => 1.0 / 127.0,
        Quant::Q5 => 1.0 / 16.0,
        Quant::Q4 => 1.0 / 8.0,
        Quant::Q3 => 1.0 / 4.0,
    };
    let scale = 2.0 * step / (shape.used_cols() as f32).sqrt();
    let (scales, rest) = panel.split_at_mut(shape.scale_bytes() as usize);
    let (weights, rest) = rest.split_at_mut(shape.weight_bytes() as usize);
    let (bias, exponents) = rest.split_at_mut(if shape.has_bias() { 64 } else { 0 });
    let halves = |bytes: &mut [u8], value: &dyn Fn(&mut Random) -> f32, random: &mut Random| {
        for two in bytes.as_chunks_mut::<2>().0 {
            *two = f16::from_f32(random_value(value, random)).to_le_bytes();
        }
    };
    halves(scales, &|random| scale * (1.0 + random.float(0.5)), random);
    match shape.quant() {
        Quant::F32 => floats(weights, |random| random.float(scale), random),
        Quant::F16 => halves(weights, &|random| random.float(scale), random),
        _ => weights.fill_with(|| random.byte()),
    }
    // The rates of change of the states differ much.
    floats(bias, |random| if rates { random.float(3.0) - 2.0 } else { random.float(0.1) }, random);
    for four in exponents.as_chunks_mut::<4>().0 {
        *four = (random.next() as i32 % 3).to_le_bytes();
    }
}

impl Edit {
    fn apply(&self, bytes: &mut [u8]) {
        let mut write = |value: &[u8]| {
            let places = bytes.chunks_exact_mut(value.len());
            let first = usize::from(self.place) % places.len().max(1);
            for to in places.skip(first).take(self.count) {
                to.copy_from_slice(value);
            }
        };
        match self.value {
            Value::F32(float) => write(&float.get().to_le_bytes()),
            Value::F16(Float::Bits(bits)) => write(&(bits as u16).to_le_bytes()),
            Value::F16(Float::Largest) => write(&f16::MAX.to_le_bytes()),
            Value::F16(Float::Subnormal) => write(&3u16.to_le_bytes()),
            Value::F16(float) => write(&f16::from_f32(float.get()).to_le_bytes()),
            Value::Byte(byte) => write(&[byte]),
        }
    }
}
