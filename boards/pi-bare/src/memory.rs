//! The memory of a conversation with a model.

use elapid_console::{Buffers, Computed, Engine, Error, Place, WINDOW};
use elapid_core::kernels::{Scale, Solo, SsmState, Team, detect};
use elapid_core::model::{Model, Position, Scratch, ScratchSize, Session, State, StateSize};
use elapid_core::source::LayerSource;
use elapid_pi_bare::arena::{Arena, OutOfMemory};
use elapid_pi_bare::storage;

/// Tokens that pass a layer together, where memory allows.
const CHUNK: usize = 32;
/// Tokens of a prompt, and of a text that is reported.
const MOST_TOKENS: usize = 8192;
/// Memory that the tokenizer works in: enough for words of some thousand bytes.
const SCRATCH: usize = 64 << 10;

/// All memory of a conversation but the weights.
pub struct Memory<'a> {
    conv: &'a mut [f32],
    ssm: &'a mut [f32],
    undo_conv: &'a mut [f32],
    undo_ssm: &'a mut [f32],
    floats: &'a mut [f32],
    ints: &'a mut [i8],
    scales: &'a mut [Scale],
    logits: &'a mut [f32],
    chunk: usize,
    buffers: Buffers<'a>,
}

impl<'a> Memory<'a> {
    /// Takes what a model needs.
    ///
    /// # Errors
    /// If there is not so much.
    pub fn take(model: &storage::Model<'_>, arena: &mut Arena<'a>) -> Result<Self, OutOfMemory> {
        let config = model.layout().config();
        let (all, one) = (StateSize::of(config, config.n_layer as usize), StateSize::of(config, 1));
        let fits = |chunk: &usize| ScratchSize::of(config, *chunk).bytes() as u64 <= arena.largest() / 8;
        let chunk = [CHUNK, 16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
        let scratch = ScratchSize::of(config, chunk);
        Ok(Self {
            conv: arena.take("the state", all.conv, 0.0)?,
            ssm: arena.take("the state", all.ssm, 0.0)?,
            undo_conv: arena.take("the state", one.conv, 0.0)?,
            undo_ssm: arena.take("the state", one.ssm, 0.0)?,
            floats: arena.take("the working memory of a step", scratch.floats, 0.0)?,
            ints: arena.take("the working memory of a step", scratch.ints, 0)?,
            scales: arena.take("the working memory of a step", scratch.scales, Default::default())?,
            logits: arena.take("the logits", config.padded_vocab() as usize, 0.0)?,
            chunk,
            buffers: Buffers {
                prompt: arena.take("the tokens", MOST_TOKENS, 0)?,
                tokens: arena.take("the tokens", MOST_TOKENS, 0)?,
                recent: arena.take("the tokens", WINDOW, 0)?,
                rates: arena.take("the tokens", WINDOW, 0.0)?,
                scratch: arena.take("the tokenizer's work", SCRATCH, 0)?,
            },
        })
    }

    /// The model in this memory, computed by `team` with weights from `source`, and what a conversation with it needs.
    ///
    /// # Errors
    /// If the memory is another model's.
    pub fn engine<'s, S: LayerSource>(
        &'s mut self,
        model: &'s storage::Model<'_>,
        source: &'s mut S,
        team: &'s dyn Team,
        place: Place,
    ) -> Result<(impl Engine, Buffers<'s>), Error> {
        let model = Model::float(model.layout(), detect(), team);
        let chunk = self.chunk;
        let (session, logits, buffers) = self.parts(&model, place.position)?;
        let Buffers { prompt, tokens, recent, rates, scratch } = buffers;
        let buffers = Buffers { prompt, tokens, recent, rates, scratch };
        let computed = Computed::new(model, session, source, logits, chunk).resumed(place.tokens);
        Ok((computed, buffers))
    }

    /// The session in this memory, and the logits after its last token.
    fn parts<'s>(
        &'s mut self,
        model: &Model<'_>,
        position: Position,
    ) -> Result<(Session<'s>, &'s mut [f32], &'s mut Buffers<'a>), Error> {
        let state = State { conv: self.conv, ssm: SsmState::F32(self.ssm) };
        let undo = State { conv: self.undo_conv, ssm: SsmState::F32(self.undo_ssm) };
        let scratch = Scratch { floats: self.floats, ints: self.ints, scales: self.scales };
        let session = Session::resume_at(model, 1, state, undo, scratch, position)?;
        Ok((session, self.logits, &mut self.buffers))
    }

    /// The session in this memory, to be saved or loaded, and its logits.
    ///
    /// # Errors
    /// If the memory is another model's.
    pub fn session(
        &mut self,
        model: &storage::Model<'_>,
        place: Place,
    ) -> Result<(Session<'_>, &mut [f32]), Error> {
        let model = Model::float(model.layout(), detect(), &Solo);
        let (session, logits, _) = self.parts(&model, place.position)?;
        Ok((session, logits))
    }
}
