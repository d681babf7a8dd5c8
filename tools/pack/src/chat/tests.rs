//! Templates that tables can and can't express, and hostile ones.

use serde_json::json;

use super::*;

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

fn compile(jinja: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.into(), text.into()));
    ChatTemplate::new(jinja, &tokens, Path::new("tokenizer_config.json")).unwrap()
}

fn wrapping(prefix: &str, suffix: &str) -> Wrapping {
    Wrapping { prefix: prefix.into(), suffix: suffix.into() }
}

#[test]
fn chatml_is_a_table() {
    let expected = RoleTable {
        start: String::new(),
        system: Some(wrapping("<|im_start|>system\n", "<|im_end|>\n")),
        user: wrapping("<|im_start|>user\n", "<|im_end|>\n"),
        assistant: wrapping("<|im_start|>assistant\n", "<|im_end|>\n"),
        generation: "<|im_start|>assistant\n".into(),
    };
    assert_eq!(compile(CHATML).roles.as_ref(), Some(&expected));
    // The same in a template as long ones are written: blocks on their own lines, a start, marks for training.
    let long = "{{- bos_token }}\n{%- for message in messages %}\n    {%- if message.role not in ['system', 'user', 'assistant'] %}\n        {{- raise_exception('unknown role ' + message.role) }}\n    {%- endif %}\n    {{- '<|im_start|>' ~ message.role ~ '\\n' }}\n    {%- generation %}\n    {{- message.content ~ '<|im_end|>\\n' }}\n    {%- endgeneration %}\n{%- endfor %}\n{% if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
    let template = compile(long);
    assert_eq!(template.roles, Some(RoleTable { start: "<s>".into(), ..expected }));
    assert!(template.jinja.contains("{%- if true %}"));
}

