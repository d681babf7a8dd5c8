//! `cargo xtask check-real`: a real checkpoint, packed and compared with what others published about it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::exec::must;
use crate::programs::{Built, Program, pack};
use crate::toolchain::Toolchain;

/// A published model whose output is known.
struct Known {
    name: &'static str,
    model_type: &'static str,
    hidden_size: u64,
    layers: u64,
    quant: &'static str,
    prompt: &'static str,
    /// How many tokens `continuation` is.
    tokens: u32,
    /// What always taking the most likely token gives (the documentation and tests of Hugging Face transformers).
    continuation: &'static str,
    /// Another runtime's perplexity over wikitext-2's test set, at f16.
    perplexity: Option<f64>,
}

const KNOWN: &[Known] = &[
    Known {
        name: "state-spaces/mamba-130m",
        model_type: "mamba",
        hidden_size: 768,
        layers: 24,
        quant: "f16",
        prompt: "Hey how are you doing?",
        tokens: 10,
        continuation: "\n\nI'm so glad you're here.",
        perplexity: Some(25.09),
    },
    Known {
        name: "tiiuae/falcon-mamba-7b",
        model_type: "falcon_mamba",
        hidden_size: 4096,
        layers: 64,
        quant: "q8",
        prompt: "Hello today",
        tokens: 20,
        continuation: " I am going to show you how to make a simple and easy to make paper plane.\nStep",
        perplexity: None,
    },
];

/// How far a perplexity may be from the published one. That one was computed over windows, so it is not the same sum.
const PERPLEXITY_TOLERANCE: f64 = 0.01;

/// Packs the checkpoint in `folder` and compares what it writes. `quant` overrides the known model's.
pub fn check_real(folder: &Path, quant: Option<&str>, wiki: Option<&Path>) -> Result<ExitCode> {
    let folder = folder.canonicalize().context(|| format!("cannot find {}", folder.display()))?;
    let wiki = wiki.map(|file| file.canonicalize().context(|| format!("cannot find {}", file.display())));
    let wiki = wiki.transpose()?;
    let config = folder.join("config.json");
    let text = std::fs::read_to_string(&config).context(|| format!("cannot read {}", config.display()))?;
    let config = serde_json::from_str(&text).context(|| format!("cannot understand {}", config.display()))?;
    let stem = folder.file_name().unwrap_or("model".as_ref());
    let known = recognise(&config, &stem.to_string_lossy());

    let quant = quant.unwrap_or(known.map_or("f16", |known| known.quant));
    let mut name = stem.to_owned();
    name.push(format!("-{quant}.elp"));
    let file = Toolchain::Current.target_dir().join("check-real").join(name);
    pack(&Program::Pack.build()?, &[folder.as_os_str()], &file, quant)?;
    let elapid = Program::Elapid.build()?;
    must(elapid.command().arg("verify").arg(&file))?;

    let Some(known) = known else {
        let sample = greedy(&elapid, &file, "Once upon a time", 32)?;
        println!(
            "No published output of this model is known here. It goes on from \"Once upon a time\" with:"
        );
        println!("{sample}");
        return Ok(ExitCode::SUCCESS);
    };
    println!("This is {}, packed as {quant}.", known.name);
    let mut good = compare_text(&greedy(&elapid, &file, known.prompt, known.tokens)?, known);
    match (known.perplexity, wiki) {
        (Some(expected), Some(text)) => {
            good &= compare_perplexity(perplexity(&elapid, &file, &text)?, expected)
        }
        (Some(_), None) => println!("skipped: perplexity: give wikitext-2's wiki.test.raw with --wiki"),
        (None, Some(_)) => println!("skipped: perplexity: none is published for {}", known.name),
        (None, None) => {}
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The known model with these dimensions. A tuned one has the dimensions of its base, but not its words.
fn recognise(config: &Value, folder: &str) -> Option<&'static Known> {
    let number = |names: &[&str]| names.iter().find_map(|name| config.get(name)?.as_u64());
    // The original release of Mamba has no type and other names.
    let model_type = config.get("model_type").map_or(Some("mamba"), Value::as_str)?;
    let hidden_size = number(&["hidden_size", "d_model"])?;
    let layers = number(&["num_hidden_layers", "n_layer"])?;
    if folder.to_lowercase().contains("instruct") {
        return None;
    }
    KNOWN.iter().find(|known| {
        (known.model_type, known.hidden_size, known.layers) == (model_type, hidden_size, layers)
    })
}

fn greedy(elapid: &Built, file: &Path, prompt: &str, tokens: u32) -> Result<String> {
    let tokens = tokens.to_string();
    let options = ["--temp", "0", "-n", &tokens].map(OsStr::new);
    elapid.output([OsStr::new("run"), file.as_os_str(), prompt.as_ref()].into_iter().chain(options))
}

fn perplexity(elapid: &Built, file: &Path, text: &Path) -> Result<f64> {
    let arguments =
        ["perplexity".as_ref(), file.as_os_str(), "--file".as_ref(), text.as_os_str(), "--json".as_ref()];
    let json = elapid.output(arguments)?;
    serde_json::from_str::<Value>(&json)
        .ok()
        .and_then(|report| report.get("perplexity")?.as_f64())
        .ok_or_else(|| Error::new(format!("`elapid perplexity --json` gives no `perplexity`: {json}")))
}

fn compare_text(written: &str, known: &Known) -> bool {
    let same = written == known.continuation;
    println!(
        "{}: greedy text after {:?}\n  published {:?}\n  written   {written:?}",
        verdict(same),
        known.prompt,
        known.continuation
    );
    same
}

fn compare_perplexity(measured: f64, published: f64) -> bool {
    let same = (measured / published - 1.0).abs() <= PERPLEXITY_TOLERANCE;
    println!(
        "{}: perplexity\n  published {published:.2} (another runtime, f16, over windows)\n  measured  {measured:.2} \
         (one sequence; {:.0}% apart are allowed)",
        verdict(same),
        PERPLEXITY_TOLERANCE * 100.0
    );
    same
}

fn verdict(same: bool) -> &'static str {
    if same { "ok" } else { "DIFFERS" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name(config: &Value, folder: &str) -> Option<&'static str> {
        recognise(config, folder).map(|known| known.name)
    }

    #[test]
    fn models_are_recognised_by_their_dimensions() {
        let falcon = json!({ "model_type": "falcon_mamba", "hidden_size": 4096, "num_hidden_layers": 64 });
        assert_eq!(name(&falcon, "falcon-mamba-7b"), Some("tiiuae/falcon-mamba-7b"));
        assert_eq!(name(&falcon, "Falcon-Mamba-7B-Instruct"), None);
        let hugging_face = json!({ "model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24 });
        let original = json!({ "d_model": 768, "n_layer": 24 });
        for config in [hugging_face, original] {
            assert_eq!(name(&config, "x"), Some("state-spaces/mamba-130m"));
        }
        assert_eq!(
            name(&json!({ "model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 23 }), "x"),
            None
        );
        assert_eq!(name(&json!({ "model_type": "mamba2", "hidden_size": 768, "n_layer": 24 }), "x"), None);
        assert_eq!(name(&json!({}), "x"), None);
    }

    #[test]
    fn another_text_or_perplexity_differs() {
        let known = &KNOWN[0];
        assert!(compare_text(known.continuation, known));
        assert!(!compare_text("\n\nI'm so glad you're there.", known));
        assert!(compare_perplexity(25.2, 25.09));
        assert!(!compare_perplexity(25.5, 25.09));
        assert!(!compare_perplexity(f64::NAN, 25.09));
    }
}
