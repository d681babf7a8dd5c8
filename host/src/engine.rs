//! A model, opened: its checked header, its bytes, and what computes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use elapid_core::fixed;
use elapid_core::format::{Config, FormatError, Header, Layout, Section};
use elapid_core::kernels::{self, Kernels, Team, detect, for_each_available};
use elapid_core::model::{Model, StepError};
use elapid_core::source::{LayerSource, SliceSource, slice};

use crate::path::smaller_state;
use crate::pool::{Pool, default_threads};
use crate::profile::{self, Board, Drive};
use crate::residency::{Bytes, DirectFile, Map, Source, Streamed, Streamer, Wish};
use crate::{Error, Incidents, Memory, MemoryOptions, Plan, Ram, Storage, Verify};

/// The bundled model's name in messages.
const BUNDLED: &str = "the bundled model";

/// How a model is computed. Neither choice changes a bit of the results.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Threads, the caller's included; all cores if left out.
    pub threads: Option<usize>,
    /// The name of the kernels; the best for this CPU if left out.
    pub kernels: Option<String>,
    /// The memory that the process may take. A model that does not fit is streamed from its file, see [`Engine::plan`]; without
    /// a cap it is mapped.
    pub ram: Option<Ram>,
    /// When checksums are checked.
    pub verify: Verify,
    /// Read with threads also where io_uring is there: for comparing.
    pub plain_reads: bool,
}

/// A model, opened: it can be shared by any number of sequences.
///
/// ```no_run
/// # fn main() -> Result<(), elapid::Error> {
/// use elapid::{Engine, EngineOptions, MemoryOptions};
/// let engine = Engine::open("model.elp".as_ref(), &EngineOptions::default())?;
/// let mut memory = engine.memory(&MemoryOptions::default())?;
/// let mut sequence = memory.sequence(&engine)?;
/// sequence.feed(&[1, 2, 3])?;
/// println!("{:?}", sequence.logits()?);
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    name: String,
    bytes: Bytes,
    header: Header,
    kernels: &'static dyn Kernels,
    fixed: &'static dyn kernels::fixed::Kernels,
    pool: Pool,
    /// The cap in bytes.
    cap: Option<u64>,
    options: EngineOptions,
    /// Tells engines apart: what was checked of one file says nothing of another.
    number: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, header, kernels, pool, .. } = self;
        let mut out = f.debug_struct("Engine");
        out.field("name", name).field("header", header).field("kernels", &kernels.name());
        out.field("pool", pool).finish_non_exhaustive()
    }
}

/// Bytes of a cap.
fn cap(ram: Ram) -> Result<u64, Error> {
    match ram {
        Ram::Bytes(bytes) => Ok(bytes),
        Ram::Auto => profile::cap().ok_or_else(|| {
            Error::Usage(
                "this system does not say how much memory is free: give a size, such as --ram 512M".into(),
            )
        }),
    }
}

/// Kernels by name, without regard to case, or the best.
fn kernels(name: Option<&str>) -> Result<&'static dyn Kernels, Error> {
    let Some(name) = name else { return Ok(detect()) };
    let (mut found, mut known) = (None, Vec::new());
    for_each_available(&mut |kernels| {
        known.push(kernels.name());
        if kernels.name().eq_ignore_ascii_case(name) {
            found = Some(kernels);
        }
    });
    found.ok_or_else(|| Error::Kernels { name: name.into(), known: known.join(", ") })
}

/// The fixed path's kernels of this name, or the best: it has no variants of its own for some instruction sets.
fn fixed_kernels(name: Option<&str>) -> &'static dyn kernels::fixed::Kernels {
    let mut found = kernels::fixed::detect();
    kernels::fixed::for_each_available(&mut |kernels| {
        if name.is_some_and(|name| kernels.name().eq_ignore_ascii_case(name)) {
            found = kernels;
        }
    });
    found
}

