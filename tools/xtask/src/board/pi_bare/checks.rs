//! What the kernel does in QEMU's `raspi3b`, against what the host's program does.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use elapid_core::format::data::{RoleTable, Wrapping};
use elapid_core::format::{Header, Section};

use super::{EMULATOR, Emulator, MODEL, NAME, SESSION_FILE, card, model, qemu, read, session_file};
use crate::board::chat::with_roles;
use crate::board::qemu::Dialogue;
use crate::board::report::{Case, Report, measured};
use crate::board::sd_image::{self, Item};
use crate::board::{Request, fault, mcu::scratch};
use crate::counter::Counter;
use crate::error::{Context, Error, Result};
use crate::programs::Program;
use crate::toolchain::models;

const PROMPT: &str = "elapid> ";
const NO_MODEL: &str = "(no model; Enter looks at the card again) ";
const PATIENCE: Duration = Duration::from_secs(300);
/// A memory that holds a part of [`MODEL`].
const LITTLE: &str = "/memory 4700K\r";
/// Bytes of its 128 KiB of stack that a core may use.
const STACK: u64 = 96 << 10;
/// Code in which cores wait (`kernel8.ld`).
const IDLE: std::ops::Range<u64> = 0x8_0400..0x8_0440;

/// All cores take turns on one of ours: quick where ours are few, and the same order every time.
const IN_TURN: [&str; 2] = ["-accel", "tcg,thread=single"];
/// Each core is a thread of ours: only so do they race.
const AT_ONCE: [&str; 2] = ["-accel", "tcg,thread=multi"];
/// The same, and time is counted in instructions: the same every time.
const COUNTED_TIME: [&str; 2] = ["-icount", "shift=0"];

pub(super) fn all(emulator: &Emulator, kernel: &Path, request: &Request) -> Result<()> {
    // Before an emulator waits for it, which costs as much as working.
    Program::Elapid.build()?;
    generates_as_the_host(emulator, kernel, request)?;
    bad_models_are_told(emulator, kernel)?;
    bad_cards_are_told(emulator, kernel)?;
    a_card_that_fails_is_told(emulator, kernel)?;
    a_chat_goes_on_after_ctrl_c(emulator, kernel)?;
    a_session_survives_the_power(emulator, kernel)?;
    the_card_is_read_while_layers_are_computed(emulator, kernel)?;
    let counter = Counter::build(&crate::apt::emulator(EMULATOR))?;
    four_cores_are_faster(emulator, kernel, &counter)
}

/// What may differ on a board other than the first: its devices.
pub(super) fn another_board(emulator: &Emulator, kernel: &Path, request: &Request) -> Result<()> {
    if request.overwrite {
        return Err(Error::new(format!("what is stored is made on {NAME}")));
    }
    Program::Elapid.build()?;
    generates_as_the_host(emulator, kernel, request)?;
    a_session_survives_the_power(emulator, kernel)
}

/// Starts a kernel with a card; its console and the monitor are the dialogue's.
fn start(emulator: &Emulator, kernel: &Path, card: Option<&Path>, accelerator: &[&str]) -> Result<Dialogue> {
    let mut command = qemu(emulator, kernel, card);
    Dialogue::start(command.args(["-serial", "mon:stdio"]).args(accelerator), PATIENCE)
}

/// Ends the session: `/exit` restarts the board, and the emulator ends instead.
fn end(mut dialogue: Dialogue) -> Result<String> {
    dialogue.send("/exit\r")?;
    let ended = dialogue.end()?;
    match ended.code {
        0 => Ok(ended.console),
        code => Err(Error::new(format!("{EMULATOR} failed with code {code}; it wrote:\n{}", ended.console))),
    }
}

/// Has a case generated, after the prompt has been shown.
fn generate(dialogue: &mut Dialogue, case: &Case<'_>) -> Result<Report> {
    dialogue.send(&case.typed())?;
    let console = dialogue.until("--- end\n")?;
    let stack = measured(&console, "stack")?;
    if stack > STACK {
        return Err(Error::new(format!("a core used {stack} bytes of its stack, {STACK} are allowed")));
    }
    dialogue.until(PROMPT)?;
    Report::read(&console)
}

