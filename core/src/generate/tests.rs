//! The loop, driven over a model that follows a script.

extern crate std;
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use super::{End, Generation, Next, Prompt, PromptError, Rules, held_bytes};
use crate::format::data::{RoleTable, Wrapping};
use crate::sample::Settings;
use crate::tokenizer::table::{Header, PreTokenizer, TOKEN_SPECIAL};
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// A vocabulary: `%` begins a special token, and the empty one is an id without a token.
const TOKENS: [&[u8]; 12] =
    [b"a", b"b", b"c", b"\xc3", b"\xb6", b"%<s>", b"%<end>", b"", b"ab", b" ", b"abc d", b"e"];
const SPECIAL: u32 = 5;
const END: u32 = 6;
const MISSING: u32 = 7;
/// Longer than the tokenizer's: the last id is padding.
const VOCAB: usize = TOKENS.len() + 1;

/// The table of [`TOKENS`], in which texts are encoded byte by byte.
fn table() -> Vec<u8> {
    let text: Vec<&[u8]> = TOKENS.iter().map(|token| token.strip_prefix(b"%").unwrap_or(token)).collect();
    let header = Header {
        pre_tokenizer: PreTokenizer::Gpt2,
        nfc: false,
        wide: false,
        added_rules: false,
        vocab_size: TOKENS.len() as u32,
        merges: 0,
        merge_slots: 1,
        word_slots: 1,
        added_raw: 0,
        added_normalized: 0,
        prefix: 0,
        suffix: 0,
        text_len: text.concat().len() as u32,
        patterns_len: 0,
        chars: None,
    };
    let mut table = header.emit().to_vec();
    for byte in 0..=255u8 {
        let token = text.iter().position(|token| *token == [byte]).map_or(0, |id| id as u16 + 1);
        table.extend(token.to_le_bytes());
    }
    let mut offset = 0u32;
    for (token, text) in TOKENS.iter().zip(&text) {
        table.extend((offset | if token.starts_with(b"%") { TOKEN_SPECIAL } else { 0 }).to_le_bytes());
        offset += text.len() as u32;
    }
    table.extend(offset.to_le_bytes());
    // No merge and no word in the one slot of each, and no added tokens.
    table.extend([0; 2 + 2 + 64 + 64]);
    table.extend(text.concat());
    table
}

/// Rules over [`TOKENS`].
pub(super) struct Scripted {
    tokenizer: Tokenizer<'static>,
    stops: Vec<&'static str>,
}

impl Scripted {
    pub(super) fn with_stops(stops: &[&'static str]) -> Self {
        let table = Vec::leak(table());
        Self { tokenizer: Tokenizer::parse(table).expect("a valid table"), stops: stops.to_vec() }
    }
}

impl Rules for Scripted {
    fn tokenizer(&self) -> &Tokenizer<'_> {
        &self.tokenizer
    }

    fn is_end(&self, token: u32) -> bool {
        token == END
    }

    fn stops(&self) -> impl Iterator<Item = &str> {
        self.stops.iter().copied()
    }
}

/// A model that wants the tokens of a script next, one after the other, whatever it is fed.
struct Model {
    script: &'static [u32],
    fed: Vec<u32>,
    logits: usize,
}

impl Model {
    const fn new(script: &'static [u32]) -> Self {
        Self { script, fed: Vec::new(), logits: 0 }
    }

    fn logits(&mut self) -> [f32; VOCAB] {
        let mut logits = [0.0; VOCAB];
        // Ids without a token are more likely still, and masked.
        (logits[MISSING as usize], logits[VOCAB - 1]) = (9.0, 9.0);
        logits[self.script[self.logits] as usize] = 5.0;
        self.logits += 1;
        logits
    }
}

type Owned = Generation<Vec<u32>, Vec<u8>>;

fn greedy(rules: &Scripted, history: usize, max_tokens: usize) -> Owned {
    let held = vec![0; held_bytes(rules.stops())];
    let settings = Settings { repeat_penalty: 8.0, ..Settings::GREEDY };
    Generation::with_memory(settings, 1, max_tokens, vec![0; history], held).expect("good settings")
}

