//! Vocabularies of GGUF files and the ids that others wrote down for their texts: llama.cpp's `ggml-vocab-*.gguf` with `.inp`
//! and `.out`.
//!
//! They are large and so not part of the project: `ELAPID_GOLDENS` names their folder. Without it, `shared/data/tokenizer`
//! beside the project is used, and the test says that it is skipped where that is not there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{assert_same, decode, encode_with};
use elapid_core::tokenizer::{EncodeOptions, Tokenizer};
use elapid_pack::checkpoint::gguf_tokenizer;
use elapid_pack::tokenizer::compile;

const VOCABULARIES: [&str; 7] =
    ["llama-spm", "llama-bpe", "gpt-2", "qwen2", "starcoder", "falcon", "gpt-neox"];
/// What a GGUF's tokenizer and the tokenizer.json of the same model must read alike.
const TEXT: &str =
    "Hello  world, it's 12345 \u{e9}t\u{e9}\n\n\tcaf\u{e9}s \u{4f60}\u{597d} \u{1f600} f(x):\r\n    x**2 ...";

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("ELAPID_GOLDENS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tokenizer"),
        PathBuf::from,
    );
    if folder.join("ggml-vocab-gpt-2.gguf").is_file() {
        return Some(folder);
    }
    println!("skipped: no vocabularies in {}", folder.display());
    None
}

#[test]
fn texts_give_the_ids_that_others_wrote_down() {
    let Some(folder) = folder() else { return };
    for name in VOCABULARIES {
        let file = |end: &str| folder.join(format!("ggml-vocab-{name}.gguf{end}"));
        let json = gguf_tokenizer(&file("")).unwrap().expect("a tokenizer");
        let oracle = crate::support::oracle(&json);
        let table = compile(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
        let tokenizer = Tokenizer::parse(&table).unwrap();
        let options = EncodeOptions { add_special: false, parse_special: false };
        if let Ok(published) = fs::read(folder.join(format!("{name}-tokenizer.json"))) {
            let table = compile(&published).unwrap();
            let published = Tokenizer::parse(&table).unwrap();
            assert_eq!(
                encode_with(&tokenizer, TEXT, options),
                encode_with(&published, TEXT, options),
                "{name}"
            );
        }
        // GPT-NeoX's has no ids: it is compared with the oracle on the texts of another.
        let has_ids = file(".inp").is_file();
        let source = if has_ids { file(".inp") } else { folder.join("ggml-vocab-gpt-2.gguf.inp") };
        let texts = fs::read_to_string(source).unwrap();
        let ids = if has_ids { fs::read_to_string(file(".out")).unwrap() } else { String::new() };
        let mut texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        assert_eq!(texts.pop(), Some(""), "each text ends with the separator");
        let mut lines = ids.lines();
        for text in &texts {
            assert_same(name, &oracle, &tokenizer, text);
            let found = encode_with(&tokenizer, text, options);
            if has_ids {
                let wanted: Vec<u32> =
                    lines.next().unwrap().split_whitespace().map(|id| id.parse().unwrap()).collect();
                assert_eq!(found, wanted, "{name}: {text:?}");
            }
            assert_eq!(decode(&tokenizer, &found, false), oracle.decode(&found, false).unwrap(), "{name}");
        }
        assert_eq!(lines.next(), None, "{name}");
        println!(
            "{name}: {} texts, {} bytes, of them {} of automata",
            texts.len(),
            table.len(),
            tokenizer.header().patterns_len
        );
    }
}
