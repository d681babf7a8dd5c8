//! Writes a packed file, block by block, with all cores.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;

use elapid_core::format::{Config, Fields, Layout, Part, Section, checksum, emit_header, emit_table_entry};
use elapid_core::tokenizer::table::never_draw;
use elapid_files::Output;

use crate::PackError;
use crate::block::{Job, Made, Scratch, expect, make_block};
use crate::calibrate::{Objectives, Walk};
use crate::checkpoint::TensorKind;
use crate::findings::{Findings, logit_exponent};
pub use crate::progress::Progress;
use crate::quantize::Objective;
use crate::weights::Weights;

/// The bytes of the sections that are not weights.
#[derive(Debug, Clone, Default)]
pub struct DataSections {
    /// The compiled tokenizer.
    pub tokenizer: Vec<u8>,
    /// The chat template's Jinja text.
    pub chat_template: Vec<u8>,
    /// The role table.
    pub role_table: Vec<u8>,
    /// Generation defaults.
    pub generation: Vec<u8>,
}

/// The file that is being written.
struct Target<'a> {
    path: &'a Path,
    output: Output,
}

impl<'a> Target<'a> {
    fn create(path: &'a Path, calibrated: bool) -> Result<Self, PackError> {
        let refused = |reason| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
            Err(PackError::Io { path: path.to_owned(), source })
        };
        // Opening it would wait for a reader, in vain: blocks are written in the order in which they are ready.
        if fs::metadata(path).is_ok_and(|known| known.file_type().is_fifo()) {
            return refused("a FIFO; blocks are not written in order: give a file");
        }
        let output = Output::create(path).map_err(PackError::io(path))?;
        if output.is_special() && calibrated {
            return refused("a device; calibration reads back what it wrote: give a file");
        }
        Ok(Self { path, output })
    }

    /// Makes it `bytes` zeros.
    fn clear(&self, bytes: u64) -> Result<(), PackError> {
        if self.output.is_special() {
            return Ok(());
        }
        [0, bytes]
            .into_iter()
            .try_for_each(|bytes| self.output.file().set_len(bytes))
            .map_err(PackError::io(self.path))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), PackError> {
        self.output.file().write_all_at(bytes, offset).map_err(PackError::io(self.path))
    }

    /// Makes the file durable and gives it its name.
    fn finish(self) -> Result<(), PackError> {
        self.output.finish().map_err(PackError::io(self.path))
    }
}

/// Packs `weights` into the file `target`, which appears only when it is complete.
///
/// `pieces` are tokens of text to calibrate on, each piece of the same length, a multiple of 32; none to pack each weight for
/// itself.
///
/// Memory: a block and a panel's rows for each thread; see [`crate::calibrate`] for what calibration takes.
///
/// # Errors
/// What could not be read, stored or written. No file is left behind.
pub fn write_file(
    config: Config,
    weights: &dyn Weights,
    data: &DataSections,
    pieces: &[Vec<u32>],
    target: &Path,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Layout, PackError> {
    let sizes = [&data.tokenizer, &data.chat_template, &data.role_table, &data.generation]
        .map(|bytes| bytes.len() as u64);
    let d = config.data;
    let stated = [d.tokenizer, d.chat_template, d.role_table, d.generation].map(u64::from);
    if sizes != stated {
        return Err(PackError::DataSizes { sizes, stated });
    }
    let out = Target::create(target, !pieces.is_empty())?;
    // As a rule no row needs an exponent, and whether one does shows when it is packed: then all is packed again.
    let mut layout = Layout::new(config)?;
    let (checksums, most) = loop {
        let findings = Findings::default();
        let checksums = write_weights(&layout, weights, pieces, &out, &findings, threads.max(1), progress)?;
        let Some(exponents) = findings.exponents(&config) else {
            break (checksums, findings.largest_logit());
        };
        layout = Layout::new(Config::new(Fields { exponents, ..*config })?)?;
        progress.restart(layout.file_bytes());
    };
    write_data(&layout, &*marked(data, &weights.never_drawn())?, &out, &checksums)?;
    let logit_exponent = logit_exponent(most);
    let layout = Layout::new(Config::new(Fields { logit_exponent, ..**layout.config() })?)?;

    let table: Vec<u8> = checksums.iter().flat_map(|sum| sum.load(Ordering::Relaxed).to_le_bytes()).collect();
    out.write(&table, layout.section(Section::Checksums).offset)?;
    let entries: Vec<u8> = layout.sections().flat_map(|section| emit_table_entry(&layout, section)).collect();
    let mut header = emit_header(&layout, checksum(&entries), checksum(&table)).to_vec();
    header.extend(entries);
    out.write(&header, 0)?;
    out.finish()?;
    Ok(layout)
}

/// Writes the blocks of all weights and returns their checksums, those of other blocks 0. If `findings` tell then that a row
/// needs an exponent which it has not, the file means nothing.
fn write_weights(
    layout: &Layout,
    weights: &dyn Weights,
    pieces: &[Vec<u32>],
    out: &Target<'_>,
    findings: &Findings,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<AtomicU32>, PackError> {
    // What lies between blocks is zeros, however often all is packed.
    out.clear(layout.file_bytes())?;
    let config = layout.config();
    let checksums: Vec<AtomicU32> = (0..layout.block_count()).map(|_| AtomicU32::new(0)).collect();
    let mut norm = vec![0.0; config.d_model as usize];
    weights.read(TensorKind::FinalNorm, 0..norm.len(), 1, &mut norm)?;
    let common = Common { layout, weights, norm: &norm, findings, out, checksums: &checksums };
    let write = |sections: &mut dyn Iterator<Item = Section>, objectives: &Objectives| {
        write_blocks(&common, sections, objectives, threads, progress)
    };
    if pieces.is_empty() {
        write(&mut layout.sections(), &Vec::new())?;
        return Ok(checksums);
    }
    let mut walk = Walk::new(config, weights, pieces, threads, progress)?;
    for layer in 0..config.n_layer {
        let objectives = if findings.any() { Vec::new() } else { walk.objectives(layer)? };
        write(&mut std::iter::once(Section::Layer(layer)), &objectives)?;
        if !findings.any() {
            walk.pass(layout, out.output.file(), layer)?;
        }
    }
    let head = if findings.any() { Vec::new() } else { walk.head()? };
    write(&mut layout.sections().filter(|s| !matches!(s, Section::Layer(_))), &head)?;
    Ok(checksums)
}

/// The sections with these ids marked in the tokenizer, if there is one.
fn marked<'d>(data: &'d DataSections, never: &[u32]) -> Result<Cow<'d, DataSections>, PackError> {
    let mut data = Cow::Borrowed(data);
    if !data.tokenizer.is_empty() {
        for &id in never {
            never_draw(&mut data.to_mut().tokenizer, id).map_err(PackError::Table)?;
        }
    }
    Ok(data)
}

