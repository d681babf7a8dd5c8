//! The Unicode tables of the tokenizer: generated from the `tokenizers` crate, and compared with it over all of Unicode.
//!
//! `ELAPID_OVERWRITE=1 cargo test -p elapid-tests-tokenizer --test tokenizer unicode` writes the tables anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use elapid_core::tokenizer::nfc::{normalize_segment, segment_end, stable_until};
use elapid_core::tokenizer::unicode::{
    Kind, LETTER, NUMBER, OTHER, PUNCTUATION, SPACE, UNSTABLE, compose, decompose, kind, order,
};
use tokenizers::normalizers::{NFC, NFD};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::tokenizer::SplitDelimiterBehavior::Contiguous;
use tokenizers::utils::SysRegex;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

fn all_chars() -> impl Iterator<Item = char> {
    (0..=u32::from(char::MAX)).filter_map(char::from_u32)
}

fn nfc(text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    NFC.normalize(&mut normalized).unwrap();
    normalized.get().to_owned()
}

fn nfd(text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    NFD.normalize(&mut normalized).unwrap();
    normalized.get().to_owned()
}

/// The kind of every code point, as the regular expressions and the `Punctuation` of the oracle see it.
fn oracle_kinds() -> Vec<Kind> {
    let mut kinds = vec![OTHER; 0x11_0000];
    let text: String = all_chars().collect();
    for (pattern, kind) in [(r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE)] {
        for (start, end) in SysRegex::new(pattern).unwrap().find_iter(&text) {
            for c in text[start..end].chars() {
                assert_eq!(kinds[c as usize], OTHER, "{c:?} has two kinds");
                kinds[c as usize] = kind;
            }
        }
    }
    let mut pieces = PreTokenizedString::from(text.as_str());
    Punctuation::new(Contiguous).pre_tokenize(&mut pieces).unwrap();
    // Pieces alternate; the first, control characters, is not punctuation.
    for (i, (piece, ..)) in
        pieces.get_splits(OffsetReferential::Original, OffsetType::Byte).into_iter().enumerate()
    {
        for c in piece.chars().filter(|_| i % 2 == 1) {
            assert_eq!(kinds[c as usize], OTHER, "punctuation {c:?} is also a letter, a number or a space");
            kinds[c as usize] = PUNCTUATION;
        }
    }
    assert_eq!(kinds['\n' as usize], SPACE);
    assert_eq!(kinds['!' as usize], PUNCTUATION);
    kinds
}

/// The canonical order of every code point, found by watching what the oracle reorders.
fn oracle_orders(entries: &BTreeMap<u32, (u32, u32, bool)>) -> Vec<u8> {
    // Marks of the lowest and of a high combining class: whatever is no starter moves before or behind one of them.
    let (low, high) = ('\u{334}', '\u{345}');
    let swaps = |a: char, b: char| nfd(&format!("{a}{b}")) != format!("{a}{b}");
    // Those that decompose are in order by the first of their parts, which a segment sees anyway.
    let plain = |c: &char| !entries.contains_key(&(*c as u32)) && !('\u{ac00}'..='\u{d7a3}').contains(c);
    let marks: Vec<char> = all_chars().filter(plain).filter(|&c| swaps(c, low) || swaps(high, c)).collect();
    // A representative of each class, in order.
    let mut classes: Vec<char> = Vec::new();
    for &mark in &marks {
        let at = classes.partition_point(|&class| swaps(mark, class));
        if classes.get(at).is_none_or(|&class| swaps(class, mark)) {
            classes.insert(at, mark);
        }
    }
    let mut orders = vec![0; 0x11_0000];
    for &mark in &marks {
        orders[mark as usize] = 1 + classes.partition_point(|&class| swaps(mark, class)) as u8;
    }
    assert!(classes.len() < 0x7f);
    for (&c, &(_, second, composes)) in entries {
        if composes {
            orders[second as usize] |= UNSTABLE;
        } else {
            orders[c as usize] |= UNSTABLE;
        }
    }
    for jamo in (0x1161..0x1176).chain(0x11a8..0x11c3) {
        orders[jamo] |= UNSTABLE;
    }
    orders
}

