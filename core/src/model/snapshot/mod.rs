//! A sequence's state as bytes: written to a sink and read from a source, without an allocator.
//!
//! ```text
//! session.save(0, &about, Some(&logits), &mut sink)?;
//! let saved = session.check_saved(&fingerprint, &mut source)?;   // the first pass: nothing is changed
//! let saved = session.load(0, &fingerprint, &mut again, &mut logits)?;
//! ```
//!
//! The format is in `docs/session.md`. The last logits are saved beside the state, because a recurrent model can't be fed its last
//! token again.
//!
//! Bytes are untrusted. [`Session::check_saved`] reads and checks all of them. It reads into the undo copy of one layer, which is not in
//! use between steps, so a refused snapshot leaves the session unchanged. [`Session::load`] makes the same checks while it reads.

mod error;
mod format;
mod stream;

pub use error::SnapshotError;
pub use format::{About, Saved};
pub use stream::{Cut, Sink, Source};

use super::StepError;
use super::operations::Operations;
use super::parts::{Element, Part, Stored};
use super::session::Session;
use crate::format::{Config, Fingerprint};
use format::{HEAD, Outcome, PART_HEAD, Summed, header, logits_head, read_header};

/// The size of a snapshot in bytes, to reserve room for it.
#[must_use]
pub fn snapshot_bytes<N: Operations>(
    config: &Config,
    layer: &mut N::State<'_>,
    half: bool,
    logits: bool,
) -> u64 {
    let one = |part: Part<'_>| {
        let element = if half && part.recurrent { Element::F16 } else { part.values.element() };
        (PART_HEAD + 4) as u64 + part.values.len() as u64 * element.bytes() as u64
    };
    let layer: u64 = N::parts(config, layer).into_iter().map(one).sum();
    let logits = if logits { (PART_HEAD + 4) as u64 + 4 * u64::from(config.vocab) } else { 0 };
    HEAD as u64 + layer * u64::from(config.n_layer) + logits
}

impl<N: Operations> Session<'_, N>
where
    N::Logit: Stored,
{
    /// Checks that the slot can be saved or loaded now. Returns its first layer in the state.
    fn first_layer<E>(&self, slot: usize) -> Outcome<usize, E> {
        self.check_slot(slot).map_err(SnapshotError::Session)?;
        if self.position().suspended().is_some() {
            return Err(SnapshotError::Session(StepError::Suspended));
        }
        Ok(slot.saturating_mul(self.config.n_layer as usize))
    }

    /// The bytes that [`Session::save`] writes.
    #[must_use]
    pub fn saved_bytes(&mut self, about: &About) -> u64 {
        let half = self.is_halved(about);
        let mut layer = N::layer(&self.config, &mut self.undo, 0);
        snapshot_bytes::<N>(&self.config, &mut layer, half, about.tokens > 0)
    }

    /// Only f32 can be halved.
    fn is_halved(&self, about: &About) -> bool {
        about.half && N::kept(&self.state) == Element::F32
    }

    /// Saves a sequence with the logits `[vocab]` after its last token. They are required unless the sequence was fed no token.
    ///
    /// # Errors
    /// The sink's; [`SnapshotError::Logits`] for none or too few; [`SnapshotError::Session`] while a step is suspended.
    pub fn save<S: Sink>(
        &mut self,
        slot: usize,
        about: &About,
        logits: Option<&[N::Logit]>,
        sink: &mut S,
    ) -> Result<(), SnapshotError<S::Error>> {
        let first = self.first_layer(slot)?;
        let (config, need) = (self.config, self.config.vocab as usize);
        let have = logits.map_or(0, <[_]>::len);
        if (have < need) != (about.tokens == 0) {
            return Err(SnapshotError::Logits { have, need });
        }
        let half = self.is_halved(about);
        let about = About { half, ..*about };
        let mut out = Summed::new(sink);
        out.write(&header(&config, N::kept(&self.state), &about, about.tokens > 0))?;
        out.write_sum()?;
        for layer in 0..config.n_layer {
            let mut state = N::layer(&config, &mut self.state, first.saturating_add(layer as usize));
            for part in N::parts(&config, &mut state) {
                out.write_part(layer, part, half)?;
            }
        }
        if let Some(logits) = logits.filter(|_| about.tokens > 0) {
            out.write(&logits_head::<N::Logit>(config.vocab))?;
            out.write_all(logits.get(..need).unwrap_or_default(), N::Logit::to_bytes)?;
            out.write_sum()?;
        }
        Ok(())
    }

    /// Reads a snapshot and checks all of it without changing anything. [`Session::load`] then fails only if the source does.
    ///
    /// # Errors
    /// What is wrong with it, or the source's.
    pub fn check_saved<S: Source>(
        &mut self,
        fingerprint: &Fingerprint,
        source: &mut S,
    ) -> Result<Saved, SnapshotError<S::Error>> {
        self.first_layer(0)?;
        let (config, kept) = (self.config, N::kept(&self.state));
        let mut source = Summed::new(source);
        let saved = read_header(&mut source, &config, kept, fingerprint)?;
        for layer in 0..config.n_layer {
            let mut state = N::layer(&config, &mut self.undo, 0);
            read_layer::<N, S>(&mut source, &config, layer, &mut state, saved.about.half)?;
        }
        if saved.logits {
            source.read_logits::<N::Logit>(config.vocab, |_, _| {})?;
        }
        Ok(saved)
    }

    /// Reads a snapshot into a slot, and its logits, if it has any, to `logits` `[vocab]`. The slot's next token continues from there.
    /// All of the snapshot is checked while it is read.
    ///
    /// # Errors
    /// As [`Session::check_saved`], and [`SnapshotError::Logits`] before anything is changed. After an error of the header nothing is changed
    /// either; after any other error the sequence is cleared.
    pub fn load<S: Source>(
        &mut self,
        slot: usize,
        fingerprint: &Fingerprint,
        source: &mut S,
        logits: &mut [N::Logit],
    ) -> Result<Saved, SnapshotError<S::Error>> {
        let first = self.first_layer(slot)?;
        let (config, kept) = (self.config, N::kept(&self.state));
        let (have, need) = (logits.len(), config.vocab as usize);
        if have < need {
            return Err(SnapshotError::Logits { have, need });
        }
        let mut source = Summed::new(source);
        let saved = read_header(&mut source, &config, kept, fingerprint)?;
        let mut read = || {
            for layer in 0..config.n_layer {
                let mut state = N::layer(&config, &mut self.state, first.saturating_add(layer as usize));
                read_layer::<N, S>(&mut source, &config, layer, &mut state, saved.about.half)?;
            }
            if saved.logits {
                source.read_logits(config.vocab, |index, logit| {
                    if let Some(to) = logits.get_mut(index) {
                        *to = logit;
                    }
                })?;
            }
            Ok(saved)
        };
        let outcome = read();
        self.forget_step();
        if outcome.is_err() {
            // The slot is one of the session's.
            let _ = self.clear_slot(slot);
        }
        outcome
    }
}

/// Reads one layer's parts and checks that they are consistent.
fn read_layer<N: Operations, S: Source>(
    source: &mut Summed<'_, S>,
    config: &Config,
    layer: u32,
    state: &mut N::State<'_>,
    half: bool,
) -> Outcome<(), S::Error> {
    for part in N::parts(config, state) {
        source.read_part(layer, part, half)?;
    }
    N::check_contents(config, state).map_err(|cause| SnapshotError::State { layer, cause })
}
