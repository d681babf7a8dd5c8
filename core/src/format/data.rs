//! The sections that are not weights: generation defaults and the role table.
//!
//! Views over the bytes of a section, and what writes them. All integers are little-endian `u32`.
//!
//! # Generation defaults
//!
//! | bytes        | content                                                                       |
//! |--------------|-------------------------------------------------------------------------------|
//! | 0..4         | `n`, how many tokens end a generation, at most 64                             |
//! | 4..8         | the token that starts a text, `0xffff_ffff` if none                           |
//! | 8..12        | the token that pads a text, `0xffff_ffff` if none                             |
//! | 12..12 + 4n  | the tokens that end a generation                                              |
//! | 12 + 4n..    | the names of special tokens, for the chat template; nothing if they are not known |
//!
//! Every token is below the model's vocabulary. Names are preceded by their number. For each name: the length of the name, the length
//! of the token's text, the name and the text, in UTF-8.
//!
//! # Role table
//!
//! A chat template as plain text. A chat is `start`, then each message between the prefix and the suffix of its
//! role, then `generation`, after which the model answers. The section is empty where the template can't be
//! expressed so.
//!
//! | bytes   | content                                                                            |
//! |---------|------------------------------------------------------------------------------------|
//! | 0..4    | 1 if the template has a place for a system message, else 0                         |
//! | 4..36   | the length in bytes of each of eight texts                                         |
//! | 36..    | the texts, in UTF-8, one right after the other                                     |
//!
//! The texts are: start, system prefix, system suffix, user prefix, user suffix, assistant prefix, assistant suffix,
//! generation. Without a place for a system message its prefix and suffix are empty.

use core::fmt;

/// The most tokens that can end a generation.
pub const MAX_EOS: usize = 64;
/// Stands for no token.
const NONE: u32 = u32::MAX;
/// Bytes before the tokens of the generation defaults.
const GENERATION_HEAD: usize = 12;
/// Texts of a role table.
const TEXTS: usize = 8;
/// Bytes before the texts of a role table.
const ROLES_HEAD: usize = 4 + 4 * TEXTS;

/// Names of the sections and fields, as errors show them.
mod name {
    pub(super) const GENERATION: &str = "generation defaults";
    pub(super) const ROLES: &str = "role table";
    pub(super) const NAMES: &str = "name of a special token";
    pub(super) const TEXTS: [&str; super::TEXTS] = [
        "start",
        "system prefix",
        "system suffix",
        "user prefix",
        "user suffix",
        "assistant prefix",
        "assistant suffix",
        "generation",
    ];
}

/// Why bytes are not such a section, or values can't be written as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataError {
    /// The section's length is not the one that its content demands.
    Length {
        /// The section.
        section: &'static str,
        /// Bytes there are.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// More tokens end a generation than [`MAX_EOS`].
    Eos {
        /// How many.
        have: u64,
    },
    /// A token is not one of the model's.
    Token {
        /// What it is for.
        field: &'static str,
        /// The token.
        token: u32,
        /// Tokens that the model has.
        vocab: u32,
    },
    /// The names of special tokens end too early, have an empty name, or are not UTF-8.
    Names,
    /// A text is not UTF-8.
    Utf8 {
        /// The text.
        text: &'static str,
        /// The byte of the text at which it goes wrong.
        at: u64,
    },
    /// The role table's first field is neither 0 nor 1, or 0 where there are texts for a system message.
    System,
    /// A text is longer than a `u32` can say.
    Long {
        /// The text.
        text: &'static str,
    },
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length { section, have, need } => {
                write!(
                    f,
                    "the {section} take {have} bytes where their content needs {need}: pack the model again"
                )
            }
            Self::Eos { have } => {
                write!(f, "{have} tokens end a generation, at most {MAX_EOS} can: pack the model with fewer")
            }
            Self::Token { field, token, vocab } => write!(
                f,
                "the {field} token is {token}, but the model's tokens end at {}: correct generation_config.json and \
                 pack the model again",
                vocab.saturating_sub(1)
            ),
            Self::Utf8 { text, at } => {
                write!(f, "the role table's {text} is not UTF-8 at its byte {at}: pack the model again")
            }
            Self::Names => f.write_str("the names of special tokens are damaged: pack the model again"),
            Self::System => {
                write!(f, "the role table contradicts itself about system messages: pack the model again")
            }
            Self::Long { text } => write!(f, "the chat template's {text} is 4 GiB or longer: shorten it"),
        }
    }
}

