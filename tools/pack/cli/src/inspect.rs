//! `elapid-pack inspect`: what a checkpoint holds, and what packing will make of it.

use std::io::{self, Write};
use std::path::PathBuf;

use elapid::{Fit, Plan, SessionOptions};
use elapid_args::bytes;
use elapid_boards::{BOARDS, Board as Small, COMPUTERS, Computer};
use elapid_core::format::{Layout, Quant};
use elapid_pack::checkpoint::{Arch, ModelConfig};
use elapid_pack::pack::parse_quant;
use elapid_pack::{Contents, Inspection, Options, Packed, inspect};
use serde::Serialize;

use crate::error::Error;
use crate::needs;
use crate::options::block_bytes;

/// Print what a checkpoint holds and what packing makes of it, without reading its weights
///
/// Architecture, dimensions, tensors, tokenizer, what will be refused and why, and for each type of weights the size of the packed
/// file and the memory that it needs. The exit code is 3 if the checkpoint will be refused.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to inspect: as SOURCE of packing
    source: PathBuf,

    /// Print JSON: architecture, config, tensors, tokenizer, eos, chat_template, problems, packed, …
    #[arg(long)]
    json: bool,

    /// Estimate the speed on this board: pi-zero2, pi3, pi4 or pi5, or print whether the model fits a board with a microcontroller.
    /// Default: no board
    #[arg(long, value_name = "NAME", value_parser = board)]
    board: Option<Board>,

    /// Memory that the model may take on that board. Default: three quarters of what the smallest such board has
    #[arg(long, value_name = "SIZE", value_parser = bytes::<u64>("400M"), requires = "board", allow_hyphen_values = true)]
    ram: Option<u64>,

    /// Type of the weights of head and embedding. Default: that of the other matrices, as in packing
    #[arg(long, value_parser = parse_quant, value_name = "f32|f16|q8|q5|q4|q3")]
    head: Option<Quant>,

    /// Tokenizer: a tokenizer.json, or a folder with one. Default: that of SOURCE
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Size of a block: 16K to 1M, a multiple of 16K
    #[arg(long, value_parser = block_bytes, default_value = "1M", value_name = "SIZE", allow_hyphen_values = true)]
    block: u32,

    /// Align to 512 bytes instead of pages
    #[arg(long)]
    compact: bool,
}

/// A board that an argument names.
#[derive(Clone, Copy)]
enum Board {
    /// With a microcontroller.
    Small(&'static Small),
    /// With Linux.
    Linux(&'static Computer),
}

fn board(name: &str) -> Result<Board, String> {
    let linux = elapid_boards::find_computer(name).map(Board::Linux);
    linux.or_else(|| elapid_boards::find(name).map(Board::Small)).ok_or_else(|| {
        let known = COMPUTERS.iter().map(|board| board.name).chain(BOARDS.iter().map(|board| board.name));
        format!("give the name of a board: {}", known.collect::<Vec<_>>().join(", "))
    })
}

#[derive(Serialize)]
struct Report<'a> {
    source: String,
    format: Option<&'static str>,
    architecture: Option<&'static str>,
    config: Option<Dimensions>,
    tensors: Vec<Tensors<'a>>,
    tokenizer: Option<Tokenizer>,
    eos: Vec<End<'a>>,
    chat_template: bool,
    role_table: bool,
    notes: &'a [String],
    problems: Vec<String>,
    board: Option<&'static str>,
    board_ram_bytes: Option<u64>,
    packed: Vec<Row>,
}

#[derive(Serialize)]
struct Dimensions {
    d_model: usize,
    d_inner: usize,
    d_state: usize,
    d_conv: usize,
    dt_rank: usize,
    n_layer: usize,
    vocab: usize,
    norm_eps: f32,
    bcdt_eps: Option<f32>,
    tied: bool,
    bias: bool,
    conv_bias: bool,
}

#[derive(Serialize)]
struct Tensors<'a> {
    r#type: &'a str,
    count: usize,
    values: u64,
}

#[derive(Serialize)]
struct Tokenizer {
    kind: &'static str,
    tokens: u32,
}

#[derive(Serialize)]
struct End<'a> {
    id: u32,
    text: Option<&'a str>,
}

