//! An opened model: its verified header, its bytes, its kernels and its threads.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use elapid_core::format::{Config, FormatError, Header, Layout, Section};
use elapid_core::kernels::Team;
use elapid_core::model::{Position, StepError};
use elapid_core::source::{LayerSource, SliceSource, slice};
use elapid_core::tokenizer::Tokenizer;

use crate::Error;
use crate::machine::{Drive, Machine, Profile};
use crate::memory::{
    Bytes, DirectFile, Incidents, Map, Plan, Source, Storage, Streamed, Streamer, TooLittle, Wish,
};
use crate::numbers::{Buffers, KernelSet, Numbers, Steps};
use crate::options::{ModelOptions, Ram, SessionOptions, Verify};
use crate::threads::{Pool, default_threads};

/// The bundled model's name in messages.
const BUNDLED: &str = "the bundled model";

/// An opened model. Clones are cheap and share everything; any number of sessions can use it, from any thread.
///
/// ```no_run
/// # fn main() -> Result<(), elapid::Error> {
/// use elapid::{Model, ModelOptions, SessionOptions};
/// let model = Model::open("model.elp".as_ref(), &ModelOptions::default())?;
/// let mut session = model.session(&SessionOptions::default())?;
/// session.feed(&[1, 2, 3])?;
/// println!("{:?}", session.logits()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Model(Arc<Opened>);

/// What all clones of a model share.
struct Opened {
    name: String,
    bytes: Bytes,
    header: Header,
    kernels: KernelSet,
    pool: Pool,
    /// The cap in bytes.
    cap: Option<u64>,
    options: ModelOptions,
    /// The memory of the open sessions, out of the cap.
    held: Mutex<Held>,
    /// The ids without a token, once the tokenizer was checked.
    tokenizer: OnceLock<Range<u32>>,
}

/// Memory that sessions hold.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    bytes: u64,
    /// The number of sessions that use the mapped file.
    mapped: usize,
}

/// A session's share of a model's memory, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    model: Model,
    held: Held,
}

impl Lease {
    /// The model.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.model.held();
        held.bytes = held.bytes.saturating_sub(self.held.bytes);
        held.mapped = held.mapped.saturating_sub(self.held.mapped);
        // The next session may use the cap for something else than the mapped file.
        if self.held.mapped > 0
            && held.mapped == 0
            && let Bytes::Streamed(streamed) = &self.model.0.bytes
        {
            streamed.map().into_iter().for_each(Map::release);
        }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Opened { name, header, pool, .. } = &*self.0;
        let mut out = f.debug_struct("Model");
        out.field("name", name).field("header", header).field("pool", pool).finish_non_exhaustive()
    }
}

/// Bytes of a cap.
fn cap(ram: Ram) -> Result<u64, Error> {
    match ram {
        Ram::Bytes(bytes) => Ok(bytes),
        Ram::Auto => Profile::detect().cap.ok_or(Error::UnknownMemory),
    }
}

