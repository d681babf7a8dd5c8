//! Writes a packed file, block by block, with all cores.

use std::borrow::Cow;
use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;

use elapid_core::format::{
    Block, Config, Fields, Layout, Part, Section, checksum, emit_header, emit_table_entry,
};
use elapid_core::tokenizer::table::never_draw;
use elapid_files::Output;

use crate::PackError;
use crate::block::{Job, Made, Scratch, expect, make_block};
use crate::calibrate::{Objectives, Walk};
use crate::checkpoint::TensorKind;
use crate::findings::{Findings, logit_exponent};
use crate::journal::{Done, Finished, Journal, journal_of};
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

/// Where a file lies until it is complete, if packing is to go on there after an interruption.
#[derive(Debug, Clone, Copy)]
pub struct Partial<'a> {
    /// The unfinished file. Beside it lies a journal.
    pub path: &'a Path,
    /// What the weights come from: another text wherever they may be others.
    pub source: &'a str,
}

/// The file that is being written.
struct Target<'a> {
    path: &'a Path,
    output: Output,
    journal: Option<Journal>,
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
        Ok(Self { path, output, journal: None })
    }

    fn resume(path: &'a Path, partial: Partial<'a>, data: [&[u8]; 4]) -> Result<Self, PackError> {
        let output = Output::resume(path, partial.path).map_err(PackError::io(partial.path))?;
        let journal = Some(Journal::open(partial.path, partial.source, data)?);
        Ok(Self { path, output, journal })
    }

    /// What an earlier attempt has left: how the file is laid out, and its finished blocks.
    fn begun(&self, config: Config) -> Result<Option<(Layout, Done)>, PackError> {
        let begun = self.journal.as_ref().map(|journal| journal.read(config)).transpose()?.flatten();
        Ok(begun.filter(|(layout, _)| {
            let length = self.output.file().metadata().map(|about| about.len());
            length.is_ok_and(|length| length == layout.file_bytes())
        }))
    }

    /// Makes it zeros, of as many bytes as it will have.
    fn clear(&self, layout: &Layout) -> Result<(), PackError> {
        if self.output.is_special() {
            return Ok(());
        }
        if let Some(journal) = &self.journal {
            journal.restart(layout)?;
        }
        [0, layout.file_bytes()]
            .into_iter()
            .try_for_each(|bytes| self.output.file().set_len(bytes))
            .map_err(PackError::io(self.path))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), PackError> {
        self.output.file().write_all_at(bytes, offset).map_err(PackError::io(self.path))
    }

    /// Whether a block has these bytes' checksum. A file that can't be read has not.
    fn holds(&self, block: &Block, sum: u32, bytes: &mut Vec<u8>) -> bool {
        bytes.clear();
        bytes.resize(block.length as usize, 0);
        self.output.file().read_exact_at(bytes, block.offset).is_ok() && checksum(bytes) == sum
    }

    /// Makes the file durable and gives it its name.
    fn finish(self) -> Result<(), PackError> {
        self.output.finish().map_err(PackError::io(self.path))?;
        // The file is there: without it, a journal means nothing.
        let _ = self.journal.map(Journal::remove);
        Ok(())
    }
}

/// Packs `weights` into the file `target`, which appears only when it is complete.
///
/// `pieces` are tokens of text to calibrate on, each piece of the same length, a multiple of 32; none to pack each weight for
/// itself. Without them packing can go on where an earlier attempt ended, if `partial` says where.
///
/// Memory: a block and a panel's rows for each thread; see [`crate::calibrate`] for what calibration takes.
///
/// # Errors
/// What could not be read, stored or written. No file is left behind, but `partial` if what failed was reading or writing, or packing
/// was interrupted.
pub fn write_file(
    config: Config,
    weights: &dyn Weights,
    data: &DataSections,
    pieces: &[Vec<u32>],
    target: &Path,
    partial: Option<Partial<'_>>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Layout, PackError> {
    let sections: [&[u8]; 4] = [&data.tokenizer, &data.chat_template, &data.role_table, &data.generation];
    let sizes = sections.map(|bytes| bytes.len() as u64);
    let d = config.data;
    let stated = [d.tokenizer, d.chat_template, d.role_table, d.generation].map(u64::from);
    if sizes != stated {
        return Err(PackError::DataSizes { sizes, stated });
    }
    let Some(partial) = partial.filter(|_| pieces.is_empty()) else {
        let out = Target::create(target, !pieces.is_empty())?;
        return write_to(out, config, weights, data, pieces, threads, progress);
    };
    let out = Target::resume(target, partial, sections)?;
    let written = write_to(out, config, weights, data, pieces, threads, progress);
    if let Err(error) = &written
        && !matches!(error, PackError::Io { .. } | PackError::Cancelled)
    {
        // It would fail again.
        remove_partial(partial.path);
    }
    written
}

