//! From a prompt to text: ids without a token, special tokens, stop texts, and interruptions.

use std::ops::ControlFlow;
use std::path::Path;

use elapid::core::sample::Settings;
use elapid::core::tokenizer::{EncodeOptions, Tokenizer};
use elapid::{
    End, Error, Event, GenerateOptions, Generated, Model, ModelOptions, Piece, Session, SessionOptions,
    encode,
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

fn open(follows: &[(u32, u32, f32)]) -> Model {
    let folder = tempfile::tempdir().expect("a temporary folder");
    save(folder.path(), follows);
    let options = elapid_pack::Options { quant: elapid::core::format::Quant::F32, ..Default::default() };
    let plan = elapid_pack::Plan::checkpoint(folder.path(), &options).expect("a checkpoint");
    let path = folder.path().join("model.elp");
    plan.write(&path, &options, &()).expect("a packed file");
    Model::open(&path, &ModelOptions::default().threads(1)).expect("a model")
}

fn options(max_tokens: usize, settings: Settings, stop: &[&str]) -> GenerateOptions {
    let options = GenerateOptions::default().max_tokens(max_tokens).settings(settings).seed(1).eos([]);
    stop.iter().fold(options, |options, stop| options.stop(*stop))
}

/// Generates, keeps the text, and breaks when it was asked so often.
fn generate(
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    breaks: Option<usize>,
) -> Result<(String, Generated), Error> {
    let (mut text, mut asked) = (String::new(), 0);
    let generated = session.generate(prompt, options)?.run(|event| {
        if let Event::Text(piece) = event {
            text.push_str(piece);
            return Ok::<_, Error>(ControlFlow::Continue(()));
        }
        asked += 1;
        Ok(if Some(asked) == breaks { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok((text, generated))
}

/// The text after `a`: the same from the callback and piece by piece.
fn after_a(model: &Model, options: &GenerateOptions) -> Result<(String, Generated), Error> {
    let mut session = model.session(&SessionOptions::default())?;
    let (text, generated) = generate(&mut session, &[id('a')], options, None)?;
    session.clear();
    let mut generation = session.generate(&[id('a')], options)?;
    let pieces = generation.by_ref().collect::<Result<Vec<Piece>, Error>>()?;
    assert_eq!(pieces.iter().map(|piece| &*piece.text).collect::<String>(), text);
    assert_eq!(pieces.iter().map(|piece| piece.tokens.len()).sum::<usize>(), generated.tokens);
    let again = generation.generated();
    assert_eq!((again.end, again.tokens, again.fed), (generated.end, generated.tokens, generated.fed));
    Ok((text, generated))
}

#[test]
fn ids_without_a_token_are_never_chosen() {
    let model = open(&[
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
        let (text, generated) = after_a(&model, &options(6, settings, &[])).expect("a text");
        assert_eq!(
            (text.as_str(), generated.tokens, generated.end),
            ("bcabca", 6, Some(End::Length)),
            "{settings:?}"
        );
    }
    // The canary: the model itself would choose one.
    let mut sequence = model.session(&SessionOptions::default()).expect("a session");
    sequence.feed(&[id('a')]).expect("it can be fed");
    let logits = sequence.logits().expect("logits");
    let largest = (0..VOCAB).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    assert_eq!(largest, Some(HOLE as usize));
}

#[test]
fn a_mask_leaves_what_has_a_token() {
    let model = open(&[]);
    let tokenizer = model.tokenizer().expect("a tokenizer");
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
    let model = open(&[
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
        let (found, generated) = after_a(&model, &options(6, Settings::GREEDY, stop)).expect("a text");
        assert_eq!((found.as_str(), generated.end), (text, Some(end)), "{stop:?}");
    }
}

/// Wherever a generation is interrupted, within a step or between two, the next one goes on from there.
#[test]
fn an_interrupted_generation_goes_on_with_the_same_bits() {
    const MADE: usize = 6;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/models/address-300k.elp");
    let model = Model::open(&path, &ModelOptions::default()).expect("a model");
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let prompt =
        encode(&tokenizer, "My fellow citizens of the Senate", EncodeOptions::default()).expect("tokens");
    let mut session = model.session(&SessionOptions::default().chunk(3)).expect("a session");
    let made = greedy(&model, &prompt, MADE);
    let all: Vec<u32> = prompt.iter().chain(&made).copied().collect();
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    session.feed(&all).expect("it can be fed");
    let wanted = bits(session.logits().expect("logits"));
    let layers = model.config().n_layer as usize;
    let (mut in_prompt, mut in_token, mut between) = (0, 0, 0);
    for breaks in 1.. {
        session.clear();
        let options = options(MADE, Settings::GREEDY, &[]);
        let (_, first) = generate(&mut session, &prompt, &options, Some(breaks)).expect("a text");
        if first.end == Some(End::Length) {
            break;
        }
        assert_eq!(first.end, Some(End::Interrupted));
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
        let (_, second) = generate(&mut session, rest, &options, Some(1)).expect("no text");
        assert_eq!((second.end, second.tokens), (Some(End::Interrupted), 0), "{breaks}");
        let rest = &rest[second.fed..];
        if !rest.is_empty() {
            let none = self::options(0, Settings::GREEDY, &[]);
            let (_, third) = generate(&mut session, rest, &none, None).expect("no text");
            assert_eq!((third.end, third.fed), (Some(End::Length), rest.len()), "{breaks}");
        }
        session.resume(&mut |_| ControlFlow::Continue(())).expect("nothing fails");
        if fed < all.len() {
            session.feed(&all[fed..]).expect("it can be fed");
        }
        assert!(bits(session.logits().expect("logits")) == wanted, "interrupted at {breaks}");
    }
    let chunks = prompt.len().div_ceil(3);
    assert_eq!((in_prompt, in_token, between), (chunks * layers, (MADE - 1) * layers, MADE - 1));
}

/// The tokens that are most likely, one after the other.
fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let tokenizer: Tokenizer<'_> = model.tokenizer().expect("a tokenizer");
    let mut sequence = model.session(&SessionOptions::default()).expect("a session");
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
