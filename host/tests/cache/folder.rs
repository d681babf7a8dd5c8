//! Copies in a folder: they outlive a process, serve others at the same time, and never give a wrong answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use elapid::core::model::StateKind;
use elapid::{Error, Numbers, PrefixCache, SaveOptions, SessionOptions};

use super::{ALL, ask, bits, check, converse, open, text};

const PLENTY: u64 = 1 << 30;

fn cache(folder: &Path) -> PrefixCache {
    PrefixCache::new(64 << 20).on_disk(folder, PLENTY).unwrap()
}

/// The files of copies.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|name| name == "prefix")).collect();
    files.sort();
    files
}

/// Bytes of the files, while none is written: what is removed and written during a count would both be counted.
fn bytes_in(folder: &Path) -> u64 {
    let lock = fs::File::open(folder.join(".lock")).unwrap();
    lock.lock().unwrap();
    let sizes = fs::read_dir(folder).unwrap().flatten().filter_map(|entry| entry.metadata().ok());
    sizes.map(|about| about.len()).sum()
}

#[test]
fn what_was_fed_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (system, first, second) = (text(1, 40), text(2, 30), text(3, 20));
    let chat = [&system[..], &first].concat();
    for name in ["address-300k.elp", "address-4m.elp"] {
        let model = open(name);
        for numbers in ALL {
            let again = |tokens: &[u32]| check(&cache(folder.path()), &model, numbers, tokens);
            assert_eq!(again(&chat), 70, "nothing of other models and numbers serves");
            assert_eq!(again(&chat), 0, "an equal prompt feeds nothing");
            assert_eq!(again(&[&chat[..], &second].concat()), 20);
            // The first prompt that parts from it finds out where, and leaves a copy there.
            assert_eq!(again(&[&system[..], &second].concat()), 60);
            assert_eq!(again(&[&system[..], &text(4, 5)].concat()), 5);
        }
    }
    assert_eq!(files(folder.path()).len(), 2 * ALL.len() * 5);
    // Without memory for copies, files alone serve.
    let bare = PrefixCache::new(0).on_disk(folder.path(), PLENTY).unwrap();
    assert_eq!(check(&bare, &open("address-4m.elp"), ALL[2], &chat), 0);
    let stats = bare.stats();
    assert_eq!((stats.entries, stats.files, stats.hits), (0, 2 * ALL.len() * 5, 1));
    assert!(stats.bytes <= bare.budget() && bare.take_warnings().is_empty());
}

#[test]
fn a_long_prompt_and_an_answer_are_kept_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let model = open("address-300k.elp");
    let tokens = text(1, 2000);
    assert_eq!(check(&cache(folder.path()), &model, ALL[0], &tokens), 2000);
    let other = [&tokens[..1900], &text(2, 9)].concat();
    let computed = check(&cache(folder.path()), &model, ALL[0], &other);
    assert!((9..9 + 900).contains(&computed), "{computed}");
    let (mut session, _) = ask(&cache(folder.path()), &model, ALL[0], &text(3, 10));
    session.feed(&text(4, 10)).unwrap();
    cache(folder.path()).keep(&mut session).unwrap();
    assert_eq!(check(&cache(folder.path()), &model, ALL[0], session.tokens()), 0);
}

