//! What is wrong with a program's arguments, as one line.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// The most characters of an argument that an error repeats.
const LONGEST: usize = 60;

/// What is wrong with `args` (the program's name first), and what to do, as one line.
pub fn explain(mut error: Error, command: &Command, args: &[OsString]) -> String {
    let tip = match error.kind() {
        ErrorKind::UnknownArgument => {
            unknown(command, args).and_then(|at| tip(&mut error, command, args, at))
        }
        _ => None,
    };
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidValue, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(text)) = error.get(kind) {
            let text = shortened(text);
            error.insert(kind, ContextValue::String(text));
        }
    }
    let text = error.render().to_string();
    let (said, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let said: Vec<&str> = said.lines().map(str::trim).collect();
    let tips = rest.lines().filter_map(|line| line.trim_start().strip_prefix("tip: ").map(str::to_owned));
    let tips: String = tips.chain(tip).map(|tip| format!(": {tip}")).collect();
    format!("{}{tips} (see --help)", said.join(" "))
}

/// The argument that clap does not know: the last one of the shortest command that has one.
fn unknown(command: &Command, args: &[OsString]) -> Option<usize> {
    (1..args.len()).find(|&at| {
        let parsed = command.clone().try_get_matches_from(&args[..=at]);
        parsed.is_err_and(|error| error.kind() == ErrorKind::UnknownArgument)
    })
}

/// Makes `error` name the whole argument that clap does not know, and returns what to do about it, unless it resembles an option.
fn tip(error: &mut Error, command: &Command, args: &[OsString], at: usize) -> Option<String> {
    let arg = args[at].to_string_lossy();
    // clap's own tip, "to pass '-x' as a value, use '-- -x'", is for a command without other arguments.
    let mut known = error.get(ContextKind::SuggestedArg).is_some();
    if let Some(ContextValue::StyledStrs(mut tips)) = error.remove(ContextKind::Suggested) {
        tips.retain(|tip| !tip.to_string().starts_with("to pass "));
        known |= !tips.is_empty();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    // clap names one letter of what may be several short options.
    error.insert(ContextKind::InvalidArg, ContextValue::String(arg.to_string()));
    // An argument with spaces is a text, even if it resembles an option.
    if known && !arg.contains(char::is_whitespace) {
        return None;
    }
    if !arg.starts_with('-') {
        return Some("put an argument with spaces in quotes".into());
    }
    if args[..at].iter().any(|arg| arg == "--") {
        return Some("put options before `--`".into());
    }
    let end = OsString::from("--");
    let corrected: Vec<&OsString> =
        args[..at].iter().chain(&args[at + 1..]).chain([&end, &args[at]]).collect();
    match command.clone().try_get_matches_from(&corrected) {
        Err(error) if error.kind() != ErrorKind::MissingRequiredArgument => return None,
        _ => error.remove(ContextKind::SuggestedArg),
    };
    let words: Option<Vec<String>> = corrected[1..].iter().map(|arg| quoted(arg.to_str()?)).collect();
    let line = words.map_or(String::new(), |words| format!(": `{} {}`", command.get_name(), words.join(" ")));
    Some(format!("put an argument that begins with a hyphen after `--`{line}"))
}

/// A word as typed in a shell, in quotes if it needs them; `None` if no shell accepts it on one line.
pub fn quoted(word: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    match word {
        _ if word.contains(char::is_control) => None,
        _ if !word.is_empty() && word.chars().all(plain) => Some(word.to_owned()),
        // Double quotes also work on Windows.
        _ if !word.contains(['"', '$', '`', '\\', '!']) => Some(format!("\"{word}\"")),
        _ => Some(format!("'{}'", word.replace('\'', r"'\''"))),
    }
}

/// A text's beginning, without control characters.
fn shortened(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let end = if text.chars().nth(LONGEST).is_some() { "…" } else { "" };
    text.chars().take(LONGEST).map(shown).collect::<String>() + end
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        let run = Command::new("run")
            .arg(Arg::new("model"))
            .arg(Arg::new("prompt"))
            .arg(Arg::new("n").short('n').allow_hyphen_values(true).value_parser(crate::whole::<u32>(1..=9)))
            .arg(Arg::new("stop").long("stop").allow_hyphen_values(true))
            .arg(Arg::new("temp").long("temp"))
            .arg(Arg::new("verbose").short('v').action(ArgAction::SetTrue));
        Command::new("elapid").subcommand_required(true).subcommand(run).subcommand(Command::new("info"))
    }

    #[track_caller]
    fn says(args: &[&str], line: &str) {
        let args: Vec<OsString> = ["/usr/bin/elapid"].iter().chain(args).map(Into::into).collect();
        let error = command().try_get_matches_from(&args).unwrap_err();
        assert_eq!(explain(error, &command(), &args), format!("error: {line} (see --help)"));
    }

    #[test]
    fn what_is_like_a_known_name_is_named() {
        says(&["runn"], "unrecognized subcommand 'runn': a similar subcommand exists: 'run'");
        says(
            &["run", "hi", "--tmep", "0"],
            "unexpected argument '--tmep' found: a similar argument exists: '--temp'",
        );
        says(&["--temp", "0", "run"], "unexpected argument '--temp' found: 'run --temp' exists");
    }

    #[test]
    fn a_text_that_begins_with_a_hyphen_is_corrected() {
        says(
            &["run", "m", "- buy milk", "-n", "3"],
            "unexpected argument '- buy milk' found: put an argument that begins with a hyphen after `--`: `elapid run m -n 3 \
             -- \"- buy milk\"`",
        );
        // An option's value may look like the text; short options before it are known.
        says(
            &["run", "--stop", "- a", "-v is short"],
            "unexpected argument '-v is short' found: put an argument that begins with a hyphen after `--`: `elapid run --stop \
             \"- a\" -- \"-v is short\"`",
        );
        says(
            &["run", "--temp is low"],
            "unexpected argument '--temp is low' found: put an argument that begins with a hyphen after `--`: `elapid run -- \
             \"--temp is low\"`",
        );
        says(
            &["run", "- $a's"],
            r"unexpected argument '- $a's' found: put an argument that begins with a hyphen after `--`: `elapid run -- '- $a'\''s'`",
        );
        // What no shell takes on one line is not shown.
        says(
            &["run", "- a\n- b\u{1b}[2J"],
            r"unexpected argument '- a\n- b\u{1b}[2J' found: put an argument that begins with a hyphen after `--`",
        );
    }

    #[test]
    fn what_stands_at_a_wrong_place_is_said() {
        says(
            &["run", "m", "--", "- a", "-n", "3"],
            "unexpected argument '-n' found: put options before `--`",
        );
        says(
            &["run", "m", "My", "fellow"],
            "unexpected argument 'fellow' found: put an argument with spaces in quotes",
        );
        // After `--` it would be one too many.
        says(&["run", "m", "hi", "-x"], "unexpected argument '-x' found");
        says(&["info", "-x"], "unexpected argument '-x' found");
    }

    #[test]
    fn a_value_is_refused_with_what_it_may_be() {
        for value in ["-1", "-inf", "--stop", "é"] {
            says(
                &["run", "-n", value],
                &format!("invalid value '{value}' for '-n <n>': give a whole number from 1 to 9"),
            );
        }
        says(
            &["run", "-n", &"1,\n\n".repeat(99)],
            &format!(
                "invalid value '{}…' for '-n <n>': give a whole number from 1 to 9",
                r"1,\n\n".repeat(15)
            ),
        );
    }
}
