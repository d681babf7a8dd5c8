//! Makes the blocks of a file from rows of weights.

use std::ops::Range;

use elapid_core::format::{Config, Layout, MatrixShape, Part, Section};
use elapid_core::kernels::{GROUP, LANES};

use crate::PackError;
use crate::checkpoint::{LayerTensor, TensorKind};
use crate::quantize::{Objective, Unfit, exponents, write_panel};
use crate::weights::{MatrixSource, StoredGroup, Weights};

/// One block to be written.
pub(crate) struct Job {
    pub(crate) section: Section,
    pub(crate) part: Part,
    pub(crate) block: u32,
}

/// Buffers of a thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The block that was made.
    pub(crate) block: Vec<u8>,
    rows: Vec<f32>,
    groups: Vec<StoredGroup>,
    bias: [f32; LANES],
}

/// What becomes of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// It is in the scratch.
    Block,
    /// It has a row that needs an exponent, and its matrix has none.
    NeedsExponents,
}

/// Makes a block, which the layout must have, in `scratch.block`. `look` is shown the rows of a matrix that are read, and says whether
/// they are to be stored, rather than only be looked at.
pub(crate) fn make_block(
    layout: &Layout,
    weights: &dyn Weights,
    job: &Job,
    objective: Option<&Objective>,
    look: &dyn Fn(&[f32]) -> bool,
    scratch: &mut Scratch,
) -> Result<Made, PackError> {
    let Some(place) = layout.block(job.section, job.block) else { return Ok(Made::Block) };
    let geometry = layout.part(job.part);
    let first = geometry.first_panel(job.block) as usize;
    scratch.block.clear();
    scratch.block.resize(place.length as usize, 0);
    let Scratch { block, rows, groups, bias } = scratch;
    let panels = block.chunks_exact_mut(geometry.panel_bytes as usize);
    for (i, panel) in panels.take(geometry.panels_in(job.block) as usize).enumerate() {
        let made =
            make_panel(layout.config(), weights, job, objective, look, first + i, rows, groups, bias, panel)?;
        if made == Made::NeedsExponents {
            return Ok(made);
        }
    }
    Ok(Made::Block)
}

/// Says which rows a block will need.
pub(crate) fn expect(layout: &Layout, weights: &dyn Weights, job: &Job) {
    let geometry = layout.part(job.part);
    let first = geometry.first_panel(job.block) as usize;
    let last = first + (geometry.panels_in(job.block) as usize).saturating_sub(1);
    let (start, end, tensors) = match MatrixSource::of(layout.config(), job.section, job.part) {
        Some(source) => (source.rows(first).start, source.rows(last).end, [Some(source.weight), source.bias]),
        None => {
            let channels = Channels::of(layout.config(), job);
            (channels.rows(first).start, channels.rows(last).end, [Some(channels.main), channels.last])
        }
    };
    if start < end {
        tensors.into_iter().flatten().for_each(|kind| weights.expect(kind, start..end));
    }
}

/// The storage of the matrix in a part.
fn shape(config: &Config, part: Part) -> MatrixShape {
    match part {
        Part::InProj => config.in_proj(),
        Part::XProj => config.x_proj(),
        Part::DtProj => config.dt_proj(),
        Part::OutProj => config.out_proj(),
        Part::Head => config.head(),
        _ => config.embedding(),
    }
}

