//! What a board's program reports of a generation, and the same from the host's own program.
//!
//! After `/check` a program ends each generation with lines that start with `--- `:
//!
//! ```text
//! --- text
//!  of the United States …
//! --- prompt 464 1029 88
//! --- tokens 12 7 901
//! --- logits 3f2a11bc
//! --- ticks 812003
//! --- end
//! ```
//!
//! `logits` is the CRC-32 of the logits that the tokens were drawn from, f32, one row of the vocabulary after the other.
//! Further lines (`ticks`, `stack`) are measurements.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use elapid_core::format::checksum;

use crate::error::{Context, Error, Result};
use crate::programs::Program;
use crate::toolchain::root;

/// A generation that both sides are asked for. Settings that it does not name are those of `elapid run`.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub model: &'a Path,
    pub prompt: &'a str,
    pub tokens: usize,
    pub seed: u64,
    /// Arguments of `elapid run` and `elapid logits` that choose how it is computed, such as `--path fixed`.
    pub compute: &'a [&'a str],
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub text: String,
    pub prompt: Vec<u32>,
    pub tokens: Vec<u32>,
    pub logits: u32,
}

impl Case<'_> {
    /// What to type on a board's console for this.
    pub fn typed(&self) -> String {
        format!("/check\n/seed {}\n/n {}\n{}\n", self.seed, self.tokens, self.prompt)
    }

    /// The same for a board that ends then.
    pub fn script(&self) -> String {
        self.typed() + "/exit\n"
    }

    /// What the host's program makes of it. The tokens that it drew are not printed by it: they are taken from `board`,
    /// and proved by the text and by the logits after each of them.
    pub fn on_host(&self, board: &Report) -> Result<Report> {
        let elapid = Program::Elapid.build()?;
        let model = self.model.to_string_lossy();
        let (n, seed) = (self.tokens.to_string(), self.seed.to_string());
        let mut run = vec!["run", &model, self.prompt, "-n", &n, "--seed", &seed];
        run.extend(self.compute);
        let text = elapid.output(run)?;

        let ids = elapid.output(["tokenize", &model, self.prompt])?;
        let prompt: Vec<u32> = serde_json::from_str(&ids)
            .context(|| format!("`elapid tokenize` printed no list of tokens: {ids}"))?;

        let logits = self.logits_on_host(&board.prompt, &board.tokens)?;
        Ok(Report { text, prompt, tokens: board.tokens.clone(), logits })
    }

    /// The checksum of the logits from which `tokens` were drawn after `prompt`, by the host's program.
    pub fn logits_on_host(&self, prompt: &[u32], tokens: &[u32]) -> Result<u32> {
        let elapid = Program::Elapid.build()?;
        let model = self.model.to_string_lossy();
        let fed = prompt.iter().chain(tokens.iter().take(tokens.len().saturating_sub(1)));
        let fed = fed.map(u32::to_string).collect::<Vec<_>>().join(",");
        let folder = root().join("target/boards");
        fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
        let file = folder.join(format!("logits-{}.npy", std::process::id()));
        let name = file.to_string_lossy();
        let mut logits = vec!["logits", &model, "--tokens", &fed, "--all", "-o", &name];
        logits.extend(self.compute);
        elapid.output(logits)?;
        let bytes = fs::read(&file).context(|| format!("cannot read {}", file.display()))?;
        let _ = fs::remove_file(&file);
        Ok(checksum(last_rows(&bytes, tokens.len())?))
    }
}

/// The bytes of the last `count` rows of a two-dimensional array of f32 in NumPy's format, version 1.
fn last_rows(npy: &[u8], count: usize) -> Result<&[u8]> {
    let parse = || {
        let length = usize::from(u16::from_le_bytes(npy.get(8..10)?.try_into().ok()?));
        let header = std::str::from_utf8(npy.get(10..10 + length)?).ok()?;
        let shape = header.split_once("'shape': (")?.1.split_once(')')?.0;
        let mut sizes = shape.split(',').map(|size| size.trim().parse::<usize>());
        let (rows, columns) = (sizes.next()?.ok()?, sizes.next()?.ok()?);
        let skipped = rows.checked_sub(count)? * columns * 4;
        npy.get(10 + length..)?.get(skipped..)
    };
    parse().ok_or_else(|| Error::new("`elapid logits` wrote no array with a row for each token"))
}

impl Report {
    /// Reads the report of a program from what it wrote.
    pub fn read(console: &str) -> Result<Self> {
        let missing =
            |what: &str| Error::new(format!("the program reported no {what}; it wrote:\n{console}"));
        let (_, rest) = console.split_once("--- text\n").ok_or_else(|| missing("text"))?;
        // The line break before `---` belongs to the report.
        let (text, rest) = rest.split_once("\n--- prompt").ok_or_else(|| missing("prompt"))?;
        let rest = format!("--- prompt{rest}");
        rest.split_once("--- end\n").ok_or_else(|| missing("end"))?;
        let numbers = |name: &str| {
            let line = field(&rest, name).ok_or_else(|| missing(name))?;
            let numbers = line.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>();
            numbers.context(|| format!("the program's {name} are no numbers: {line}"))
        };
        let sum = field(&rest, "logits").ok_or_else(|| missing("logits"))?;
        let logits = u32::from_str_radix(sum, 16).context(|| format!("a checksum is no number: {sum}"))?;
        Ok(Self { text: text.into(), prompt: numbers("prompt")?, tokens: numbers("tokens")?, logits })
    }

