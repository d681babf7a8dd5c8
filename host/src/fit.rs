//! Whether a model fits a board with a microcontroller, and the sizes that decide it.

use elapid_boards::{Board, Numbers};
use elapid_core::fixed;
use elapid_core::format::Layout;
use elapid_core::kernels::{self, Solo};
use elapid_core::model::{ScratchSize, StateKind, StateSize};
use elapid_core::source::SliceSource;
use serde::Serialize;

/// Bytes of a memory that the model needs, and that there are.
#[derive(Debug, Serialize)]
struct Need {
    memory: &'static str,
    need_bytes: u64,
    have_bytes: u64,
}

/// What a model needs of a board, and whether the board has it.
#[derive(Debug, Serialize)]
pub struct Fit {
    board: &'static str,
    core: &'static str,
    path: &'static str,
    /// The packed file, read in place.
    file: Need,
    /// Everything below.
    ram: Need,
    /// Of all layers, with the undo copy of one.
    state_bytes: u64,
    /// Of a step of one token, with the marks of checked blocks.
    working_bytes: u64,
    /// A row of them; in the fixed path as integers and as the sampler's floats.
    logits_bytes: u64,
    /// The program's own data; 0 where that lies in another memory.
    data_bytes: u64,
    /// What the stack may take; 0 where that lies in another memory.
    stack_bytes: u64,
    fits: bool,
    /// What keeps the model from running.
    obstacles: Vec<String>,
    /// What it takes to run a model that fits.
    #[serde(skip)]
    how: &'static str,
}

impl Fit {
    /// Of the model with this layout.
    #[must_use]
    pub fn new(board: &'static Board, layout: &Layout) -> Self {
        let config = layout.config();
        let layers = config.n_layer as usize;
        let (path, state, working, element) = match board.numbers {
            Numbers::Float => {
                let state = |layers| StateSize::of(config, layers).bytes(StateKind::F32);
                ("float", state(layers).saturating_add(state(1)), ScratchSize::of(config, 1).bytes(), 4)
            }
            Numbers::Fixed => {
                let state = |layers| fixed::StateSize::of(config, layers).bytes(fixed::StateKind::I16);
                let working = fixed::ScratchSize::of(config, 1).bytes();
                ("fixed", state(layers).saturating_add(state(1)), working, 8)
            }
        };
        let working = working.saturating_add(4 * SliceSource::checked_words(layout));
        let [state_bytes, working_bytes] = [state as u64, working as u64];
        let logits_bytes = u64::from(config.padded_vocab()) * element;
        let (memory, data_bytes, stack_bytes, how) = match board.heap {
            Some(heap) => (heap, 0, 0, "yes, as the program is"),
            None => (board.ram, board.data, board.stack, "yes, with a program that is built for this model"),
        };
        let need = [working_bytes, logits_bytes, data_bytes, stack_bytes];
        let need_bytes = need.into_iter().fold(state_bytes, u64::saturating_add);
        let ram = Need { memory: memory.name, need_bytes, have_bytes: memory.bytes };
        let file =
            Need { memory: board.model.name, need_bytes: layout.file_bytes(), have_bytes: board.model.bytes };
        let mut obstacles = Vec::new();
        for (what, need) in [("the file", &file), ("what is computed with", &ram)] {
            let Need { memory, need_bytes, have_bytes } = need;
            if need_bytes > have_bytes {
                obstacles
                    .push(format!("{memory}: {what} takes {need_bytes} bytes, and there are {have_bytes}"));
            }
        }
        if board.numbers == Numbers::Fixed {
            // Which types of weights it takes is its own to say.
            let model = fixed::Model::fixed(layout, &kernels::fixed::Scalar, &Solo);
            obstacles.extend(model.err().map(|error| error.to_string()));
        }
        Self {
            board: board.name,
            core: board.core,
            path,
            file,
            ram,
            state_bytes,
            working_bytes,
            logits_bytes,
            data_bytes,
            stack_bytes,
            fits: obstacles.is_empty(),
            obstacles,
            how,
        }
    }

    /// Whether it fits, or what keeps the model from running, in a line.
    #[must_use]
    pub fn verdict(&self) -> String {
        if self.fits { self.how.into() } else { format!("no: {}", self.obstacles.join("; ")) }
    }

    /// Lines for a person: name and value.
    #[must_use]
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let of =
            |need: &Need| format!("{:>9}  of {} bytes: {}", need.need_bytes, need.have_bytes, need.memory);
        let mut rows = vec![
            ("board", format!("{}: {}, {} path", self.board, self.core, self.path)),
            ("file", of(&self.file)),
            ("memory", of(&self.ram)),
        ];
        let parts = [
            ("  state", self.state_bytes, "all layers, and an undo copy of one"),
            ("  working", self.working_bytes, "a step of one token, and marks of checked blocks"),
            ("  logits", self.logits_bytes, "a row"),
            ("  program", self.data_bytes, "conversation and console"),
            ("  stack", self.stack_bytes, "at most"),
        ];
        let parts = parts.into_iter().filter(|(_, bytes, _)| *bytes > 0);
        rows.extend(parts.map(|(name, bytes, what)| (name, format!("{bytes:>9}  {what}"))));
        rows.push(("fits", if self.fits { self.how.into() } else { "no".into() }));
        rows.extend(self.obstacles.iter().map(|why| ("", why.clone())));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elapid_boards::{BOARDS, find};
    use elapid_core::format::{Config, Fields, Header, Quant, Quants};

    fn layout(model: &str, change: impl FnOnce(&mut Fields)) -> Layout {
        let file = format!("{}/models/{model}", env!("CARGO_MANIFEST_DIR"));
        let header = Header::parse(&std::fs::read(file).unwrap()).unwrap();
        let mut fields = *header.layout().config().fields();
        change(&mut fields);
        Config::new(fields).and_then(Layout::new).unwrap()
    }

    #[test]
    fn every_board_has_room_for_the_model_of_its_test() {
        for board in &BOARDS {
            let model = if board.heap.is_some() { "address-4m.elp" } else { "address-300k.elp" };
            let fit = Fit::new(board, &layout(model, |_| {}));
            assert!(fit.fits, "{fit:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_said_with_both_sizes() {
        for board in &BOARDS {
            // A state that no memory holds, a file that no memory holds.
            let long = Fit::new(board, &layout("address-300k.elp", |f| f.n_layer = 4096));
            assert!(
                !long.fits && long.obstacles.iter().any(|why| why.starts_with(long.ram.memory)),
                "{long:?}"
            );
            let wide = Fit::new(board, &layout("address-4m.elp", |f| f.vocab = 1 << 18));
            let why = format!("takes {} bytes, and there are {}", wide.file.need_bytes, board.model.bytes);
            assert!(!wide.fits && wide.obstacles.iter().any(|o| o.contains(&why)), "{wide:?}");
        }
    }

    #[test]
    fn the_fixed_path_takes_no_floats() {
        let floats = Quants { in_proj: Quant::F16, ..layout("address-300k.elp", |_| {}).config().quants };
        let fit = |name| Fit::new(find(name).unwrap(), &layout("address-300k.elp", |f| f.quants = floats));
        assert!(fit("mps2-an500").fits);
        let refused = fit("mps2-an385");
        assert!(!refused.fits && refused.obstacles.iter().any(|why| why.contains("f16")), "{refused:?}");
    }
}
