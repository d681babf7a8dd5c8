//! Options of models and of sessions.

use elapid_core::format::Config;

use crate::numbers::Numbers;

/// The default number of tokens in a chunk: weights are read once per chunk, and this makes it many tokens.
const CHUNK: usize = 256;
/// The default limit in bytes of a chunk's working memory, and of the logits of its tokens.
const CHUNK_BYTES: usize = 32 << 20;

/// The memory that a process may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ram {
    /// The free memory of the machine, or of this process's control group, less a margin, which is larger on boards.
    Auto,
    /// Bytes.
    Bytes(u64),
}

/// When the checksums of weights are verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verify {
    /// Weights that stay in memory at their first use, streamed weights at every read.
    #[default]
    Auto,
    /// Every block at every use.
    Always,
    /// Never. Damaged weights may then lead to a wrong token.
    Never,
}

/// How a model is opened. No choice changes a bit of the results.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ModelOptions {
    /// The number of threads, including the caller's. Default: all cores.
    pub threads: Option<usize>,
    /// The name of the kernels. Default: the best for this CPU.
    pub kernels: Option<String>,
    /// The memory that the process may use. A model that does not fit is streamed from its file, see
    /// [`Model::plan`](crate::Model::plan). Default: no cap, the file is mapped.
    pub ram: Option<Ram>,
    /// The number of sessions that share the memory: each gets an equal part of what the model leaves. 0 means 1. A single session of
    /// a streamed model uses all the rest for weights.
    pub sessions: usize,
    /// When checksums are verified.
    pub verify: Verify,
    /// Read with threads even if io_uring is available, for comparisons.
    pub plain_reads: bool,
    /// Bytes that a program takes beyond what a plan counts for one: for its code and tables if it does much else. They count under a cap.
    pub beside: usize,
}

impl ModelOptions {
    /// Bytes beyond what a plan counts for a program: the code for grammars, too.
    pub(crate) fn beside_all(&self) -> u64 {
        let grammars = if cfg!(feature = "grammar") { 1 << 20 } else { 0 };
        grammars + self.beside as u64
    }

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
    /// Sets [`ModelOptions::beside`].
    #[must_use]
    pub fn beside(self, bytes: usize) -> Self {
        Self { beside: bytes, ..self }
    }
}

/// Options of a session.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Floating point or integers, and the type of the recurrent state.
    pub numbers: Numbers,
    /// The number of tokens that pass a layer together. Default: a good number for the model. It does not change the results.
    pub chunk: Option<usize>,
    /// Whether logits of every token are needed ([`Session::feed_each`](crate::Session::feed_each)): their memory is planned and
    /// allocated beforehand.
    pub rows: bool,
    /// Memory of the caller in bytes, such as a prompt: it counts too, because the cap is for the whole process.
    pub held: usize,
    /// The budget in bytes for marks: copies of a session's state to which [`Session::undo`](crate::Session::undo) and
    /// [`Session::truncate`](crate::Session::truncate) can go back without computing anything. They count under a cap. Default: 0.
    pub marks: usize,
    /// The number of sequences of a batch; 0 means 1.
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

    /// Tokens of a chunk: the number in the options, or as many as stay within [`CHUNK_BYTES`]; at least one.
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

    /// Bytes of a session's state and working memory, without weights.
    #[must_use]
    pub fn memory_bytes(&self, config: &Config) -> usize {
        let state = self.state_bytes(config, config.n_layer as usize);
        let undo = self.state_bytes(config, 1);
        let logits = self.sequences().saturating_mul(4 * config.padded_vocab() as usize);
        let scratch = self.scratch_bytes(config, self.chunk_of(config));
        state.saturating_add(undo).saturating_add(scratch).saturating_add(logits)
    }
}

/// Number of tokens of a chunk whose logits are needed.
pub(crate) fn rows_chunk(chunk: usize, padded_vocab: usize) -> usize {
    chunk.min((CHUNK_BYTES / (4 * padded_vocab)).max(1))
}