/// Removes an unfinished file and its journal, if they are there. Returns their bytes.
pub fn remove_partial(part: &Path) -> u64 {
    [part.to_path_buf(), journal_of(part)]
        .iter()
        .filter_map(|path| {
            let bytes = fs::metadata(path).ok()?.len();
            fs::remove_file(path).ok().map(|()| bytes)
        })
        .sum()
}

fn write_to(
    out: Target<'_>,
    config: Config,
    weights: &dyn Weights,
    data: &DataSections,
    pieces: &[Vec<u32>],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Layout, PackError> {
    // As a rule no row needs an exponent, and whether one does shows when it is packed: then all is packed again.
    let (mut layout, mut done) = match out.begun(config)? {
        Some((layout, done)) => {
            progress.restart(layout.file_bytes());
            (layout, done)
        }
        None => {
            let layout = Layout::new(config)?;
            out.clear(&layout)?;
            (layout, Done::new())
        }
    };
    let (checksums, most) = loop {
        let findings = Findings::default();
        let checksums =
            write_weights(&layout, weights, pieces, &out, &done, &findings, threads.max(1), progress)?;
        let Some(exponents) = findings.exponents(layout.config()) else {
            break (checksums, findings.largest_logit());
        };
        layout = Layout::new(Config::new(Fields { exponents, ..**layout.config() })?)?;
        // What lies between blocks is zeros, however often all is packed.
        out.clear(&layout)?;
        done.clear();
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
    done: &Done,
    findings: &Findings,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<AtomicU32>, PackError> {
    let config = layout.config();
    let checksums: Vec<AtomicU32> = (0..layout.block_count()).map(|_| AtomicU32::new(0)).collect();
    let mut norm = vec![0.0; config.d_model as usize];
    weights.expect(TensorKind::FinalNorm, 0..norm.len());
    weights.read(TensorKind::FinalNorm, 0..norm.len(), 1, &mut norm)?;
    let common = Common { layout, weights, norm: &norm, findings, out, done, checksums: &checksums };
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
    done: &'a Done,
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
    let soon = |job: &Job| {
        let place = layout.block(job.section, job.block);
        if place.is_some_and(|place| !common.done.contains_key(&place.checksum)) {
            expect(layout, weights, job);
        }
    };
    jobs.iter().take(2 * threads).for_each(soon);
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let work = || {
        let mut scratch = Scratch::default();
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { return };
            if let Some(job) = jobs.get(index + 2 * threads) {
                soon(job);
            }
            let written = if progress.cancelled() {
                Err(PackError::Cancelled)
            } else {
                let objective = objectives.iter().find(|(part, _)| *part == job.part).map(|(_, o)| o);
                write_block(common, job, objective, &mut scratch)
            };
            match written {
                Ok(Written::Now(bytes)) => progress.advance(bytes),
                Ok(Written::Before(bytes)) => progress.skip(bytes),
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

/// The bytes of a block, written now or by an earlier attempt.
enum Written {
    Now(u64),
    Before(u64),
}

/// Writes a block, or only looks at it where the file is to be packed again anyway.
fn write_block(
    common: &Common<'_>,
    job: &Job,
    objective: Option<&Objective>,
    scratch: &mut Scratch,
) -> Result<Written, PackError> {
    let Common { layout, weights, norm, findings, out, done, checksums } = *common;
    let Some(place) = layout.block(job.section, job.block) else { return Ok(Written::Now(0)) };
    let sum = &checksums[place.checksum as usize];
    if let Some(finished) = done.get(&place.checksum)
        && out.holds(&place, finished.checksum, &mut scratch.block)
    {
        findings.note_largest(finished.largest_logit);
        sum.store(finished.checksum, Ordering::Relaxed);
        return Ok(Written::Before(place.length));
    }
    let head = Some(norm).filter(|_| (job.section, job.part) == layout.head());
    let largest = Cell::new(0);
    let look = |rows: &[f32]| {
        if let Some(norm) = head {
            largest.set(largest.get().max(findings.note_logits(rows, norm)));
        }
        !findings.any()
    };
    if make_block(layout, weights, job, objective, &look, scratch)? == Made::NeedsExponents {
        findings.note_exponents(job.part);
    }
    if findings.any() {
        return Ok(Written::Now(0));
    }
    out.write(&scratch.block, place.offset)?;
    let finished = Finished { checksum: checksum(&scratch.block), largest_logit: largest.get() };
    sum.store(finished.checksum, Ordering::Relaxed);
    // Rows of a head that are never drawn are known only when they are read: what has any is read again.
    if let Some(journal) = &out.journal
        && (head.is_none() || weights.never_drawn().is_empty())
    {
        journal.add(place.checksum, finished)?;
    }
    Ok(Written::Now(place.length))
}
