//! The compiled table, written.

use elapid_core::tokenizer::Tokenizer;
use elapid_core::tokenizer::chars::{MARK, Prepend};
use elapid_core::tokenizer::table::{
    self, ADDED_LSTRIP, ADDED_RSTRIP, ADDED_SINGLE_WORD, Header, Layout, MAX_COUNT, MAX_PROBES,
    MAX_TOKEN_LEN, TOKEN_ADDED, TOKEN_BYTE, TOKEN_OFFSET, TOKEN_SPECIAL, TOKEN_WORD, pair_slot, word_slot,
};

use super::CompileError;
use super::automaton;
use super::json::Description;
use super::pre_tokenizer::PreTokenizer;
use super::tokens::{Added, Token};

/// Builds the table of a tokenizer.
pub fn build(from: &Description) -> Result<Vec<u8>, CompileError> {
    let vocab_size = from.tokens.last_key_value().map_or(0, |(&id, _)| id.saturating_add(1));
    let merges = u32::try_from(from.merges.len()).unwrap_or(u32::MAX);
    if vocab_size > MAX_COUNT || merges > MAX_COUNT {
        return Err(CompileError::Unsupported(format!(
            "a vocabulary of {vocab_size} tokens and {merges} merges, at most {MAX_COUNT} of each"
        )));
    }
    let mut text = Vec::new();
    let mut entries = Vec::new();
    for id in 0..vocab_size {
        let mut flags = 0;
        let offset = text.len();
        if let Some(token) = from.tokens.get(&id) {
            if token.bytes.len() > MAX_TOKEN_LEN {
                let len = token.bytes.len();
                return Err(CompileError::Unsupported(format!(
                    "token {id} of {len} bytes, at most {MAX_TOKEN_LEN}"
                )));
            }
            text.extend_from_slice(&token.bytes);
            if let Some(added) = token.added {
                flags |= TOKEN_ADDED | if added.special { TOKEN_SPECIAL } else { 0 };
            }
            if token.byte {
                flags |= TOKEN_BYTE;
            }
            if token.word && from.ignore_merges {
                flags |= TOKEN_WORD;
            }
        }
        entries.push(flags | offset_bits(offset)?);
    }
    entries.push(offset_bits(text.len())?);

    let words: Vec<(u32, &[u8])> =
        from.tokens.iter().filter(|(_, token)| token.word).map(|(&id, token)| (id, &*token.bytes)).collect();
    let word_slots = hash_table(&words, |word, slots| word_slot(word, slots));
    let pairs: Vec<(u32, [u32; 2])> =
        (0..).zip(from.merges.iter().map(|&[left, right, _]| [left, right])).collect();
    let merge_slots = hash_table(&pairs, |&[left, right], slots| pair_slot(left, right, slots));
    let added = [false, true].map(|normalized| {
        let mut set: Vec<(&[u8], u32)> = from
            .tokens
            .iter()
            .filter_map(|(&id, token)| Some((&*token.bytes, id, token.added?)))
            .filter(|(.., added)| added.normalized == normalized)
            .map(|(bytes, id, added)| (bytes, id | rules(added)))
            .collect();
        set.sort_unstable();
        set
    });
    let chars = match from.pre_tokenizer {
        PreTokenizer::Chars(chars) => Some(chars),
        _ => None,
    };
    let all_added = || from.tokens.values().filter_map(|token| token.added);
    let word = all_added().any(|added| added.single_word);
    let (pre_tokenizer, patterns) = match &from.pre_tokenizer {
        PreTokenizer::Gpt2 => (table::PreTokenizer::Gpt2, &[][..]),
        PreTokenizer::Falcon => (table::PreTokenizer::Falcon, &[][..]),
        PreTokenizer::Stages(stages) => (table::PreTokenizer::Patterns, &stages[..]),
        // It is not looked at.
        PreTokenizer::Chars(_) => (table::PreTokenizer::Gpt2, &[][..]),
    };
    let patterns = match pre_tokenizer {
        table::PreTokenizer::Patterns => automaton::compile(patterns, word)?,
        _ if word => automaton::compile(&[], word)?,
        _ => Vec::new(),
    };

    let header = Header {
        pre_tokenizer,
        nfc: from.nfc,
        wide: vocab_size.max(merges) > 0xffff,
        added_rules: all_added().any(|added| added.has_rules()),
        vocab_size,
        merges,
        merge_slots: merge_slots.len() as u32,
        word_slots: word_slots.len() as u32,
        added_raw: added[0].len() as u32,
        added_normalized: added[1].len() as u32,
        prefix: from.template[0].len() as u32,
        suffix: from.template[1].len() as u32,
        text_len: text.len() as u32,
        patterns_len: patterns.len() as u32,
        chars,
    };
    let too_large = || CompileError::Unsupported("a tokenizer larger than the address space".into());
    let layout = header.layout().ok_or_else(too_large)?;

    let mut out = header.emit().to_vec();
    let index = |out: &mut Vec<u8>, value: u32| {
        out.extend_from_slice(&value.to_le_bytes()[..if header.wide { 4 } else { 2 }]);
    };
    let u32s = |out: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    for byte in 0..=255u8 {
        let of_byte = |token: &Token| token.byte == chars.is_some() && (token.word || token.byte);
        let mut tokens = from.tokens.iter().filter(|(_, token)| of_byte(token));
        let id = tokens.find(|(_, token)| token.bytes == [byte]).map_or(0, |(id, _)| id + 1);
        index(&mut out, id);
    }
    u32s(&mut out, &entries);
    from.merges.iter().flatten().for_each(|&id| index(&mut out, id));
    merge_slots.iter().for_each(|&slot| index(&mut out, slot));
    word_slots.iter().for_each(|&slot| index(&mut out, slot));
    let marked = chars.is_some_and(|chars| chars.normalized_first && chars.prepend == Prepend::Always);
    for (set, before) in added.iter().zip(["", if marked { MARK } else { "" }]) {
        let mut first_and_second = [[0u8; 32]; 2];
        for (bytes, _) in set {
            let bytes = [before.as_bytes(), bytes].concat();
            for (place, bits) in first_and_second.iter_mut().enumerate() {
                match bytes.get(place) {
                    Some(&byte) => bits[usize::from(byte / 8)] |= 1 << (byte % 8),
                    // A token of one byte: whatever comes second.
                    None => *bits = [0xff; 32],
                }
            }
        }
        out.extend_from_slice(first_and_second.as_flattened());
        u32s(&mut out, &set.iter().map(|&(_, id)| id).collect::<Vec<_>>());
    }
    u32s(&mut out, &from.template[0]);
    u32s(&mut out, &from.template[1]);
    out.extend_from_slice(&text);
    out.extend_from_slice(&patterns);
    debug_assert_eq!(out.len(), layout.len());

    mark_words(&mut out, &layout, &words)?;
    Tokenizer::parse(&out)?;
    Ok(out)
}

