//! Running other programs: shown before they start, and their output read where it is needed.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// How a program ended.
pub struct Finished {
    pub success: bool,
    /// What it wrote to standard output; empty if that went straight to ours.
    pub stdout: String,
}

/// Runs `command` with our standard output and says how it ended.
pub fn run(command: &mut Command) -> Result<Finished> {
    let status = command.status().context(|| format!("cannot start `{}`", shown(command)))?;
    Ok(Finished { success: status.success(), stdout: String::new() })
}

/// Runs `command`; an error if it takes longer than `limit`, after which it and what it started are ended.
pub fn within(limit: Duration, command: &mut Command) -> Result<ExitStatus> {
    let mut child = command.spawn().context(|| format!("cannot start `{}`", shown(command)))?;
    wait_within(limit, &mut child)
}

/// As [`within`], for a program that was started.
pub fn wait_within(limit: Duration, child: &mut Child) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context(|| "cannot wait for a program".into())? {
            return Ok(status);
        }
        if start.elapsed() > limit {
            let family = family(child.id());
            succeeds(Command::new("kill").arg("-KILL").args(family.iter().map(u32::to_string)));
            child.wait().context(|| "cannot wait for a program".into())?;
            return Err(Error::new(format!("it hung and was ended after {} s", limit.as_secs())));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The process `first`, what it started, and what that started.
fn family(first: u32) -> Vec<u32> {
    let listed = capture(Command::new("ps").args(["-A", "-o", "pid=", "-o", "ppid="])).unwrap_or_default();
    let numbers = listed.split_whitespace().flat_map(str::parse).collect::<Vec<u32>>();
    let mut family = vec![first];
    let mut seen = 0;
    while let Some(&parent) = family.get(seen) {
        family.extend(numbers.chunks_exact(2).filter(|pair| pair[1] == parent).map(|pair| pair[0]));
        seen += 1;
    }
    family
}

/// Runs `command`, passing each line of its standard output on and keeping it as well.
pub fn tee(command: &mut Command) -> Result<Finished> {
    let what = shown(command);
    let mut child = command.stdout(Stdio::piped()).spawn().context(|| format!("cannot start `{what}`"))?;
    let mut stdout = String::new();
    if let Some(pipe) = child.stdout.take() {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).context(|| format!("cannot read from `{what}`"))? > 0 {
            let text = String::from_utf8_lossy(&line);
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .context(|| "cannot write to standard output".into())?;
            stdout.push_str(&text);
            line.clear();
        }
    }
    let status = child.wait().context(|| format!("cannot wait for `{what}`"))?;
    Ok(Finished { success: status.success(), stdout })
}

/// Runs `command` and returns what it wrote to standard output; an error if it failed.
pub fn capture(command: &mut Command) -> Result<String> {
    let what = shown(command);
    let output = command
        .stderr(Stdio::inherit())
        .stdin(Stdio::null())
        .output()
        .context(|| format!("cannot start `{what}`"))?;
    if !output.status.success() {
        return Err(Error::new(format!("`{what}` failed ({})", output.status)));
    }
    String::from_utf8(output.stdout).context(|| format!("`{what}` wrote something that is not UTF-8"))
}

/// Prints `command`, runs it with our standard output, and makes an error of its failure.
pub fn must(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    if run(command)?.success { Ok(()) } else { Err(Error::new(format!("`{}` failed", shown(command)))) }
}

/// True if `command` could be started and succeeded; its output is thrown away.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The file that `tool` would start, if it is on the path.
pub fn on_path(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// The command line as one would type it, with the variables that are set for it in front.
pub fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        value.map(|value| format!("{}={}", name.to_string_lossy(), quoted(&value.to_string_lossy())))
    });
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quoted(&word.to_string_lossy()));
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    elapid_args::quoted(word).unwrap_or_else(|| format!("{word:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_again() {
        let mut command = Command::new("cargo");
        command.env("RUSTFLAGS", "-C a=b").env_remove("CARGO").args(["test", "it's", ""]);
        assert_eq!(shown(&command), r#"RUSTFLAGS="-C a=b" cargo test "it's" """#);
    }

    #[test]
    #[cfg(unix)]
    fn failure_is_seen() {
        assert!(!run(&mut Command::new("false")).unwrap().success);
        assert!(!tee(&mut Command::new("false")).unwrap().success);
        assert!(capture(&mut Command::new("false")).is_err());
        assert!(!succeeds(&mut Command::new("false")));
        assert!(must(&mut Command::new("no-such-program-anywhere")).is_err());
        assert!(!succeeds(&mut Command::new("no-such-program-anywhere")));
    }

    #[test]
    #[cfg(unix)]
    fn what_takes_too_long_is_ended_with_what_it_started() {
        assert!(within(Duration::from_secs(60), &mut Command::new("true")).unwrap().success());
        // The inner shell holds the pipe's writing end: reading ends when it has ended too.
        let mut command = Command::new("sh");
        let (mut end, pipe) = std::io::pipe().unwrap();
        command.args(["-c", "sh -c 'sleep 600; true'; true"]).stdout(pipe);
        let error = within(Duration::from_millis(500), &mut command).unwrap_err();
        assert_eq!(error.to_string(), "it hung and was ended after 0 s");
        drop(command);
        assert_eq!(std::io::Read::read(&mut end, &mut [0]).unwrap(), 0);
    }

    #[test]
    #[cfg(unix)]
    fn tee_keeps_what_it_passes_on() {
        let finished = tee(Command::new("printf").arg("a\nb\n")).unwrap();
        assert!(finished.success);
        assert_eq!(finished.stdout, "a\nb\n");
    }
}