/// Drives a generation that takes `chunk` tokens at once. Returns the text and why it ended.
fn drive(
    generation: &mut Owned,
    rules: &Scripted,
    model: &mut Model,
    prompt: &[u32],
    chunk: usize,
) -> (String, End) {
    let mut text = String::new();
    loop {
        match generation.next(prompt) {
            Next::Feed(tokens) => {
                let count = tokens.len().min(chunk);
                model.fed.extend(&tokens[..count]);
                generation.fed(count);
            }
            Next::Choose => {
                let before = generation.tokens();
                let chosen = generation.choose(rules, &mut model.logits(), &mut |some| text += some);
                let chosen = chosen.expect("finite logits").map_or(0, |_| 1);
                assert_eq!(generation.tokens() - before, chosen);
            }
            Next::End(end) => return (text, end),
        }
    }
}

/// Runs a script after a prompt of two tokens. Returns the text, why it ended, what was fed, and how much by the count.
fn run(script: &'static [u32], stops: &[&'static str], max: usize) -> (String, End, Vec<u32>, usize) {
    let (rules, mut model) = (Scripted::with_stops(stops), Model::new(script));
    let mut generation = greedy(&rules, 0, max);
    generation.prompt(&[0, 1]);
    let (text, end) = drive(&mut generation, &rules, &mut model, &[0, 1], 64);
    (text, end, model.fed, generation.total_fed())
}

#[test]
fn a_text_ends_at_its_length_at_an_end_token_and_at_a_stop_text() {
    assert_eq!(run(&[2, 0, 1], &[], 3), ("cab".into(), End::Length, vec![0, 1, 2, 0], 4));
    assert_eq!(run(&[2, 0, END], &[], 9), ("ca".into(), End::Eos, vec![0, 1, 2, 0], 4));
    assert_eq!(run(&[2, 0, 1], &["ab"], 9), ("c".into(), End::Stop, vec![0, 1, 2, 0], 4));
    assert_eq!(run(&[], &[], 0), (String::new(), End::Length, vec![0, 1], 2));
    // What was held back for a stop text comes out in the end.
    assert_eq!(run(&[2, 0, END], &["ab"], 9).0, "ca");
    assert_eq!(run(&[2, 0], &["ab"], 2).0, "ca");
}

#[test]
fn characters_are_whole_and_special_tokens_only_searched() {
    assert_eq!(run(&[0, 3, SPECIAL, 4, 1], &[], 5).0, "aöb");
    // An end within a character.
    assert_eq!(run(&[0, 3], &[], 2).0, "a\u{fffd}");
    assert_eq!(run(&[0, SPECIAL, 1, 2], &["<s>b"], 9), ("a".into(), End::Stop, vec![0, 1, 0, SPECIAL], 4));
    // The stop text that begins first, of those that one token completes.
    assert_eq!(run(&[2, 10], &["c d", "bc"], 9).0, "ca");
}

#[test]
fn prompts_are_fed_in_chunks_and_in_pieces() {
    let (rules, prompt) = (Scripted::with_stops(&[]), [0, 1, 2, 9, 8]);
    for chunk in 1..=6 {
        for piece in 1..=6 {
            let (mut generation, mut model) = (greedy(&rules, 0, 2), Model::new(&[0, 1]));
            let mut result = (String::new(), End::Interrupted);
            let pieces = prompt.chunks(piece).count();
            for (i, piece) in prompt.chunks(piece).enumerate() {
                generation.prompt(piece);
                if i + 1 < pieces {
                    while let Next::Feed(tokens) = generation.next(piece) {
                        let count = tokens.len().min(chunk);
                        model.fed.extend(&tokens[..count]);
                        generation.fed(count);
                    }
                } else {
                    result = drive(&mut generation, &rules, &mut model, piece, chunk);
                }
            }
            assert_eq!(result, ("ab".into(), End::Length));
            assert_eq!((model.fed, generation.total_fed()), (vec![0, 1, 2, 9, 8, 0], 6));
        }
    }
}

#[test]
fn the_penalty_looks_back_at_prompt_and_text() {
    let rules = Scripted::with_stops(&[]);
    let logits = || {
        let mut logits = [-90.0; VOCAB];
        (logits[0], logits[1], logits[2]) = (5.0, 4.0, 3.0);
        logits
    };
    let chosen = |history, prompt: &[u32]| {
        let mut generation = greedy(&rules, history, 9);
        generation.prompt(prompt);
        let mut all = Vec::new();
        while all.len() < 5 {
            match generation.next(prompt) {
                Next::Feed(tokens) => {
                    let count = tokens.len();
                    generation.fed(count);
                }
                Next::Choose => all.extend(generation.choose(&rules, &mut logits(), &mut |_| {}).unwrap()),
                Next::End(end) => panic!("{end:?}"),
            }
        }
        all
    };
    assert_eq!(chosen(0, &[0]), [0, 0, 0, 0, 0]);
    assert_eq!(chosen(1, &[0]), [1, 0, 1, 0, 1]);
    assert_eq!(chosen(2, &[9, 9, 0]), [1, 2, 0, 1, 2]);
    assert_eq!(chosen(2, &[0, 9, 9]), [0, 1, 2, 0, 1]);
    assert_eq!(chosen(9, &[0]), [1, 2, 0, 0, 0]);
}

