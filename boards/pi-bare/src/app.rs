//! The program: opens the model that is on the card, and talks.

use core::fmt;
use core::time::Duration;

use elapid_console::{Command, Console, Conversation, Error, Place, Request, Settings, Text, obey};
use elapid_core::kernels::Team;
use elapid_core::model::Position;
use elapid_core::model::snapshot::{About, SnapshotError};
use elapid_core::source::LayerSource;
use elapid_pi_bare::arena::{Arena, OutOfMemory, Size};
use elapid_pi_bare::options::{Action, Options};
use elapid_pi_bare::storage::{
    Channel, Directory, DiskError, Entry, Figures, LoadError, Model, SESSION_FILE, SlotError, Slots,
    WeightSource, Weights,
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
    Session(SlotError<Fault>),
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
            Self::Session(error) => error.fmt(f),
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

impl From<SlotError<Fault>> for Problem {
    fn from(error: SlotError<Fault>) -> Self {
        Self::Session(error)
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
    // A command that was given without a model has nothing to save or load.
    user.options.action = None;
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
    let mut memory = Memory::take(&model, &mut arena)?;
    let start = arch::now();
    let weights = model.weights(card, &mut arena, progress(terminal))?;
    let took = arch::now().saturating_sub(start);
    let Weights { plan, held, buffers, mut urgent } = weights;
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
    if plan.streams() {
        let streamed = Size(plan.streamed);
        say!(terminal, "{streamed} are read from the card for every token, by a core of its own");
    }
    let layout = model.layout();
    let mut kept = Kept::default();
    let retries = card.retries();
    let request = loop {
        let request = if plan.streams() {
            let mut channel = Channel::new(EventCount::new(), EventCount::new(), arch::now);
            let mut rest = &mut *buffers;
            let buffers = plan.buffers(layout).map_while(|size| rest.split_off_mut(..size));
            // With one buffer a block can be asked for when the one before is no longer used.
            let buffers = buffers.take(if user.options.ahead { usize::MAX } else { 1 });
            let holds = |section| plan.holds(layout, section);
            let urgent = urgent.as_deref_mut();
            let (reader, stream) = channel.split(layout, model.checksums, holds, buffers, urgent);
            let Some((reading, others)) = workers.split_last_mut() else { return Ok(Request::Reload) };
            let team = Cores::new(&mut others[..computing.min(CORES - 1) - 1]);
            let read = |offset, into: &mut [u8]| {
                file.read(card, offset, into).map_err(|fault| fault.unwrap_or(Fault::Range).code())
            };
            reading.beside(
                || reader.run(read),
                || {
                    let mut source = WeightSource::new(layout, held, Some(stream));
                    let request = talk(&model, &mut memory, &mut kept, &mut source, &team, user)?;
                    if let Some(stream) = &source.stream
                        && user.options.action.is_none()
                    {
                        streamed(&stream.figures(), &user.settings, &mut user.terminal);
                    }
                    Ok::<_, Problem>(request)
                },
            )?
        } else {
            let team = Cores::new(&mut workers[..computing - 1]);
            let mut source = WeightSource::<EventCount>::new(layout, held, None);
            talk(&model, &mut memory, &mut kept, &mut source, &team, user)?
        };
        // The card is free now.
        let Some(action) = user.options.action.take() else { break request };
        match session_file(action, &directory, card, &model, &mut memory, &mut kept) {
            Ok(()) => {
                let done = if action == Action::Save { "saved" } else { "loaded" };
                say!(&mut user.terminal, "{done}: {} tokens", kept.place.tokens);
            }
            Err(problem) => say!(&mut user.terminal, "error: {problem}"),
        }
    };
    if card.retries() > retries {
        say!(&mut user.terminal, "{} transfers had to be tried again", card.retries() - retries);
    }
    Ok(request)
}

/// Where a conversation stands while nobody talks.
#[derive(Clone, Copy, Default)]
struct Kept {
    place: Place,
    /// Whether a chat has begun.
    begun: bool,
}

/// Saves the session to its file on the card, or loads it.
fn session_file(
    action: Action,
    directory: &Directory,
    card: &mut Card,
    model: &Model<'_>,
    memory: &mut Memory<'_>,
    kept: &mut Kept,
) -> Result<(), Problem> {
    if action == Action::Save && !(kept.begun && kept.place.tokens > 0) {
        return Err(SlotError::Nothing.into());
    }
    let fingerprint = model.header.fingerprint();
    let about = About { fingerprint, tokens: kept.place.tokens, half: false };
    let (mut session, logits) = memory.session(model, kept.place)?;
    // All snapshots of a model that have logits are as long.
    let bytes = session.saved_bytes(&About { tokens: 1, ..about });
    let mut found = None;
    directory.for_each(card, |entry| {
        if entry.name().eq_ignore_ascii_case(SESSION_FILE) {
            found = Some(*entry);
        }
    })?;
    let entry = found.ok_or(SlotError::NoFile { need: Slots::file_bytes(bytes) })?;
    // Room for the list of its pieces.
    let mut pieces = [0; 2048];
    let file = directory.locate(card, &entry, &mut Arena::new([&mut pieces, &mut []], u64::MAX))?;
    let slots = Slots::new(&file, bytes)?;
    match action {
        Action::Save => slots.save(card, bytes, kept.begun, |writer| {
            session.save(0, &about, Some(logits), writer).map_err(of_slot)
        })?,
        Action::Load => {
            let slot = slots.newest(card)?.ok_or(SlotError::Empty)?;
            // Nothing is changed by a snapshot that can't be used.
            session.check_saved(&fingerprint, &mut slots.source(card, &slot)).map_err(of_slot)?;
            let loaded = session.load(0, &fingerprint, &mut slots.source(card, &slot), logits);
            // What could be read once and not again leaves nothing.
            *kept = Kept::default();
            let tokens = loaded.map_err(of_slot)?.about.tokens;
            *kept = Kept { place: Place { position: Position::default(), tokens }, begun: slot.begun };
        }
    }
    Ok(())
}

/// Why a snapshot could not be saved or loaded.
fn of_slot(error: SnapshotError<SlotError<Fault>>) -> SlotError<Fault> {
    match error {
        SnapshotError::Stream(error) => error,
        other => SlotError::Snapshot(other.without_stream()),
    }
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
    memory: &mut Memory<'_>,
    kept: &mut Kept,
    source: &mut impl LayerSource,
    team: &dyn Team,
    user: &mut User,
) -> Result<Request, Problem> {
    let User { terminal, console, settings, options } = user;
    let vocab = model.layout().config().vocab;
    let text = Text::parse(model.tokenizer, model.generation, model.roles, vocab)?;
    let (mut engine, buffers) = memory.engine(model, source, team, kept.place)?;
    let mut conversation = Conversation::new(&text, &mut engine, buffers).resumed(kept.begun);
    let request = loop {
        let request = console.talk(terminal, &mut conversation, settings, options);
        if options.action != Some(Action::Save) {
            break request;
        }
        // Whatever is to be computed for it needs the weights.
        match conversation.settle() {
            Ok(()) => break request,
            Err(error) => say!(terminal, "error: {error}"),
        }
        options.action = None;
    };
    *kept = Kept { place: conversation.place(), begun: conversation.begun() };
    Ok(request)
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
