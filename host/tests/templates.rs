//! Chat templates, byte for byte as transformers renders them. `tests/templates/make_golden.py` made the expected texts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use elapid::{ChatTemplate, Message, TemplateError};
use minijinja::Value;

fn get(value: &Value, name: &str) -> Value {
    value.get_attr(name).unwrap()
}

/// What is known to differ, and said in `src/template.rs`: where Python fails on a loop over None or on JSON of a generator there is a
/// text, and text after a `safe` one is not escaped.
fn known(rendered: bool, error: &str, name: Value, templates: &Value) -> bool {
    let python = ["'NoneType' object is not iterable", "Object of type generator is not JSON serializable"];
    let template = templates.get_item(&name).unwrap().to_string();
    rendered && (python.iter().any(|known| error.ends_with(known)) || template.contains("|safe + "))
}

/// Renders all that a file of renderings holds, and returns how many there were, how many of them raised, and what differs.
fn compare(golden: &str) -> (usize, usize, Vec<String>) {
    let golden: Value = serde_json::from_str(golden).unwrap();
    let (templates, chats, tool) = (get(&golden, "templates"), get(&golden, "chats"), get(&golden, "tool"));
    let compiled: BTreeMap<String, _> = templates
        .try_iter()
        .unwrap()
        .map(|name| {
            let text = templates.get_item(&name).unwrap();
            (name.to_string(), ChatTemplate::new(text.as_str().unwrap()))
        })
        .collect();
    let (mut count, mut raised, mut faults) = (0, 0, Vec::new());
    for rendering in get(&golden, "renderings").try_iter().unwrap() {
        let name = get(&rendering, "name").to_string();
        let template = &compiled[get(&rendering, "template").as_str().unwrap()];
        let tools = if get(&rendering, "tools").is_true() {
            Value::from(vec![tool.clone()])
        } else {
            Value::from(())
        };
        let context = Value::from_pairs([
            ("messages", chats.get_item(&get(&rendering, "chat")).unwrap()),
            ("tools", tools),
            ("documents", Value::from(())),
            ("add_generation_prompt", get(&rendering, "prompt")),
            ("bos_token", Value::from("<s>")),
            ("eos_token", Value::from("</s>")),
        ]);
        let text = template.as_ref().map_err(Clone::clone).and_then(|template| template.render(context));
        let (expected, error) = (get(&rendering, "text"), get(&rendering, "error"));
        count += 1;
        let same = match &text {
            Ok(text) => expected.as_str() == Some(text),
            // The same message in one line where the template raises; an error where it fails otherwise.
            Err(found) if get(&rendering, "raised").is_true() => {
                raised += 1;
                let message = error.to_string().lines().collect::<Vec<_>>().join(" ");
                *found == TemplateError::Raised(message)
            }
            Err(found) => !error.is_undefined() && !found.to_string().contains('\n'),
        };
        if !same && !known(text.is_ok(), &error.to_string(), get(&rendering, "template"), &templates) {
            faults.push(format!("{name}: {text:?}\n    expected {expected:?} {error}"));
        }
    }
    (count, raised, faults)
}

#[test]
fn made_up_templates_render_as_in_transformers() {
    let (count, raised, faults) = compare(include_str!("templates/golden.json"));
    assert!(count > 200 && raised > 10, "{count} renderings, {raised} raised");
    assert!(faults.is_empty(), "{} of {count} differ:\n{}", faults.len(), faults.join("\n"));
}

/// Real templates beside the repository, where transformers is there to compare with (`ELAPID_PYTHON` names its Python).
#[test]
fn real_templates_render_as_in_transformers() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var("ELAPID_TEMPLATES")
        .map_or_else(|_| manifest.join("../../shared/data/templates"), Into::into);
    if !folder.exists() {
        println!("skipped: no templates beside the repository");
        return;
    }
    let python = std::env::var("ELAPID_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = manifest.join("tests/templates/make_golden.py");
    let output = Command::new(python).arg(script).arg(&folder).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        println!("skipped: no Python with transformers here");
        return;
    };
    let golden = String::from_utf8(output.stdout).unwrap();
    let (count, raised, faults) = compare(&golden);
    println!("{count} renderings of {} templates, {raised} raised", fs::read_dir(folder).unwrap().count());
    assert!(faults.is_empty(), "{} of {count} differ:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn bad_templates_are_one_line() {
    let messages = [Message { role: "user".into(), content: "x".repeat(5000) }];
    let render = |text: &str| {
        let template = ChatTemplate::new(text)?;
        template.render_chat(&messages, &BTreeMap::new(), true)
    };
    assert_eq!(render("{{ messages[0].role }}").unwrap(), "user");
    for (template, says) in [
        ("a\n{% for x in y %}{{ x }", "line 2 of the chat template"),
        ("{% for a in range(10000) %}{% for b in range(10000) %}{{ b }}{% endfor %}{% endfor %}", "refused"),
        ("{% for a in range(100000) %}{{ messages[0].content }}{% endfor %}", "refused"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "line 1 of the chat template"),
        ("{{ raise_exception('two\nlines') }}", "two lines"),
        ("{{ strftime_now('%Q') }}", "strftime_now does not know"),
        ("{{ no_such_function() }}", "line 1 of the chat template"),
        (&"{% if a %}".repeat(7000), "refused: it is longer"),
    ] {
        let line = render(template).unwrap_err().to_string();
        assert!(line.contains(says) && !line.contains('\n'), "{template:.60}: {line}");
    }
    for chain in ["- ".repeat(30_000), "not ".repeat(15_000), "(".repeat(60_000), "a.b".repeat(20_000)] {
        let _ = render(&format!("{{{{ {chain}1 }}}}")).map_err(|error| error.to_string());
    }
}