/// A type of weights: the file, and what it needs.
#[derive(Serialize)]
struct Row {
    quant: &'static str,
    head: &'static str,
    is_default: bool,
    file_bytes: u64,
    least_ram_bytes: u64,
    mapped_ram_bytes: u64,
    #[serde(flatten)]
    on_board: Option<OnBoard>,
}

/// What a board makes of it.
#[derive(Serialize)]
#[serde(untagged)]
enum OnBoard {
    Linux {
        /// Absent where the memory is too little.
        tokens_per_second: Option<f64>,
        streamed_bytes_per_token: Option<u64>,
        limited_by: &'static str,
    },
    Small {
        fit: Fit,
    },
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let options =
        Options { head: args.head, block_bytes: args.block, compact: args.compact, ..Options::default() };
    let inspection = inspect(&args.source, args.tokenizer.as_deref(), &options)?;
    let report = Report::new(&inspection, args);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = if args.json {
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        report.print(&inspection.contents, &mut out, args.board)
    };
    done.and_then(|()| out.flush()).map_err(Error::Output)?;
    if inspection.problems.is_empty() { Ok(()) } else { Err(Error::Refused) }
}

impl<'a> Report<'a> {
    fn new(inspection: &'a Inspection, args: &Args) -> Self {
        let Inspection { path, format, config, tensors, contents, notes, problems, packed, .. } = inspection;
        let ram = match args.board {
            Some(Board::Linux(board)) => Some(args.ram.unwrap_or(board.ram())),
            _ => None,
        };
        let problem = |(problem, more): &(elapid_pack::PackError, usize)| match more {
            0 => problem.to_string(),
            more => format!("{problem} (and {more} more of this kind)"),
        };
        Self {
            source: path.display().to_string(),
            format: *format,
            architecture: config.as_ref().map(|config| match config.arch {
                Arch::Mamba => "mamba",
                Arch::FalconMamba => "falcon_mamba",
            }),
            config: config.as_ref().map(Dimensions::of),
            tensors: tensors
                .iter()
                .map(|(name, count, values)| Tensors { r#type: name, count: *count, values: *values })
                .collect(),
            tokenizer: contents.tokenizer.map(|(kind, tokens)| Tokenizer { kind, tokens }),
            eos: contents.ends.iter().map(|(id, text)| End { id: *id, text: text.as_deref() }).collect(),
            chat_template: contents.chat_template,
            role_table: contents.role_table,
            notes,
            problems: problems.iter().map(problem).collect(),
            board: args.board.map(|board| match board {
                Board::Small(board) => board.name,
                Board::Linux(board) => board.name,
            }),
            board_ram_bytes: ram,
            packed: packed.iter().map(|packed| Row::new(packed, args.board, ram)).collect(),
        }
    }
}

impl Dimensions {
    fn of(c: &ModelConfig) -> Self {
        Self {
            d_model: c.d_model,
            d_inner: c.d_inner,
            d_state: c.d_state,
            d_conv: c.d_conv,
            dt_rank: c.dt_rank,
            n_layer: c.n_layer,
            vocab: c.vocab_size,
            norm_eps: c.norm_eps,
            bcdt_eps: c.mixer_rms_eps,
            tied: c.tied,
            bias: c.use_bias,
            conv_bias: c.use_conv_bias,
        }
    }
}

impl Row {
    fn new(packed: &Packed, board: Option<Board>, ram: Option<u64>) -> Self {
        let layout = &packed.layout;
        let [least_ram_bytes, mapped_ram_bytes] = needs::least_caps(layout);
        Self {
            quant: packed.quant.name(),
            head: layout.config().quants.head.name(),
            is_default: packed.is_default,
            file_bytes: layout.file_bytes(),
            least_ram_bytes,
            mapped_ram_bytes,
            on_board: board.map(|board| match board {
                Board::Small(board) => OnBoard::Small { fit: Fit::new(board, layout) },
                Board::Linux(board) => OnBoard::estimate(board, ram.unwrap_or(board.ram()), layout),
            }),
        }
    }
}

impl OnBoard {
    /// The speed where reading the weights, from memory or from the card, is what takes the time.
    fn estimate(board: &Computer, ram: u64, layout: &Layout) -> Self {
        let Ok(plan) = Plan::predict(layout, ram, board.cores, needs::READS, &SessionOptions::default())
        else {
            return Self::Linux {
                tokens_per_second: None,
                streamed_bytes_per_token: None,
                limited_by: "too little memory",
            };
        };
        let from_memory = plan.weights_bytes as f64 / board.memory_rate;
        let from_card = plan.seconds_per_token(board.card_rate);
        Self::Linux {
            tokens_per_second: Some(1.0 / from_memory.max(from_card).max(1e-9)),
            streamed_bytes_per_token: Some(plan.streamed_bytes),
            limited_by: if from_card > from_memory { "card" } else { "memory" },
        }
    }
}

impl Report<'_> {
    /// Writes it for a person.
    fn print(&self, contents: &Contents, out: &mut dyn Write, board: Option<Board>) -> io::Result<()> {
        let mut line = |name: &str, value: &str| writeln!(out, "{name:<15}{value}");
        line("source", &format!("{} ({})", self.source, self.format.unwrap_or("not readable")))?;
        line("architecture", self.architecture.unwrap_or("not one that is supported"))?;
        if let Some(c) = &self.config {
            line("layers", &format!("{} of d_model {}, d_inner {}", c.n_layer, c.d_model, c.d_inner))?;
            line("mixer", &format!("d_state {}, d_conv {}, dt_rank {}", c.d_state, c.d_conv, c.dt_rank))?;
            let yes = |flag| if flag { "yes" } else { "no" };
            let [tied, bias, conv_bias] = [c.tied, c.bias, c.conv_bias].map(yes);
            line("options", &format!("tied head {tied}, biases {bias}, conv bias {conv_bias}"))?;
            line("vocabulary", &c.vocab.to_string())?;
        }
        let types: Vec<String> =
            self.tensors.iter().map(|t| format!("{} {} ({} values)", t.count, t.r#type, t.values)).collect();
        let types = if types.is_empty() { "none that can be read".into() } else { types.join(", ") };
        line("tensors", &types)?;
        if self.config.is_some() {
            line("tokenizer", &contents.tokenizer_text())?;
            line("end tokens", &contents.ends_text())?;
            line("chat template", contents.template_text())?;
        }
        self.notes.iter().try_for_each(|note| line("note", note))?;
        self.problems.iter().try_for_each(|problem| line("refused", problem))?;
        if self.packed.is_empty() {
            return Ok(());
        }
        self.print_packed(out, board)
    }

    /// Writes the table of types.
    fn print_packed(&self, out: &mut dyn Write, board: Option<Board>) -> io::Result<()> {
        let on_board = board.map_or(String::new(), |board| match board {
            Board::Small(board) => format!("  fits {}", board.name),
            Board::Linux(board) => format!("  {} at best, and what limits it", board.name),
        });
        writeln!(
            out,
            "\n{:<9}{:>15}{:>15}{:>15}{on_board}",
            "type", "file, bytes", "least --ram", "unstreamed"
        )?;
        for row in &self.packed {
            let mib = |bytes: u64| format!("{}M", bytes >> 20);
            let name = format!("{}{}", row.quant, if row.is_default { " *" } else { "" });
            let (least, whole) = (mib(row.least_ram_bytes), mib(row.mapped_ram_bytes));
            write!(out, "{name:<9}{:>15}{least:>15}{whole:>15}", row.file_bytes)?;
            match &row.on_board {
                Some(OnBoard::Linux { tokens_per_second: Some(speed), limited_by, .. }) => {
                    let speed = match *speed {
                        slow @ ..1.0 => format!("{:.1} s a token", 1.0 / slow),
                        speed => format!("{speed:.1} tokens/s"),
                    };
                    write!(out, "  {speed}, {limited_by}")?;
                }
                Some(OnBoard::Linux { limited_by, .. }) => write!(out, "  {limited_by}")?,
                Some(OnBoard::Small { fit }) => write!(out, "  {}", fit.verdict())?,
                None => {}
            }
            writeln!(out)?;
        }
        writeln!(
            out,
            "\n* where --quant is left out. Rows that need exponents, which only their values tell, take a little more."
        )?;
        if let (Some(Board::Linux(board)), Some(ram)) = (board, self.board_ram_bytes) {
            writeln!(
                out,
                "{} with {} MiB for the model: estimated from {:.0} GB/s of memory and {:.0} MB/s of card, not measured.",
                board.title,
                ram >> 20,
                board.memory_rate / 1e9,
                board.card_rate / 1e6
            )?;
        }
        Ok(())
    }
}
