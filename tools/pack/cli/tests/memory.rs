//! A model of the Hub takes little memory, whatever its size.
#![cfg(all(feature = "hub", target_os = "linux"))]

use std::fmt::Write;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use elapid_test_support::effort;
use elapid_test_support::hub::{Content, Hub};

/// What the program may take, in KiB.
const LIMIT: u64 = 64 << 10;

/// The header of a model.safetensors with a Mamba of so many layers in BF16, and the bytes of its weights.
fn header(layers: usize, vocab: usize, model: usize) -> (Vec<u8>, u64) {
    let inner = 2 * model;
    let mut tensors = vec![
        ("backbone.embeddings.weight".to_owned(), vec![vocab, model]),
        ("backbone.norm_f.weight".to_owned(), vec![model]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("norm.weight", vec![model]),
            ("mixer.in_proj.weight", vec![2 * inner, model]),
            ("mixer.conv1d.weight", vec![inner, 1, 4]),
            ("mixer.conv1d.bias", vec![inner]),
            ("mixer.x_proj.weight", vec![model / 16 + 32, inner]),
            ("mixer.dt_proj.weight", vec![inner, model / 16]),
            ("mixer.dt_proj.bias", vec![inner]),
            ("mixer.A_log", vec![inner, 16]),
            ("mixer.D", vec![inner]),
            ("mixer.out_proj.weight", vec![model, inner]),
        ] {
            tensors.push((format!("backbone.layers.{layer}.{name}"), shape));
        }
    }
    let (mut json, mut at) = (String::from("{"), 0);
    for (name, shape) in &tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        let comma = if at > 0 { "," } else { "" };
        write!(json, r#"{comma}"{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{at},{end}]}}"#)
            .unwrap();
        at = end;
    }
    json.push('}');
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    (bytes, at as u64)
}

/// Random weights between 2^-7 and 2^-5 of either sign, as BF16; a function of the place alone.
fn weights(at: u64, out: &mut [u8]) {
    for (byte, at) in out.iter_mut().zip(at..) {
        let mut z = (at / 2).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (z >> 40) as u16 & 0x80ff | 0x3c00;
        *byte = word.to_le_bytes()[(at % 2) as usize];
    }
}

/// 2 GB of weights with `cargo xtask test --full`, otherwise some 200 MB.
#[test]
fn a_model_of_the_hub_takes_little_memory() {
    let (model, vocab) = (1024, 16_384);
    let layers = 150 / effort::stride(12, 50);
    let (header, weights_bytes) = header(layers, vocab, model);
    let size = header.len() as u64 + weights_bytes;
    let config = serde_json::json!({
        "model_type": "mamba", "hidden_size": model, "num_hidden_layers": layers, "intermediate_size": 2 * model,
        "state_size": 16, "conv_kernel": 4, "time_step_rank": model / 16, "vocab_size": vocab, "use_bias": false,
        "use_conv_bias": true, "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true,
    });
    let start = header.len() as u64;
    let make = move |at: u64, out: &mut [u8]| {
        let head = (start.saturating_sub(at) as usize).min(out.len());
        let (first, rest) = out.split_at_mut(head);
        if head > 0 {
            first.copy_from_slice(&header[at as usize..at as usize + head]);
        }
        weights((at + head as u64).saturating_sub(start), rest);
    };
    let hub = Hub::start([
        ("config.json".to_owned(), Content::Bytes(config.to_string().into_bytes())),
        ("model.safetensors".to_owned(), Content::Made(size, Box::new(make))),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_elapid-pack"));
    command.args(["hf:org/model", "-o", "m.elp", "--quant", "q8"]).current_dir(folder.path());
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", folder.path()).env("NO_PROXY", "127.0.0.1");
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = loop {
        // The last peak before its end: it can only grow by what ends the file.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        most = most.max(peak.and_then(|peak| peak.parse().ok()).unwrap_or(0));
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success());
    println!("{} MB of weights, at most {} MiB of memory", size / 1_000_000, most >> 10);
    assert!((1..LIMIT).contains(&most), "{most} KiB");
    // What is asked for twice: the final norm, and where the first chunk ends.
    let sent: u64 = hub.sent("model.safetensors").iter().map(|range| range.end - range.start).sum();
    assert!((size..size + (1 << 20)).contains(&sent), "{sent} bytes were sent of {size}");
    assert!(fs::metadata(folder.path().join("m.elp")).unwrap().len() > size / 2);
}
