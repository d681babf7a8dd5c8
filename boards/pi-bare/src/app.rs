//! The program: opens the model that is on the card, and talks.

use core::fmt;
use core::time::Duration;

use elapid_console::{Command, Console, Conversation, Error, Request, Settings, Text, obey};
use elapid_core::kernels::Team;
use elapid_core::source::LayerSource;
use elapid_pi_bare::arena::{Arena, OutOfMemory, Size};
use elapid_pi_bare::options::Options;
use elapid_pi_bare::storage::{
    Channel, Directory, DiskError, Entry, Figures, LoadError, Model, WeightSource, Weights,
};

use crate::arch::{self, CORES, Cores, EventCount, Workers, free_memory};
use crate::board::{self, Fault, Mailbox, Uart, card_hosts};
use crate::card::Card;
use crate::memory::Memory;
use crate::terminal::{Terminal, say};

const NO_MODEL: &str = "(no model; Enter looks at the card again) ";
/// Bytes of a line, and of the lines that can be brought back.
const LINE: usize = 2048;
const HISTORY: usize = 4096;
/// The file with settings, and how much of it is read.
const SETTINGS_FILE: &str = "ELAPID.TXT";
const SETTINGS_BYTES: usize = 4096;

/// Why no model is open.
enum Problem {
    Card(Fault),
    Disk(DiskError<Fault>),
    /// No file of the card is a model.
    NoModel,
    /// The file that was named is not there.
    NoSuchModel,
    Load(LoadError<Fault>),
    Memory(OutOfMemory),
    Open(Error),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Card(fault) => fault.fmt(f),
            Self::Disk(error) => error.fmt(f),
            Self::NoModel => f.write_str(
                "no model on the card: copy a packed model (a file that ends in .elp) into its first folder",
            ),
            Self::NoSuchModel => {
                f.write_str("the model that was named is not on the card: /model NAME names another")
            }
            Self::Load(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Open(error) => error.fmt(f),
        }
    }
}

impl From<DiskError<Fault>> for Problem {
    fn from(error: DiskError<Fault>) -> Self {
        Self::Disk(error)
    }
}

impl From<LoadError<Fault>> for Problem {
    fn from(error: LoadError<Fault>) -> Self {
        Self::Load(error)
    }
}

impl From<OutOfMemory> for Problem {
    fn from(error: OutOfMemory) -> Self {
        Self::Memory(error)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Open(error)
    }
}

/// Where someone types, and what was set there.
struct User {
    terminal: Terminal,
    console: Console<LINE, HISTORY>,
    settings: Settings,
    options: Options,
}

/// Runs on core 0.
pub fn main() -> ! {
    let mut mailbox = Mailbox::new();
    let mut terminal = Terminal::new(Uart::new(&mut mailbox));
    let rate = mailbox.full_speed().unwrap_or(0);
    let ranges = board::memory(&mut mailbox);
    // SAFETY: what the firmware says is the ARM cores' memory, in two parts that don't meet; the kernel's own is left out.
    #[allow(unsafe_code)]
    let mut regions = unsafe { free_memory(ranges) };
    let bytes = regions.iter().map(|region| region.len() as u64).sum();
    say!(&mut terminal, "\nElapid {} on a {}", env!("CARGO_PKG_VERSION"), board::machine());
    say!(&mut terminal, "{CORES} cores at {} MHz, {} of memory", rate / 1_000_000, Size(bytes));
    let Some(mut workers) = Workers::start() else { arch::stop() };

    let mut user = User {
        terminal,
        console: Console::new(),
        settings: Settings::default(),
        options: Options::default(),
    };
    let mut card = None;
    let mut first = true;
    loop {
        let arena = Arena::new(regions.each_mut().map(|region| &mut **region), user.options.memory);
        let opened = open_and_talk(&mut user, &mut card, &mut mailbox, &mut workers, arena, &mut first);
        let request = opened.unwrap_or_else(|problem| {
            say!(&mut user.terminal, "error: {problem}");
            // Whatever was wrong with it, the card may be another one next time.
            card = None;
            let User { terminal, console, settings, options } = &mut user;
            console.wait(terminal, NO_MODEL, settings, options)
        });
        if request == Request::Exit {
            say!(&mut user.terminal, "restarting");
            user.terminal.flush();
            board::restart();
        }
    }
}