#[test]
fn separators_between_messages_are_found() {
    // The assistant's last message has no newline after it.
    let template = compile(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + '\\n' }}{% elif m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + '\\n' }}{% else %}{{ '<|assistant|>\\n' + m['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    );
    let expected = RoleTable {
        start: String::new(),
        system: Some(wrapping("<|system|>\n", "\n")),
        user: wrapping("<|user|>\n", "\n"),
        assistant: wrapping("<|assistant|>\n", "</s>\n"),
        generation: "<|assistant|>\n".into(),
    };
    assert_eq!(template.roles, Some(expected));
}

#[test]
fn the_end_of_an_answer_stays_with_it() {
    // The start and the answer's end are the same text: which part is whose shows only at a chat's end.
    let template = compile(
        "{{ eos_token }}{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}",
    );
    let table = template.roles.unwrap();
    assert_eq!(table.start, "</s>");
    assert_eq!(table.assistant, wrapping("[assistant]", "</s>"));
    assert_eq!(table.user, wrapping("[user]", ""));
}

#[test]
fn a_template_may_have_no_place_for_a_system_message() {
    let raising = CHATML.replace(
        "{{'<|im_start|>'",
        "{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{'<|im_start|>'",
    );
    let table = compile(&raising).roles.unwrap();
    assert_eq!(table.system, None);
    assert_eq!(table.user, wrapping("<|im_start|>user\n", "<|im_end|>\n"));
    // A default one, which a given one replaces: a table has only the default.
    let default = format!(
        "{{% if messages[0]['role'] != 'system' %}}{{{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}}}{{% endif %}}{CHATML}"
    );
    let table = compile(&default).roles.unwrap();
    assert_eq!(table.system, None);
    assert_eq!(table.start, "<|im_start|>system\nBe kind.<|im_end|>\n");
}

#[test]
fn what_no_table_can_say_has_none() {
    let trimmed = CHATML.replace("message['content']", "message['content'].strip()");
    let thinking = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]");
    let first_differs =
        CHATML.replace("message['role']", "(message['role'] ~ (loop.index if loop.index > 4 else ''))");
    let dated = format!("{{{{ strftime_now('%Y') }}}}{CHATML}");
    let json = CHATML.replace("message['content']", "(message['content'] | tojson)");
    let empty = CHATML
        .replace("{% for message in messages %}", "{% for message in messages if message['content'] %}");
    let quoted = CHATML.replace("message['content']", "message['content'] | replace('\"', '&quot;')");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    for jinja in
        [&trimmed, &thinking, &first_differs, &dated, &json, &empty, &quoted, "", "no messages", endless]
    {
        let template = compile(jinja);
        assert_eq!(template.roles, None, "{jinja}");
        assert_eq!(template.jinja, *jinja);
    }
    // The same edits, where they change nothing, do have one: it is what they do that counts.
    assert!(
        compile(&CHATML.replace("message['content']", "message['content'].replace('§', '')")).roles.is_some()
    );
}

#[test]
fn generation_tags_keep_their_space_control() {
    let jinja = "a{%- generation -%}b{% endgeneration +%}c{% if generation %}{% endif %}{%";
    let expected = "a{%- if true -%}b{% endif +%}c{% if generation %}{% endif %}{%";
    let replaced = |jinja| without_generation_tags(jinja).collect::<String>();
    assert_eq!(replaced(jinja), expected);
    assert_eq!(replaced("{% generation"), "{% generation");
}

#[test]
fn a_template_that_does_not_parse_is_located() {
    let error = ChatTemplate::new("one\n{% for %}\n", &[], Path::new("some.json")).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let message = error.to_string();
    assert!(message.starts_with("some.json: chat template, line 2: "), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

/// Chains as long as a template may be, on a test's small stack: to overflow would abort the test.
#[test]
fn deep_templates_do_not_overflow_the_stack() {
    let chains = [
        ("{{ a", ".b", "", " }}"),
        ("{{ 1", "+1", "", " }}"),
        ("{{ a", "|f", "", " }}"),
        ("{{ ", "-", "1", " }}"),
        ("{{ ", "not ", "a", " }}"),
        ("{{ ", "(", "1", " }}"),
        ("{{ a", "()", "", " }}"),
        ("{{ a", " if b else c", "", " }}"),
        ("{% if a %}", "{%elif b%}", "", "{% endif %}"),
        ("", "{%if a%}", "", ""),
    ];
    for (start, link, middle, end) in chains {
        let links = (LENGTH_LIMIT - start.len() - middle.len() - end.len()) / link.len();
        let jinja = format!("{start}{}{middle}{end}", link.repeat(links));
        // Whether it parses does not matter: that it comes back does.
        if let Ok(template) = ChatTemplate::new(&jinja, &[], Path::new("some.json")) {
            assert_eq!(template.roles, None);
        }
    }
    let long = "x".repeat(LENGTH_LIMIT + 1);
    let error = ChatTemplate::new(&long, &[], Path::new("some.json")).unwrap_err();
    assert!(error.to_string().contains("65537 bytes"), "{error}");
}

#[test]
fn hostile_templates_neither_hang_nor_fill_memory() {
    let doubling = "{% set x = 'aaaaaaaaaa' %}".to_owned() + &"{% set x = x ~ x %}".repeat(60) + "{{ x }}";
    let calling = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    for jinja in [&doubling, calling, "{{ 'x' * 999999999999 }}", "{{ range(99999999999) | list }}"] {
        assert_eq!(compile(jinja).roles, None);
    }
}

#[test]
fn tokenizer_configs_hold_a_template_in_several_ways() {
    let read = |config: serde_json::Value| {
        ChatTemplate::from_tokenizer_config(
            config.as_object().unwrap(),
            &[],
            Path::new("tokenizer_config.json"),
        )
        .map(|template| template.map(|template| template.jinja))
    };
    assert_eq!(read(json!({})).unwrap(), None);
    assert_eq!(read(json!({ "chat_template": null })).unwrap(), None);
    assert_eq!(read(json!({ "chat_template": "x" })).unwrap().as_deref(), Some("x"));
    let named = |name: &str, template: &str| json!({ "name": name, "template": template });
    let list = json!({ "chat_template": [named("tool_use", "y"), named("default", "x")] });
    assert_eq!(read(list).unwrap().as_deref(), Some("x"));
    assert_eq!(read(json!({ "chat_template": [named("tool_use", "y")] })).unwrap(), None);
    for bad in [json!(3), json!([3]), json!([{ "name": "default" }])] {
        let error = read(json!({ "chat_template": bad })).unwrap_err();
        assert!(error.to_string().contains("`chat_template`"), "{error}");
    }
}
