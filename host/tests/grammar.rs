//! Texts that must match a grammar, in the library.

use elapid::core::sample::Settings;
use elapid::{
    End, Error, Event, GenerateOptions, Grammar, Grammars, Model, ModelOptions, Session, SessionOptions,
};
use std::ops::ControlFlow;

fn session(model: &Model) -> Session {
    model.session(&SessionOptions::default()).unwrap()
}

/// The text, why it ended and whether it matches.
fn generate(session: &mut Session, prompt: &str, options: &GenerateOptions) -> (String, End, bool) {
    let prompt = session.model().encode(prompt).unwrap();
    let mut text = String::new();
    let generated = session.generate(&prompt, options).unwrap().run(|event| {
        if let Event::Text(piece) = event {
            text.push_str(piece);
        }
        Ok::<_, Error>(ControlFlow::Continue(()))
    });
    let generated = generated.unwrap();
    (text, generated.end.unwrap(), generated.matches)
}

#[test]
fn what_allows_everything_changes_nothing() {
    let model = Model::bundled(&ModelOptions::default()).unwrap();
    let all = Grammars::new(&model).unwrap().constraint(&Grammar::Lark("start: /(?s).*/".into())).unwrap();
    let options = GenerateOptions::default().max_tokens(60).settings(Settings::MODEL).seed(4);
    let free = generate(&mut session(&model), "My fellow citizens", &options);
    let bound = generate(&mut session(&model), "My fellow citizens", &options.constraint(all));
    assert_eq!(free, bound);
    assert_eq!((free.1, free.2), (End::Length, true));
}

#[test]
fn a_text_goes_on_after_one_that_matched() {
    let model = Model::bundled(&ModelOptions::default()).unwrap();
    let grammars = Grammars::new(&model).unwrap();
    let one = grammars.constraint(&Grammar::Lark("start: \"!\"".into())).unwrap();
    let mut session = session(&model);
    let options = GenerateOptions::default().go_on(true).constraint(one);
    // Even where the limit is met with the last token.
    for options in [options.clone(), options.max_tokens(1)] {
        let text = generate(&mut session, "Is it so?", &options);
        assert_eq!(text, ("!".to_owned(), End::Stop, true));
        assert_eq!(session.pending().len(), 1, "the last token was not fed");
    }
    let many = grammars.constraint(&Grammar::Lark("start: \"?\"~2000".into())).unwrap();
    let cut = generate(&mut session, "", &GenerateOptions::default().max_tokens(1).constraint(many));
    assert_eq!((cut.1, cut.2), (End::Length, false));
    let object = grammars.constraint(&Grammar::JsonObject).unwrap();
    let (text, ..) = generate(&mut session, "", &GenerateOptions::default().max_tokens(9).constraint(object));
    assert!(text.starts_with('{'), "{text}");
}