/// A file in which something is wrong serves nothing; it is told, and makes room for a good one.
#[test]
fn a_broken_file_gives_no_wrong_answer() {
    let folder = tempfile::tempdir().unwrap();
    let model = open("address-300k.elp");
    let (short, long) = (text(1, 20), text(2, 50));
    let feed = |tokens: &[u32]| check(&cache(folder.path()), &model, ALL[0], tokens);
    feed(&long);
    let path = files(folder.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    // A whole session file of this model, of other tokens.
    let saved = folder.path().join("saved");
    let mut session = model.session(&SessionOptions::default()).unwrap();
    session.feed(&short).unwrap();
    session.save(&saved, &SaveOptions::default()).unwrap();
    let other = fs::read(&saved).unwrap();
    // One of these tokens in which bits were lost.
    session.truncate(0).unwrap();
    session.feed(&long).unwrap();
    session.save(&saved, &SaveOptions::default().half(true)).unwrap();
    let half = fs::read(&saved).unwrap();
    // And one of these tokens, and of another model.
    let mut session = open("address-4m.elp").session(&SessionOptions::default()).unwrap();
    session.feed(&long).unwrap();
    session.save(&saved, &SaveOptions::default()).unwrap();
    let foreign = fs::read(&saved).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let cut = |len: usize| whole[..len].to_vec();
    let broken = [vec![], cut(30), cut(64), cut(whole.len() / 2), cut(whole.len() - 1), other, half, foreign];
    let flips = [3, 20, 70, 300, whole.len() / 2, whole.len() - 2].map(flipped);
    for (i, bytes) in broken.into_iter().chain(flips).enumerate() {
        fs::write(&path, &bytes).unwrap();
        let cache = cache(folder.path());
        assert_eq!(check(&cache, &model, ALL[0], &long), 50, "{i}");
        let warnings = cache.take_warnings();
        assert!(
            matches!(&warnings[..], [Error::SessionFile { path: of, .. }] if *of == path),
            "{i}: {warnings:?}"
        );
        assert!(!warnings[0].to_string().contains('\n'));
        assert!(fs::read(&path).unwrap() == whole, "{i}: a good one is there");
    }
    // A version that is not known yet is left alone.
    let mut newer = whole.clone();
    newer[8] = 9;
    fs::write(&path, &newer).unwrap();
    let cache = cache(folder.path());
    assert_eq!(check(&cache, &model, ALL[0], &short), 20);
    assert!(cache.take_warnings().is_empty() && fs::read(&path).unwrap() == newer);
}

#[test]
fn a_folder_stays_within_its_budget_and_keeps_what_is_worth_most() {
    let folder = tempfile::tempdir().unwrap();
    let model = open("address-300k.elp");
    check(&cache(folder.path()), &model, ALL[0], &[1, 2, 3]);
    let one = bytes_in(folder.path());
    let budget = 8 * (one + 4096);
    let small = || PrefixCache::new(0).on_disk(folder.path(), budget).unwrap();
    let mut chat = text(0, 200);
    let mut computed = 0;
    // A process for each turn, and for some requests between them.
    for turn in 1..10 {
        let cache = small();
        computed += converse(&cache, &model, &mut chat, turn);
        for foreign in 0..12 {
            let of = if foreign % 4 == 0 { &small() } else { &cache };
            ask(of, &model, ALL[0], &text(1000 + 20 * turn + foreign, 6));
            assert!(bytes_in(folder.path()) <= budget);
        }
    }
    assert_eq!(computed, 200 + 8 * 20, "a turn feeds what was said since the last answer");
    // What is no longer used goes in the end, whatever it was worth.
    for path in files(folder.path()) {
        let days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
        fs::File::open(path).unwrap().set_modified(days_ago).unwrap();
    }
    for round in 0..10 {
        ask(&small(), &model, ALL[0], &text(5000 + round, 10));
    }
    let (_, fed) = ask(&small(), &model, ALL[0], &chat);
    assert!(fed > 200, "{fed}");
    // A smaller budget makes the folder smaller.
    let _ = PrefixCache::new(0).on_disk(folder.path(), budget / 2).unwrap();
    assert!(bytes_in(folder.path()) <= budget / 2);
    assert!(!files(folder.path()).is_empty());
}

#[test]
fn two_caches_use_a_folder_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let model = open("address-300k.elp");
    check(&cache(folder.path()), &model, ALL[0], &[1, 2, 3]);
    let budget = 6 * (bytes_in(folder.path()) + 4096);
    let expected: Vec<Vec<u32>> = (0..12)
        .map(|i| {
            let mut session = model.session(&SessionOptions::default()).unwrap();
            session.feed(&[text(i % 3, 30), text(10 + i, 8)].concat()).unwrap();
            bits(&mut session)
        })
        .collect();
    let caches = [0, 1].map(|_| PrefixCache::new(0).on_disk(folder.path(), budget).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (cache, model, expected, folder) = (&caches[thread as usize % 2], &model, &expected, &folder);
            scope.spawn(move || {
                for round in 0..15 {
                    let i = (7 * thread + 5 * round) % 12;
                    let tokens = [text(i % 3, 30), text(10 + i, 8)].concat();
                    let (mut session, _) = ask(cache, model, ALL[0], &tokens);
                    assert!(bits(&mut session) == expected[i as usize]);
                    assert!(bytes_in(folder.path()) <= budget);
                }
            });
        }
    });
    for cache in &caches {
        // How many depends on which thread is first.
        assert!(cache.stats().hits > 2, "{:?}", cache.stats());
        assert!(cache.take_warnings().is_empty());
    }
    let other = text(200, 9);
    check(&caches[0], &model, ALL[0], &other);
    assert_eq!(check(&caches[1], &model, ALL[0], &other), 0, "what one writes, the other knows");
    let unfinished = fs::read_dir(&folder).unwrap().flatten();
    assert_eq!(unfinished.filter(|entry| entry.path().to_string_lossy().ends_with(".part")).count(), 0);
}

#[test]
fn a_folder_that_fails_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let refused = PrefixCache::new(0).on_disk(&file, PLENTY);
    assert!(
        matches!(&refused, Err(error @ Error::File { .. }) if !error.to_string().contains('\n')),
        "{refused:?}"
    );
    // Removed by someone: nothing serves, and nothing fails.
    let model = open("address-300k.elp");
    let gone = folder.path().join("a/b");
    let cache = cache(&gone);
    check(&cache, &model, ALL[0], &text(1, 20));
    fs::remove_dir_all(&gone).unwrap();
    let numbers = Numbers::Float(StateKind::F16);
    assert_eq!(check(&cache, &model, numbers, &text(1, 20)), 20);
    assert_eq!(check(&cache, &model, numbers, &text(1, 20)), 0, "copies in memory are there");
    // Files of other names are no copies, whatever is in them.
    fs::create_dir(&gone).unwrap();
    fs::write(gone.join("notes.prefix"), "x").unwrap();
    fs::create_dir(gone.join("00000000000000000000000000000000-f32-0000000000000000.prefix")).unwrap();
    assert_eq!(check(&super::folder::cache(&gone), &model, ALL[0], &text(1, 20)), 20);
    assert!(gone.join("notes.prefix").exists());
}