    /// As it is stored.
    fn snapshot(&self) -> String {
        let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let mut text = String::new();
        let _ = writeln!(text, "prompt {}\ntokens {}", list(&self.prompt), list(&self.tokens));
        let _ = writeln!(text, "logits {:08x}\ntext {:?}", self.logits, self.text);
        text
    }

    /// Compares with what the host made of the same. The error says what differs first.
    pub fn compare(&self, host: &Self) -> Result<()> {
        let differs = |what: &str, board: &dyn std::fmt::Debug, host: &dyn std::fmt::Debug| {
            Err(Error::new(format!("{what} differ\n  board: {board:?}\n  host:  {host:?}")))
        };
        if self.prompt != host.prompt {
            return differs("the prompt's tokens", &self.prompt, &host.prompt);
        }
        if self.text != host.text {
            return differs("the texts", &self.text, &host.text);
        }
        if self.logits != host.logits {
            return differs("the logits' checksums", &self.logits, &host.logits);
        }
        Ok(())
    }

    /// Compares with the snapshot `name`, or stores it.
    pub fn snapshot_is(&self, name: &str, overwrite: bool) -> Result<()> {
        let file = root().join("tests/snapshots/boards").join(name).with_extension("txt");
        let here = self.snapshot();
        if overwrite {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder).context(|| format!("cannot make {}", folder.display()))?;
            }
            println!("writing {}", file.display());
            return fs::write(&file, here).context(|| format!("cannot write {}", file.display()));
        }
        let stored = fs::read_to_string(&file)
            .context(|| format!("cannot read {} (--overwrite makes it)", file.display()))?;
        if stored == here {
            return Ok(());
        }
        Err(Error::new(format!(
            "{} holds something else (--overwrite renews it)\n  stored: {stored}\n  now:    {here}",
            file.display()
        )))
    }
}

/// What a program's report says of `name`, in a line `--- name …`.
pub fn field<'a>(console: &'a str, name: &str) -> Option<&'a str> {
    let words = console.lines().filter_map(|line| line.strip_prefix("--- ")?.split_once(' '));
    words.into_iter().find(|(word, _)| *word == name).map(|(_, value)| value.trim())
}

/// A number that a program measured.
pub fn measured(console: &str, name: &str) -> Result<u64> {
    let value = field(console, name).and_then(|value| value.parse().ok());
    value.ok_or_else(|| Error::new(format!("the program reported no {name}; it wrote:\n{console}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "a board\n> hello\n--- text\n of\nsnakes\n--- prompt 1 2\n--- tokens 3 4 5\n\
        --- logits 00ff12ab\n--- ticks 77\n--- end\n";

    #[test]
    fn a_report_is_read() {
        let report = Report::read(CONSOLE).unwrap();
        assert_eq!(report.text, " of\nsnakes");
        assert_eq!((report.prompt.as_slice(), report.tokens.as_slice()), (&[1, 2][..], &[3, 4, 5][..]));
        assert_eq!(report.logits, 0x00ff_12ab);
        assert_eq!(measured(CONSOLE, "ticks").unwrap(), 77);
    }

    #[test]
    fn a_report_cut_short_is_none() {
        for end in ["--- text", "--- tokens", "--- logits", "--- end"] {
            let cut = CONSOLE.split_once(end).unwrap().0;
            assert!(Report::read(cut).is_err(), "{end}");
        }
    }

    #[test]
    fn every_difference_is_seen() {
        let report = Report::read(CONSOLE).unwrap();
        assert!(report.compare(&report).is_ok());
        let others = [
            Report { text: "of snakes".into(), ..report.clone() },
            Report { prompt: vec![1], ..report.clone() },
            Report { logits: 1, ..report.clone() },
        ];
        for other in others {
            assert!(report.compare(&other).is_err());
        }
    }

    #[test]
    fn rows_of_an_array_are_found() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n";
        let mut npy = b"\x93NUMPY\x01\x00".to_vec();
        npy.extend((header.len() as u16).to_le_bytes());
        npy.extend(header.as_bytes());
        npy.extend([0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0].map(f32::to_le_bytes).concat());
        assert_eq!(last_rows(&npy, 1).unwrap(), [4.0f32, 5.0].map(f32::to_le_bytes).concat());
        assert!(last_rows(&npy, 4).is_err());
        assert!(last_rows(&npy[..30], 1).is_err());
    }
}