#[test]
fn an_interruption_gives_out_what_was_held() {
    let rules = Scripted::with_stops(&["abc"]);
    let (mut generation, mut model) = (greedy(&rules, 0, 9), Model::new(&[0, 1, 3]));
    generation.prompt(&[9]);
    let mut text = String::new();
    for _ in 0..3 {
        let Next::Feed(tokens) = generation.next(&[9]) else { panic!("a token was to be fed") };
        let count = tokens.len();
        generation.fed(count);
        generation.choose(&rules, &mut model.logits(), &mut |some| text += some).unwrap();
    }
    assert_eq!((text.as_str(), generation.tokens(), generation.total_fed()), ("", 3, 3));
    // The last token's step was begun: it counts.
    generation.fed(1);
    generation.interrupt(&rules, &mut |some| text += some);
    assert_eq!((text.as_str(), generation.total_fed()), ("ab\u{fffd}", 4));
    assert_eq!(generation.next(&[9]), Next::End(End::Interrupted));
    // It has ended: nothing changes any more.
    generation.interrupt(&rules, &mut |some| text += some);
    assert_eq!(text, "ab\u{fffd}");
}

#[test]
fn a_complete_text_ends_as_by_a_stop_text_even_at_the_limit() {
    for limit in [1, 9] {
        let rules = Scripted::with_stops(&["abc"]);
        let (mut generation, mut model) = (greedy(&rules, 0, limit), Model::new(&[0]));
        let mut text = String::new();
        generation.choose(&rules, &mut model.logits(), &mut |some| text += some).unwrap();
        generation.complete(&rules, &mut |some| text += some);
        assert_eq!((text.as_str(), generation.next(&[])), ("a", Next::End(End::Stop)), "{limit}");
    }
}

#[test]
fn damaged_logits_and_settings_are_refused() {
    assert!(Generation::new(Settings { temperature: -1.0, ..Settings::MODEL }, 1, 1).is_err());
    let rules = Scripted::with_stops(&[]);
    let mut generation = Generation::new(Settings::GREEDY, 1, 1).unwrap();
    let mut logits = [f32::NAN; VOCAB];
    assert!(generation.choose(&rules, &mut logits, &mut |_| {}).is_err());
    // Without a prompt the text goes on from the logits that there are.
    assert_eq!(generation.next(&[]), Next::Choose);
}

#[test]
fn prompts_are_encoded_into_a_buffer() {
    let rules = Scripted::with_stops(&[]);
    let (tokenizer, options) = (rules.tokenizer(), EncodeOptions::default());
    let (mut tokens, mut scratch) = ([0; 6], [0; 64]);
    let mut prompt = Prompt::new(&mut tokens, &mut scratch);
    prompt.add(tokenizer, "abc", options).unwrap();
    prompt.add(tokenizer, "a", options).unwrap();
    assert_eq!(prompt.finish(), [0, 1, 2, 0]);

    let (user, assistant) = (Wrapping { prefix: "b", suffix: "c" }, Wrapping { prefix: "bb", suffix: "e" });
    let roles = RoleTable { start: "a", system: None, user, assistant, generation: "bb" };
    for (first, expected) in [(true, [0, 1, 9, 2, 1, 1]), (false, [11, 1, 9, 2, 1, 1])] {
        let mut prompt = Prompt::new(&mut tokens, &mut scratch);
        prompt.add_message(tokenizer, &roles, first, " ").unwrap();
        assert_eq!(prompt.finish(), expected);
    }
    let mut prompt = Prompt::new(&mut tokens, &mut scratch);
    let error = prompt.add_message(tokenizer, &roles, true, "ab").unwrap_err();
    assert_eq!(error, PromptError::Long { most: 6 });
    assert_eq!(format!("{error}"), "the text has more than 6 tokens: give a shorter one");
}