/// Opens a model and talks until something else is wanted.
fn open_and_talk(
    user: &mut User,
    card: &mut Option<Card>,
    mailbox: &mut Mailbox,
    workers: &mut Workers,
    mut arena: Arena<'_>,
    first: &mut bool,
) -> Result<Request, Problem> {
    let terminal = &mut user.terminal;
    let card = match card {
        Some(card) => card,
        None => card.insert(Card::find(card_hosts(mailbox)).map_err(Problem::Card)?),
    };
    say!(terminal, "card: {} at {}", Size(u64::from(card.blocks()) * 512), card.controller());
    let directory = Directory::open(card)?;
    if core::mem::take(first) {
        read_settings(&directory, card, user)?;
    }
    let terminal = &mut user.terminal;
    let entry = find_model(&directory, card, &user.options, terminal)?;
    let file = directory.locate(card, &entry, &mut arena)?;
    let model = Model::open(card, file, &mut arena)?;
    let memory = Memory::take(&model, &mut arena)?;
    let start = arch::now();
    let weights = model.weights(card, &mut arena, progress(terminal))?;
    let took = arch::now().saturating_sub(start);
    let Weights { plan, held, buffers, urgent } = weights;
    say!(
        terminal,
        "{}: {}, {} held, read in {:.1} s",
        entry.name(),
        Size(u64::from(entry.size)),
        Size(plan.held),
        took.as_secs_f32()
    );

    let computing = (user.options.cores as usize).clamp(1, CORES);
    let workers = workers.all();
    if !plan.streams() {
        let team = Cores::new(&mut workers[..computing - 1]);
        let mut source = WeightSource::<EventCount>::new(model.layout(), held, None);
        return talk(&model, memory, &mut source, &team, user);
    }

    say!(terminal, "{} are read from the card for every token, by a core of its own", Size(plan.streamed));
    let layout = model.layout();
    let mut channel = Channel::new(EventCount::new(), EventCount::new(), arch::now);
    let mut rest = buffers;
    let buffers = plan.buffers(layout).map_while(|size| rest.split_off_mut(..size));
    // With one buffer a block can be asked for when the one before is no longer used.
    let buffers = buffers.take(if user.options.ahead { usize::MAX } else { 1 });
    let (reader, stream) =
        channel.split(layout, model.checksums, |section| plan.holds(layout, section), buffers, urgent);
    let Some((reading, others)) = workers.split_last_mut() else { return Ok(Request::Reload) };
    let team = Cores::new(&mut others[..computing.min(CORES - 1) - 1]);
    let retries = card.retries();
    let result = reading.beside(
        || {
            reader.run(|offset, into| {
                file.read(card, offset, into).map_err(|fault| fault.unwrap_or(Fault::Range).code())
            });
        },
        || {
            let mut source = WeightSource::new(layout, held, Some(stream));
            let request = talk(&model, memory, &mut source, &team, user)?;
            if let Some(stream) = &source.stream {
                streamed(&stream.figures(), &user.settings, &mut user.terminal);
            }
            Ok(request)
        },
    );
    if card.retries() > retries {
        say!(&mut user.terminal, "{} transfers had to be tried again", card.retries() - retries);
    }
    result
}

/// Writes how far reading has come, once a second.
fn progress(terminal: &mut Terminal) -> impl FnMut(u64, u64) + '_ {
    let mut next = arch::now() + Duration::from_secs(1);
    move |done, all| {
        if arch::now() >= next {
            next = arch::now() + Duration::from_secs(1);
            say!(terminal, "reading the weights: {} of {}", Size(done), Size(all));
        }
    }
}

/// Takes the settings in [`SETTINGS_FILE`], if there is one.
fn read_settings(directory: &Directory, card: &mut Card, user: &mut User) -> Result<(), Problem> {
    let User { terminal, settings, options, .. } = user;
    let mut found = None;
    directory.for_each(card, |entry| {
        if entry.name().eq_ignore_ascii_case(SETTINGS_FILE) {
            found = Some(*entry);
        }
    })?;
    let Some(entry) = found else { return Ok(()) };
    let mut bytes = [0; SETTINGS_BYTES];
    // Room for the list of its pieces: a cluster each, at worst.
    let mut memory = [0; 512];
    let file = directory.locate(card, &entry, &mut Arena::new([&mut memory, &mut []], u64::MAX))?;
    let length = (file.size as usize).min(SETTINGS_BYTES);
    // A file that is said to be there and can't be read is a card's fault; the model will tell it.
    if file.read(card, 0, &mut bytes[..length.next_multiple_of(512)]).is_err() {
        return Ok(());
    }
    let text = core::str::from_utf8(&bytes[..length])
        .unwrap_or_else(|error| core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""));
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match obey(line, settings, options) {
            Ok(Command::Set | Command::Reload) => say!(terminal, "{SETTINGS_FILE}: {line}"),
            Ok(_) => say!(terminal, "{SETTINGS_FILE}: `{line}` is no setting"),
            Err(refusal) => say!(terminal, "{SETTINGS_FILE}: {refusal}"),
        }
    }
    Ok(())
}

/// The model that was named, or the first one.
fn find_model(
    directory: &Directory,
    card: &mut Card,
    options: &Options,
    terminal: &mut Terminal,
) -> Result<Entry, Problem> {
    let (mut chosen, mut models) = (None, 0);
    directory.for_each(card, |entry| {
        let name = entry.name();
        let is_model =
            name.rsplit_once('.').is_some_and(|(_, extension)| extension.eq_ignore_ascii_case("elp"));
        models += u32::from(is_model);
        let wanted = options.model().map_or(is_model, |wanted| name.eq_ignore_ascii_case(wanted));
        if wanted && chosen.is_none() {
            chosen = Some(*entry);
        }
        if is_model {
            say!(terminal, "model: {name} ({})", Size(u64::from(entry.size)));
        }
    })?;
    let none = if options.model().is_some() && models > 0 { Problem::NoSuchModel } else { Problem::NoModel };
    chosen.ok_or(none)
}

/// Talks about a model until a command asks for something else.
fn talk(
    model: &Model<'_>,
    memory: Memory<'_>,
    source: &mut impl LayerSource,
    team: &dyn Team,
    user: &mut User,
) -> Result<Request, Problem> {
    let User { terminal, console, settings, options } = user;
    let vocab = model.layout().config().vocab;
    let text = Text::parse(model.tokenizer, model.generation, model.roles, vocab)?;
    let (mut engine, buffers) = memory.engine(model, source, team)?;
    let mut conversation = Conversation::new(&text, &mut engine, buffers);
    Ok(console.talk(terminal, &mut conversation, settings, options))
}

/// What reading from the card came to: for people, or for the tests.
fn streamed(figures: &Figures, settings: &Settings, terminal: &mut Terminal) {
    let Figures { early, late, reading, waited } = figures;
    if settings.check {
        say!(terminal, "--- reading {}\n--- waited {}", reading.as_micros(), waited.as_micros());
    }
    say!(
        terminal,
        "{} blocks from the card, {early} of them before they were wanted; the computation waited {:.1} s of {:.1} s of \
         reading",
        early + late,
        waited.as_secs_f32(),
        reading.as_secs_f32()
    );
}
