//! A session that goes on in another process: one token is computed, with the bits of having never stopped. With `ELAPID_FULL` at the size
//! of mamba-130m, mapped and streamed; otherwise a small model.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use elapid::core::fixed;
use elapid::core::format::checksum;
use elapid::core::model::StateKind;
use elapid::{Model, ModelOptions, Numbers, Ram, SaveOptions, Session, SessionOptions};
use elapid_pack::random::preset;
use elapid_pack::{Options, Plan};
use elapid_test_support::effort;

const NUMBERS: [Numbers; 4] = [
    Numbers::Float(StateKind::F32),
    Numbers::Float(StateKind::F16),
    Numbers::Fixed(fixed::StateKind::I16),
    Numbers::Fixed(fixed::StateKind::I32),
];
/// Tells the other process what to do: the model, the session, which numbers, and the cap in bytes or 0.
const ORDER: &str = "ELAPID_CONTINUE";
const NEXT: u32 = 7;

fn open(path: &Path, cap: u64) -> Model {
    let options = ModelOptions::default().threads(1);
    let options = if cap > 0 { options.ram(Ram::Bytes(cap)) } else { options };
    Model::open(path, &options).unwrap()
}

/// Feeds a token. Says how many tokens went through the layers, and the checksum of the logits.
fn one_token(session: &mut Session) -> String {
    let layers = u64::from(session.model().config().n_layer);
    let mut done = 0;
    let mut watch = |progress: elapid::Progress| {
        done = progress.done;
        ControlFlow::Continue(())
    };
    session.feed_watched(&[NEXT], &mut watch).unwrap();
    let bits: Vec<u8> = session.logits().unwrap().iter().flat_map(|logit| logit.to_le_bytes()).collect();
    format!("computed {} logits {:08x}", done as f64 / layers as f64, checksum(&bits))
}

#[test]
fn one_token_is_computed_in_another_process() {
    if let Ok(order) = std::env::var(ORDER) {
        let [model, file, numbers, cap] = order.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let model = open(model.as_ref(), cap.parse().unwrap());
        let numbers = NUMBERS[numbers.parse::<usize>().unwrap()];
        let mut session = model.session(&SessionOptions::default().numbers(numbers)).unwrap();
        session.load(file.as_ref()).unwrap();
        let streams = session.read_by().is_some();
        return println!("<{} streams {streams}>", one_token(&mut session));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.elp");
    let mut config = preset("mamba-130m").unwrap();
    if !effort::full() {
        (config.d_model, config.d_inner, config.dt_rank) = (64, 128, 4);
        (config.n_layer, config.vocab_size) = (6, 500);
    }
    let options = Options::default();
    Plan::random(&config, 1, &options).unwrap().write(&path, &options, &()).unwrap();
    // Two thirds of the weights.
    let caps = if effort::full() { vec![0, path.metadata().unwrap().len() * 2 / 3] } else { vec![0] };
    let prompt: Vec<u32> = (0..40).map(|i| i * 11 + 3).collect();
    for (index, numbers) in NUMBERS.into_iter().enumerate() {
        let file = folder.path().join("session");
        let mut session = open(&path, 0).session(&SessionOptions::default().numbers(numbers)).unwrap();
        session.feed(&prompt).unwrap();
        session.save(&file, &SaveOptions::default()).unwrap();
        let expected = one_token(&mut session);
        assert!(expected.starts_with("computed 1 "), "{expected}");
        for cap in &caps {
            let order = format!("{}\t{}\t{index}\t{cap}", path.display(), file.display());
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "one_token_is_computed_in_another_process", "--nocapture"])
                .env(ORDER, order)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let found = said.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
            let expected = format!("{expected} streams {}", *cap > 0);
            assert_eq!(found.map(|(found, _)| found), Some(&*expected), "{numbers:?}, {cap}: {output:?}");
            println!("{numbers:?}, cap {cap}: {expected}");
        }
    }
}
