//! `elapid run`: the text that it generates.

use std::io::Write;
use std::process::Stdio;

use super::{bad, elapid, floats, good, json, small, utf8};

#[test]
fn a_seed_gives_a_text() {
    let text = |args: &[&str]| good(&[&["run", &small(), "My fellow", "-n", "40"], args].concat());
    let one = text(&["--seed", "1"]);
    assert!(one.len() > 60, "{one:?}");
    assert_eq!(one, text(&["--seed", "1", "-t", "3", "--kernels", "scalar"]));
    assert_ne!(one, text(&["--seed", "2"]));
    assert!(one.starts_with(&good(&["run", &small(), "My fellow", "-n", "7", "--seed", "1"])));
    let greedy = text(&["--temp", "0"]);
    assert_eq!(greedy, text(&["--temp", "0", "--seed", "9"]));
    assert_eq!(greedy, text(&["--top-k", "1"]));
    assert_ne!(greedy, text(&["--temp", "0", "--repeat-penalty", "1.5"]));
}

#[test]
fn the_fixed_path_computes_in_integers() {
    let text =
        |args: &[&str]| good(&[&["run", &small(), "My fellow", "-n", "40", "--seed", "1"], args].concat());
    let fixed = text(&["--path", "fixed"]);
    assert!(fixed.len() > 60, "{fixed:?}");
    assert_eq!(fixed, text(&["--path", "fixed", "--state", "i16", "-t", "3", "--kernels", "scalar"]));
    let logits = |args: &[&str]| {
        floats(&json(&good(&[&["logits", &small(), "--tokens", "1,2,3", "--json"], args].concat()))["logits"])
    };
    let (fixed, float) = (logits(&["--path", "fixed"]), logits(&[]));
    assert!(fixed != float && fixed != logits(&["--path", "fixed", "--state", "i32"]));
    assert!(fixed.iter().zip(&float).all(|(a, b)| (a - b).abs() < 0.5));
    // In units of 2^-16.
    assert!(fixed.iter().all(|x| x * 65536.0 == (x * 65536.0).round()));
}

#[test]
fn a_state_of_the_other_path_is_refused() {
    let run = |args: &[&str]| elapid(&[&["run", &small(), "My"], args].concat()).output().unwrap();
    bad(
        run(&["--path", "fixed", "--state", "f16"]),
        2,
        "--state f16 is not of the fixed path: choose i16 or i32",
    );
    bad(run(&["--state", "i32"]), 2, "--state i32 is not of the float path: choose f32 or f16");
}

#[cfg(not(feature = "grammar"))]
#[test]
fn grammars_need_a_build_that_has_them() {
    for option in ["--json-schema", "--grammar"] {
        bad(
            elapid(&["run", &small(), "My fellow", option, "file"]).output().unwrap(),
            2,
            &format!(
                "{option}: this elapid was built without grammars: build it with `--features grammar`, or use the Debian package"
            ),
        );
    }
}

#[test]
fn a_stop_text_ends_it() {
    let whole = good(&["run", &small(), "My fellow", "-n", "60", "--seed", "3"]);
    for (from, to) in [(20, 25), (40, 52)] {
        let stop = &whole[from..to];
        let cut =
            good(&["run", &small(), "My fellow", "-n", "60", "--seed", "3", "--stop", "~~", "--stop", stop]);
        assert_eq!(Some(cut.as_str()), whole.split(stop).next(), "{stop:?}");
    }
}

#[test]
fn a_prompt_may_come_on_standard_input() {
    let args = ["run", &small(), "-n", "20", "--seed", "4"];
    let expected = good(&["run", &small(), "Gentlemen of the Senate", "-n", "20", "--seed", "4"]);
    for input in ["Gentlemen of the Senate", "Gentlemen of the Senate\n", "Gentlemen of the Senate\r\n"] {
        let mut child = elapid(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), utf8(output.stdout)), (Some(0), expected.clone()), "{input:?}");
    }
}

#[test]
#[cfg(feature = "bundled")]
fn the_bundled_model_needs_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = elapid(args).current_dir(&folder).output().unwrap();
        assert_eq!((output.status.code(), utf8(output.stderr)), (Some(0), String::new()));
        utf8(output.stdout)
    };
    let text = run(&["run", "My fellow citizens", "-n", "30", "--seed", "1"]);
    assert_eq!(
        text,
        good(&["run", &super::model("address-4m.elp"), "My fellow citizens", "-n", "30", "--seed", "1"])
    );
    assert_eq!(
        run(&["tokenize", "My fellow"]),
        good(&["tokenize", &super::model("address-4m.elp"), "My fellow"])
    );
    assert_eq!(json(&run(&["info", "--json"]))["arch"], "falcon_mamba");
}

#[test]
#[cfg(not(feature = "bundled"))]
fn without_a_bundled_model_it_says_so() {
    bad(elapid(&["run", "My fellow citizens"]).output().unwrap(), 2, "built without its bundled model");
}
