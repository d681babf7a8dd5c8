//! `elapid serve` with lm_eval, a package of Python, see `tests/server/evaluation.py`.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};

use elapid::{Error, Model, ModelOptions, SessionOptions};
use serde_json::json;

mod support;

const QUESTIONS: [(&str, [&str; 3]); 3] = [
    ("My fellow citizens of the Senate and of the House of", [" Representatives", " the sea", " x"]),
    ("The Constitution of the", [" United States", " whale", " 9"]),
    ("We, the people, are at", [" war", " peace with all nations", " an end"]),
];

/// The log likelihood of the tokens of `text` from `start` on, and whether the model would choose them.
fn likelihood(model: &Model, text: &str, start: usize) -> (f64, bool) {
    let (tokens, tokenizer) = (model.encode(text).unwrap(), model.tokenizer().unwrap());
    let mut session = model.session(&SessionOptions::default().rows(true)).unwrap();
    let (mut sum, mut greedy) = (0.0, true);
    let watch = &mut |_| ControlFlow::Continue(());
    session
        .feed_each(&tokens, watch, |place, logits| {
            let mut logits = logits.to_vec();
            tokenizer.mask(&mut logits);
            if let Some(next) = tokens.get(place + 1).filter(|_| place + 1 >= start) {
                let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
                sum += f64::from(logits[*next as usize]) - total.ln();
                greedy &= logits[*next as usize] == logits.iter().copied().fold(f32::MIN, f32::max);
            }
            Ok::<(), Error>(())
        })
        .unwrap();
    (sum, greedy)
}

#[test]
fn lm_eval_finds_the_likelihoods_of_the_library() {
    let python =
        std::env::var_os("ELAPID_PYTHON").expect("ELAPID_PYTHON names an interpreter that has the packages");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/server/evaluation.py");
    let folder = tempfile::tempdir().unwrap();
    let questions = folder.path().join("questions.jsonl");
    let line =
        |(context, choices)| json!({ "context": context, "choices": choices, "answer": 0 }).to_string();
    std::fs::write(&questions, QUESTIONS.map(line).join("\n")).unwrap();
    let server = support::Serving::start(&[]);
    let output = Command::new(python)
        .arg(script)
        .args([server.address.as_str(), questions.to_str().unwrap()])
        // What it downloads and keeps.
        .env("HF_HOME", folder.path())
        .stderr(Stdio::inherit())
        .output()
        .expect("python starts");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let model = Model::bundled(&ModelOptions::default()).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("[[")).collect();
    assert_eq!(lines.len(), QUESTIONS.len(), "{text}");
    for (line, (context, choices)) in lines.into_iter().zip(QUESTIONS) {
        let found: Vec<(f64, bool)> = serde_json::from_str(line).unwrap();
        let start = model.encode(context).unwrap().len();
        assert_eq!(found.len(), choices.len());
        for ((sum, greedy), choice) in found.into_iter().zip(choices) {
            let expected = likelihood(&model, &format!("{context}{choice}"), start);
            assert!(
                (sum - expected.0).abs() < 1e-3 && greedy == expected.1,
                "{context}{choice}: {sum} {expected:?}"
            );
        }
    }
}
