//! `elapid info MODEL --board NAME`: whether a model fits a board.

use clap::ValueEnum;
use elapid::core::fixed;
use elapid::core::format::{Layout, Quant};
use elapid::core::model::{ScratchSize, StateKind, StateSize};
use elapid::core::source::SliceSource;
use serde::Serialize;

/// Bytes that a program of `boards/` takes of RAM beside the model's own: its conversation (9.2 KB), and the stack that its
/// test allows.
const PROGRAM: u64 = 10 << 10;

/// The boards whose memories are known here; `boards/NAME/README.md` says more of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Board {
    /// Cortex-M7 with 16 MB of external memory, half of it for the model
    Mps2An500,
    /// Cortex-M3, the fixed path
    Mps2An385,
    /// Cortex-M33, the fixed path
    Mps2An505,
    /// RP2350 with 4 MB of flash, 3 MB of them for the model
    Pico2,
}

/// How a board computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    /// The float path, state in f32.
    Float,
    /// The fixed path, state in 16 bits.
    Fixed,
}

/// What a board has.
struct Memories {
    path: Path,
    /// Where the file lies, read in place.
    model: u64,
    /// What state, working memory and logits share with the rest.
    ram: u64,
    stack: u64,
}

impl Board {
    const fn memories(self) -> Memories {
        match self {
            // RAM is the heap in external memory: the model that the program was built for has faster.
            Self::Mps2An500 => Memories { path: Path::Float, model: 8 << 20, ram: 8 << 20, stack: 0 },
            Self::Mps2An385 | Self::Mps2An505 => {
                Memories { path: Path::Fixed, model: 16 << 20, ram: 4 << 20, stack: 8 << 10 }
            }
            Self::Pico2 => Memories { path: Path::Fixed, model: 3 << 20, ram: 512 << 10, stack: 16 << 10 },
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// What a model needs of a board, and whether it has it.
#[derive(Serialize)]
pub(super) struct Fit {
    board: String,
    path: &'static str,
    file_bytes: u64,
    model_memory_bytes: u64,
    /// Of all layers, with the undo copy of one.
    state_bytes: u64,
    working_bytes: u64,
    logits_bytes: u64,
    /// Conversation and stack.
    program_bytes: u64,
    ram_bytes: u64,
    fits: bool,
    /// What does not fit.
    why: Option<String>,
}

impl Fit {
    pub(super) fn new(board: Board, layout: &Layout) -> Self {
        let Memories { path, model, ram, stack } = board.memories();
        let config = layout.config();
        let layers = config.n_layer as usize;
        let (state, working, row) = match path {
            Path::Float => {
                let state = |layers| StateSize::of(config, layers).bytes(StateKind::F32);
                (state(layers).saturating_add(state(1)), ScratchSize::of(config, 1).bytes(), 4)
            }
            Path::Fixed => {
                let state = |layers| fixed::StateSize::of(config, layers).bytes(fixed::StateKind::I16);
                // Integers of the step, floats for the sampler.
                (state(layers).saturating_add(state(1)), fixed::ScratchSize::of(config, 1).bytes(), 8)
            }
        };
        let logits = u64::from(config.padded_vocab()) * row;
        let working = working as u64 + 4 * SliceSource::checked_words(layout) as u64;
        let program = PROGRAM + stack;
        let need = (state as u64).saturating_add(working).saturating_add(logits).saturating_add(program);
        let q = &config.quants;
        let all = [q.embedding, q.in_proj, q.x_proj, q.dt_proj, q.out_proj, q.head];
        let float = all.into_iter().find(|q| matches!(q, Quant::F32 | Quant::F16));
        let file = layout.file_bytes();
        let why = if file > model {
            Some(format!("the file has {file} bytes, and the memory for it {model}"))
        } else if need > ram {
            Some(format!("{need} bytes of RAM are needed, and there are {ram}"))
        } else {
            let float = float.filter(|_| path == Path::Fixed);
            float.map(|q| format!("the fixed path takes q8 and q4, and there is a matrix in {}", q.name()))
        };
        Self {
            board: board.name(),
            path: if path == Path::Float { "float" } else { "fixed" },
            file_bytes: file,
            model_memory_bytes: model,
            state_bytes: state as u64,
            working_bytes: working,
            logits_bytes: logits,
            program_bytes: program,
            ram_bytes: ram,
            fits: why.is_none(),
            why,
        }
    }

    /// Lines for a person.
    pub(super) fn rows(&self) -> [(&'static str, String); 4] {
        let Self { state_bytes, working_bytes, logits_bytes, program_bytes, .. } = self;
        let ram = state_bytes + working_bytes + logits_bytes + program_bytes;
        [
            ("board", format!("{}, {} path", self.board, self.path)),
            ("its model", format!("{} of {} bytes", self.file_bytes, self.model_memory_bytes)),
            (
                "its RAM",
                format!(
                    "{ram} of {} bytes: state {state_bytes}, working memory {working_bytes}, logits {logits_bytes}, \
                     program {program_bytes}",
                    self.ram_bytes
                ),
            ),
            (
                "fits",
                match &self.why {
                    None => "yes (a program without heap must be built for the model)".into(),
                    Some(why) => format!("no: {why}"),
                },
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elapid::{Engine, EngineOptions};

    fn fit(board: Board, model: &str) -> Fit {
        let file = format!("{}/../models/{model}", env!("CARGO_MANIFEST_DIR"));
        let engine = Engine::open(file.as_ref(), &EngineOptions::default()).unwrap();
        Fit::new(board, engine.layout())
    }

    #[test]
    fn the_boards_run_what_their_tests_run() {
        assert!(fit(Board::Mps2An500, "address-4m.elp").fits);
        for board in [Board::Mps2An385, Board::Mps2An505, Board::Pico2] {
            assert!(fit(board, "address-300k.elp").fits, "{}", board.name());
        }
    }

    #[test]
    fn what_does_not_fit_is_said_with_both_sizes() {
        let fit = fit(Board::Pico2, "address-4m.elp");
        let why = fit.why.unwrap();
        assert!(!fit.fits && why.contains("4521984") && why.contains("3145728"), "{why}");
    }
}
