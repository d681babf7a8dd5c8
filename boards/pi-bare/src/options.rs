//! How a model is opened: the settings that only this board has.

use elapid_console::{Commands, Usage, switch};

/// Bytes of a file's name.
const NAME: usize = 64;

/// What is to be done with the session file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the session to it.
    Save,
    /// Continue the session in it.
    Load,
}

/// How a model is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Cores that compute.
    pub cores: u32,
    /// Bytes of memory that are used at most.
    pub memory: u64,
    /// Read weights from the card before they are wanted.
    pub ahead: bool,
    /// What the last command asked for instead of opening a model.
    pub action: Option<Action>,
    name: [u8; NAME],
    name_len: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { cores: 4, memory: u64::MAX, ahead: true, action: None, name: [0; NAME], name_len: 0 }
    }
}

impl Options {
    /// The model's file, if one was named.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        core::str::from_utf8(&self.name[..self.name_len]).ok().filter(|name| !name.is_empty())
    }
}

impl Commands for Options {
    fn usages(&self) -> &'static [Usage] {
        &[
            ("model NAME", "open another model"),
            ("memory SIZE", "use at most SIZE (such as 64M) and open the model again"),
            ("cores N", "compute on N cores, 1 to 4, and open the model again"),
            (
                "ahead on|off",
                "read weights from the card before they are wanted, or then; and open the model again",
            ),
            ("save", "save the chat on the card, in ELAPID.SES"),
            ("resume", "continue the chat that was saved last"),
            ("load", "look at the card again"),
        ]
    }

    fn set(&mut self, name: &str, value: &str) -> Option<Result<(), &'static str>> {
        let (done, wanted) = match name {
            "memory" => (size(value).map(|size| self.memory = size), "a size such as 64M or 1G, or `all`"),
            "cores" => {
                let cores = value.parse().ok().filter(|n| (1..=4).contains(n));
                (cores.map(|n| self.cores = n), "a number from 1 to 4")
            }
            "ahead" => (switch(value).map(|on| self.ahead = on), "`on` or `off`"),
            "model" => {
                let fits = (1..=NAME).contains(&value.len());
                if fits {
                    self.name[..value.len()].copy_from_slice(value.as_bytes());
                    self.name_len = value.len();
                }
                (fits.then_some(()), "a file's name of 1 to 64 bytes")
            }
            "save" | "resume" | "load" => {
                self.action = match name {
                    "save" => Some(Action::Save),
                    "resume" => Some(Action::Load),
                    _ => None,
                };
                (Some(()), "")
            }
            _ => return None,
        };
        Some(done.ok_or(wanted))
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
    use super::{Action, Options};
    use elapid_console::{Command, Commands, Settings, obey};

    #[test]
    fn options_are_taken() {
        let (mut s, mut o) = (Settings::default(), Options::default());
        for line in ["memory 2M", "cores 1", "ahead off", "model address-4m.elp", "load"] {
            assert_eq!(obey(line, &mut s, &mut o), Ok(Command::Reload), "{line}");
        }
        assert_eq!(o.action, None);
        for (line, action) in [("save", Action::Save), ("resume", Action::Load)] {
            assert_eq!(obey(line, &mut s, &mut o), Ok(Command::Reload));
            assert_eq!(o.action.take(), Some(action));
        }
        assert_eq!((o.memory, o.cores, o.ahead, o.model()), (2 << 20, 1, false, Some("address-4m.elp")));
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let (mut s, mut o) = (Settings::default(), Options::default());
        for line in [
            "memory",
            "memory M",
            "memory 99999999999G",
            "memory é",
            "cores 0",
            "cores 5",
            "ahead maybe",
            "model",
        ] {
            assert!(obey(line, &mut s, &mut o).is_err(), "{line}");
        }
        assert!(obey(&format!("model {}", "x".repeat(65)), &mut s, &mut o).is_err());
        assert_eq!(o, Options::default());
    }

    #[test]
    fn every_command_of_the_list_is_known() {
        for (usage, _) in Options::default().usages() {
            let name = usage.split(' ').next().unwrap();
            assert!(Options::default().set(name, "").is_some(), "{name}");
        }
    }
}
