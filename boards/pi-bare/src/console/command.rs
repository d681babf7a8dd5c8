//! Commands and settings: a line that begins with `/`, or a line of the card's `ELAPID.TXT`.

use core::fmt;

use elapid_core::sample::Settings as Sampling;

/// Bytes of a file's name.
const NAME: usize = 64;

/// What can be set. The defaults are those of `elapid run`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Tokens to generate at most.
    pub n: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Equal seeds give equal texts; from the clock if `None`.
    pub seed: Option<u64>,
    /// Answer as in a chat, where the model has a role table.
    pub chat: bool,
    /// Cores that compute.
    pub cores: u32,
    /// Bytes of memory that are used at most.
    pub memory: u64,
    /// Read weights from the card before they are wanted.
    pub ahead: bool,
    /// End each text with a report that `cargo xtask board pi-bare test` reads.
    pub check: bool,
    name: [u8; NAME],
    name_len: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            n: 256,
            sampling: Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::MODEL },
            seed: None,
            chat: true,
            cores: 4,
            memory: u64::MAX,
            ahead: true,
            check: false,
            name: [0; NAME],
            name_len: 0,
        }
    }
}

impl Settings {
    /// The model's file, if one was named.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        core::str::from_utf8(&self.name[..self.name_len]).ok().filter(|name| !name.is_empty())
    }
}

/// What a command asks for besides a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A setting that holds from the next text on.
    Set,
    /// A setting for which the model must be opened again.
    Reload,
    /// List the commands.
    Help,
    /// Begin a new chat.
    New,
    /// Restart the board.
    Restart,
}

/// All commands, with what each is for.
pub const COMMANDS: &[(&str, &str)] = &[
    ("n N", "generate N tokens at most"),
    ("seed N", "equal seeds give equal texts; `seed clock` for a new one each time"),
    ("temp T", "randomness: 0 always takes the most likely token"),
    ("top-k K", "choose among the K most likely tokens only; 0 for all"),
    ("top-p P", "choose among those that together reach probability P; 1 for all"),
    ("min-p P", "choose among those at least P times as likely as the likeliest"),
    ("repeat-penalty R", "make tokens of the last 256 less likely; 1 for not at all"),
    ("chat on|off", "answer as in a chat, or go on with the text"),
    ("new", "begin a new chat"),
    ("model NAME", "open another one"),
    ("memory SIZE", "use at most SIZE (such as 64M) and open the model again"),
    ("cores N", "compute on N cores, 1 to 4, and open the model again"),
    ("ahead on|off", "read weights from the card before they are wanted, or then; and open the model again"),
    ("load", "look at the card again"),
    ("check", "report each text token by token, as the tests want it"),
    ("exit", "restart the board"),
    ("help", "this list"),
];

/// Why a line is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    line: &'a str,
    wanted: Option<&'static str>,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wanted {
            Some(wanted) => write!(f, "`{}`: it takes {wanted}", self.line),
            None => write!(f, "`{}` is no command; /help lists them", self.line),
        }
    }
}

