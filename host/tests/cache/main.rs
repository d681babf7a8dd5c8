//! The prefix cache: what comes from it has the bits of feeding everything.

mod folder;

use std::ops::ControlFlow;
use std::path::PathBuf;

use elapid::{Error, Model, ModelOptions, Numbers, PrefixCache, Ram, Reused, Session, SessionOptions};

const ALL: [Numbers; 4] = Numbers::ALL;

fn open(name: &str) -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
    Model::open(&path, &ModelOptions::default().threads(1)).unwrap()
}

/// Some tokens of any number; other ones for each `seed`.
fn text(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i + 1000 * seed + 1).wrapping_mul(2_654_435_761) >> 22).collect()
}

fn bits(session: &mut Session) -> Vec<u32> {
    session.logits().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// A new session that is fed through the cache, and how many tokens were computed.
fn ask(cache: &PrefixCache, model: &Model, numbers: Numbers, tokens: &[u32]) -> (Session, usize) {
    let mut session = model.session(&SessionOptions::default().numbers(numbers)).unwrap();
    let layers = u64::from(model.config().n_layer);
    let mut last = None;
    let mut watch = |progress: elapid::Progress| {
        assert_eq!(progress.done / layers / 1_000_000, 0);
        assert!(last.is_none_or(|(done, total)| done < progress.done && total == progress.total));
        last = Some((progress.done, progress.total));
        ControlFlow::Continue(())
    };
    let Reused { cached, computed, .. } = cache.feed_to(&mut session, tokens, &mut watch).unwrap();
    assert_eq!(cached + computed, tokens.len());
    assert_eq!(session.tokens(), tokens);
    // The count is what was done, layer by layer.
    let work = computed as u64 * layers;
    assert_eq!(last, (work > 0).then_some((work, work)));
    (session, computed)
}

/// A turn of a chat: the answer to what there is, and the next question. Returns how many tokens were computed before the answer.
fn converse(cache: &PrefixCache, model: &Model, chat: &mut Vec<u32>, turn: u32) -> usize {
    let (mut session, computed) = ask(cache, model, ALL[0], chat);
    let answer = text(50 + turn, 30);
    session.feed(&answer).unwrap();
    cache.keep(&mut session).unwrap();
    chat.extend([&answer[..], &text(100 + turn, 20)].concat());
    computed
}

/// As [`ask`], compared with a session that is fed everything, here and two tokens later.
fn check(cache: &PrefixCache, model: &Model, numbers: Numbers, tokens: &[u32]) -> usize {
    let (mut session, computed) = ask(cache, model, numbers, tokens);
    let mut whole = model.session(&SessionOptions::default().numbers(numbers)).unwrap();
    whole.feed(tokens).unwrap();
    assert!(bits(&mut session) == bits(&mut whole), "{numbers:?}");
    session.feed(&[7, 9]).unwrap();
    whole.feed(&[7, 9]).unwrap();
    assert!(bits(&mut session) == bits(&mut whole), "{numbers:?}");
    computed
}

#[test]
fn a_request_feeds_only_what_no_copy_covers() {
    for name in ["address-300k.elp", "address-4m.elp"] {
        let model = open(name);
        // One cache for all numbers: their states are told apart.
        let cache = PrefixCache::new(64 << 20);
        for numbers in ALL {
            let check = |tokens: &[u32]| check(&cache, &model, numbers, tokens);
            let (system, first, second) = (text(1, 40), text(2, 30), text(3, 20));
            let chat = [&system[..], &first].concat();
            assert_eq!(check(&chat), 70, "nothing of other numbers serves");
            assert_eq!(check(&chat), 0, "an equal prompt feeds nothing");
            let longer = [&chat[..], &second].concat();
            assert_eq!(check(&longer), 20);
            // One token less, within the second turn and at its end.
            assert_eq!(check(&longer[..89]), 19);
            assert_eq!(check(&[&chat[1..], &second].concat()), 89, "another beginning");
            // Trimmed in the middle: the first to do so feeds what is after the system prompt, and leaves a copy there.
            let trimmed = [&system[..], &second].concat();
            assert_eq!(check(&trimmed), 60);
            assert_eq!(check(&[&system[..], &text(4, 5)].concat()), 5);
            // Another system prompt, of which a part is the same.
            let other = [&system[..30], &text(5, 10), &first].concat();
            assert_eq!(check(&other), 70);
            assert_eq!(check(&[&system[..30], &text(6, 3)].concat()), 3);
        }
        let stats = cache.stats();
        assert_eq!((stats.requests, stats.hits, stats.evicted), (4 * 9, 4 * 5, 0));
        assert!(stats.bytes <= cache.budget() && stats.entries > 4 * 9);
    }
}

#[test]
fn models_are_told_apart() {
    let cache = PrefixCache::new(64 << 20);
    let tokens = text(1, 30);
    for (name, computed) in [("address-300k.elp", 30), ("address-4m.elp", 30), ("address-300k.elp", 0)] {
        assert_eq!(check(&cache, &open(name), ALL[0], &tokens), computed);
    }
}

#[test]
fn a_long_prompt_leaves_copies_on_its_way() {
    let model = open("address-300k.elp");
    let cache = PrefixCache::new(64 << 20);
    let tokens = text(1, 2000);
    assert_eq!(check(&cache, &model, ALL[0], &tokens), 2000);
    let other = [&tokens[..1900], &text(2, 9)].concat();
    let computed = check(&cache, &model, ALL[0], &other);
    assert!((9..9 + 900).contains(&computed), "{computed}");
}

#[test]
fn foreign_requests_between_the_turns_do_not_push_out_a_chat() {
    let model = open("address-300k.elp");
    let one = {
        let cache = PrefixCache::new(64 << 20);
        ask(&cache, &model, ALL[0], &[1, 2, 3]);
        cache.stats().bytes
    };
    // Room for eight copies.
    let cache = PrefixCache::new(8 * one);
    let mut chat = text(0, 200);
    let mut computed = 0;
    for turn in 1..12 {
        computed += converse(&cache, &model, &mut chat, turn);
        for foreign in 0..15 {
            ask(&cache, &model, ALL[0], &text(1000 + 20 * turn + foreign, 6));
            assert!(cache.stats().bytes <= cache.budget());
        }
    }
    assert_eq!(computed, 200 + 10 * 20, "a turn feeds what was said since the last answer");
    assert!(cache.stats().evicted > 10);
}

#[test]
fn a_session_may_be_further_than_the_cache() {
    let model = open("address-300k.elp");
    let cache = PrefixCache::new(64 << 20);
    let tokens = text(1, 50);
    ask(&cache, &model, ALL[0], &tokens[..20]);
    let mut session = model.session(&SessionOptions::default()).unwrap();
    session.feed(&tokens[..40]).unwrap();
    let mut go_on = |_| ControlFlow::Continue(());
    assert_eq!(cache.feed_to(&mut session, &tokens, &mut go_on).unwrap().computed, 10);
    // Back to what only the cache has, and on.
    assert_eq!(cache.feed_to(&mut session, &tokens[..20], &mut go_on).unwrap().computed, 0);
    assert_eq!(cache.feed_to(&mut session, &tokens, &mut go_on).unwrap().computed, 0);
    // No tokens, and unknown ones, change nothing.
    for bad in [&[][..], &[5, 1 << 30]] {
        assert!(matches!(cache.feed_to(&mut session, bad, &mut go_on), Err(Error::Step { .. })));
    }
    assert_eq!(session.tokens(), tokens);
    // Interrupted, and asked again.
    session.clear();
    let other = text(2, 50);
    let interrupted = cache.feed_to(&mut session, &other, &mut |_| ControlFlow::Break(()));
    assert!(matches!(interrupted, Err(Error::Interrupted)));
    assert!(matches!(cache.keep(&mut session), Err(Error::Step { .. })), "not in the middle of a step");
    cache.feed_to(&mut session, &other, &mut go_on).unwrap();
    let mut whole = model.session(&SessionOptions::default()).unwrap();
    whole.feed(&other).unwrap();
    assert!(bits(&mut session) == bits(&mut whole));
}

#[test]
fn a_cache_without_room_serves_all_the_same() {
    let model = open("address-300k.elp");
    let cache = PrefixCache::new(1000);
    for _ in 0..2 {
        assert_eq!(check(&cache, &model, ALL[0], &text(1, 20)), 20);
    }
    assert_eq!((cache.stats().entries, cache.stats().bytes), (0, 0));
}

#[test]
fn a_cache_counts_under_a_cap() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/address-300k.elp");
    let options = ModelOptions::default().threads(1).ram(Ram::Bytes(64 << 20));
    let model = Model::open(&path, &options).unwrap();
    let session = SessionOptions::default();
    let alone = model.plan(&session).unwrap().unwrap().total_bytes();
    let cache = PrefixCache::new(32 << 20).count_in(&model);
    let beside = model.plan(&session).unwrap().unwrap().total_bytes();
    assert_eq!(beside, alone + (32 << 20));
    ask(&cache, &model, ALL[0], &text(1, 20));
    let large = PrefixCache::new(40 << 20).count_in(&model);
    assert!(matches!(model.session(&session), Err(Error::Session { .. })));
    drop((cache, large));
    assert_eq!(model.plan(&session).unwrap().unwrap().total_bytes(), alone);
}

#[test]
fn threads_share_a_cache() {
    let model = open("address-300k.elp");
    // Too little for all of them, so that copies go while others are read.
    let cache = PrefixCache::new(1 << 19);
    let expected: Vec<Vec<u32>> = (0..12)
        .map(|i| {
            let mut session = model.session(&SessionOptions::default()).unwrap();
            session.feed(&[text(i % 3, 30), text(10 + i, 8)].concat()).unwrap();
            bits(&mut session)
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cache, model, expected) = (&cache, &model, &expected);
            scope.spawn(move || {
                for round in 0..40 {
                    let i = (7 * thread + 5 * round) % 12;
                    let tokens = [text(i % 3, 30), text(10 + i, 8)].concat();
                    let (mut session, _) = ask(cache, model, ALL[0], &tokens);
                    assert!(bits(&mut session) == expected[i as usize]);
                    assert!(cache.stats().bytes <= cache.budget());
                }
            });
        }
    });
    let stats = cache.stats();
    assert_eq!(stats.requests, 160);
    assert!(stats.hits > 40 && stats.evicted > 0, "{stats:?}");
}