fn wants(console: &str, text: &str) -> Result<()> {
    if console.contains(text) {
        return Ok(());
    }
    Err(Error::new(format!("the console should say {text:?}; it says:\n{console}")))
}

fn generates_as_the_host(emulator: &Emulator, kernel: &Path, request: &Request) -> Result<()> {
    let model = model(request);
    let card = card(emulator.board, &model, None)?;
    let case = Case { model: &model, prompt: "My fellow citizens", tokens: 64, seed: 7, compute: &[] };
    let mut dialogue = start(emulator, kernel, Some(&card), &IN_TURN)?;
    dialogue.until(PROMPT)?;
    let held = generate(&mut dialogue, &case)?;
    end(dialogue)?;
    held.compare(&case.on_host(&held)?)?;
    if request.model.is_some() {
        return Ok(());
    }
    if held.tokens.len() != case.tokens {
        return Err(Error::new(format!("{} tokens came, not {}", held.tokens.len(), case.tokens)));
    }
    held.snapshot_is(NAME, request.overwrite)?;

    // Fewer tokens on cores that race: each of them keeps one of ours busy, also while it waits. With weights in memory, then
    // from the card.
    let mut dialogue = start(emulator, kernel, Some(&card), &AT_ONCE)?;
    dialogue.until(PROMPT)?;
    let short = Case { tokens: 6, ..case };
    for command in [None, Some(LITTLE)] {
        if let Some(command) = command {
            dialogue.send(command)?;
            wants(&dialogue.until(PROMPT)?, "are read from the card for every token")?;
        }
        let report = generate(&mut dialogue, &short)?;
        report.compare(&short.on_host(&report)?)?;
    }
    end(dialogue).map(|_| ())
}

/// What a model file can do to a user, in one session.
fn bad_models_are_told(emulator: &Emulator, kernel: &Path) -> Result<()> {
    let model = models().join("address-300k.elp");
    let good = read(&model)?;
    let large = read(&models().join(MODEL))?;
    let changed = |change: &dyn Fn(&mut Vec<u8>) -> Result<()>| {
        let mut bytes = good.clone();
        change(&mut bytes).map(|()| bytes)
    };
    let other = changed(&|bytes| fault::another_weight(bytes))?;
    let damaged = changed(&|bytes| fault::damaged_weight(bytes).map(|_| ()))?;
    let newer = changed(&|bytes| fault::newer_version(bytes))?;
    let short = changed(&|bytes| {
        bytes.truncate(bytes.len() - 4096);
        Ok(())
    })?;
    let file = scratch(emulator.board, "-faults.img")?;
    let items = [
        Item { name: "elapid.txt", bytes: b"# settings\nmodel = good.elp\ncores = many\n" },
        Item { name: "good.elp", bytes: &good },
        Item { name: "other.elp", bytes: &other },
        Item { name: "damaged.elp", bytes: &damaged },
        Item { name: "newer.elp", bytes: &newer },
        Item { name: "short.elp", bytes: &short },
        Item { name: "text.elp", bytes: b"not a model\n" },
        Item { name: "large.elp", bytes: &large },
    ];
    sd_image::write(&file, &items)?;
    let case = Case { model: &model, prompt: "The whale", tokens: 16, seed: 3, compute: &[] };

    let mut dialogue = start(emulator, kernel, Some(&file), &IN_TURN)?;
    let greeting = dialogue.until(PROMPT)?;
    wants(&greeting, "ELAPID.TXT: `cores = many`: it takes a number from 1 to 4")?;
    let report = generate(&mut dialogue, &case)?;
    let host = case.on_host(&report)?;
    report.compare(&host)?;

    // The canary: with one weight changed, the comparison must see it.
    dialogue.send("/model other.elp\r")?;
    dialogue.until(PROMPT)?;
    if generate(&mut dialogue, &case)?.compare(&host).is_ok() {
        return Err(Error::new("a model with another weight gives the same: the comparison does not work"));
    }

    for (command, told) in [
        (
            "/model damaged.elp",
            &["error: block ", " of section layer ", " is damaged (its checksum does not match)"][..],
        ),
        ("/model newer.elp", &["the file has format version 2, this program knows up to 1"]),
        ("/model short.elp", &["the file is cut short"]),
        ("/model text.elp", &["too few for a header"]),
        ("/model missing.elp", &["the model that was named is not on the card"]),
        (
            "/model large.elp\r/memory 2M",
            &[
                "the model is too large for the memory",
                "its weights need 1.6 MiB at least, and ",
                " are left",
            ],
        ),
        ("/memory 100K", &["not enough memory for the tokenizer: it needs 92 KiB and "]),
    ] {
        dialogue.send(&format!("{command}\r"))?;
        // The first of two commands ends at a prompt.
        for _ in 1..command.split('\r').count() {
            dialogue.until(PROMPT)?;
        }
        let console = dialogue.until(NO_MODEL)?;
        told.iter().try_for_each(|text| wants(&console, text))?;
    }
    end(dialogue).map(|_| ())
}