/// Takes a line such as `temp 0.5` (or `temp = 0.5`), changes `settings` where it is one, and says what else it asks for.
///
/// # Errors
/// If it is no command, or its value is out of range: nothing is changed.
pub fn parse_setting<'a>(line: &'a str, settings: &mut Settings) -> Result<Command, Refusal<'a>> {
    let line = line.trim();
    let (name, value) = line.split_once([' ', '=']).unwrap_or((line, ""));
    let value = value.trim_start_matches([' ', '=']);
    let refuse = |wanted| Refusal { line, wanted: Some(wanted) };
    let set = |done: Option<()>, wanted| done.map(|()| Command::Set).ok_or(refuse(wanted));
    let real = |ok: fn(f32) -> bool| value.parse::<f32>().ok().filter(|x| x.is_finite() && ok(*x));
    let switch = || match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    };
    let sampling = &mut settings.sampling;
    match name {
        "n" => {
            let n = value.parse().ok().filter(|n| *n > 0);
            set(n.map(|n| settings.n = n), "a number, 1 at least")
        }
        "seed" if value == "clock" => {
            settings.seed = None;
            Ok(Command::Set)
        }
        "seed" => {
            set(value.parse().ok().map(|seed| settings.seed = Some(seed)), "a whole number, or `clock`")
        }
        "temp" => set(real(|x| x >= 0.0).map(|x| sampling.temperature = x), "a number, 0 at least"),
        "top-k" => set(value.parse().ok().map(|k| sampling.top_k = k), "a whole number"),
        "top-p" => {
            set(real(|x| x > 0.0 && x <= 1.0).map(|x| sampling.top_p = x), "a number above 0, at most 1")
        }
        "min-p" => {
            set(real(|x| (0.0..=1.0).contains(&x)).map(|x| sampling.min_p = x), "a number from 0 to 1")
        }
        "repeat-penalty" => set(real(|x| x > 0.0).map(|x| sampling.repeat_penalty = x), "a number above 0"),
        "chat" => set(switch().map(|on| settings.chat = on), "`on` or `off`"),
        "memory" => {
            settings.memory = size(value).ok_or(refuse("a size such as 64M or 1G, or `all`"))?;
            Ok(Command::Reload)
        }
        "cores" => {
            let cores = value.parse().ok().filter(|n| (1..=4).contains(n));
            settings.cores = cores.ok_or(refuse("a number from 1 to 4"))?;
            Ok(Command::Reload)
        }
        "ahead" => {
            settings.ahead = switch().ok_or(refuse("`on` or `off`"))?;
            Ok(Command::Reload)
        }
        "model" if !value.is_empty() && value.len() <= NAME => {
            settings.name[..value.len()].copy_from_slice(value.as_bytes());
            settings.name_len = value.len();
            Ok(Command::Reload)
        }
        "model" => Err(refuse("a file's name of 1 to 64 bytes")),
        "load" => Ok(Command::Reload),
        "help" => Ok(Command::Help),
        "new" => Ok(Command::New),
        "check" => {
            settings.check = true;
            Ok(Command::Set)
        }
        "exit" => Ok(Command::Restart),
        _ => Err(Refusal { line, wanted: None }),
    }
}

/// Bytes, with K, M or G behind for powers of 1024.
fn size(text: &str) -> Option<u64> {
    if text == "all" {
        return Some(u64::MAX);
    }
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::{COMMANDS, Command, Settings, parse_setting};

    #[test]
    fn settings_are_taken() {
        let mut s = Settings::default();
        for line in ["n 64", "seed=7", "temp = 0", "top-k 40", "top-p 0.5", "chat off", "check"] {
            assert_eq!(parse_setting(line, &mut s), Ok(Command::Set), "{line}");
        }
        for line in ["memory 2M", "cores 1", "ahead off", "model address-4m.elp"] {
            assert_eq!(parse_setting(line, &mut s), Ok(Command::Reload), "{line}");
        }
        assert_eq!(
            (s.n, s.seed, s.memory, s.cores, s.model()),
            (64, Some(7), 2 << 20, 1, Some("address-4m.elp"))
        );
        assert_eq!((s.sampling.temperature, s.sampling.top_k, s.sampling.top_p), (0.0, 40, 0.5));
        assert_eq!(parse_setting("seed clock", &mut s), Ok(Command::Set));
        assert_eq!((s.seed, s.chat, s.check), (None, false, true));
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let mut s = Settings::default();
        for line in [
            "",
            "x",
            "n",
            "n 0",
            "n -1",
            "temp NaN",
            "temp -1",
            "top-p 0",
            "top-p 2",
            "min-p x",
            "chat",
            "chat yes",
            "memory",
            "memory M",
            "memory 99999999999G",
            "memory é",
            "cores 0",
            "cores 5",
            "model",
            "top-k 1.5",
        ] {
            assert!(parse_setting(line, &mut s).is_err(), "{line}");
        }
        assert!(parse_setting(&format!("model {}", "x".repeat(65)), &mut s).is_err());
        assert_eq!(s, Settings::default());
        let message = parse_setting("cores 9", &mut s).unwrap_err().to_string();
        assert_eq!(message, "`cores 9`: it takes a number from 1 to 4");
    }

    #[test]
    fn every_command_of_the_list_is_known() {
        for (usage, _) in COMMANDS {
            let name = usage.split(' ').next().unwrap();
            let refusal = parse_setting(name, &mut Settings::default()).map_err(|r| r.to_string());
            assert!(!refusal.is_err_and(|text| text.contains("no command")), "{name}");
        }
    }
}
