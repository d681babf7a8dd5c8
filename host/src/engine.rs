//! A model, opened: its checked header, its bytes, and what computes it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use elapid_core::fixed;
use elapid_core::format::{Config, FormatError, Header, Layout, Section};
use elapid_core::kernels::{Kernels, Team, detect, for_each_available};
use elapid_core::model::{Model, StepError};
use elapid_core::source::{LayerSource, SliceSource, slice};

use crate::pool::{Pool, default_threads};
use crate::residency::{Bytes, Map};
use crate::{Error, Memory, MemoryOptions};

/// The bundled model's name in messages.
const BUNDLED: &str = "the bundled model";

/// How a model is computed. Neither choice changes a bit of the results.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Threads, the caller's included; all cores if left out.
    pub threads: Option<usize>,
    /// The name of the kernels; the best for this CPU if left out.
    pub kernels: Option<String>,
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
    fixed: &'static dyn fixed::kernels::Kernels,
    pool: Pool,
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
fn fixed_kernels(name: Option<&str>) -> &'static dyn fixed::kernels::Kernels {
    let mut found = fixed::kernels::detect();
    fixed::kernels::for_each_available(&mut |kernels| {
        if name.is_some_and(|name| kernels.name().eq_ignore_ascii_case(name)) {
            found = kernels;
        }
    });
    found
}

impl Engine {
    /// Opens a packed file by mapping it. The file must stay as it is until the engine is dropped: replace it by renaming
    /// another over it, never by writing into it.
    ///
    /// # Errors
    /// If the file can't be read, its header is not that of a model, or the options ask for what there is not.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self, Error> {
        let name = path.display().to_string();
        match Map::open(path)? {
            Some(map) => Self::new(name, Bytes::Map(map), options),
            None => Err(Error::Format {
                model: name,
                cause: FormatError::Short { have: 0, need: Header::BYTES as u64 },
            }),
        }
    }

    /// Opens the model that is part of the program.
    ///
    /// # Errors
    /// [`Error::NoBundled`] if it was built without feature `bundled`, or as [`Engine::open`].
    pub fn bundled(options: &EngineOptions) -> Result<Self, Error> {
        #[cfg(feature = "bundled")]
        let engine = Self::new(BUNDLED.into(), Bytes::Program(crate::residency::bundled()), options);
        #[cfg(not(feature = "bundled"))]
        let engine = {
            let _ = (BUNDLED, options);
            Err(Error::NoBundled)
        };
        engine
    }

    fn new(name: String, bytes: Bytes, options: &EngineOptions) -> Result<Self, Error> {
        let check = || {
            let header = Header::parse(&bytes)?;
            // Checks the length and both tables.
            SliceSource::new(&bytes, &header, &mut [])?;
            Ok(header)
        };
        let header = check().map_err(|cause| Error::Format { model: name.clone(), cause })?;
        let kernels = kernels(options.kernels.as_deref())?;
        let fixed = fixed_kernels(options.kernels.as_deref());
        let pool = Pool::new(options.threads.unwrap_or_else(default_threads))?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { name, bytes, header, kernels, fixed, pool, number })
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
    /// The whole file. Only its header and tables are checked.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// What computes the model.
    #[must_use]
    pub fn kernels(&self) -> &'static dyn Kernels {
        self.kernels
    }
    /// What computes it in the fixed path.
    #[must_use]
    pub fn fixed_kernels(&self) -> &'static dyn fixed::kernels::Kernels {
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
        Model::new(self.layout(), self.kernels, &self.pool)
    }

    /// The model in the fixed path, for steps by hand.
    ///
    /// # Errors
    /// [`StepError::Type`] if a matrix is neither q8 nor q4.
    pub fn fixed_model(&self) -> Result<fixed::Model<'_>, StepError> {
        fixed::Model::new(self.layout(), self.fixed, &self.pool)
    }

    /// Memory for one sequence.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not enough.
    pub fn memory(&self, options: &MemoryOptions) -> Result<Memory, Error> {
        self.bytes.expect_reads();
        Memory::new(self, options)
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
        let mut checked = vec![0; SliceSource::checked_words(self.layout())];
        let mut source = self.source(&mut checked)?;
        for block in 0..place.blocks {
            source.lend(section, block..block + 1).map_err(|cause| self.step_error(cause))?;
        }
        // The source lends only as long as it lives; the file lives as long as the engine.
        Ok(slice(&self.bytes, place.offset..place.offset + place.length).unwrap_or_default())
    }

    /// The file as a source that checks each block once, by a bitmap of [`SliceSource::checked_words`].
    pub(crate) fn source<'a>(&'a self, checked: &'a mut [u32]) -> Result<SliceSource<'a>, Error> {
        SliceSource::new(&self.bytes, &self.header, checked)
            .map(|source| source.checked_by(&self.pool))
            .map_err(|cause| Error::Format { model: self.name.clone(), cause })
    }

    /// An error of the core, with the model's name.
    /// A number that no other engine of this process has.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn step_error(&self, cause: impl Into<elapid_core::model::StepError>) -> Error {
        Error::Step { model: self.name.clone(), cause: cause.into() }
    }
}
