//! From a prompt to text: ids without a token, special tokens, stop texts, and interruptions.

use std::ops::ControlFlow;
use std::path::Path;

use elapid::core::sample::Settings;
use elapid::core::tokenizer::{EncodeOptions, Tokenizer};
use elapid::{
    End, Engine, EngineOptions, Error, GenerateOptions, Generated, Listener, MemoryOptions, encode, generate,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

/// Ids of the model, and of the characters from `!` on.
const VOCAB: usize = 104;
const FIRST: u32 = 1;
/// Between tokens, and behind the last one.
const HOLE: u32 = 95;
const PADDING: u32 = 101;
const END: u32 = 96;

fn id(character: char) -> u32 {
    FIRST + character as u32 - u32::from(b'!')
}

/// A model of one layer that does nothing: what follows a token depends on that token alone. After the first of a pair comes the
/// second, or rather the one with the largest weight.
fn save(folder: &Path, follows: &[(u32, u32, f32)]) {
    const D: usize = 64;
    // Signs that have little in common.
    let sign = |token: usize, i: usize| {
        let bits = (token * D + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if (bits ^ bits >> 29).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
    };
    let embedding: Vec<f32> = (0..VOCAB * D).map(|at| sign(at / D, at % D)).collect();
    let mut head = vec![0.0; VOCAB * D];
    for &(from, to, weight) in follows {
        for i in 0..D {
            head[to as usize * D + i] += weight * embedding[from as usize * D + i];
        }
    }
    let layer = |name: &str| format!("backbone.layers.0.{name}");
    let zeros = |n: usize| vec![0.0; n];
    let tensors = [
        ("backbone.embeddings.weight".into(), vec![VOCAB, D], embedding),
        (layer("norm.weight"), vec![D], vec![1.0; D]),
        (layer("mixer.in_proj.weight"), vec![2 * D, D], zeros(2 * D * D)),
        (layer("mixer.conv1d.weight"), vec![D, 1, 4], zeros(4 * D)),
        (layer("mixer.conv1d.bias"), vec![D], zeros(D)),
        (layer("mixer.x_proj.weight"), vec![4 + 2 * 2, D], zeros(8 * D)),
        (layer("mixer.dt_proj.weight"), vec![D, 4], zeros(4 * D)),
        (layer("mixer.dt_proj.bias"), vec![D], zeros(D)),
        (layer("mixer.A_log"), vec![D, 2], zeros(2 * D)),
        (layer("mixer.D"), vec![D], zeros(D)),
        (layer("mixer.out_proj.weight"), vec![D, D], zeros(D * D)),
        ("backbone.norm_f.weight".into(), vec![D], vec![1.0; D]),
        ("lm_head.weight".into(), vec![VOCAB, D], head),
    ];
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(.., values)| values.iter().flat_map(|x: &f32| x.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"))
    });
    let weights = safetensors::serialize(views, None).expect("tensors");
    std::fs::write(folder.join("model.safetensors"), weights).expect("a file");
    let config = json!({
        "model_type": "mamba", "hidden_size": D, "intermediate_size": D, "num_hidden_layers": 1, "state_size": 2,
        "conv_kernel": 4, "time_step_rank": 4, "vocab_size": VOCAB, "layer_norm_epsilon": 1e-5, "use_bias": false,
        "use_conv_bias": true, "tie_word_embeddings": false,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a file");

    let mut vocab: serde_json::Map<String, serde_json::Value> =
        ('!'..='~').map(|character| (character.to_string(), id(character).into())).collect();
    vocab.insert("<|endoftext|>".into(), 0.into());
    vocab.insert("\u{120}".into(), 97.into());
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(0, "<|endoftext|>"), special(END, "<|im_end|>")],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    // Otherwise it is a GPT-NeoX tokenizer, which has a token more.
    let class = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    std::fs::write(folder.join("tokenizer_config.json"), class.to_string()).expect("a file");
}

fn open(follows: &[(u32, u32, f32)]) -> Engine {
    let folder = tempfile::tempdir().expect("a temporary folder");
    save(folder.path(), follows);
    let options = elapid_pack::Options { quant: elapid::core::format::Quant::F32, ..Default::default() };
    let plan = elapid_pack::Plan::checkpoint(folder.path(), &options).expect("a checkpoint");
    let path = folder.path().join("model.elp");
    plan.write(&path, &options, &()).expect("a packed file");
    Engine::open(&path, &EngineOptions { threads: Some(1), ..Default::default() }).expect("a model")
}

/// Keeps a text, and breaks when it was asked so often.
struct Keep {
    text: String,
    asked: usize,
    breaks: Option<usize>,
}

impl Keep {
    fn new(breaks: Option<usize>) -> Self {
        Self { text: String::new(), asked: 0, breaks }
    }
}

impl Listener for Keep {
    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.text.push_str(text);
        Ok(())
    }
    fn next(&mut self) -> ControlFlow<()> {
        self.asked += 1;
        if Some(self.asked) == self.breaks { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn options(max_tokens: usize, settings: Settings, stop: &[&str]) -> GenerateOptions {
    let stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
    GenerateOptions { max_tokens, settings, seed: 1, eos: Vec::new(), stop }
}

/// The text after `a`.
fn after_a(engine: &Engine, options: &GenerateOptions) -> Result<(String, Generated), Error> {
    let tokenizer = engine.tokenizer()?;
    let mut memory = engine.memory(&MemoryOptions::default())?;
    let mut sequence = memory.sequence(engine)?;
    let mut keep = Keep::new(None);
    let generated = generate(&mut sequence, &tokenizer, &[id('a')], options, &mut keep)?;
    Ok((keep.text, generated))
}

#[test]
fn ids_without_a_token_are_never_chosen() {
    let engine = open(&[
        (id('a'), HOLE, 1.0),
        (id('a'), PADDING, 0.9),
        (id('a'), id('b'), 0.8),
        (id('b'), PADDING, 1.0),
        (id('b'), id('c'), 0.8),
        (id('c'), id('a'), 1.0),
    ]);
    for settings in [
        Settings::GREEDY,
        Settings { top_p: 0.95, ..Settings::MODEL },
        Settings { top_k: 1, ..Settings::MODEL },
    ] {
        let (text, generated) = after_a(&engine, &options(6, settings, &[])).expect("a text");
        assert_eq!(
            (text.as_str(), generated.tokens, generated.end),
            ("bcabca", 6, End::Length),
            "{settings:?}"
        );
    }
    // The canary: the model itself would choose one.
    let mut memory = engine.memory(&MemoryOptions::default()).expect("memory");
    let mut sequence = memory.sequence(&engine).expect("a sequence");
    sequence.feed(&[id('a')]).expect("it can be fed");
    let logits = sequence.logits().expect("logits");
    let largest = (0..VOCAB).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    assert_eq!(largest, Some(HOLE as usize));
}

#[test]
fn a_mask_leaves_what_has_a_token() {
    let engine = open(&[]);
    let tokenizer = engine.tokenizer().expect("a tokenizer");
    for length in [0, 50, 97, 99, VOCAB, 200] {
        let mut logits = vec![0.5; length];
        tokenizer.mask(&mut logits);
        for (id, logit) in (0..).zip(&logits) {
            let wanted = if tokenizer.token_bytes(id).is_some() { 0.5 } else { f32::NEG_INFINITY };
            assert_eq!(*logit, wanted, "{id} of {length}");
        }
    }
}

#[test]
fn stop_texts_are_found_in_special_tokens() {
    let engine = open(&[
        (id('a'), id('b'), 1.0),
        (id('b'), id('c'), 1.0),
        (id('c'), END, 1.0),
        (END, id('d'), 1.0),
        (id('d'), id('f'), 1.0),
        (id('f'), id('a'), 1.0),
    ]);
    for (stop, text, end) in [
        (&["<|im_end|>"][..], "bc", End::Stop),
        (&["c<|im_end|>d"], "b", End::Stop),
        (&["bc<|im"], "", End::Stop),
        (&["|>df"], "bc", End::Stop),
        (&["d"], "bc", End::Stop),
        // A special token is no part of the text, whether a stop text began with it or not.
        (&["<|im_end|>x", "c<|im_end|>dd"], "bcdfa", End::Length),
        (&[], "bcdfa", End::Length),
    ] {
        let (found, generated) = after_a(&engine, &options(6, Settings::GREEDY, stop)).expect("a text");
        assert_eq!((found.as_str(), generated.end), (text, end), "{stop:?}");
    }
}

/// Wherever a generation is interrupted, within a step or between two, the next one goes on from there.
#[test]
fn an_interrupted_generation_goes_on_with_the_same_bits() {
    const MADE: usize = 6;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/address-300k.elp");
    let engine = Engine::open(&path, &EngineOptions::default()).expect("a model");
    let tokenizer = engine.tokenizer().expect("a tokenizer");
    let prompt =
        encode(&tokenizer, "My fellow citizens of the Senate", EncodeOptions::default()).expect("tokens");
    let memory_options = MemoryOptions { chunk: Some(3), ..Default::default() };
    let mut memory = engine.memory(&memory_options).expect("memory");
    let made = greedy(&engine, &prompt, MADE);
    let all: Vec<u32> = prompt.iter().chain(&made).copied().collect();
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let wanted = {
        let mut sequence = memory.sequence(&engine).expect("a sequence");
        sequence.feed(&all).expect("it can be fed");
        bits(sequence.logits().expect("logits"))
    };
    let layers = engine.config().n_layer as usize;
    let (mut in_prompt, mut in_token, mut between) = (0, 0, 0);
    for breaks in 1.. {
        let mut sequence = memory.sequence(&engine).expect("a sequence");
        let mut keep = Keep::new(Some(breaks));
        let options = options(MADE, Settings::GREEDY, &[]);
        let first = generate(&mut sequence, &tokenizer, &prompt, &options, &mut keep).expect("a text");
        if first.end == End::Length {
            break;
        }
        assert_eq!(first.end, End::Interrupted);
        match first.fed {
            fed if fed <= prompt.len() && first.tokens == 0 => in_prompt += 1,
            fed if fed == prompt.len() + first.tokens => in_token += 1,
            fed if fed + 1 == prompt.len() + first.tokens => between += 1,
            fed => panic!("{fed} tokens fed of {} and {}", prompt.len(), first.tokens),
        }
        // Of what is left, some is given back as a prompt.
        let rest = &all[first.fed..all.len() - 1];
        let rest = if rest.is_empty() { &all[all.len() - 1..] } else { rest };
        let fed = first.fed + rest.len();
        // Interrupted once more, while it finishes the step or reads.
        let mut again = Keep::new(Some(1));
        let second = generate(&mut sequence, &tokenizer, rest, &options, &mut again).expect("no text");
        assert_eq!((second.end, second.tokens), (End::Interrupted, 0), "{breaks}");
        let rest = &rest[second.fed..];
        if !rest.is_empty() {
            let none = self::options(0, Settings::GREEDY, &[]);
            let third =
                generate(&mut sequence, &tokenizer, rest, &none, &mut Keep::new(None)).expect("no text");
            assert_eq!((third.end, third.fed), (End::Length, rest.len()), "{breaks}");
        }
        sequence.resume(&mut |_| ControlFlow::Continue(())).expect("nothing fails");
        if fed < all.len() {
            sequence.feed(&all[fed..]).expect("it can be fed");
        }
        assert!(bits(sequence.logits().expect("logits")) == wanted, "interrupted at {breaks}");
    }
    let chunks = prompt.len().div_ceil(3);
    assert_eq!((in_prompt, in_token, between), (chunks * layers, (MADE - 1) * layers, MADE - 1));
}

/// The tokens that are most likely, one after the other.
fn greedy(engine: &Engine, prompt: &[u32], count: usize) -> Vec<u32> {
    let tokenizer: Tokenizer<'_> = engine.tokenizer().expect("a tokenizer");
    let mut memory = engine.memory(&MemoryOptions::default()).expect("memory");
    let mut sequence = memory.sequence(engine).expect("a sequence");
    let mut all = prompt.to_vec();
    for made in 0..count {
        sequence.feed(if made == 0 { prompt } else { &all[all.len() - 1..] }).expect("it can be fed");
        let logits = sequence.logits().expect("logits");
        tokenizer.mask(logits);
        let largest = (0..logits.len()).reduce(|a, b| if logits[b] > logits[a] { b } else { a });
        all.push(largest.expect("a vocabulary") as u32);
    }
    all.split_off(prompt.len())
}
