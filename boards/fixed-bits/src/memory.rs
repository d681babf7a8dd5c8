//! State and working memory for models of any size that the test brings, up to a limit.

use elapid_core::fixed::{Model, Scratch, ScratchSize, Session, State, StateSize};
use elapid_core::format::Config;
use elapid_core::kernels::fixed::{Group, Inverse, Range, SsmState};
use elapid_core::model::StepError;

/// The state of some layers, as far as a model needs it.
struct Layers<const CONV: usize, const SSM: usize, const RANGES: usize> {
    conv: [i32; CONV],
    exponents: [u16; CONV],
    ssm: [i16; SSM],
    ranges: [Range; RANGES],
}

impl<const CONV: usize, const SSM: usize, const RANGES: usize> Layers<CONV, SSM, RANGES> {
    const fn new() -> Self {
        Self { conv: [0; CONV], exponents: [0; CONV], ssm: [0; SSM], ranges: [Range::ZERO; RANGES] }
    }

    /// The state of `layers` layers; what is too small is borrowed short, and refused by the session.
    fn borrow(&mut self, config: &Config, layers: usize) -> State<'_> {
        let size = StateSize::of(config, layers);
        State {
            conv: first(&mut self.conv, size.conv),
            conv_exponents: first(&mut self.exponents, size.conv_exponents),
            ssm: SsmState::I16(first(&mut self.ssm, size.ssm)),
            ranges: first(&mut self.ranges, size.ranges),
        }
    }
}

/// All that a session needs.
pub struct Memory {
    all: Layers<8192, 32768, 2048>,
    undo: Layers<4096, 8192, 512>,
    words: [i32; 8192],
    halves: [i16; 4096],
    groups: [Group; 128],
    inverses: [Inverse; 1],
    checked: [u32; 64],
    logits: [i32; 4096],
}

impl Memory {
    pub const fn new() -> Self {
        Self {
            all: Layers::new(),
            undo: Layers::new(),
            words: [0; 8192],
            halves: [0; 4096],
            groups: [const { Group { exponent: 0, sum: 0 } }; 128],
            inverses: [const { Inverse { m: 0, e: 0, top: 0 } }; 1],
            checked: [0; 64],
            logits: [0; 4096],
        }
    }

    /// A session, a source's bitmap, and a row of logits.
    ///
    /// # Errors
    /// If the model is too large; the buffer is named.
    pub fn borrow(&mut self, model: &Model<'_>) -> Result<(Session<'_>, &mut [u32], &mut [i32]), StepError> {
        let config = model.config();
        let size = ScratchSize::of(config, 1);
        let scratch = Scratch {
            words: first(&mut self.words, size.words),
            halves: first(&mut self.halves, size.halves),
            groups: first(&mut self.groups, size.groups),
            inverses: &mut self.inverses,
        };
        let state = self.all.borrow(config, config.n_layer as usize);
        let session = Session::new(model, state, self.undo.borrow(config, 1), scratch)?;
        Ok((session, &mut self.checked, &mut self.logits))
    }
}

/// The first elements of a slice: as many as there are.
fn first<T>(all: &mut [T], count: usize) -> &mut [T] {
    let count = count.min(all.len());
    all.get_mut(..count).unwrap_or_default()
}