/// The flags of an added token's entry.
fn rules(added: Added) -> u32 {
    let flags =
        [(added.lstrip, ADDED_LSTRIP), (added.rstrip, ADDED_RSTRIP), (added.single_word, ADDED_SINGLE_WORD)];
    flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum()
}

fn offset_bits(offset: usize) -> Result<u32, CompileError> {
    match u32::try_from(offset) {
        Ok(offset) if offset <= TOKEN_OFFSET => Ok(offset),
        _ => Err(CompileError::Unsupported(format!("tokens of more than {TOKEN_OFFSET} bytes in all"))),
    }
}

/// Marks the tokens that their own bytes are merged to: those that need no merging when a word is found whole.
///
/// Not every token of a vocabulary is one: special tokens are not, nor those that other merges pre-empt.
fn mark_words(out: &mut [u8], layout: &Layout, words: &[(u32, &[u8])]) -> Result<(), CompileError> {
    let table = out.to_vec();
    let tokenizer = Tokenizer::parse(&table)?;
    let longest = words.iter().map(|(_, word)| word.len()).max().unwrap_or(0);
    let mut scratch = vec![0; Tokenizer::word_scratch(longest)];
    for &(id, word) in words {
        let (mut count, mut same) = (0, true);
        tokenizer.merge_word(word, &mut scratch, &mut |merged| {
            count += 1;
            same &= merged == id;
        })?;
        if count == 1 && same {
            let at = layout.tokens.start + 4 * id as usize;
            // The flag is in the entry's last byte.
            out[at + 3] |= TOKEN_WORD.to_le_bytes()[3];
        }
    }
    Ok(())
}

/// An open-addressing table over (value, key): each slot holds a value plus one, or 0. It has two slots for a key, and
/// grows while a key lies too far from its home.
fn hash_table<K>(entries: &[(u32, K)], home: impl Fn(&K, u32) -> u32) -> Vec<u32> {
    let mut size = 2 * entries.len() + 1;
    loop {
        let mut slots = vec![0; size];
        let placed = entries.iter().all(|(value, key)| {
            let start = home(key, size as u32) as usize;
            let free = (0..MAX_PROBES as usize).map(|i| (start + i) % size).find(|&slot| slots[slot] == 0);
            free.inspect(|&slot| slots[slot] = value + 1).is_some()
        });
        if placed {
            return slots;
        }
        size += size / 8 + 1;
    }
}
