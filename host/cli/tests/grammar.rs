//! `elapid run` with texts that must match a schema or a grammar.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use elapid_test_support::process::{command, exit_code};
use serde_json::{Value, json};

/// Exit code, standard output and standard error of `elapid run` with the bundled model.
fn run(more: &[&str]) -> (i32, String, String) {
    let mut command = command(env!("CARGO_BIN_EXE_elapid"));
    let output = command.args(["run", "My fellow citizens"]).args(more).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (exit_code(output.status), text(output.stdout), text(output.stderr))
}

fn file(folder: &Path, name: &str, contents: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    fs::write(&path, contents).unwrap();
    path.to_str().unwrap().into()
}

/// Whether a value matches a schema, written out.
type IsValid<'c> = &'c dyn Fn(&Value) -> bool;

#[test]
fn answers_match_their_schema() {
    let folder = tempfile::tempdir().unwrap();
    let pet = |value: &Value| {
        let names: Vec<_> = value.as_object().unwrap().keys().collect();
        names == ["name", "age", "kind"]
            && value["name"].as_str().unwrap().chars().count() <= 12
            && (0..=150).contains(&value["age"].as_i64().unwrap())
            && ["cat", "dog"].contains(&value["kind"].as_str().unwrap())
    };
    let tree = |value: &Value| {
        fn is_tree(value: &Value, depth: usize) -> bool {
            let list = value.as_array().filter(|list| list.len() <= 2 && depth < 60);
            value.is_boolean() || list.is_some_and(|list| list.iter().all(|value| is_tree(value, depth + 1)))
        }
        is_tree(value, 0)
    };
    let date = |value: &Value| {
        let text = value.as_str().unwrap().as_bytes();
        text.len() == 7 && text[4] == b'-' && text.iter().filter(|byte| byte.is_ascii_digit()).count() == 6
    };
    let cases: [(Value, IsValid<'_>); 5] = [
        (
            json!({
                "type": "object", "additionalProperties": false, "required": ["name", "age", "kind"],
                "properties": {
                    "name": { "type": "string", "maxLength": 12 },
                    "age": { "type": "integer", "minimum": 0, "maximum": 150 },
                    "kind": { "enum": ["cat", "dog"] },
                },
            }),
            &pet,
        ),
        (
            json!({ "anyOf": [{ "type": "boolean" }, { "type": "array", "maxItems": 2, "items": { "$ref": "#" } }] }),
            &tree,
        ),
        (json!({ "type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$" }), &date),
        (json!({ "type": "null" }), &Value::is_null),
        (json!({ "enum": [1, "ü\"x", null] }), &|value| {
            [json!(1), json!("ü\"x"), Value::Null].contains(value)
        }),
    ];
    for (at, (schema, valid)) in cases.iter().enumerate() {
        let schema = file(folder.path(), "schema.json", schema.to_string());
        for seed in ["1", "2", "3"] {
            let more =
                ["--json-schema", &schema, "--temp", "1.5", "--top-p", "1", "--seed", seed, "-n", "600"];
            let (code, text, errors) = run(&more);
            assert_eq!((code, errors.as_str()), (0, ""), "{at}: {text}");
            let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(valid(&value), "{at}: {text}");
        }
    }
    let grammar = file(folder.path(), "grammar.lark", "start: (\"yes\" | \"no\") \"!\"~2");
    let (code, text, _) = run(&["--grammar", &grammar, "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["end"]), (0, &json!("stop")));
    assert!(["yes!!", "no!!"].contains(&report["text"].as_str().unwrap()), "{text}");
}

#[test]
fn a_text_that_is_cut_off_fails() {
    let folder = tempfile::tempdir().unwrap();
    let schema = file(
        folder.path(),
        "schema.json",
        r#"{ "type": "array", "items": { "const": "peace" }, "minItems": 9 }"#,
    );
    let (code, text, errors) = run(&["--json-schema", &schema, "-n", "6"]);
    assert!(text.starts_with("[\"peace\""), "{text}");
    assert_eq!(code, 1);
    assert_eq!(
        errors,
        "error: the text was cut off after 6 tokens, before it was complete: allow more with -n\n"
    );
    let (code, _, errors) = run(&["--json-schema", &schema, "--stop", "ce"]);
    assert_eq!((code, errors.as_str()), (1, "error: a stop text ended the text before it was complete\n"));
    // A text that may end anywhere is complete where it is cut.
    let grammar = file(folder.path(), "grammar.lark", "start: /[a-z ]+/");
    let (code, text, errors) = run(&["--grammar", &grammar, "-n", "9"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(!text.is_empty() && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_lowercase()), "{text}");
}

#[test]
fn bad_schemas_are_told_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.json");
    let missing = missing.to_str().unwrap();
    let large = format!("{{ \"description\": \"{}\" }}", "x".repeat(256 << 10));
    let deep = format!("{}{}", "{\"items\":".repeat(5000), "}".repeat(5000));
    let of = |name: &str, contents: &[u8]| file(folder.path(), name, contents);
    for (option, path, code, says) in [
        ("--json-schema", missing, 1, "missing.json: cannot read"),
        ("--json-schema", folder.path().to_str().unwrap(), 1, "cannot read"),
        ("--json-schema", &of("empty", b""), 2, "it is not JSON"),
        ("--json-schema", &of("text", b"a pet"), 2, "it is not JSON"),
        ("--json-schema", &of("bytes", b"{\"enum\": [\"\xff\"]}"), 2, "not UTF-8"),
        ("--json-schema", &of("deep", deep.as_bytes()), 2, "recursion"),
        ("--json-schema", &of("large", large.as_bytes()), 2, "longer than 256 KiB"),
        ("--json-schema", &of("number", b"5"), 2, "can't be used"),
        ("--json-schema", &of("type", b"{\"type\": 5}"), 2, "can't be used"),
        (
            "--json-schema",
            &of("none", b"{\"type\": \"integer\", \"minimum\": 2, \"maximum\": 1}"),
            2,
            "can't be used",
        ),
        ("--json-schema", &of("endless", b"{\"allOf\": [{ \"$ref\": \"#\" }]}"), 2, "can't be used"),
        ("--json-schema", &of("outside", b"{\"$ref\": \"http://127.0.0.1/x\"}"), 2, "can't be used"),
        ("--grammar", &of("open", b"start: ("), 2, "can't be used"),
        ("--grammar", missing, 1, "missing.json: cannot read"),
    ] {
        let (got, text, errors) = run(&[option, path]);
        let one = errors.lines().count() == 1 && errors.starts_with("error: ");
        assert!(got == code && one && errors.contains(says), "{option} {path}: {got}: {errors}{text}");
        assert!(errors.contains(Path::new(path).file_name().unwrap().to_str().unwrap()), "{errors}");
    }
    let (code, _, errors) = run(&["--json-schema", missing, "--grammar", missing]);
    assert!(code == 2 && errors.contains("cannot be used with"), "{errors}");
}

#[test]
fn prompt_and_schema_are_not_both_standard_input() {
    let mut command = command(env!("CARGO_BIN_EXE_elapid"));
    let output = command.args(["run", "--json-schema", "-"]).stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(exit_code(output.status), 2);
    assert!(errors.contains("can't both come from standard input"), "{errors}");
}
