//! Target `data`: the sections of generation defaults and of the role table, and chat templates.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use elapid_core::format::data::{DataError, Generation, Names, RoleTable, Wrapping};
use elapid_pack::chat::ChatTemplate;

use super::edit::ByteEdit;
use super::{assert_one_line, planted, up_to};

/// Sections with their damage, and a template.
#[derive(Arbitrary, Debug)]
pub struct Input {
    generation: Defaults,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 3))]
    generation_edits: Vec<ByteEdit>,
    roles: Roles,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 3))]
    roles_edits: Vec<ByteEdit>,
    /// A template that is whole, in front of the pieces.
    whole: Option<bool>,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 8))]
    template: Vec<Piece>,
    tokens: Tokens,
}

#[derive(Arbitrary, Debug)]
struct Defaults {
    eos: Vec<u16>,
    bos: Option<u16>,
    pad: Option<u16>,
    vocab: u16,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 3))]
    names: Vec<(String, String)>,
    named: bool,
}

#[derive(Arbitrary, Debug)]
struct Roles {
    start: String,
    system: Option<(String, String)>,
    user: (String, String),
    assistant: (String, String),
    generation: String,
}

/// Special tokens that a template can name.
#[derive(Arbitrary, Debug)]
struct Tokens {
    bos: Option<String>,
    eos: Option<String>,
}

/// A piece of a template.
#[derive(Arbitrary, Debug)]
enum Piece {
    Text(String),
    Known(u8),
    Again(u8, u8),
}

/// Templates that are real in kind, and pieces of them.
const KNOWN: [&str; 36] = [
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n{% elif m.role == 'assistant' %}Falcon: {{ m.content }}{{ eos_token }}\n{% else %}{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Falcon:{% endif %}",
    "{% for message in messages %}",
    "{% endfor %}",
    "{{ message['content'] | trim }}",
    "{{ message.content }}",
    "{{ message.role.upper() }}",
    "{% if message.role == 'user' %}",
    "{% elif loop.last %}",
    "{% else %}",
    "{% endif %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{%- set x = 'a' -%}",
    "{% set x = x ~ x %}",
    "{% set x = x * 2 %}",
    "{{ x }}",
    "{{ - - 1 }}",
    "{{ messages[0].content.split('x')[-1] }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%d') }}",
    "{{ messages | tojson }}",
    "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(1) }}",
    "{% for i in range(100000) %}",
    "{{ '%s' % x }}",
    "{{ bos_token }}",
    "{% if add_generation_prompt %}",
    "{{ messages[1:] | length }}",
    "{% raw %}",
    "{% endraw %}",
    "{# ",
    " #}",
    "{{ (((((( 1 }}",
    "{% block b %}",
    "{{ namespace(a=1).a }}",
    "{{ 'ab' | replace('', x) }}",
];

/// Bytes that an emitting function writes.
fn emitted(emit: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<(), DataError>) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    emit(&mut |piece| bytes.extend_from_slice(piece))?;
    Ok(bytes)
}

fn generation(defaults: &Defaults, edits: &[ByteEdit]) {
    let vocab = u32::from(defaults.vocab);
    let eos: Vec<u32> = defaults.eos.iter().map(|token| u32::from(*token)).collect();
    let (bos, pad) = (defaults.bos.map(u32::from), defaults.pad.map(u32::from));
    let mut bytes = match emitted(|sink| Generation::emit(&eos, bos, pad, vocab, sink)) {
        Ok(bytes) => bytes,
        Err(error) => return assert_one_line(&error),
    };
    let names = || defaults.names.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    if defaults.named
        && let Err(error) = Names::emit(names(), &mut |piece| bytes.extend_from_slice(piece))
    {
        return assert_one_line(&error);
    }
    let read = Generation::parse(&bytes, vocab).expect("it was written for this vocabulary");
    assert_eq!((read.eos.iter().collect(), read.bos, read.pad), (eos, bos, pad));
    assert_eq!(read.names.is_some(), defaults.named);
    assert!(read.names.is_none_or(|read| read.iter().eq(names())));
    edits.iter().for_each(|edit| edit.apply(&mut bytes));
    match Generation::parse(&bytes, vocab) {
        Ok(read) => {
            let eos: Vec<u32> = read.eos.iter().collect();
            assert!(eos.iter().chain(&read.bos).chain(&read.pad).all(|token| *token < vocab));
            let again = emitted(|sink| {
                Generation::emit(&eos, read.bos, read.pad, vocab, sink)?;
                read.names.map_or(Ok(()), |names| Names::emit(names.iter(), sink))
            });
            assert_eq!(again.as_ref(), Ok(&bytes));
        }
        Err(error) => assert_one_line(&error),
    }
}

fn role_table(roles: &Roles, edits: &[ByteEdit]) {
    fn wrapping((prefix, suffix): &(String, String)) -> Wrapping<'_> {
        Wrapping { prefix, suffix }
    }
    let table = RoleTable {
        start: &roles.start,
        system: roles.system.as_ref().map(wrapping),
        user: wrapping(&roles.user),
        assistant: wrapping(&roles.assistant),
        generation: &roles.generation,
    };
    let mut bytes = emitted(|sink| table.emit(sink)).expect("texts are short");
    assert_eq!(RoleTable::parse(&bytes), Ok(table));
    edits.iter().for_each(|edit| edit.apply(&mut bytes));
    match RoleTable::parse(&bytes) {
        Ok(read) => assert_eq!(emitted(|sink| read.emit(sink)).as_ref(), Ok(&bytes)),
        Err(error) => assert_one_line(&error),
    }
}

impl Input {
    fn template(&self) -> String {
        let known = |i: &u8| KNOWN[usize::from(*i) % KNOWN.len()];
        let mut text = self.whole.map_or_else(String::new, |one| KNOWN[usize::from(one)].to_owned());
        for piece in &self.template {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Known(i) => text.push_str(known(i)),
                Piece::Again(i, count) => text.push_str(&known(i).repeat(usize::from(*count))),
            }
        }
        text
    }
}

impl Tokens {
    fn named(&self) -> Vec<(String, String)> {
        let tokens = [("bos_token", &self.bos), ("eos_token", &self.eos)];
        let given = tokens.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.clone()?)));
        given.collect()
    }
}

fn chat_template(input: &Input) -> &'static str {
    let template = input.template();
    match ChatTemplate::new(&template, &input.tokens.named(), Path::new("chat_template.jinja")) {
        Ok(ChatTemplate { roles: Some(roles), .. }) => {
            assert!(!(planted("data") && roles.system.is_some()), "{roles:?}");
            "role table"
        }
        Ok(ChatTemplate { roles: None, .. }) => "template",
        Err(error) => {
            assert_one_line(&error);
            "refused"
        }
    }
}

/// Runs the target, and says how far the template came.
pub fn run(input: &Input) -> &'static str {
    generation(&input.generation, &input.generation_edits);
    role_table(&input.roles, &input.roles_edits);
    chat_template(input)
}
