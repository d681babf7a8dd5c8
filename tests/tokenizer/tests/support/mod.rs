//! What the tests of this folder share: the oracle, both directions, and random texts.

use elapid_core::tokenizer::{Decoder, EncodeOptions, Encoder, Tokenizer, TokenizerError};

/// A file of the test data.
pub fn data(name: &str) -> Vec<u8> {
    let path = elapid_test_support::data::path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The oracle without truncation or padding: a runtime encodes the whole text.
pub fn oracle(json: &[u8]) -> tokenizers::Tokenizer {
    let mut oracle = tokenizers::Tokenizer::from_bytes(json).unwrap();
    oracle.with_truncation(None).unwrap();
    oracle.with_padding(None);
    oracle
}

/// Encodes, and gives scratch exactly as much as each error asks for.
pub fn encode_with(tokenizer: &Tokenizer<'_>, text: &str, options: EncodeOptions) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut scratch = Vec::new();
    let mut encoder = Encoder::new(text, options);
    while let Err(error) = encoder.run(tokenizer, &mut scratch, &mut |id| ids.push(id)) {
        let TokenizerError::ScratchTooSmall { needed, given } = error else { panic!("{error}") };
        assert_eq!(given, scratch.len());
        assert!(needed > given, "{needed} needed of {given}");
        scratch.resize(needed, 0xa5);
    }
    ids
}

pub fn encode(tokenizer: &Tokenizer<'_>, text: &str) -> Vec<u32> {
    encode_with(tokenizer, text, EncodeOptions::default())
}

pub fn decode(tokenizer: &Tokenizer<'_>, ids: &[u32], skip_special: bool) -> String {
    let mut out = String::new();
    let mut decoder = Decoder::new().skip_special(skip_special);
    for &id in ids {
        decoder.push(tokenizer, id, &mut |text| out.push_str(text)).unwrap();
    }
    decoder.finish(&mut |text| out.push_str(text));
    out
}

#[track_caller]
pub fn assert_same(name: &str, oracle: &tokenizers::Tokenizer, tokenizer: &Tokenizer<'_>, text: &str) {
    let wanted = oracle.encode(text, true).unwrap();
    let found = encode(tokenizer, text);
    if found != wanted.get_ids() {
        let at = found.iter().zip(wanted.get_ids()).take_while(|(a, b)| a == b).count();
        let near = |ids: &[u32]| ids[at.min(ids.len())..(at + 8).min(ids.len())].to_vec();
        let text: String = text.chars().take(200).collect();
        panic!("{name}: {text:?}: token {at}: {:?} is not {:?}", near(&found), near(wanted.get_ids()));
    }
}

/// The same where special tokens in the text are plain text.
#[track_caller]
pub fn assert_same_plain(
    name: &str,
    oracle: &mut tokenizers::Tokenizer,
    tokenizer: &Tokenizer<'_>,
    text: &str,
) {
    oracle.set_encode_special_tokens(true);
    let wanted = oracle.encode(text, true).unwrap();
    let options = EncodeOptions { parse_special: false, ..EncodeOptions::default() };
    assert_eq!(encode_with(tokenizer, text, options), wanted.get_ids(), "{name}: {text:?}");
    oracle.set_encode_special_tokens(false);
}

/// A small generator of pseudorandom numbers (SplitMix64), so that failures repeat.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Ranges of characters with trouble of their own: Latin with marks, Greek, combining marks, Hebrew and Arabic, Indic,
/// Hangul letters and syllables, spaces and format characters, symbols, kana and CJK, compatibility ideographs, next to
/// the surrogates, mathematical digits, musical symbols that decompose, emoji, tags, and all of Unicode.
pub const RANGES: [(u32, u32); 22] = [
    (0x20, 0x7e),
    (0x00, 0x1f),
    (0x80, 0x17f),
    (0x1e00, 0x1fff),
    (0x300, 0x36f),
    (0x370, 0x52f),
    (0x591, 0x6ff),
    (0x900, 0xdff),
    (0x1100, 0x11ff),
    (0xac00, 0xac80),
    (0x2000, 0x206f),
    (0x2070, 0x27bf),
    (0x3000, 0x30ff),
    (0x4e00, 0x4e40),
    (0xf900, 0xfb4f),
    (0xd780, 0xe010),
    (0xfe00, 0xffff),
    (0x1d7ce, 0x1d7ff),
    (0x1d150, 0x1d1d0),
    (0x1f300, 0x1faff),
    (0x2f800, 0x2fa1d),
    (0, 0x10_ffff),
];

pub const PIECES: [&str; 34] = [
    " ",
    "  ",
    "   ",
    "\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{85}",
    "\u{2028}",
    "'s",
    "'ll",
    "'",
    "'re",
    "'S",
    "123",
    "1234567",
    "²³¹",
    "½1",
    "٣٤٥",
    "\u{200d}",
    "\u{fe0f}",
    "👨\u{200d}👩\u{200d}👧",
    "<|endoftext|>",
    "<|padding|>",
    ">>TITLE<<",
    ">>",
    "<<",
    "                          ",
    "e\u{301}\u{323}",
    "\u{1100}\u{1161}\u{11a8}",
    "the",
    " of",
    "!?",
];

pub fn random_text(random: &mut Random) -> String {
    let mut text = String::new();
    for _ in 0..1 + random.below(12) {
        if random.below(3) == 0 {
            text.push_str(random.pick(&PIECES));
            continue;
        }
        let (low, high) = RANGES[random.below(RANGES.len())];
        for _ in 0..1 + random.below(6) {
            let c = low + random.below((high - low) as usize + 1) as u32;
            text.extend(char::from_u32(c));
            if random.below(8) == 0 {
                text.extend(char::from_u32(0x300 + random.below(0x70) as u32));
            }
        }
    }
    text
}
