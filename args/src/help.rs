//! The rules that every help text follows, as a check for tests.

use clap::{Arg, Command};

/// What the help of a command and its subcommands lacks: a verb in the imperative at its beginning, what an argument sets, its
/// default.
pub fn help_faults(command: &Command) -> Vec<String> {
    // clap fills groups when it builds.
    let mut built = command.clone();
    built.build();
    faults(&built)
}

fn faults(command: &Command) -> Vec<String> {
    let name = command.get_name();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let verb = about.split([' ', ',']).next().unwrap_or_default();
    let mut faults = Vec::new();
    if !verb.starts_with(char::is_uppercase) || verb.ends_with('s') {
        faults.push(format!("{name}: does not begin with a verb in the imperative: {about:?}"));
    }
    if about.ends_with('.') {
        faults.push(format!("{name}: the first line ends with a full stop"));
    }
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        if !help.starts_with(|c: char| c.is_uppercase() || c == '`') || help.ends_with('.') {
            faults.push(format!("{name}: {}: is no phrase: {help:?}", arg.get_id()));
        }
        if has_a_default(command, arg)
            && arg.get_default_values().is_empty()
            && !["Default: ", "required without"].iter().any(|says| help.contains(says))
        {
            faults.push(format!("{name}: {}: does not say its default: {help:?}", arg.get_id()));
        }
    }
    // `help` is clap's.
    let shown = command.get_subcommands().filter(|shown| !shown.is_hide_set() && shown.get_name() != "help");
    faults.extend(shown.flat_map(self::faults));
    faults
}

/// Whether an argument takes a value and may be left out.
fn has_a_default(command: &Command, arg: &Arg) -> bool {
    let required = arg.is_required_set()
        || command
            .get_groups()
            .any(|group| group.is_required_set() && group.get_args().any(|id| id == arg.get_id()));
    arg.get_action().takes_values() && !required
}

#[cfg(test)]
mod tests {
    use clap::ArgGroup;

    use super::*;

    #[test]
    fn faults_are_found() {
        let good = Command::new("a")
            .about("Print a")
            .arg(Arg::new("file").required(true).help("File to read"))
            .arg(Arg::new("ids").long("ids").group("input").help("Tokens"))
            .arg(Arg::new("text").long("text").group("input").help("Text"))
            .group(ArgGroup::new("input").required(true))
            .arg(Arg::new("n").long("n").default_value("1").help("Number"))
            .arg(Arg::new("seed").long("seed").help("Seed. Default: from the clock"));
        assert_eq!(help_faults(&good), [""; 0]);
        let bad = Command::new("a").about("Makes").subcommand(
            Command::new("b")
                .about("Prints b.")
                .arg(Arg::new("c"))
                .arg(Arg::new("d").hide(true))
                .arg(Arg::new("e").help("Number. Default: 1."))
                .subcommand(Command::new("f").hide(true)),
        );
        let faults = help_faults(&bad);
        for (fault, says) in faults.iter().zip([
            "a: does not",
            "b: does not",
            "b: the first",
            "b: c: is no",
            "b: c: does",
            "b: e: is no",
        ]) {
            assert!(fault.starts_with(says), "{faults:?}");
        }
        assert_eq!(faults.len(), 6, "{faults:?}");
    }
}