/// One step of each decomposition but those of Hangul: first part, second part or 0, and whether they compose again.
fn oracle_decompositions() -> BTreeMap<u32, (u32, u32, bool)> {
    let hangul = '\u{ac00}'..='\u{d7a3}';
    let full: BTreeMap<char, Vec<char>> = all_chars()
        .filter(|c| !hangul.contains(c))
        .map(|c| (c, nfd(&c.to_string()).chars().collect::<Vec<_>>()))
        .filter(|(c, parts)| *parts != [*c])
        .collect();
    let mut entries = BTreeMap::new();
    for (&c, parts) in &full {
        let composes = nfc(&c.to_string()) == c.to_string();
        let (&second, firsts) = parts.split_last().unwrap();
        let entry = if firsts.is_empty() {
            assert!(!composes);
            (second, '\0')
        } else {
            let composed: Vec<char> = nfc(&firsts.iter().collect::<String>()).chars().collect();
            let first = match composed[..] {
                [first] => first,
                // The first part does not compose itself: it is another that decomposes to this.
                _ => *full.iter().find(|(_, parts)| parts[..] == *firsts).unwrap().0,
            };
            (first, second)
        };
        entries.insert(c as u32, (entry.0 as u32, entry.1 as u32, composes));
    }
    entries
}

/// Ranges of code points from 0x20000 on with a value other than 0.
fn high_ranges<T: Copy + PartialEq + Into<u32>>(values: &[T]) -> Vec<(u32, u32, u32)> {
    let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
    for (c, &value) in (0u32..).zip(values).skip(0x2_0000) {
        let value = value.into();
        match ranges.last_mut() {
            Some((_, last, v)) if *v == value && *last + 1 == c => *last = c,
            _ if value != 0 => ranges.push((c, c, value)),
            _ => {}
        }
    }
    ranges
}

/// Cuts the values below 0x20000 into blocks and stores equal ones once: the index, and the blocks one after the other.
fn blocks(values: &[u8], size: usize) -> (Vec<u32>, Vec<u32>) {
    let mut distinct: Vec<&[u8]> = Vec::new();
    let mut index = Vec::new();
    for block in values[..0x2_0000].chunks(size) {
        let at = distinct.iter().position(|&known| known == block).unwrap_or_else(|| {
            distinct.push(block);
            distinct.len() - 1
        });
        index.push(u32::try_from(at).unwrap());
    }
    (index, distinct.concat().into_iter().map(u32::from).collect())
}

fn emit<T: std::fmt::Display>(out: &mut String, what: &str, name: &str, ty: &str, values: &[T]) {
    write!(out, "\n/// {what}\npub static {name}: [{ty}; {}] = [", values.len()).unwrap();
    let mut width = usize::MAX;
    for value in values {
        let value = value.to_string();
        if width.saturating_add(value.len() + 2) > 118 {
            out.push_str("\n   ");
            width = 3;
        }
        write!(out, " {value},").unwrap();
        width += value.len() + 2;
    }
    out.push_str("\n];\n");
}

fn generate() -> String {
    let kinds = oracle_kinds();
    let entries = oracle_decompositions();
    let orders = oracle_orders(&entries);
    let mut out = String::from(
        "//! Generated from the `tokenizers` crate by tests/tokenizer/tests/unicode.rs: change that, not this.\n",
    );
    let range = |ranges: Vec<(u32, u32, u32)>| {
        ranges.iter().map(|(a, b, v)| format!("(0x{a:x}, 0x{b:x}, {v})")).collect::<Vec<_>>()
    };

    emit(&mut out, "Kinds of the ASCII characters.", "ASCII_KINDS", "u8", &kinds[..0x80]);
    let (index, values) = blocks(&kinds, 128);
    let pairs: Vec<u32> = values.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
    emit(&mut out, "The block of kinds of each 128 characters.", "KIND_INDEX", "u8", &index);
    emit(&mut out, "Kinds, two to a byte, the low half first.", "KIND_BLOCKS", "u8", &pairs);
    let high = range(high_ranges(&kinds));
    emit(&mut out, "Kinds from 0x20000 on: first, last, kind.", "HIGH_KINDS", "(u32, u32, u8)", &high);

    let (index, values) = blocks(&orders, 64);
    emit(&mut out, "The block of orders of each 64 characters.", "ORDER_INDEX", "u8", &index);
    emit(&mut out, "Orders.", "ORDER_BLOCKS", "u8", &values);
    let high = range(high_ranges(&orders));
    emit(&mut out, "Orders from 0x20000 on: first, last, order.", "HIGH_ORDERS", "(u32, u32, u8)", &high);

    let packed: Vec<String> = entries
        .iter()
        .map(|(&c, &(first, second, _))| {
            format!("0x{:x}", u64::from(c) << 42 | u64::from(first) << 21 | u64::from(second))
        })
        .collect();
    emit(
        &mut out,
        "Decompositions, sorted: character, first part, second part or 0.",
        "DECOMPOSE",
        "u64",
        &packed,
    );
    let mut composes: Vec<((u32, u32), usize)> = entries
        .values()
        .enumerate()
        .filter(|(_, entry)| entry.2)
        .map(|(i, &(first, second, _))| ((first, second), i))
        .collect();
    composes.sort_unstable();
    let composes: Vec<usize> = composes.into_iter().map(|(_, i)| i).collect();
    let what = "The decompositions that compose again, as their places, sorted by their parts.";
    emit(&mut out, what, "COMPOSE", "u16", &composes);
    out
}