impl core::error::Error for DataError {}

/// Little-endian words.
fn words(bytes: &[u8]) -> &[[u8; 4]] {
    bytes.as_chunks().0
}

/// Tokens in the bytes of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens<'a>(&'a [[u8; 4]]);

impl Tokens<'_> {
    /// All, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.0.iter().map(|word| u32::from_le_bytes(*word))
    }
    /// Whether `token` is one of them.
    #[must_use]
    pub fn contains(&self, token: u32) -> bool {
        self.0.contains(&token.to_le_bytes())
    }
}

/// Generation defaults, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation<'a> {
    /// Tokens that end a generation.
    pub eos: Tokens<'a>,
    /// The token that starts a text.
    pub bos: Option<u32>,
    /// The token that pads a text.
    pub pad: Option<u32>,
    /// The special tokens by name, if they are known.
    pub names: Option<Names<'a>>,
}

/// Names of special tokens, such as `bos_token`, with the tokens' texts: what a chat template is given beside the chat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names<'a>(&'a [u8]);

impl<'a> Names<'a> {
    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + Clone + use<'a> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let (name, text, after) = Self::first(rest)?;
            rest = after;
            Some((name, text))
        })
    }

    /// The first name and its text, and the bytes behind them.
    fn first(bytes: &'a [u8]) -> Option<(&'a str, &'a str, &'a [u8])> {
        let (lengths, rest) = bytes.split_first_chunk::<8>()?;
        let [name, text] = [0, 4].map(|at| {
            let length = lengths.get(at..at + 4).and_then(|length| length.try_into().ok());
            length.map_or(usize::MAX, |length| u32::from_le_bytes(length) as usize)
        });
        let (name, rest) = rest.split_at_checked(name)?;
        let (text, rest) = rest.split_at_checked(text)?;
        let name = core::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
        Some((name, core::str::from_utf8(text).ok()?, rest))
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (count, names) = bytes.split_first_chunk()?;
        let mut rest = names;
        for _ in 0..u32::from_le_bytes(*count) {
            rest = Self::first(rest)?.2;
        }
        rest.is_empty().then_some(Self(names))
    }

    /// Writes names to `sink`, to follow the other generation defaults.
    ///
    /// # Errors
    /// [`DataError::Names`] for an empty name, [`DataError::Long`].
    pub fn emit<'n>(
        names: impl Iterator<Item = (&'n str, &'n str)> + Clone,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DataError> {
        let word = |length: usize| {
            let word = u32::try_from(length).map_err(|_| DataError::Long { text: name::NAMES });
            word.map(u32::to_le_bytes)
        };
        sink(&word(names.clone().count())?);
        for (name, text) in names {
            if name.is_empty() {
                return Err(DataError::Names);
            }
            sink(&word(name.len())?);
            sink(&word(text.len())?);
            sink(name.as_bytes());
            sink(text.as_bytes());
        }
        Ok(())
    }
}

impl<'a> Generation<'a> {
    /// Reads a section of a model with `vocab` tokens.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(bytes: &'a [u8], vocab: u32) -> Result<Self, DataError> {
        let have = bytes.len() as u64;
        let length = |need: u64| DataError::Length { section: name::GENERATION, have, need };
        let Some((&[eos, bos, pad], ids)) = words(bytes).split_first_chunk() else {
            return Err(length(GENERATION_HEAD as u64));
        };
        let count = u32::from_le_bytes(eos);
        if count as usize > MAX_EOS {
            return Err(DataError::Eos { have: u64::from(count) });
        }
        let need = GENERATION_HEAD as u64 + 4 * u64::from(count);
        let names = bytes.get(need as usize..).ok_or(length(need))?;
        let some = |word| Some(u32::from_le_bytes(word)).filter(|&token| token != NONE);
        let ids = Tokens(ids.get(..count as usize).unwrap_or_default());
        let names = match names {
            [] => None,
            names => Some(Names::parse(names).ok_or(DataError::Names)?),
        };
        let generation = Self { eos: ids, bos: some(bos), pad: some(pad), names };
        check_tokens(generation.eos.iter(), generation.bos, generation.pad, vocab)?;
        Ok(generation)
    }

    /// Writes a section for a model with `vocab` tokens to `sink`, piece by piece, in the order of its bytes.
    ///
    /// # Errors
    /// [`DataError::Eos`] or [`DataError::Token`]; nothing is written then.
    pub fn emit(
        eos: &[u32],
        bos: Option<u32>,
        pad: Option<u32>,
        vocab: u32,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DataError> {
        let have = eos.len() as u64;
        let count = u32::try_from(have).ok().filter(|_| eos.len() <= MAX_EOS);
        let count = count.ok_or(DataError::Eos { have })?;
        check_tokens(eos.iter().copied(), bos, pad, vocab)?;
        let head = [count, bos.unwrap_or(NONE), pad.unwrap_or(NONE)];
        head.iter().chain(eos).for_each(|word| sink(&word.to_le_bytes()));
        Ok(())
    }
}

