//! The commands within a chat.

use std::path::PathBuf;

use elapid::core::sample::Settings;

use crate::sampling::check;

/// What `/help` says.
pub(super) const HELP: &str = "\
/save FILE    save the conversation      /load FILE    go on with a saved one
/fork         keep a copy of it          /fork N       go back to copy N
/undo         forget the last exchange   /retry        answer again, with another seed
/edit [TEXT]  change the last message    /clear        begin a new conversation
/system TEXT  set the system prompt      /set [NAME VALUE]  show or set temp, top-k, top-p, min-p, repeat-penalty, seed, n
/stats        show tokens and speed      /help         show this
A \\ at the end of a line continues the message on the next one; // begins a message with a slash. Ctrl-C stops an answer, Ctrl-D exits.";

/// A command.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Help,
    Save(PathBuf),
    Load(PathBuf),
    Fork(Option<usize>),
    Undo,
    Retry,
    Edit(Option<String>),
    System(String),
    Clear,
    Stats,
    Set(Option<(String, String)>),
}

impl Command {
    /// Parses a line that begins with a slash.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim().strip_prefix('/').unwrap_or(line);
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => Err(format!("/{name}: give a file")),
            path => Ok(PathBuf::from(path)),
        };
        let alone = |command| match rest {
            "" => Ok(command),
            _ => Err(format!("/{name} takes nothing after it")),
        };
        match name {
            "help" | "?" => alone(Self::Help),
            "save" => file().map(Self::Save),
            "load" => file().map(Self::Load),
            "fork" if rest.is_empty() => Ok(Self::Fork(None)),
            "fork" => {
                rest.parse().map(|n| Self::Fork(Some(n))).map_err(|_| "/fork: give a copy's number".into())
            }
            "undo" => alone(Self::Undo),
            "retry" => alone(Self::Retry),
            "edit" => Ok(Self::Edit(Some(rest.to_owned()).filter(|text| !text.is_empty()))),
            "system" => Ok(Self::System(rest.to_owned())),
            "clear" => alone(Self::Clear),
            "stats" => alone(Self::Stats),
            "set" if rest.is_empty() => Ok(Self::Set(None)),
            "set" => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Ok(Self::Set(Some((name.to_owned(), value.trim().to_owned())))),
                None => Err(format!("/set {rest}: give a value")),
            },
            _ => Err(format!(
                "no command /{name}: /help lists them (a message that begins with a slash begins with //)"
            )),
        }
    }
}

/// Settings with one of them changed.
pub(super) fn set(settings: Settings, name: &str, value: &str) -> Result<Settings, String> {
    let mut changed = settings;
    let number = value.parse().unwrap_or(f32::NAN);
    match name {
        "temp" => changed.temperature = number,
        "top-k" => {
            changed.top_k = value.parse().map_err(|_| "top-k: give a whole number from 0".to_owned())?
        }
        "top-p" => changed.top_p = number,
        "min-p" => changed.min_p = number,
        "repeat-penalty" => changed.repeat_penalty = number,
        _ => {
            return Err(format!(
                "no setting {name}: there are temp, top-k, top-p, min-p, repeat-penalty, seed and n"
            ));
        }
    }
    check(changed, &format!("{name}: ")).map(|()| changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_parsed() {
        for (line, command) in [
            ("/help", Command::Help),
            ("/save  a file ", Command::Save("a file".into())),
            ("/fork", Command::Fork(None)),
            ("/fork 2", Command::Fork(Some(2))),
            ("/edit  new text", Command::Edit(Some("new text".into()))),
            ("/edit", Command::Edit(None)),
            ("/system", Command::System(String::new())),
            ("/set temp 0.5", Command::Set(Some(("temp".into(), "0.5".into())))),
        ] {
            assert_eq!(Command::parse(line), Ok(command), "{line}");
        }
        for (line, says) in [
            ("/save", "/save: give a file"),
            ("/undo 3", "/undo takes nothing after it"),
            ("/fork x", "/fork: give a copy's number"),
            ("/set temp", "/set temp: give a value"),
            ("/what", "no command /what"),
        ] {
            assert!(Command::parse(line).unwrap_err().starts_with(says), "{line}");
        }
        assert_eq!(set(Settings::MODEL, "temp", "0.5").unwrap().temperature, 0.5);
        assert!(set(Settings::MODEL, "top-p", "7").unwrap_err().starts_with("top-p: give a number"));
        assert!(set(Settings::MODEL, "heat", "7").unwrap_err().starts_with("no setting heat"));
    }
}