#[test]
fn tables_are_current() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../core/src/tokenizer/unicode/tables.rs");
    let wanted = generate();
    if std::env::var_os("ELAPID_OVERWRITE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what the tokenizers crate gives: see the top of this file",
        path.display()
    );
}

#[test]
fn kinds_are_those_of_the_oracle() {
    for (c, wanted) in (0u32..).zip(oracle_kinds()) {
        assert_eq!(kind(c), wanted, "U+{c:04X}");
    }
}

/// The normalised text, a segment at a time.
fn ours(text: &str) -> String {
    let mut scratch = [0; 4096];
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let end = segment_end(text.as_bytes(), at, text.len());
        let len = normalize_segment(&text.as_bytes()[at..end], &mut scratch).unwrap();
        out.extend_from_slice(&scratch[..len]);
        at = end;
    }
    String::from_utf8(out).unwrap()
}

fn check(text: &str) {
    let wanted = nfc(text);
    assert_eq!(ours(text), wanted, "{:?}", text.chars().map(|c| c as u32).collect::<Vec<_>>());
    let stable = stable_until(text.as_bytes(), 0, text.len());
    assert!(wanted.starts_with(&text[..stable]), "{text:?} is not stable until {stable}");
}

#[test]
fn nfc_is_that_of_the_oracle() {
    // Alone, and where a base is before it or marks are around it.
    for c in all_chars() {
        check(&format!("{c}"));
        check(&format!("e{c}\u{301}"));
        check(&format!("a\u{345}{c}\u{334}{c}"));
    }
    // Each character that takes part in a composition with each that can be second in one.
    let firsts: Vec<char> = all_chars().filter(|&c| decompose(c as u32).is_some()).collect();
    let seconds: Vec<char> = all_chars()
        .filter(|&c| order(c as u32) != 0 && !('\u{f900}'..='\u{faff}').contains(&c) && c < '\u{20000}')
        .collect();
    assert!(firsts.len() > 12_000 && seconds.len() > 700, "{} {}", firsts.len(), seconds.len());
    for &first in firsts.iter().filter(|&&c| !('\u{ac00}'..='\u{d7a3}').contains(&c)).step_by(3) {
        for &second in seconds.iter().step_by(3) {
            check(&format!("{first}{second}"));
        }
    }
    for first in '\u{1100}'..='\u{1112}' {
        for second in '\u{1161}'..='\u{1175}' {
            for third in ('\u{11a6}'..='\u{11c4}').chain(['x']) {
                check(&format!("{first}{second}{third}"));
            }
        }
    }
}

#[test]
fn composition_undoes_decomposition() {
    let mut composed = 0;
    for c in all_chars() {
        let mut part = c as u32;
        let mut steps = 0;
        while let Some((first, second)) = decompose(part) {
            assert!(second == 0 || decompose(second).is_none(), "U+{second:04X} is a second part");
            (part, steps) = (first, steps + 1);
        }
        assert!(steps <= 4, "U+{:04X} takes {steps} steps", c as u32);
        if let Some((first, second)) = decompose(c as u32)
            && let Some(again) = compose(first, second)
        {
            // Some characters decompose to the parts of another, which is then their form C.
            assert_eq!(again, nfc(&c.to_string()).chars().next().unwrap() as u32);
            composed += usize::from(again == c as u32);
        }
    }
    // 11,172 syllables, and the others that Unicode composes.
    assert!(composed > 11_172 + 900, "{composed}");
}