fn check_tokens(
    mut eos: impl Iterator<Item = u32>,
    bos: Option<u32>,
    pad: Option<u32>,
    vocab: u32,
) -> Result<(), DataError> {
    let outside = |token: &u32| *token >= vocab;
    let wrong = eos.find(outside).map(|token| ("end-of-generation", token));
    let wrong = wrong.or(bos.filter(outside).map(|token| ("start-of-text", token)));
    match wrong.or(pad.filter(outside).map(|token| ("padding", token))) {
        Some((field, token)) => Err(DataError::Token { field, token, vocab }),
        None => Ok(()),
    }
}

/// What stands before and after a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wrapping<'a> {
    /// Before it.
    pub prefix: &'a str,
    /// After it.
    pub suffix: &'a str,
}

/// A Jinja template, in pieces, without the tags of transformers' extension `generation`, which only mark what to train on: an `if` that
/// is true stands for them, so that any Jinja renders it.
pub fn without_generation_tags(jinja: &str) -> impl Iterator<Item = &str> {
    let mut tags = jinja.split("{%");
    let before = tags.next().unwrap_or_default();
    let replaced = |text: &str| {
        let (tag, _) = text.split_once("%}")?;
        let open = |c| c == '-' || c == '+';
        match tag.trim_start_matches(open).trim_end_matches(open).trim() {
            "generation" => Some(("generation", "if true")),
            "endgeneration" => Some(("endgeneration", "endif")),
            _ => None,
        }
    };
    let pieces = move |text| {
        let split = replaced(text).and_then(|(name, plain)| Some((text.split_once(name)?, plain)));
        split.map_or(["{%", text, "", ""], |((before, after), plain)| ["{%", before, plain, after])
    };
    core::iter::once(before).chain(tags.flat_map(pieces))
}

/// A chat template as plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoleTable<'a> {
    /// What every chat starts with.
    pub start: &'a str,
    /// Around the system message; `None` if the template has no place for one.
    pub system: Option<Wrapping<'a>>,
    /// Around a message of the user.
    pub user: Wrapping<'a>,
    /// Around a message of the assistant.
    pub assistant: Wrapping<'a>,
    /// What makes the model answer, after the last message.
    pub generation: &'a str,
}

