//! How a model is opened, and how its sessions are kept.

use elapid_core::format::Config;

use crate::numbers::Numbers;

/// Tokens of a chunk if nothing else is asked for: enough that a chunk's weights are read once for many tokens.
const CHUNK: usize = 256;
/// Bytes that the working memory of a chunk, or the logits of its tokens, may take if nothing else is asked for.
const CHUNK_BYTES: usize = 32 << 20;

/// The memory that a process may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ram {
    /// What the machine, or the control group of this process, has free, with a margin; a board's is larger.
    Auto,
    /// Bytes.
    Bytes(u64),
}

/// When the checksums of weights are verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verify {
    /// What stays in memory when it is used first, what is streamed at every read.
    #[default]
    Auto,
    /// Every block at every use.
    Always,
    /// Never. Damage may then become a wrong token.
    Never,
}

/// How a model is opened. No choice changes a bit of the results.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ModelOptions {
    /// Threads, the caller's included. Default: all cores.
    pub threads: Option<usize>,
    /// The name of the kernels. Default: the best for this CPU.
    pub kernels: Option<String>,
    /// The memory that the process may take. A model that does not fit is streamed from its file, see
    /// [`Model::plan`](crate::Model::plan). Default: no cap, the file is mapped.
    pub ram: Option<Ram>,
    /// Sessions that share the memory: each gets an equal part of what the model leaves. 0 and 1 are one, which takes what there is
    /// for weights where they are streamed.
    pub sessions: usize,
    /// When checksums are verified.
    pub verify: Verify,
    /// Read with threads even if io_uring is available, to compare them.
    pub plain_reads: bool,
}

impl ModelOptions {
    /// Sets [`ModelOptions::threads`].
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads: Some(threads), ..self }
    }
    /// Sets [`ModelOptions::kernels`].
    #[must_use]
    pub fn kernels(self, name: impl Into<String>) -> Self {
        Self { kernels: Some(name.into()), ..self }
    }
    /// Sets [`ModelOptions::ram`].
    #[must_use]
    pub fn ram(self, ram: Ram) -> Self {
        Self { ram: Some(ram), ..self }
    }
    /// Sets [`ModelOptions::sessions`].
    #[must_use]
    pub fn sessions(self, sessions: usize) -> Self {
        Self { sessions, ..self }
    }
    /// Sets [`ModelOptions::verify`].
    #[must_use]
    pub fn verify(self, verify: Verify) -> Self {
        Self { verify, ..self }
    }
    /// Sets [`ModelOptions::plain_reads`].
    #[must_use]
    pub fn plain_reads(self, plain: bool) -> Self {
        Self { plain_reads: plain, ..self }
    }
}

/// How a session is kept.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Floating point or integers, and the type of the recurrent state.
    pub numbers: Numbers,
    /// Tokens that pass a layer together. Default: a good number for the model. It changes no bit of the results.
    pub chunk: Option<usize>,
    /// Logits of every token will be wanted ([`Session::feed_each`](crate::Session::feed_each)): their memory is planned and
    /// allocated beforehand.
    pub rows: bool,
    /// Bytes that the caller holds, such as a prompt: a cap is for all of the process.
    pub held: usize,
    /// Bytes that copies of a session's state may take: marks, at which [`Session::undo`](crate::Session::undo) and
    /// [`Session::truncate`](crate::Session::truncate) go back without computing anything. They count under a cap. Default: 0, none.
    pub marks: usize,
    /// Sequences of a batch; 0 and 1 are one.
    pub(crate) sequences: usize,
}

impl SessionOptions {
    /// Sets [`SessionOptions::numbers`].
    #[must_use]
    pub fn numbers(self, numbers: Numbers) -> Self {
        Self { numbers, ..self }
    }
    /// Sets [`SessionOptions::chunk`].
    #[must_use]
    pub fn chunk(self, tokens: usize) -> Self {
        Self { chunk: Some(tokens), ..self }
    }
    /// Sets [`SessionOptions::rows`].
    #[must_use]
    pub fn rows(self, rows: bool) -> Self {
        Self { rows, ..self }
    }
    /// Sets [`SessionOptions::held`].
    #[must_use]
    pub fn held(self, bytes: usize) -> Self {
        Self { held: bytes, ..self }
    }

    /// Sets [`SessionOptions::marks`].
    #[must_use]
    pub fn marks(self, bytes: usize) -> Self {
        Self { marks: bytes, ..self }
    }

    /// Bytes of a mark: a copy of the state, and logits.
    pub(crate) fn mark_bytes(&self, config: &Config) -> usize {
        let state = self.numbers.state_bytes(config, config.n_layer as usize);
        state.saturating_add(4 * config.padded_vocab() as usize)
    }

    /// Sequences, one at least.
    pub(crate) fn sequences(&self) -> usize {
        self.sequences.max(1)
    }

    /// Tokens of a chunk: those asked for, or as many as stay within [`CHUNK_BYTES`]; one at least.
    pub(crate) fn chunk_of(&self, config: &Config) -> usize {
        let default = || {
            let each = self.scratch_bytes(config, 1);
            (CHUNK_BYTES / each.max(1)).clamp(1, CHUNK)
        };
        self.chunk.unwrap_or_else(default).max(1)
    }

    /// Bytes of the working memory for chunks of `tokens` tokens.
    pub(crate) fn scratch_bytes(&self, config: &Config, tokens: usize) -> usize {
        let logits = self.numbers.integer_logits_bytes(config).saturating_mul(self.sequences());
        self.numbers.scratch_bytes(config, tokens.max(self.sequences())).saturating_add(logits)
    }

    /// Bytes of the state of `layers` layers, of all sequences.
    pub(crate) fn state_bytes(&self, config: &Config, layers: usize) -> usize {
        self.numbers.state_bytes(config, layers.saturating_mul(self.sequences()))
    }

    /// Bytes of state and working memory that a session takes, weights not counted.
    #[must_use]
    pub fn memory_bytes(&self, config: &Config) -> usize {
        let state = self.state_bytes(config, config.n_layer as usize);
        let undo = self.state_bytes(config, 1);
        let logits = self.sequences().saturating_mul(4 * config.padded_vocab() as usize);
        let scratch = self.scratch_bytes(config, self.chunk_of(config));
        state.saturating_add(undo).saturating_add(scratch).saturating_add(logits)
    }
}

/// Tokens of a chunk whose logits are wanted.
pub(crate) fn rows_chunk(chunk: usize, padded_vocab: usize) -> usize {
    chunk.min((CHUNK_BYTES / (4 * padded_vocab)).max(1))
}