fn make_panel(
    config: &Config,
    weights: &dyn Weights,
    job: &Job,
    objective: Option<&Objective>,
    look: &dyn Fn(&[f32]) -> bool,
    index: usize,
    rows: &mut Vec<f32>,
    groups: &mut Vec<StoredGroup>,
    bias: &mut [f32; LANES],
    panel: &mut [u8],
) -> Result<Made, PackError> {
    let Some(source) = MatrixSource::of(config, job.section, job.part) else {
        make_channels(config, weights, job, index, rows, panel)?;
        return Ok(Made::Block);
    };
    let range = source.rows(index);
    rows.clear();
    rows.resize(range.len() * source.columns, 0.0);
    groups.clear();
    let shape = shape(config, job.part);
    if !range.is_empty() && weights.kept_as(source.weight).contains(&shape.quant()) {
        weights.read_groups(source.weight, range.clone(), groups)?;
        rows.chunks_exact_mut(GROUP).zip(groups.iter()).for_each(|(row, group)| group.dequantize(row));
    } else if !range.is_empty() {
        weights.read(source.weight, range.clone(), source.columns, rows)?;
    }
    bias.fill(0.0);
    if let Some(kind) = source.bias.filter(|kind| weights.has(*kind) && !range.is_empty()) {
        weights.read(kind, range.clone(), 1, &mut bias[..range.len()])?;
    }
    let made = if look(rows) {
        write_panel(&shape, rows, source.columns, bias, objective, groups, panel)
    } else {
        exponents(&shape, rows, source.columns, bias, groups).map(|_| ())
    };
    match made {
        Ok(()) => Ok(Made::Block),
        Err(Unfit::NeedsExponents) => Ok(Made::NeedsExponents),
        Err(Unfit::TooLarge { row, col, value }) => {
            let (tensor, row) = (weights.name(source.weight), range.start + row);
            Err(PackError::TooLarge { tensor, row, col, value, quant: shape.quant().name() })
        }
    }
}

/// The tensors of a part that has values for channels: norm weights, the convolution with its bias, or A with D.
struct Channels {
    main: TensorKind,
    columns: usize,
    last: Option<TensorKind>,
    /// Channels.
    width: usize,
}

impl Channels {
    fn of(config: &Config, job: &Job) -> Self {
        let layer = |tensor| TensorKind::Layer(job.section.index() as usize, tensor);
        let (main, columns, last, width) = match job.part {
            Part::Conv => {
                (layer(LayerTensor::Conv), config.d_conv, Some(layer(LayerTensor::ConvBias)), config.d_inner)
            }
            Part::Scan => {
                (layer(LayerTensor::ALog), config.d_state, Some(layer(LayerTensor::D)), config.d_inner)
            }
            Part::Norm => (layer(LayerTensor::Norm), 1, None, config.d_model),
            _ => (TensorKind::FinalNorm, 1, None, config.d_model),
        };
        Self { main, columns: columns as usize, last, width: width as usize }
    }

    /// The channels in a panel.
    fn rows(&self, panel: usize) -> Range<usize> {
        (panel * LANES).min(self.width)..((panel + 1) * LANES).min(self.width)
    }
}

/// A panel of values for sixteen channels.
fn make_channels(
    config: &Config,
    weights: &dyn Weights,
    job: &Job,
    index: usize,
    rows: &mut Vec<f32>,
    panel: &mut [u8],
) -> Result<(), PackError> {
    let channels = Channels::of(config, job);
    let range = channels.rows(index);
    let Channels { main, columns, last, .. } = channels;
    let count = range.len();
    if count == 0 {
        return Ok(());
    }
    let mut put = |at: usize, lane: usize, x: f32| {
        panel[(at * LANES + lane) * 4..][..4].copy_from_slice(&x.to_le_bytes());
    };
    rows.clear();
    rows.resize(count * columns, 0.0);
    weights.read(main, range.clone(), columns, rows)?;
    for (lane, row) in rows.chunks_exact(columns).enumerate() {
        for (at, &x) in row.iter().enumerate() {
            let stored = if job.part == Part::Scan && !weights.holds_a() { a_from_log(x) } else { x };
            put(at, lane, stored);
        }
    }
    if let Some(last) = last.filter(|last| weights.has(*last)) {
        rows.truncate(count);
        rows.resize(count, 0.0);
        weights.read(last, range, 1, rows)?;
        for (lane, &x) in rows.iter().enumerate() {
            put(columns, lane, x);
        }
    }
    Ok(())
}

/// `A = -exp(A_log)`, rounded once from f64; libm's, so that a file's bytes depend on no machine. What f32 can't hold becomes the
/// lowest number: any step decays such a state at once, and a step of 0 still keeps it.
fn a_from_log(a_log: f32) -> f32 {
    (-libm::exp(f64::from(a_log)) as f32).max(f32::MIN)
}