impl<'a> RoleTable<'a> {
    /// Reads a section that is not empty.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DataError> {
        let have = bytes.len() as u64;
        let length = |need: u64| DataError::Length { section: name::ROLES, have, need };
        let Some((head, mut rest)) = bytes.split_first_chunk::<ROLES_HEAD>() else {
            return Err(length(ROLES_HEAD as u64));
        };
        let Some((system, lengths)) = words(head).split_first_chunk::<1>() else {
            return Err(length(ROLES_HEAD as u64));
        };
        let lengths = lengths.iter().map(|word| u32::from_le_bytes(*word));
        let need = ROLES_HEAD as u64 + lengths.clone().map(u64::from).sum::<u64>();
        if have != need {
            return Err(length(need));
        }
        let mut texts = [""; TEXTS];
        for ((text, name), length_of) in texts.iter_mut().zip(name::TEXTS).zip(lengths) {
            let (bytes, after) = rest.split_at_checked(length_of as usize).ok_or(length(need))?;
            rest = after;
            *text = core::str::from_utf8(bytes)
                .map_err(|e| DataError::Utf8 { text: name, at: e.valid_up_to() as u64 })?;
        }
        let [start, s, s_after, user, user_after, assistant, assistant_after, generation] = texts;
        let system = match system.map(u32::from_le_bytes) {
            [0] if s.is_empty() && s_after.is_empty() => None,
            [1] => Some(Wrapping { prefix: s, suffix: s_after }),
            _ => return Err(DataError::System),
        };
        let user = Wrapping { prefix: user, suffix: user_after };
        let assistant = Wrapping { prefix: assistant, suffix: assistant_after };
        Ok(Self { start, system, user, assistant, generation })
    }

    /// Writes the section to `sink`, piece by piece, in the order of its bytes.
    ///
    /// # Errors
    /// [`DataError::Long`]; nothing is written then.
    pub fn emit(&self, sink: &mut dyn FnMut(&[u8])) -> Result<(), DataError> {
        let Self { start, system, user, assistant, generation } = *self;
        let s = system.unwrap_or_default();
        let texts = [
            start,
            s.prefix,
            s.suffix,
            user.prefix,
            user.suffix,
            assistant.prefix,
            assistant.suffix,
            generation,
        ];
        let mut lengths = [0u32; TEXTS];
        for ((length, text), name) in lengths.iter_mut().zip(texts).zip(name::TEXTS) {
            *length = u32::try_from(text.len()).map_err(|_| DataError::Long { text: name })?;
        }
        sink(&u32::from(system.is_some()).to_le_bytes());
        lengths.iter().for_each(|length| sink(&length.to_le_bytes()));
        texts.iter().for_each(|text| sink(text.as_bytes()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{DataError, Generation, MAX_EOS, Names, RoleTable, Wrapping};
    use std::string::ToString;
    use std::vec::Vec;

    fn generation(eos: &[u32], bos: Option<u32>, pad: Option<u32>) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        Generation::emit(eos, bos, pad, 100, &mut |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    fn roles(table: &RoleTable<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        table.emit(&mut |piece| bytes.extend_from_slice(piece)).unwrap();
        bytes
    }

    const TABLE: RoleTable<'_> = RoleTable {
        start: "<s>",
        system: Some(Wrapping { prefix: "sys\n", suffix: "" }),
        user: Wrapping { prefix: "Ü", suffix: "<|im_end|>\n" },
        assistant: Wrapping { prefix: "", suffix: "🐍" },
        generation: "<|im_start|>assistant\n",
    };

    #[test]
    fn generation_is_read_as_written() {
        let most: Vec<u32> = (0..MAX_EOS as u32).collect();
        for eos in [&[][..], &[7], &[11, 0, 99], &most] {
            for (bos, pad) in [(None, None), (Some(0), Some(99)), (None, Some(5))] {
                let bytes = generation(eos, bos, pad).unwrap();
                assert_eq!(bytes.len(), 12 + 4 * eos.len());
                let read = Generation::parse(&bytes, 100).unwrap();
                assert_eq!(
                    (read.eos.iter().collect::<Vec<_>>().as_slice(), read.bos, read.pad),
                    (eos, bos, pad)
                );
                assert!(eos.iter().all(|&token| read.eos.contains(token)) && !read.eos.contains(64));
            }
        }
        let bytes = generation(&[0x0102], None, Some(3));
        assert_eq!(bytes, Err(DataError::Token { field: "end-of-generation", token: 0x0102, vocab: 100 }));
        let layout = [1, 0, 0, 0, 255, 255, 255, 255, 3, 0, 0, 0, 9, 0, 0, 0];
        assert_eq!(generation(&[9], None, Some(3)).unwrap(), layout);
    }

    #[test]
    fn generation_that_makes_no_sense_is_refused() {
        let good = generation(&[1, 2], Some(3), None).unwrap();
        for length in 0..good.len() {
            let error = Generation::parse(&good[..length], 100);
            assert!(matches!(error, Err(DataError::Length { .. })), "{length}: {error:?}");
        }
        let long = [&good[..], &[0]].concat();
        assert_eq!(Generation::parse(&long, 100), Err(DataError::Names));
        let token = |field, token, vocab| Err(DataError::Token { field, token, vocab });
        assert_eq!(Generation::parse(&good, 3), token("start-of-text", 3, 3));
        assert_eq!(Generation::parse(&good, 2), token("end-of-generation", 2, 2));
        let none = DataError::Token { field: "padding", token: u32::MAX, vocab: 100 };
        assert_eq!(generation(&[], None, Some(u32::MAX)), Err(none));
        assert_eq!(generation(&[0; MAX_EOS + 1], None, None), Err(DataError::Eos { have: 65 }));
        let mut many = good.clone();
        many[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Generation::parse(&many, 100), Err(DataError::Eos { have: u64::from(u32::MAX) }));
    }

    #[test]
    fn names_are_read_as_written() {
        let names = [("bos_token", "<s>"), ("pad_token", ""), ("sep_token", "Ü🐍")];
        let plain = generation(&[1, 2], Some(3), None).unwrap();
        let mut bytes = plain.clone();
        Names::emit(names.into_iter(), &mut |piece| bytes.extend_from_slice(piece)).unwrap();
        let read = Generation::parse(&bytes, 100).unwrap();
        assert!(read.names.unwrap().iter().eq(names));
        assert_eq!(read.eos.iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(Generation::parse(&plain, 100).unwrap().names, None);
        let none = [&plain[..], &[0; 4]].concat();
        assert_eq!(Generation::parse(&none, 100).unwrap().names.map(|names| names.iter().count()), Some(0));
        for length in plain.len() + 1..bytes.len() {
            assert_eq!(Generation::parse(&bytes[..length], 100), Err(DataError::Names), "{length}");
        }
        // Another number of names, lengths past the end, a text that is not UTF-8.
        for (at, byte) in [(20, 2), (20, 4), (23, 255), (24, 255), (27, 255), (28, 255), (32, 255), (41, 255)]
        {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert_eq!(Generation::parse(&bytes, 100), Err(DataError::Names), "{at}");
        }
        assert_eq!(Names::emit([("", "x")].into_iter(), &mut |_| ()), Err(DataError::Names));
    }

    #[test]
    fn roles_are_read_as_written() {
        let empty_system = RoleTable { system: Some(Wrapping::default()), ..TABLE };
        for table in [TABLE, RoleTable::default(), empty_system, RoleTable { system: None, ..TABLE }] {
            assert_eq!(RoleTable::parse(&roles(&table)), Ok(table));
        }
        assert_eq!(roles(&TABLE).len(), 36 + 3 + 4 + 2 + 11 + 4 + 22);
    }

    #[test]
    fn roles_that_make_no_sense_are_refused() {
        let good = roles(&TABLE);
        for length in 0..good.len() {
            assert!(matches!(RoleTable::parse(&good[..length]), Err(DataError::Length { .. })), "{length}");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(RoleTable::parse(&with(0, 2)), Err(DataError::System));
        assert_eq!(RoleTable::parse(&with(0, 0)), Err(DataError::System));
        // The user's prefix is cut within its character.
        let mut cut = with(16, 1);
        cut[20] += 1;
        let error = RoleTable::parse(&cut);
        assert_eq!(error, Err(DataError::Utf8 { text: "user prefix", at: 0 }));
        assert!(error.unwrap_err().to_string().contains("user prefix"));
        // Lengths whose sum passes 32 bits.
        let mut huge = good.clone();
        huge[4..36].fill(255);
        let need = 36 + 8 * u64::from(u32::MAX);
        assert!(matches!(RoleTable::parse(&huge), Err(DataError::Length { need: n, .. }) if n == need));
    }

    /// No byte changed to anything makes a panic or a table that is written differently.
    #[test]
    fn whatever_parses_is_written_the_same() {
        let (table, defaults) = (roles(&TABLE), generation(&[1, 2], Some(3), None).unwrap());
        let mut accepted = 0;
        for value in 0..=u8::MAX {
            for at in 0..table.len() {
                let mut bytes = table.clone();
                bytes[at] = value;
                if let Ok(read) = RoleTable::parse(&bytes) {
                    assert_eq!(roles(&read), bytes);
                    accepted += 1;
                }
            }
            for at in 0..defaults.len() {
                let mut bytes = defaults.clone();
                bytes[at] = value;
                if let Ok(read) = Generation::parse(&bytes, 100) {
                    let eos: Vec<u32> = read.eos.iter().collect();
                    assert_eq!(generation(&eos, read.bos, read.pad).unwrap(), bytes);
                    accepted += 1;
                }
            }
        }
        assert!(accepted > 1000);
    }
}