/// No card, one without a file system, and one without a model.
fn bad_cards_are_told(emulator: &Emulator, kernel: &Path) -> Result<()> {
    let file = scratch(emulator.board, "-none.img")?;
    for (card, told) in [
        (None, "error: no card answers"),
        (Some(&[][..]), "error: no model on the card"),
        (Some(&[0; 512][..]), "error: the card has no FAT file system"),
    ] {
        if let Some(first) = card {
            sd_image::write(&file, &[Item { name: "notes.txt", bytes: b"nothing" }])?;
            overwrite(&file, 0, first)?;
        }
        let mut dialogue = start(emulator, kernel, card.map(|_| file.as_path()), &IN_TURN)?;
        wants(&dialogue.until(NO_MODEL)?, told)?;
        end(dialogue)?;
    }
    Ok(())
}

fn overwrite(file: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    let written = || {
        let mut file = OpenOptions::new().write(true).open(file)?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)
    };
    written().context(|| format!("cannot write to {}", file.display()))
}

/// A card that gives wrong data without saying so, and one that is pulled out, while a text is generated from it.
fn a_card_that_fails_is_told(emulator: &Emulator, kernel: &Path) -> Result<()> {
    let model = models().join(MODEL);
    let card = card(emulator.board, &model, None)?;
    let case = Case { model: &model, prompt: "My fellow citizens", tokens: 4, seed: 7, compute: &[] };
    let mut dialogue = start(emulator, kernel, Some(&card), &IN_TURN)?;
    dialogue.until(PROMPT)?;
    dialogue.send(LITTLE)?;
    dialogue.until(PROMPT)?;

    // The first layer is never held where not all are. The block lies wrong on the card only while the text is made.
    let (at, good) = first_weights(&card, &model)?;
    overwrite(&card, at, &good.iter().map(|byte| !byte).collect::<Vec<_>>())?;
    dialogue.send(&case.typed())?;
    dialogue.until("--- text\n")?;
    let told = dialogue.until(PROMPT)?;
    wants(&told, "error: block 0 of section layer 0")?;
    wants(&told, "checksum does not match")?;
    overwrite(&card, at, &good)?;
    let again = generate(&mut dialogue, &case)?;
    again.compare(&case.on_host(&again)?)?;

    dialogue.send("/n 200\rMy fellow citizens\r")?;
    dialogue.until("--- text\n")?;
    monitor(&mut dialogue, "eject -f sd0")?;
    let told = dialogue.until(PROMPT)?;
    wants(&told, "error: block ")?;
    wants(&told, " of section ")?;
    wants(&told, ": no card answers: put it in, or look at its contacts")?;
    dialogue.send("/load\r")?;
    wants(&dialogue.until(NO_MODEL)?, "error: no card answers")?;
    end(dialogue).map(|_| ())
}

