//! Commands: a line that begins with `/`, or a line of a file with settings.

use core::fmt;

use elapid_core::sample::Settings as Sampling;

/// What a text follows from. The defaults are those of `elapid run`.
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
    /// End each text with a report that `cargo xtask board NAME test` reads.
    pub check: bool,
}

impl Settings {
    /// What a board begins with.
    pub const DEFAULT: Self = Self {
        n: 256,
        sampling: Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::MODEL },
        seed: None,
        chat: true,
        check: false,
    };
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a command asks for besides a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A setting that holds from the next text on.
    Set,
    /// Something for which the model must be opened again.
    Reload,
    /// List the commands.
    Help,
    /// Begin a new chat.
    New,
    /// End the program, or restart the board.
    Exit,
}

/// A command's usage, and what it is for.
pub type Usage = (&'static str, &'static str);

/// Commands that every board has.
pub const COMMANDS: &[Usage] = &[
    ("n N", "generate N tokens at most"),
    ("seed N", "equal seeds give equal texts; `seed clock` for a new one each time"),
    ("temp T", "sampling temperature; 0 always takes the most likely token"),
    ("top-k K", "sample from the K most likely tokens only; 0 disables it"),
    ("top-p P", "sample from the most likely tokens that together reach probability P; 1 disables it"),
    ("min-p P", "sample from tokens at least P times as likely as the most likely one; 0 disables it"),
    ("repeat-penalty R", "penalty for tokens that occur among the last 256; 1 disables it"),
    ("chat on|off", "answer as in a chat, or go on with the text"),
    ("new", "begin a new chat"),
    ("check", "report each text token by token, as the tests want it"),
    ("exit", "end the program, or restart the board"),
    ("help", "this list"),
];

/// Commands that one board has beside those of all boards: settings for which its model must be opened again.
pub trait Commands {
    /// What `/help` says of them.
    fn usages(&self) -> &'static [Usage];

    /// Follows a command; `None` if it is not one of these.
    ///
    /// # Errors
    /// What values it takes, if not this one: nothing is changed then.
    fn set(&mut self, name: &str, value: &str) -> Option<Result<(), &'static str>>;
}

/// No further commands.
impl Commands for () {
    fn usages(&self) -> &'static [Usage] {
        &[]
    }

    fn set(&mut self, _name: &str, _value: &str) -> Option<Result<(), &'static str>> {
        None
    }
}

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

/// `on` or `off`.
#[must_use]
pub fn switch(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// Takes a line such as `temp 0.5` (or `temp = 0.5`), changes settings where it says so, and returns what else it asks for.
///
/// # Errors
/// If it is no command, or its value is out of range: nothing is changed.
pub fn obey<'a>(
    line: &'a str,
    settings: &mut Settings,
    more: &mut dyn Commands,
) -> Result<Command, Refusal<'a>> {
    let line = line.trim();
    let (name, value) = line.split_once([' ', '=']).unwrap_or((line, ""));
    let value = value.trim_start_matches([' ', '=']);
    let refuse = |wanted| Refusal { line, wanted: Some(wanted) };
    let set = |done: Option<()>, wanted| done.map(|()| Command::Set).ok_or(refuse(wanted));
    let real = |ok: fn(f32) -> bool| value.parse::<f32>().ok().filter(|x| x.is_finite() && ok(*x));
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
        "chat" => set(switch(value).map(|on| settings.chat = on), "`on` or `off`"),
        "help" => Ok(Command::Help),
        "new" => Ok(Command::New),
        "check" => {
            settings.check = true;
            Ok(Command::Set)
        }
        "exit" => Ok(Command::Exit),
        _ => match more.set(name, value) {
            Some(done) => done.map(|()| Command::Reload).map_err(refuse),
            None => Err(Refusal { line, wanted: None }),
        },
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{COMMANDS, Command, Commands, Settings, Usage, obey};
    use std::string::ToString;

    /// One more command.
    struct Cores(u32);

    impl Commands for Cores {
        fn usages(&self) -> &'static [Usage] {
            &[("cores N", "compute on N cores")]
        }

        fn set(&mut self, name: &str, value: &str) -> Option<Result<(), &'static str>> {
            let cores = value.parse().ok().filter(|n| (1..=4).contains(n));
            (name == "cores").then(|| cores.map(|n| self.0 = n).ok_or("a number from 1 to 4"))
        }
    }

    #[test]
    fn settings_are_taken() {
        let (mut s, mut cores) = (Settings::default(), Cores(4));
        for line in ["n 64", "seed=7", "temp = 0", "top-k 40", "top-p 0.5", "chat off", "check"] {
            assert_eq!(obey(line, &mut s, &mut ()), Ok(Command::Set), "{line}");
        }
        assert_eq!(obey("cores 1", &mut s, &mut cores), Ok(Command::Reload));
        assert_eq!((s.n, s.seed, cores.0), (64, Some(7), 1));
        assert_eq!((s.sampling.temperature, s.sampling.top_k, s.sampling.top_p), (0.0, 40, 0.5));
        assert_eq!(obey("seed clock", &mut s, &mut ()), Ok(Command::Set));
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
            "top-k 1.5",
            "cores 1",
        ] {
            assert!(obey(line, &mut s, &mut ()).is_err(), "{line}");
        }
        assert_eq!(s, Settings::default());
        let message = obey("cores 9", &mut s, &mut Cores(4)).unwrap_err().to_string();
        assert_eq!(message, "`cores 9`: it takes a number from 1 to 4");
    }

    #[test]
    fn every_command_of_the_list_is_known() {
        for (usage, _) in COMMANDS.iter().chain(Cores(4).usages()) {
            let name = usage.split(' ').next().unwrap();
            let refusal = obey(name, &mut Settings::default(), &mut Cores(4)).map_err(|r| r.to_string());
            assert!(!refusal.is_err_and(|text| text.contains("no command")), "{name}");
        }
    }
}