impl Model {
    /// Opens a packed file. Without a cap it is mapped. The file must then stay unchanged until the model is dropped: replace
    /// it by renaming another file over it, never by writing into it.
    ///
    /// # Errors
    /// If the file can't be read or is not a model, or if the kernels or threads of the options are not available.
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Self, Error> {
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

    /// Opens a packed file that is read from any storage, under [`ModelOptions::ram`] (default here: all free memory).
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_storage(
        name: &str,
        storage: Arc<dyn Storage>,
        options: &ModelOptions,
    ) -> Result<Self, Error> {
        Self::stream(name.into(), storage, None, options)
    }

    fn stream(
        name: String,
        storage: Arc<dyn Storage>,
        path: Option<PathBuf>,
        options: &ModelOptions,
    ) -> Result<Self, Error> {
        let cap = cap(options.ram.unwrap_or(Ram::Auto))?;
        let mappable = path.is_some();
        let least = |layout: &Layout| {
            let threads = options.threads.unwrap_or_else(default_threads) as u64;
            let wish = Wish {
                cap,
                threads,
                reads: 1,
                others: 0,
                beside: options.beside_all(),
                sessions: options.sessions as u64,
                options: SessionOptions::default(),
            };
            Plan::new(layout, &wish, Some(mappable)).err().map_or(cap, |lacking| lacking.least)
        };
        let (streamed, header) = Streamed::open(&name, storage, path, cap, least)?;
        Self::new(name, Bytes::Streamed(Box::new(streamed)), header, Some(cap), options)
    }

    /// Opens the model that is part of the library.
    ///
    /// # Errors
    /// [`Error::NoBundled`] if the library was built without the feature `bundled`, or as [`Model::open`].
    pub fn bundled(options: &ModelOptions) -> Result<Self, Error> {
        #[cfg(feature = "bundled")]
        let model = Self::whole(BUNDLED.into(), Bytes::Program(crate::memory::bundled()), options);
        #[cfg(not(feature = "bundled"))]
        let model = {
            let _ = (BUNDLED, options);
            Err(Error::NoBundled)
        };
        model
    }

    fn whole(name: String, bytes: Bytes, options: &ModelOptions) -> Result<Self, Error> {
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
        options: &ModelOptions,
    ) -> Result<Self, Error> {
        let kernels = KernelSet::new(options.kernels.as_deref())?;
        let pool = Pool::new(options.threads.unwrap_or_else(default_threads))?;
        let (options, held, tokenizer) = (options.clone(), Mutex::default(), OnceLock::new());
        Ok(Self(Arc::new(Opened { name, bytes, header, kernels, pool, cap, options, held, tokenizer })))
    }

    /// The file's path, or another name for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }
    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.layout().config()
    }
    /// The place of everything in the file.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        self.0.header.layout()
    }
    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.0.header
    }
    /// The whole file, or [`None`] if it is streamed. Only its header and tables are verified.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.0.bytes.whole()
    }
    /// The memory cap in bytes.
    #[must_use]
    pub fn cap(&self) -> Option<u64> {
        self.0.cap
    }
    /// The name of the kernels for these numbers.
    #[must_use]
    pub fn kernels(&self, numbers: Numbers) -> &'static str {
        self.0.kernels.name(numbers)
    }
    /// The threads that compute the model.
    #[must_use]
    pub fn team(&self) -> &dyn Team {
        &self.0.pool
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan for the memory of another session, in addition to the open ones, or [`None`] without a cap.
    ///
    /// A session of a streamed model uses its part of the cap ([`ModelOptions::sessions`]) for weights. Sessions of a model that
    /// fits share the file.
    ///
    /// # Errors
    /// [`Error::Cap`] names the least cap that works; [`Error::Session`] names the memory that the open sessions leave.
    pub fn plan(&self, options: &SessionOptions) -> Result<Option<Plan>, Error> {
        self.plan_beside(*self.held(), options)
    }

    fn plan_beside(&self, held: Held, options: &SessionOptions) -> Result<Option<Plan>, Error> {
        let Some(cap) = self.0.cap else { return Ok(None) };
        let (streamable, drive) = match &self.0.bytes {
            // Another session has all of it in memory.
            Bytes::Streamed(streamed) if held.mapped > 0 => (None, streamed.drive()),
            Bytes::Streamed(streamed) => (Some(streamed.can_map()), streamed.drive()),
            _ => (None, Drive::Other),
        };
        let reads = Machine::detect().reads(drive) as u64;
        let threads = self.0.pool.size() as u64;
        let plan = |options: &SessionOptions| {
            let sessions = self.0.options.sessions as u64;
            let beside = self.0.options.beside_all();
            let wish = Wish { cap, threads, reads, others: held.bytes, beside, sessions, options: *options };
            Plan::new(self.layout(), &wish, streamable)
        };
        plan(options).map(Some).map_err(|TooLittle { least, needs, left }| {
            let model = self.name().to_owned();
            if held.bytes > 0 {
                return Error::Session { model, cap, needs, left };
            }
            let smaller = options.numbers.smaller().filter(|numbers| {
                let other = plan(&options.numbers(*numbers));
                other.map_or_else(|other| other.least < least, |_| true)
            });
            Error::Cap { model, cap, least, smaller_state: smaller.map(Numbers::state_name) }
        })
    }

    /// Counts memory that is used beside the sessions, until what is returned is dropped.
    pub(crate) fn set_aside(&self, bytes: usize) -> Lease {
        let mut held = self.held();
        let before = held.bytes;
        held.bytes = before.saturating_add(bytes as u64);
        let own = Held { bytes: held.bytes - before, mapped: 0 };
        drop(held);
        Lease { model: self.clone(), held: own }
    }

    /// Takes a session's share of the memory, and starts to read if weights are streamed. Also returns the tokens of a chunk.
    pub(crate) fn lease(&self, options: &SessionOptions) -> Result<(Lease, Option<Streamer>, usize), Error> {
        let (plan, lease) = {
            let mut held = self.held();
            let plan = self.plan_beside(*held, options)?;
            let own = plan.map_or(Held::default(), |plan| Held {
                bytes: plan.session_bytes,
                mapped: usize::from(plan.mapped),
            });
            held.bytes += own.bytes;
            held.mapped += own.mapped;
            (plan, Lease { model: self.clone(), held: own })
        };
        if let (Bytes::Streamed(streamed), Some(Plan { mapped: true, .. })) = (&self.0.bytes, &plan) {
            streamed.map_whole(self.name(), self.header())?;
        }
        self.0.bytes.expect_reads();
        let streamer = match (&self.0.bytes, &plan) {
            (Bytes::Streamed(streamed), Some(plan)) if !plan.mapped => {
                Some(streamed.streamer(self.header(), &self.0.options, plan)?)
            }
            _ => None,
        };
        let chunk = plan.map_or_else(|| options.chunk_of(self.config()), |plan| plan.chunk as usize);
        Ok((lease, streamer, chunk))
    }

    /// The incidents so far while weights were read.
    #[must_use]
    pub fn incidents(&self) -> Incidents {
        match &self.0.bytes {
            Bytes::Streamed(streamed) => streamed.log().incidents(),
            _ => Incidents::default(),
        }
    }

    /// The bytes of a section that holds no weights, verified; empty if the model has none.
    ///
    /// # Errors
    /// [`Error::Step`] if it is damaged.
    pub fn data_section(&self, section: Section) -> Result<&[u8], Error> {
        let place = self.layout().section(section);
        if place.blocks == 0 {
            return Ok(&[]);
        }
        if !matches!(self.0.bytes, Bytes::Streamed(_)) {
            let mut checked = vec![0; SliceSource::checked_words(self.layout())];
            let mut source = self.slice(&mut checked)?;
            for block in 0..place.blocks {
                source.borrow(section, block..block + 1).map_err(|cause| self.step_error(cause))?;
            }
        }
        Ok(self.section_bytes(section))
    }

    /// The bytes of a section that holds no weights, verified if the model is streamed; empty if the model has none.
    fn section_bytes(&self, section: Section) -> &[u8] {
        let place = self.layout().section(section);
        match &self.0.bytes {
            Bytes::Streamed(streamed) => streamed.data(section),
            bytes => {
                let whole = bytes.whole().unwrap_or_default();
                slice(whole, place.offset..place.offset + place.length).unwrap_or_default()
            }
        }
    }

    /// The model's tokenizer. The first call that succeeds verifies and checks its whole section.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], or that the section is damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer<'_>, Error> {
        let checked = self.0.tokenizer.get().cloned();
        let bytes = match checked {
            Some(_) => self.section_bytes(Section::Tokenizer),
            None => self.data_section(Section::Tokenizer)?,
        };
        if bytes.is_empty() {
            return Err(Error::NoTokenizer { model: self.name().into() });
        }
        let tokenizer = match checked {
            Some(missing) => Tokenizer::reopen(bytes, missing),
            None => Tokenizer::parse(bytes),
        };
        let tokenizer =
            tokenizer.map_err(|cause| Error::Section { model: self.name().into(), cause: cause.into() })?;
        self.0.tokenizer.get_or_init(|| tokenizer.missing());
        Ok(tokenizer)
    }

    /// The whole file as a source that verifies each block once, with a bitmap of [`SliceSource::checked_words`]. The tables were
    /// verified when the file was opened or mapped.
    fn slice<'a>(&'a self, checked: &'a mut [u32]) -> Result<SliceSource<'a>, Error> {
        SliceSource::reopen(self.0.bytes.whole().unwrap_or_default(), self.header(), checked)
            .map(|source| source.checked_by(&self.0.pool))
            .map_err(|cause| Error::Format { model: self.name().into(), cause })
    }

    /// The source of a session's weights.
    pub(crate) fn source<'a>(
        &'a self,
        checked: &'a mut [u32],
        streamer: Option<&'a mut Streamer>,
    ) -> Result<Source<'a>, Error> {
        if let Some(streamer) = streamer {
            return Ok(Source::Stream(streamer));
        }
        let checked = if self.0.options.verify == Verify::Never { &mut [] } else { checked };
        Ok(Source::Slice(self.slice(checked)?, self.0.options.verify))
    }

    /// The steps over a session's buffers.
    pub(crate) fn steps<'a>(
        &'a self,
        buffers: &'a mut Buffers,
        sequences: usize,
        position: &'a mut Position,
    ) -> Result<Steps<'a>, Error> {
        let steps = buffers.steps(sequences, position, self.layout(), &self.0.kernels, &self.0.pool);
        steps.map_err(|cause| self.step_error(cause))
    }

    /// An error of the core, with the model's name.
    pub(crate) fn step_error(&self, cause: impl Into<StepError>) -> Error {
        match cause.into() {
            StepError::Source(cause) => Error::source(self.name(), cause),
            cause => Error::Step { model: self.name().into(), cause },
        }
    }
}