/// [`MODEL`] with roles, as a file and as bytes.
fn chatting(board: &str) -> Result<(PathBuf, Vec<u8>)> {
    let roles = RoleTable {
        user: Wrapping { prefix: "The people asked: ", suffix: "\n" },
        assistant: Wrapping { prefix: "The answer was: ", suffix: "\n" },
        generation: "The answer was:",
        ..RoleTable::default()
    };
    let chatting = with_roles(&read(&models().join(MODEL))?, &roles)?;
    let model = scratch(board, "-chat.elp")?;
    std::fs::write(&model, &chatting).context(|| format!("cannot write {}", model.display()))?;
    Ok((model, chatting))
}

/// A chat whose answers are ended by Ctrl-C: the next one is what the host makes of all that was said before.
fn a_chat_goes_on_after_ctrl_c(emulator: &Emulator, kernel: &Path) -> Result<()> {
    /// Answers that are ended at most: until one was within a token, as most are.
    const ENOUGH: u32 = 20;
    let (model, chatting) = chatting(emulator.board)?;
    let card = scratch(emulator.board, "-chat.img")?;
    sd_image::write(&card, &[Item { name: "chat.elp", bytes: &chatting }])?;
    let mut dialogue = start(emulator, kernel, Some(&card), &IN_TURN)?;
    dialogue.until("this model chats")?;
    dialogue.until(PROMPT)?;
    let settings = "/check\r/seed 7\r/n 4000\r";
    dialogue.send(settings)?;
    for _ in 0..settings.matches('\r').count() {
        dialogue.until(PROMPT)?;
    }
    for _ in 0..ENOUGH {
        dialogue.send("/new\rWhat is the state of the Union?\r")?;
        dialogue.until("--- text\n")?;
        // Some text has come: the prompt was read.
        let begun = dialogue.until(" ")?;
        dialogue.send("\x03")?;
        let told = format!("--- text\n{begun}{}", dialogue.until("--- end\n")?);
        wants(&told, "--- ending, interrupted\n")?;
        let first = Report::read(&told)?;
        dialogue.until(PROMPT)?;
        dialogue.send("/n 8\rAnd of the army?\r/n 4000\r")?;
        dialogue.until(PROMPT)?;
        let second = Report::read(&dialogue.until("--- end\n")?)?;
        dialogue.until(PROMPT)?;
        dialogue.until(PROMPT)?;

        let case = Case { model: &model, prompt: "", tokens: second.tokens.len(), seed: 7, compute: &[] };
        let logits = |before: usize| {
            let before = first.prompt.iter().chain(&first.tokens[..before]).chain(&second.prompt);
            case.logits_on_host(&before.copied().collect::<Vec<_>>(), &second.tokens)
        };
        let whole = first.tokens.len();
        // Ended within its last token, which is fed then, or between two.
        if second.logits == logits(whole)? {
            return end(dialogue).map(|_| ());
        }
        if second.logits != logits(whole - 1)? {
            return Err(Error::new("the answer after Ctrl-C is not what the host makes of the chat"));
        }
    }
    Err(Error::new(format!("none of {ENOUGH} answers was ended within a token")))
}