impl Engine {
    /// Opens a packed file. Without a cap it is mapped: the file must then stay as it is until the engine is dropped; replace
    /// it by renaming another over it, never by writing into it.
    ///
    /// # Errors
    /// If the file can't be read, its header is not that of a model, or the options ask for what there is not.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self, Error> {
        let name = path.display().to_string();
        if options.ram.is_some() {
            return Self::stream(name, Arc::new(DirectFile::open(path)?), Some(path.into()), options);
        }
        match Map::open(path)? {
            Some(map) => Self::whole(name, Bytes::Map(map), options),
            None => Err(Error::Format {
                model: name,
                cause: FormatError::Short { have: 0, need: Header::BYTES as u64 },
            }),
        }
    }

    /// Opens a packed file that is read from any storage, under [`EngineOptions::ram`] (or all that is free).
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_storage(
        name: &str,
        storage: Arc<dyn Storage>,
        options: &EngineOptions,
    ) -> Result<Self, Error> {
        Self::stream(name.into(), storage, None, options)
    }

    fn stream(
        name: String,
        storage: Arc<dyn Storage>,
        path: Option<PathBuf>,
        options: &EngineOptions,
    ) -> Result<Self, Error> {
        let cap = cap(options.ram.unwrap_or(Ram::Auto))?;
        let mappable = path.is_some();
        let least = |layout: &Layout| {
            let threads = options.threads.unwrap_or_else(default_threads) as u64;
            let wish = Wish { cap, threads, reads: 1, options: MemoryOptions::default() };
            Plan::new(layout, &wish, Some(mappable)).err().unwrap_or(cap)
        };
        let (streamed, header) = Streamed::open(&name, storage, path, cap, least)?;
        Self::new(name, Bytes::Streamed(Box::new(streamed)), header, Some(cap), options)
    }

    /// Opens the model that is part of the program.
    ///
    /// # Errors
    /// [`Error::NoBundled`] if it was built without feature `bundled`, or as [`Engine::open`].
    pub fn bundled(options: &EngineOptions) -> Result<Self, Error> {
        #[cfg(feature = "bundled")]
        let engine = Self::whole(BUNDLED.into(), Bytes::Program(crate::residency::bundled()), options);
        #[cfg(not(feature = "bundled"))]
        let engine = {
            let _ = (BUNDLED, options);
            Err(Error::NoBundled)
        };
        engine
    }

    fn whole(name: String, bytes: Bytes, options: &EngineOptions) -> Result<Self, Error> {
        let whole = bytes.whole().unwrap_or_default();
        let check = || {
            let header = Header::parse(whole)?;
            // Checks the length and both tables.
            SliceSource::new(whole, &header, &mut [])?;
            Ok(header)
        };
        let header = check().map_err(|cause| Error::Format { model: name.clone(), cause })?;
        let cap = options.ram.map(cap).transpose()?;
        Self::new(name, bytes, header, cap, options)
    }

    fn new(
        name: String,
        bytes: Bytes,
        header: Header,
        cap: Option<u64>,
        options: &EngineOptions,
    ) -> Result<Self, Error> {
        let kernels = kernels(options.kernels.as_deref())?;
        let fixed = fixed_kernels(options.kernels.as_deref());
        let pool = Pool::new(options.threads.unwrap_or_else(default_threads))?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let options = options.clone();
        Ok(Self { name, bytes, header, kernels, fixed, pool, cap, options, number })
    }

    /// The file's path, or what stands for it in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.layout().config()
    }
    /// Where everything lies in the file.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        self.header.layout()
    }
    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// The whole file, or [`None`] where it is streamed. Only its header and tables are checked.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.whole()
    }
    /// What computes the model.
    #[must_use]
    pub fn kernels(&self) -> &'static dyn Kernels {
        self.kernels
    }
    /// What computes it in the fixed path.
    #[must_use]
    pub fn fixed_kernels(&self) -> &'static dyn kernels::fixed::Kernels {
        self.fixed
    }
    /// The threads that compute it.
    #[must_use]
    pub fn team(&self) -> &dyn Team {
        &self.pool
    }
    /// The model, for steps by hand.
    #[must_use]
    pub fn model(&self) -> Model<'_> {
        Model::float(self.layout(), self.kernels, &self.pool)
    }

    /// The model in the fixed path, for steps by hand.
    ///
    /// # Errors
    /// [`StepError::Type`] if a matrix is neither q8 nor q4.
    pub fn fixed_model(&self) -> Result<fixed::Model<'_>, StepError> {
        fixed::Model::fixed(self.layout(), self.fixed, &self.pool)
    }

    /// Memory for one sequence. Under a cap, all that the plan says is allocated now, and reading begins.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not enough, [`Error::Cap`] as [`Engine::plan`].
    pub fn memory(&self, options: &MemoryOptions) -> Result<Memory, Error> {
        let plan = self.plan(options)?;
        if let (Bytes::Streamed(streamed), Some(Plan { mapped: true, .. })) = (&self.bytes, &plan) {
            streamed.map_whole()?;
        }
        self.bytes.expect_reads();
        let streamer = match (&self.bytes, &plan) {
            (Bytes::Streamed(streamed), Some(plan)) if !plan.mapped => {
                Some(streamed.streamer(&self.header, &self.options, plan)?)
            }
            _ => None,
        };
        let chunk = plan.map(|plan| plan.chunk as usize);
        Memory::new(self, &MemoryOptions { chunk: chunk.or(options.chunk), ..*options }, streamer)
    }

    /// What memory for one sequence will be used for, or [`None`] without a cap. The cap is the process', so it has room for one
    /// such memory at a time.
    ///
    /// # Errors
    /// [`Error::Cap`] names the least cap that works.
    pub fn plan(&self, options: &MemoryOptions) -> Result<Option<Plan>, Error> {
        let Some(cap) = self.cap else { return Ok(None) };
        let (streamable, drive) = match &self.bytes {
            Bytes::Streamed(streamed) => (Some(streamed.can_map()), streamed.drive()),
            _ => (None, Drive::Other),
        };
        let reads = Board::detect().reads(drive) as u64;
        let threads = self.pool.size() as u64;
        let wish = Wish { cap, threads, reads, options: *options };
        let plan = Plan::new(self.layout(), &wish, streamable);
        plan.map(Some).map_err(|least| {
            let less = smaller_state(options).filter(|(options, _)| {
                let wish = Wish { options: *options, ..wish };
                Plan::new(self.layout(), &wish, streamable).map_or_else(|other| other < least, |_| true)
            });
            Error::Cap { model: self.name.clone(), cap, least, hint: less.map_or("", |(_, hint)| hint) }
        })
    }

    /// What reading the weights had to put up with so far.
    #[must_use]
    pub fn incidents(&self) -> Incidents {
        match &self.bytes {
            Bytes::Streamed(streamed) => streamed.log().incidents(),
            _ => Incidents::default(),
        }
    }

    /// The bytes of a section that holds no weights, checked; empty if the model has none.
    ///
    /// # Errors
    /// [`Error::Step`] if it is damaged.
    pub fn data_section(&self, section: Section) -> Result<&[u8], Error> {
        let place = self.layout().section(section);
        if place.blocks == 0 {
            return Ok(&[]);
        }
        if let Bytes::Streamed(streamed) = &self.bytes {
            return Ok(streamed.data(section));
        }
        let mut checked = vec![0; SliceSource::checked_words(self.layout())];
        let mut source = self.slice(&mut checked)?;
        for block in 0..place.blocks {
            source.lend(section, block..block + 1).map_err(|cause| self.step_error(cause))?;
        }
        // The source lends only as long as it lives; the file lives as long as the engine.
        let whole = self.bytes.whole().unwrap_or_default();
        Ok(slice(whole, place.offset..place.offset + place.length).unwrap_or_default())
    }

    /// The whole file as a source that checks each block once, by a bitmap of [`SliceSource::checked_words`].
    fn slice<'a>(&'a self, checked: &'a mut [u32]) -> Result<SliceSource<'a>, Error> {
        SliceSource::new(self.bytes.whole().unwrap_or_default(), &self.header, checked)
            .map(|source| source.checked_by(&self.pool))
            .map_err(|cause| Error::Format { model: self.name.clone(), cause })
    }

    /// The source of a sequence's weights.
    pub(crate) fn source<'a>(
        &'a self,
        checked: &'a mut [u32],
        streamer: Option<&'a mut Streamer>,
    ) -> Result<Source<'a>, Error> {
        if let Some(streamer) = streamer {
            return Ok(Source::Stream(streamer));
        }
        let checked = if self.options.verify == Verify::Never { &mut [] } else { checked };
        Ok(Source::Slice(self.slice(checked)?, self.options.verify))
    }

    /// A number that no other engine of this process has.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// An error of the core, with the model's name.
    pub(crate) fn step_error(&self, cause: impl Into<StepError>) -> Error {
        match cause.into() {
            StepError::Source(cause) => Error::source(&self.name, cause),
            cause => Error::Step { model: self.name.clone(), cause },
        }
    }
}
