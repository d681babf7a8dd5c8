//! The program: opens the model that is on the card, and talks.

use core::fmt;
use core::time::Duration;

use elapid_pi_bare::arena::{Arena, Size};
use elapid_pi_bare::console::{COMMANDS, Command, Settings, parse_setting};
use elapid_pi_bare::storage::{
    Channel, Directory, DiskError, Entry, Figures, LoadError, Model, WeightSource, Weights,
};

use crate::arch::{self, CORES, Cores, EventCount, Workers, free_memory};
use crate::board::{self, Fault, Mailbox, Uart, card_hosts};
use crate::card::Card;
use crate::talk::{Generated, Memory, OpenError, Talk};
use crate::terminal::{Terminal, say};

const PROMPT: &str = "elapid> ";
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
    Open(OpenError),
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

impl From<OpenError> for Problem {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
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
    say!(&mut terminal, "\nElapid {} on a {}", env!("CARGO_PKG_VERSION"), board::board());
    say!(&mut terminal, "{CORES} cores at {} MHz, {} of memory", rate / 1_000_000, Size(bytes));
    let Some(mut workers) = Workers::start() else { arch::stop() };

    let mut settings = Settings::default();
    let mut card = None;
    let mut first = true;
    loop {
        let arena = Arena::new(regions.each_mut().map(|region| &mut **region), settings.memory);
        if let Err(problem) = open_and_talk(
            &mut terminal,
            &mut card,
            &mut mailbox,
            &mut workers,
            arena,
            &mut settings,
            &mut first,
        ) {
            say!(&mut terminal, "error: {problem}");
            // Whatever was wrong with it, the card may be another one next time.
            card = None;
            without_model(&mut terminal, &mut settings);
        }
    }
}

