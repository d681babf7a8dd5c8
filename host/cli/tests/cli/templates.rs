//! Chat templates of packed models: they render as the files that were packed say.

use std::fs;
use std::path::{Path, PathBuf};

use elapid::{ChatTemplate, Message, Model, ModelOptions};
use elapid_test_support::{data, effort};
use serde_json::{Value, json};

/// Packs the small model with a template and a tokenizer_config.json.
fn pack(template: &str, config: &Value, map: Option<&Value>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(data::path(&format!("models/address-300k/{name}")), folder.path().join(name)).unwrap();
    }
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
    write("chat_template.jinja", template.to_owned());
    write("tokenizer_config.json", config.to_string());
    if let Some(map) = map {
        write("special_tokens_map.json", map.to_string());
    }
    let options = elapid_pack::Options::default();
    let path = folder.path().join("model.elp");
    elapid_pack::Plan::checkpoint(folder.path(), &options).unwrap().write(&path, &options, &()).unwrap();
    (folder, path)
}

fn open(path: &Path) -> Model {
    Model::open(path, &ModelOptions::default().threads(1)).unwrap()
}

/// What `apply_chat_template` of transformers 5.24 gives for this tokenizer.json beside these files.
#[test]
fn a_template_knows_the_special_tokens_by_their_names() {
    const NAMES: [&str; 9] = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
        "image_token",
        "additional_special_tokens",
    ];
    let template: String = NAMES.map(|name| format!("{{{{ {name} }}}};")).concat();
    let fast = |more: Value| {
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let mask = json!({ "__type": "AddedToken", "content": "<m>", "lstrip": false, "rstrip": false,
        "normalized": false, "single_word": false, "special": true });
    let all = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "[SEP]",
        "pad_token": "<pad>", "cls_token": "[CLS]", "mask_token": mask });
    let cases = [
        (fast(json!({})), None, ";;;;;;;;;"),
        (fast(all), None, "<s>;</s>;<unk>;[SEP];<pad>;[CLS];<m>;;;"),
        (fast(json!({ "bos_token": null, "eos_token": "</s>" })), None, ";</s>;;;;;;;;"),
        (fast(json!({ "eos_token": "</s>", "image_token": "<img>" })), None, ";</s>;;;;;;<img>;;"),
        (
            fast(json!({ "eos_token": "</s>", "additional_special_tokens": ["<a>", "<b>"] })),
            None,
            ";</s>;;;;;;;;",
        ),
        (
            fast(json!({})),
            Some(json!({ "eos_token": "<e>", "pad_token": { "content": "<p>" } })),
            ";<e>;;;<p>;;;;;",
        ),
        (
            json!({ "tokenizer_class": "GPTNeoXTokenizer", "eos_token": "<x>", "pad_token": "<x>" }),
            None,
            "<|endoftext|>;<x>;<|endoftext|>;;<x>;;;;;",
        ),
    ];
    for (config, map, expected) in cases {
        let (_folder, path) = pack(&template, &config, map.as_ref());
        let model = open(&path);
        let (template, names) = (model.chat_template().unwrap().unwrap(), model.special_names().unwrap());
        let rendered = template.render_chat(&[Message::new("user", "x")], &names, true);
        assert_eq!(rendered.as_deref(), Ok(expected), "{config}");
    }
}

/// Real templates beside the repository. `host/tests/templates.rs` compares them with transformers.
#[test]
fn a_packed_template_renders_as_it_was() {
    let folder = std::env::var("ELAPID_TEMPLATES").map_or_else(
        |_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/templates"),
        PathBuf::from,
    );
    let Ok(entries) = fs::read_dir(&folder) else {
        println!("skipped: no templates beside the repository");
        return;
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|name| name == "jinja"));
    paths.sort();
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "<pad>" });
    let say = |role: &str, content: &str| Message::new(role, content);
    let chats = [
        vec![say("user", "Hello")],
        vec![say("system", " Be kind.\n"), say("user", "a"), say("assistant", "b"), say("user", "c")],
        vec![say("user", "Hi"), say("assistant", "<think>\nwhy\n</think>\n\nbecause")],
        vec![say("narrator", "ünï {{ x }} {% y %} \\n 🐍")],
    ];
    let (mut count, mut rendered) = (0, 0);
    for path in paths.iter().step_by(effort::stride(6, 24)) {
        let jinja = fs::read_to_string(path).unwrap();
        let direct = ChatTemplate::new(&jinja);
        let (_folder, packed) = pack(&jinja, &config, None);
        let model = open(&packed);
        let names = model.special_names().unwrap();
        let given = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>")];
        assert!(names.iter().map(|(name, text)| (name.as_str(), text.as_str())).eq(given));
        let (direct, stored) = (direct.unwrap(), model.chat_template().unwrap().unwrap());
        for chat in &chats {
            for answer in [true, false] {
                let expected = direct.render_chat(chat, &names, answer);
                rendered += usize::from(expected.is_ok());
                assert_eq!(stored.render_chat(chat, &names, answer), expected, "{}", path.display());
            }
        }
        count += 1;
    }
    println!("{count} of {} templates, {rendered} renderings", paths.len());
    assert!(rendered > 4 * count);
}