/// A chat that is saved on the card, and continued after the power was off, also where it failed while another one was saved.
fn a_session_survives_the_power(emulator: &Emulator, kernel: &Path) -> Result<()> {
    let (model, chatting) = chatting(emulator.board)?;
    let card = scratch(emulator.board, "-session.img")?;
    let empty = session_file(&chatting)?;
    let items = [Item { name: "chat.elp", bytes: &chatting }, Item { name: SESSION_FILE, bytes: &empty }];
    sd_image::write(&card, &items)?;
    let begin = |commands: &[&str]| -> Result<Dialogue> {
        let mut dialogue = start(emulator, kernel, Some(&card), &IN_TURN)?;
        dialogue.until(PROMPT)?;
        for command in [&["/check\r", "/seed 7\r", "/n 8\r"], commands].concat() {
            dialogue.send(command)?;
            dialogue.until(PROMPT)?;
        }
        Ok(dialogue)
    };
    let say = |dialogue: &mut Dialogue, message: &str| -> Result<Report> {
        dialogue.send(message)?;
        let report = Report::read(&dialogue.until("--- end\n")?);
        dialogue.until(PROMPT)?;
        report
    };
    let expect = |dialogue: &mut Dialogue, command: &str, says: &str| -> Result<()> {
        dialogue.send(command)?;
        wants(&dialogue.until(PROMPT)?, says)
    };
    let case = Case { model: &model, prompt: "", tokens: 8, seed: 7, compute: &[] };
    // What the model was fed of a text: its last token was not.
    let fed = |report: &Report| [&report.prompt[..], &report.tokens[..report.tokens.len() - 1]].concat();

    let mut dialogue = begin(&[])?;
    expect(&mut dialogue, "/resume\r", "error: ELAPID.SES has no session")?;
    expect(&mut dialogue, "/save\r", "error: there is no chat to save")?;
    let first = say(&mut dialogue, "What is the state of the Union?\r")?;
    expect(&mut dialogue, "/save\r", &format!("saved: {} tokens", fed(&first).len()))?;
    let once = read(&card)?;
    let second = say(&mut dialogue, "And of the army?\r")?;
    expect(&mut dialogue, "/save\r", "saved: ")?;
    let twice = read(&card)?;
    // Without an end.
    drop(dialogue);

    let mut dialogue = begin(&[])?;
    let before = [fed(&first), fed(&second)].concat();
    expect(&mut dialogue, "/resume\r", &format!("loaded: {} tokens", before.len()))?;
    let third = say(&mut dialogue, "And of the navy?\r")?;
    drop(dialogue);
    let whole = [&before[..], &third.prompt].concat();
    if third.logits != case.logits_on_host(&whole, &third.tokens)? {
        return Err(Error::new("the answer after the power was off is not what the host makes of the chat"));
    }

    // The blocks that the second time of saving wrote, of which half are there: with the header, or as it is before that is written.
    let written: Vec<usize> =
        (0..twice.len()).step_by(512).filter(|at| once[*at..at + 512] != twice[*at..at + 512]).collect();
    let half = &written[written.len() / 2..];
    for header in [false, true] {
        let mut torn = twice.clone();
        half.iter().for_each(|at| torn[*at..at + 512].copy_from_slice(&once[*at..at + 512]));
        if !header {
            torn[written[0]..written[0] + 512].fill(0);
        }
        std::fs::write(&card, &torn).context(|| format!("cannot write {}", card.display()))?;
        // With weights from the card, which is read by another core.
        let mut dialogue = begin(if header { &[LITTLE] } else { &[] })?;
        expect(&mut dialogue, "/resume\r", &format!("loaded: {} tokens", fed(&first).len()))?;
        if say(&mut dialogue, "And of the army?\r")? != second {
            return Err(Error::new("what is continued after a power failure is not the older session"));
        }
        expect(&mut dialogue, "/save\r", "saved: ")?;
        end(dialogue)?;
        if read(&card)?[written[0]..] == torn[written[0]..] {
            return Err(Error::new("nothing was saved"));
        }
    }
    Ok(())
}

/// How much of the time in which the cores computed a read was under way, with weights read ahead and without.
fn the_card_is_read_while_layers_are_computed(emulator: &Emulator, kernel: &Path) -> Result<()> {
    const LEAST_AHEAD: f64 = 0.6;
    /// The canary: what is measured must be next to nothing then.
    const MOST_NOT_AHEAD: f64 = 0.05;
    let model = models().join(MODEL);
    let card = card(emulator.board, &model, None)?;
    let case = Case { model: &model, prompt: "My fellow citizens", tokens: 6, seed: 7, compute: &[] };
    let share = |ahead: &str| -> Result<f64> {
        let mut dialogue = start(emulator, kernel, Some(&card), &COUNTED_TIME)?;
        dialogue.until(PROMPT)?;
        for command in [&format!("/ahead {ahead}\r"), LITTLE] {
            dialogue.send(command)?;
            dialogue.until(PROMPT)?;
        }
        dialogue.send(&case.typed())?;
        let console = dialogue.until("--- end\n")?;
        dialogue.until(PROMPT)?;
        // What reading came to is said when the model is opened anew.
        dialogue.send("/load\r")?;
        let figures = dialogue.until(PROMPT)?;
        end(dialogue)?;
        let (reading, waited) = (measured(&figures, "reading")?, measured(&figures, "waited")?);
        let computed = measured(&console, "time")?.saturating_sub(waited);
        let beside = reading.saturating_sub(waited);
        println!(
            "reading ahead {ahead}: the cores computed for {computed} us and waited for {waited} us; for {beside} us of \
             the first a read was under way"
        );
        Ok(beside as f64 / computed.max(1) as f64)
    };
    let (on, off) = (share("on")?, share("off")?);
    if on >= LEAST_AHEAD && off <= MOST_NOT_AHEAD {
        return Ok(());
    }
    Err(Error::new(format!(
        "a read is under way in {on:.3} of the time of computing ({LEAST_AHEAD} is the least) with reading ahead, and in \
         {off:.3} without ({MOST_NOT_AHEAD} is the most)"
    )))
}