/// Opens a model and talks until another one is wanted.
fn open_and_talk(
    terminal: &mut Terminal,
    card: &mut Option<Card>,
    mailbox: &mut Mailbox,
    workers: &mut Workers,
    mut arena: Arena<'_>,
    settings: &mut Settings,
    first: &mut bool,
) -> Result<(), Problem> {
    let card = match card {
        Some(card) => card,
        None => card.insert(Card::find(card_hosts(mailbox)).map_err(Problem::Card)?),
    };
    say!(terminal, "card: {} at {}", Size(u64::from(card.blocks()) * 512), card.controller());
    let directory = Directory::open(card)?;
    if core::mem::take(first) {
        read_settings(&directory, card, settings, terminal)?;
    }
    let entry = find_model(&directory, card, settings, terminal)?;
    let file = directory.locate(card, &entry, &mut arena)?;
    let model = Model::open(card, file, &mut arena)?;
    let memory = Memory::take(&model, &mut arena).map_err(OpenError::Memory)?;
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

    let computing = (settings.cores as usize).clamp(1, CORES);
    let workers = workers.all();
    if !plan.streams() {
        let team = Cores::new(&mut workers[..computing - 1]);
        let mut source = WeightSource::<EventCount>::new(model.layout(), held, None);
        let mut talk = Talk::new(&model, memory, &mut source, &team)?;
        talk_until_reload(&mut talk, settings, terminal);
        return Ok(());
    }

    say!(terminal, "{} are read from the card for every token, by a core of its own", Size(plan.streamed));
    let layout = model.layout();
    let mut channel = Channel::new(EventCount::new(), EventCount::new(), arch::now);
    let mut rest = buffers;
    let buffers = plan.buffers(layout).map_while(|size| rest.split_off_mut(..size));
    // With one buffer a block can be asked for when the one before is no longer used.
    let buffers = buffers.take(if settings.ahead { usize::MAX } else { 1 });
    let (reader, stream) =
        channel.split(layout, model.checksums, |section| plan.holds(layout, section), buffers, urgent);
    let Some((reading, others)) = workers.split_last_mut() else { return Ok(()) };
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
            let mut talk = Talk::new(&model, memory, &mut source, &team)?;
            talk_until_reload(&mut talk, settings, terminal);
            if let Some(stream) = &source.stream {
                streamed(&stream.figures(), settings, terminal);
            }
            Ok(())
        },
    );
    if card.retries() > retries {
        say!(terminal, "{} transfers had to be tried again", card.retries() - retries);
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
fn read_settings(
    directory: &Directory,
    card: &mut Card,
    settings: &mut Settings,
    terminal: &mut Terminal,
) -> Result<(), Problem> {
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
        match parse_setting(line, settings) {
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
    settings: &Settings,
    terminal: &mut Terminal,
) -> Result<Entry, Problem> {
    let (mut chosen, mut models) = (None, 0);
    directory.for_each(card, |entry| {
        let name = entry.name();
        let is_model =
            name.rsplit_once('.').is_some_and(|(_, extension)| extension.eq_ignore_ascii_case("elp"));
        models += u32::from(is_model);
        let wanted = settings.model().map_or(is_model, |wanted| name.eq_ignore_ascii_case(wanted));
        if wanted && chosen.is_none() {
            chosen = Some(*entry);
        }
        if is_model {
            say!(terminal, "model: {name} ({})", Size(u64::from(entry.size)));
        }
    })?;
    let none = if settings.model().is_some() && models > 0 { Problem::NoSuchModel } else { Problem::NoModel };
    chosen.ok_or(none)
}

/// Talks until a command asks for a model to be opened.
fn talk_until_reload(talk: &mut Talk<'_, '_>, settings: &mut Settings, terminal: &mut Terminal) {
    say!(
        terminal,
        "/help lists the commands; Ctrl-C ends a text{}",
        if talk.can_chat() { "; this model chats" } else { "" }
    );
    loop {
        let mut line = [0; 2048];
        let typed = terminal.line(PROMPT);
        let length = typed.len().min(line.len());
        line[..length].copy_from_slice(&typed.as_bytes()[..length]);
        let line = core::str::from_utf8(&line[..length]).unwrap_or("");
        if line.is_empty() {
            continue;
        }
        if let Some(command) = line.strip_prefix('/') {
            match obey(command, settings, terminal) {
                Some(Command::Reload) => return,
                Some(Command::New) => talk.forget(),
                _ => {}
            }
            continue;
        }
        if settings.check {
            say!(terminal, "--- text");
        }
        match talk.say(line, settings, terminal) {
            Ok(generated) => report(&generated, settings, terminal),
            Err(error) => say!(terminal, "\nerror: {error}"),
        }
    }
}

/// Waits for a command that may bring a model.
fn without_model(terminal: &mut Terminal, settings: &mut Settings) {
    loop {
        let mut line = [0; 2048];
        let typed = terminal.line("(no model; Enter looks at the card again) ");
        let length = typed.len().min(line.len());
        line[..length].copy_from_slice(&typed.as_bytes()[..length]);
        let line = core::str::from_utf8(&line[..length]).unwrap_or("");
        match line.strip_prefix('/') {
            Some(command) => {
                if obey(command, settings, terminal) == Some(Command::Reload) {
                    return;
                }
            }
            None => return,
        }
    }
}

/// Does what a command asks for, as far as it can be done here.
fn obey(command: &str, settings: &mut Settings, terminal: &mut Terminal) -> Option<Command> {
    match parse_setting(command, settings) {
        Ok(command) => {
            match command {
                Command::Help => {
                    for (usage, what) in COMMANDS {
                        say!(terminal, "  /{usage:18} {what}");
                    }
                }
                Command::Restart => {
                    say!(terminal, "restarting");
                    terminal.flush();
                    board::restart();
                }
                _ => {}
            }
            Some(command)
        }
        Err(refusal) => {
            say!(terminal, "{refusal}");
            None
        }
    }
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

/// What a generation did: for people, or for the tests.
fn report(generated: &Generated<'_>, settings: &Settings, terminal: &mut Terminal) {
    let Generated { prompt, text, prompt_time, text_time, seed, logits, end } = generated;
    if settings.check {
        say!(terminal, "\n--- prompt {}\n--- tokens {}", Numbers(prompt), Numbers(text));
        let time = (*prompt_time + *text_time).as_micros();
        say!(
            terminal,
            "--- logits {logits:08x}\n--- time {time}\n--- stack {}\n--- ending{end}\n--- end",
            arch::stack_used()
        );
        return;
    }
    let rate = |tokens: usize, time: &Duration| tokens as f32 / time.as_secs_f32().max(1e-6);
    say!(
        terminal,
        "\n[prompt: {} tokens, {:.1} tokens/s; text: {} tokens, {:.1} tokens/s; seed {seed}{end}]",
        prompt.len(),
        rate(prompt.len(), prompt_time),
        text.len(),
        rate(text.len(), text_time)
    );
}

/// Numbers with spaces between.
struct Numbers<'a>(&'a [u32]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, number) in self.0.iter().enumerate() {
            write!(f, "{}{number}", if i > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}