fn write_data(
    layout: &Layout,
    data: &DataSections,
    out: &Target<'_>,
    checksums: &[AtomicU32],
) -> Result<(), PackError> {
    let sections = [
        (Section::Tokenizer, &data.tokenizer),
        (Section::ChatTemplate, &data.chat_template),
        (Section::RoleTable, &data.role_table),
        (Section::Generation, &data.generation),
    ];
    for (section, bytes) in sections {
        let blocks = bytes.chunks(layout.config().block_bytes as usize);
        for (block, bytes) in (0..).map_while(|block| layout.block(section, block)).zip(blocks) {
            out.write(bytes, block.offset)?;
            checksums[block.checksum as usize].store(checksum(bytes), Ordering::Relaxed);
        }
    }
    Ok(())
}

/// What all threads share.
struct Common<'a> {
    layout: &'a Layout,
    weights: &'a dyn Weights,
    /// The weights of the final norm.
    norm: &'a [f32],
    findings: &'a Findings,
    out: &'a Target<'a>,
    checksums: &'a [AtomicU32],
}

fn write_blocks(
    common: &Common<'_>,
    sections: &mut dyn Iterator<Item = Section>,
    objectives: &Objectives,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(), PackError> {
    let (layout, weights) = (common.layout, common.weights);
    let jobs = jobs(layout, sections);
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let work = || {
        let mut scratch = Scratch::default();
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { return };
            if let Some(job) = jobs.get(index + 2 * threads) {
                expect(layout, weights, job);
            }
            let done = if progress.cancelled() {
                Err(PackError::Cancelled)
            } else {
                let objective = objectives.iter().find(|(part, _)| *part == job.part).map(|(_, o)| o);
                write_block(common, job, objective, &mut scratch)
            };
            match done {
                Ok(bytes) => progress.advance(bytes),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(jobs.len()) {
            // Those that there are do the work of one that can't be started.
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    let failure = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

/// The blocks of weights in some sections, in file order.
fn jobs(layout: &Layout, sections: &mut dyn Iterator<Item = Section>) -> Vec<Job> {
    let mut jobs = Vec::new();
    for section in sections {
        let parts: &[Part] = match section {
            Section::Layer(_) => &Part::LAYER,
            Section::Embedding => &[Part::Embedding],
            Section::FinalNorm => &[Part::FinalNorm],
            Section::Head if !layout.config().tied => &[Part::Head],
            _ => &[],
        };
        for &part in parts {
            jobs.extend(layout.part(part).block_range().map(|block| Job { section, part, block }));
        }
    }
    jobs
}

/// Writes a block, or only looks at it where the file is to be packed again anyway. Returns how many bytes were written.
fn write_block(
    common: &Common<'_>,
    job: &Job,
    objective: Option<&Objective>,
    scratch: &mut Scratch,
) -> Result<u64, PackError> {
    let Common { layout, weights, norm, findings, out, checksums } = *common;
    let Some(place) = layout.block(job.section, job.block) else { return Ok(0) };
    let head = Some(norm).filter(|_| (job.section, job.part) == layout.head());
    let look = |rows: &[f32]| {
        if let Some(norm) = head {
            findings.note_logits(rows, norm);
        }
        !findings.any()
    };
    if make_block(layout, weights, job, objective, &look, scratch)? == Made::NeedsExponents {
        findings.note_exponents(job.part);
    }
    if findings.any() {
        return Ok(0);
    }
    out.write(&scratch.block, place.offset)?;
    checksums[place.checksum as usize].store(checksum(&scratch.block), Ordering::Relaxed);
    Ok(place.length)
}