/// Where the first weights of the first layer lie on a card, and what they are.
fn first_weights(card: &Path, model: &Path) -> Result<(u64, Vec<u8>)> {
    let (image, file) = (read(card)?, read(model)?);
    let header = Header::parse(&file).map_err(|error| Error::new(error.to_string()))?;
    let offset = header.layout().section(Section::Layer(0)).offset as usize;
    // A file of a card that was just made lies in one piece.
    let starts = (0..image.len() - file.len()).step_by(512);
    let start = starts.into_iter().find(|at| image[*at..].starts_with(&file));
    let at = start.ok_or_else(|| Error::new("the model is not on the card in one piece"))? + offset;
    Ok((at as u64, image[at..at + 512].to_vec()))
}

/// Says something to the emulator instead of to the program.
fn monitor(dialogue: &mut Dialogue, command: &str) -> Result<()> {
    dialogue.send("\x01c")?;
    dialogue.until("(qemu) ")?;
    dialogue.send(&format!("{command}\n"))?;
    dialogue.until("(qemu) ")?;
    dialogue.send("\x01c")
}

/// Starts a kernel with [`MODEL`] on its card, with instructions counted.
fn start_counting(emulator: &Emulator, kernel: &Path, counter: &Counter) -> Result<Dialogue> {
    let card = card(emulator.board, &models().join(MODEL), None)?;
    let mut command = qemu(emulator, kernel, Some(&card));
    command.args(["-serial", "mon:stdio"]).args(COUNTED_TIME);
    let mut dialogue = Dialogue::start(counter.attach(&mut command, &IDLE), PATIENCE)?;
    dialogue.until(PROMPT).map(|_| dialogue)
}

/// Four cores against one, by the instructions of the busiest core.
fn four_cores_are_faster(emulator: &Emulator, kernel: &Path, counter: &Counter) -> Result<()> {
    /// From 3.26, with other work on this machine, to 3.44 was measured.
    const AIM: f64 = 3.2;
    const LEAST: f64 = 3.0;
    let busiest = |cores: u32, tokens: u32| -> Result<u64> {
        let mut dialogue = start_counting(emulator, kernel, counter)?;
        dialogue.send(&format!("/cores {cores}\r/seed 7\r/temp 0\r/n {tokens}\rMy fellow citizens\r"))?;
        end(dialogue)?;
        counter.cores().map(|counts| counts.into_iter().max().unwrap_or(0))
    };
    let a_token = |cores: u32| -> Result<f64> {
        let (few, many) = (busiest(cores, 4)?, busiest(cores, 20)?);
        Ok(many.saturating_sub(few) as f64 / 16.0)
    };
    let (one, four) = (a_token(1)?, a_token(4)?);
    let times = one / four;
    println!(
        "instructions of the busiest core for a token: {:.2} M on one core, {:.2} M on four ({times:.2} times fewer; the aim is {AIM})",
        one / 1e6,
        four / 1e6,
    );
    if times >= LEAST {
        return Ok(());
    }
    Err(Error::new(format!("four cores are {times:.2} times as fast as one, {LEAST} is the least")))
}
