//! The committed references of `tests/fixtures`: what Hugging Face transformers computes.
//!
//! `tests/reference/make_fixtures.py` and `perplexity.py` made them. Helpers of tests: they panic where a file is
//! broken, naming it.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A checkpoint and what it is expected to compute.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// The folder's name in `tests/fixtures`.
    pub name: String,
    /// The Hugging Face folder with `config.json` and the weights.
    pub checkpoint: PathBuf,
    /// The number of logits a token.
    pub vocab: usize,
    /// 64 tokens to feed from an empty state.
    pub tokens: Vec<u32>,
    /// The logits after each of `tokens`, `[tokens, vocab]`.
    pub logits: Vec<f32>,
    /// The tokens before `greedy`.
    pub prompt: Vec<u32>,
    /// The 200 tokens that follow `prompt` when each is the largest logit.
    pub greedy: Vec<u32>,
}

impl Fixture {
    /// The expected logits `[vocab]` after `tokens[index]`.
    pub fn logits_after(&self, index: usize) -> &[f32] {
        &self.logits[index * self.vocab..][..self.vocab]
    }

    /// The largest difference to the expected logits, as a share of their largest magnitude.
    pub fn error(&self, logits: &[f32]) -> f32 {
        assert_eq!(logits.len(), self.logits.len(), "{}", self.name);
        difference(logits, &self.logits) / self.scale()
    }

    /// The largest magnitude among the expected logits: errors are stated as a share of it.
    pub fn scale(&self) -> f32 {
        self.logits.iter().fold(0.0, |largest, value| largest.max(value.abs()))
    }

    fn load(folder: &Path, checkpoint: PathBuf) -> Self {
        let path = folder.join("expected.safetensors");
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let ids = |name: &str| {
            read(&file, &path, name, Dtype::I32)
                .map(|b| u32::try_from(i32::from_le_bytes(b)).expect("ids are not negative"))
                .collect::<Vec<_>>()
        };
        let tokens = ids("tokens");
        let logits: Vec<f32> = read(&file, &path, "logits", Dtype::F32).map(f32::from_le_bytes).collect();
        Self {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            checkpoint,
            vocab: logits.len() / tokens.len(),
            prompt: ids("prompt"),
            greedy: ids("greedy"),
            tokens,
            logits,
        }
    }
}

/// The 4-byte elements of a tensor.
fn read<'a>(
    file: &'a SafeTensors<'a>,
    path: &Path,
    name: &str,
    dtype: Dtype,
) -> impl Iterator<Item = [u8; 4]> + 'a {
    let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
    assert_eq!(tensor.dtype(), dtype, "{}: {name}", path.display());
    tensor.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
}

/// All fixtures in the order of their names.
pub fn fixtures() -> Vec<Fixture> {
    let root = fixtures_folder();
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap_or_else(|e| panic!("{}: {e}", root.display())).path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders.iter().map(|folder| Fixture::load(folder, checkpoint_of(folder))).collect()
}

/// The fixture of this name.
pub fn fixture(name: &str) -> Fixture {
    let folder = fixtures_folder().join(name);
    Fixture::load(&folder, checkpoint_of(&folder))
}

/// A fixture holds its own weights or is named after a bundled model.
fn checkpoint_of(folder: &Path) -> PathBuf {
    if folder.join("config.json").exists() {
        return folder.to_owned();
    }
    let model = folder.file_name().unwrap_or_default().to_string_lossy();
    elapid_test_support::data::path(&format!("models/{model}"))
}

/// What `elapid perplexity` must report for a bundled model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// `--max-tokens`: this many tokens of [`elapid_test_support::data::held_out_text`].
    pub tokens: usize,
    /// exp of `mean_nll`.
    pub perplexity: f64,
    /// The mean negative log likelihood in nats over the `tokens - 1` predictions.
    pub mean_nll: f64,
}

/// The golden perplexity of a bundled model, from transformers in float32.
pub fn golden_perplexity(model: &str) -> Perplexity {
    let path = fixtures_folder().join("perplexity.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let entry = &json["models"][model];
    let number = |name: &str| {
        entry[name].as_f64().unwrap_or_else(|| panic!("{}: no {name} of {model}", path.display()))
    };
    Perplexity {
        tokens: number("tokens") as usize,
        perplexity: number("perplexity"),
        mean_nll: number("mean_nll"),
    }
}

/// The folder of the committed fixtures.
pub fn fixtures_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The largest difference between two lists of numbers.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |largest, (a, b)| largest.max((a - b).abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_agree() {
        let all = fixtures();
        assert!(all.len() >= 12, "{} fixtures", all.len());
        for f in &all {
            assert_eq!((f.tokens.len(), f.greedy.len()), (64, 200), "{}", f.name);
            assert_eq!(f.logits.len(), 64 * f.vocab, "{}", f.name);
            assert!(!f.prompt.is_empty(), "{}", f.name);
            let ids = f.tokens.iter().chain(&f.prompt).chain(&f.greedy);
            assert!(ids.copied().all(|id| (id as usize) < f.vocab), "{}", f.name);
            assert!(f.scale().is_finite() && f.scale() > 1.0, "{}", f.name);
        }
    }

    #[test]
    fn perplexities_are_exponentials_of_their_losses() {
        for model in ["address-300k", "address-4m"] {
            let golden = golden_perplexity(model);
            assert_eq!(golden.tokens, 4096);
            assert!((golden.mean_nll.exp() - golden.perplexity).abs() < 1e-8, "{model}: {golden:?}");
        }
    }
}
