//! The header's bytes: parse and emit.

use super::layout::{ENTRY_BYTES, FIXED_BYTES};
use super::{
    Arch, Config, DataSizes, Fields, FormatError, Layout, PerMatrix, Quant, Quants, Section, checksum,
};

const MAGIC: [u8; 8] = *b"ELAPID\r\n";
/// The format version that this program writes, and the newest that it reads.
const VERSION: u16 = 1;

/// Where the fields of the fixed part lie.
mod field {
    use core::ops::Range;

    pub(super) const MAGIC: Range<usize> = 0..8;
    pub(super) const VERSION: Range<usize> = 8..10;
    pub(super) const ARCH: usize = 10;
    pub(super) const FLAGS: usize = 11;
    pub(super) const QUANTS: Range<usize> = 12..18;
    pub(super) const EXPONENTS: usize = 18;
    pub(super) const LOGIT_EXPONENT: usize = 19;
    pub(super) const DIMENSIONS: Range<usize> = 20..48;
    pub(super) const BLOCK_BYTES: Range<usize> = 48..52;
    pub(super) const NORM_EPS: Range<usize> = 52..56;
    pub(super) const BCDT_EPS: Range<usize> = 56..60;
    pub(super) const DATA_SIZES: Range<usize> = 64..80;
    pub(super) const FILE_BYTES: Range<usize> = 80..88;
    pub(super) const TABLE_CHECKSUM: Range<usize> = 244..248;
    pub(super) const CHECKSUMS_CHECKSUM: Range<usize> = 248..252;
    pub(super) const CHECKSUM: Range<usize> = 252..256;
}

/// Bits of the flags.
mod flag {
    pub(super) const TIED: u8 = 1;
    pub(super) const BIAS: u8 = 2;
    pub(super) const CONV_BIAS: u8 = 4;
    pub(super) const BCDT_NORM: u8 = 8;
    pub(super) const COMPACT: u8 = 16;
    pub(super) const ALL: u8 = 31;
}

/// What tells a packed file from others: its checksums and its length. A file that was packed again from the same source with the same
/// options has the same. Checksums find mistakes, not attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 16]);

/// As 32 hexadecimal digits.
impl core::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    layout: Layout,
    checksums: u32,
}

fn u32_at(bytes: &[u8], range: core::ops::Range<usize>) -> u32 {
    bytes.get(range).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

impl Header {
    /// Bytes that [`Header::parse`] needs.
    pub const BYTES: usize = FIXED_BYTES as usize;

    /// Parses the first [`Header::BYTES`] bytes of a file.
    ///
    /// The section table behind it says nothing that does not follow from these; [`Header::check_table`] checks it.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let have = bytes.len() as u64;
        let starts_right = bytes.get(field::MAGIC).is_some_and(|magic| magic == MAGIC);
        if bytes.len() >= MAGIC.len() && !starts_right {
            return Err(FormatError::NotElp);
        }
        let Some(bytes) = bytes.first_chunk::<{ Self::BYTES }>() else {
            return Err(FormatError::Short { have, need: FIXED_BYTES });
        };
        // The version comes before the checksum: a newer version may well be summed otherwise.
        let version = u16::from_le_bytes([bytes[field::VERSION.start], bytes[field::VERSION.start + 1]]);
        if version != VERSION {
            return Err(FormatError::Version { found: version, known: VERSION });
        }
        if checksum(&bytes[..field::CHECKSUM.start]) != u32_at(bytes, field::CHECKSUM) {
            return Err(FormatError::HeaderChecksum);
        }
        let layout = Layout::new(Config::new(parse_fields(bytes)?)?)?;
        let checksums = u32_at(bytes, field::CHECKSUMS_CHECKSUM);
        // Whatever this version does not know must be 0, or a later one could not give it a meaning.
        if emit_header(&layout, u32_at(bytes, field::TABLE_CHECKSUM), checksums) != *bytes {
            return Err(FormatError::Table);
        }
        Ok(Self { layout, checksums })
    }

    /// The configuration in the first bytes of a file, for use in the compiler: magic and version are checked, but no
    /// checksum, and whatever follows from them must be checked when the program runs.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub const fn config(bytes: &[u8; Self::BYTES]) -> Result<Config, FormatError> {
        let mut i = 0;
        while i < MAGIC.len() {
            if bytes[i] != MAGIC[i] {
                return Err(FormatError::NotElp);
            }
            i += 1;
        }
        let version = u16::from_le_bytes([bytes[field::VERSION.start], bytes[field::VERSION.start + 1]]);
        if version != VERSION {
            return Err(FormatError::Version { found: version, known: VERSION });
        }
        match parse_fields(bytes) {
            Ok(fields) => Config::new(fields),
            Err(error) => Err(error),
        }
    }

    /// Where everything lies.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Checks the section table, the first [`Layout::header_bytes`] bytes of the file being `bytes`.
    ///
    /// # Errors
    /// [`FormatError::Short`] or [`FormatError::Table`].
    pub fn check_table(&self, bytes: &[u8]) -> Result<(), FormatError> {
        let need = self.layout.header_bytes();
        let table = bytes.get(Self::BYTES..need as usize);
        let table = table.ok_or(FormatError::Short { have: bytes.len() as u64, need })?;
        let entries = table.chunks_exact(ENTRY_BYTES as usize).zip(self.layout.sections());
        let same =
            entries.into_iter().all(|(entry, section)| entry == emit_table_entry(&self.layout, section));
        if !same || checksum(table) != u32_at(bytes, field::TABLE_CHECKSUM) {
            return Err(FormatError::Table);
        }
        Ok(())
    }

    /// The checksum of section [`Section::Checksums`], for who reads it in parts.
    #[must_use]
    pub const fn checksums_checksum(&self) -> u32 {
        self.checksums
    }

    /// What tells this file from others: it follows from the header and from the checksums of all blocks, without reading them.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        // The checksum of the section table follows from the layout.
        let header = checksum(&emit_header(&self.layout, 0, self.checksums));
        let mut bytes = [0; 16];
        put_words(&mut bytes, &[self.checksums, header]);
        bytes[8..].copy_from_slice(&self.layout.file_bytes().to_le_bytes());
        Fingerprint(bytes)
    }

    /// Checks the bytes of section [`Section::Checksums`].
    ///
    /// # Errors
    /// [`FormatError::ChecksumTable`].
    pub fn check_checksums(&self, bytes: &[u8]) -> Result<(), FormatError> {
        if checksum(bytes) == self.checksums { Ok(()) } else { Err(FormatError::ChecksumTable) }
    }
}

/// `?` for what also runs in the compiler.
macro_rules! attempt {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Err(error),
        }
    };
}

const fn word(bytes: &[u8; Header::BYTES], start: usize, i: usize) -> u32 {
    let at = start + 4 * i;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

const fn parse_fields(bytes: &[u8; Header::BYTES]) -> Result<Fields, FormatError> {
    let arch = match bytes[field::ARCH] {
        1 => Arch::Mamba,
        2 => Arch::FalconMamba,
        other => return Err(FormatError::Unknown { field: "architecture", value: other as u32 }),
    };
    let flags = bytes[field::FLAGS];
    if flags & !flag::ALL != 0 {
        return Err(FormatError::Unknown { field: "flags", value: flags as u32 });
    }
    let exponents = bytes[field::EXPONENTS];
    if exponents >> 6 != 0 {
        return Err(FormatError::Unknown { field: "row exponents", value: exponents as u32 });
    }
    const DIMENSIONS: usize = field::DIMENSIONS.start;
    const QUANTS: usize = field::QUANTS.start;
    const SIZES: usize = field::DATA_SIZES.start;
    let bcdt_eps = f32::from_bits(word(bytes, field::BCDT_EPS.start, 0));
    Ok(Fields {
        arch,
        d_model: word(bytes, DIMENSIONS, 0),
        d_inner: word(bytes, DIMENSIONS, 1),
        d_state: word(bytes, DIMENSIONS, 2),
        d_conv: word(bytes, DIMENSIONS, 3),
        dt_rank: word(bytes, DIMENSIONS, 4),
        n_layer: word(bytes, DIMENSIONS, 5),
        vocab: word(bytes, DIMENSIONS, 6),
        norm_eps: f32::from_bits(word(bytes, field::NORM_EPS.start, 0)),
        bcdt_eps: if flags & flag::BCDT_NORM != 0 { Some(bcdt_eps) } else { None },
        tied: flags & flag::TIED != 0,
        bias: flags & flag::BIAS != 0,
        conv_bias: flags & flag::CONV_BIAS != 0,
        compact: flags & flag::COMPACT != 0,
        quants: Quants {
            embedding: attempt!(Quant::from_id(bytes[QUANTS], "embedding type")),
            in_proj: attempt!(Quant::from_id(bytes[QUANTS + 1], "in_proj type")),
            x_proj: attempt!(Quant::from_id(bytes[QUANTS + 2], "x_proj type")),
            dt_proj: attempt!(Quant::from_id(bytes[QUANTS + 3], "dt_proj type")),
            out_proj: attempt!(Quant::from_id(bytes[QUANTS + 4], "out_proj type")),
            head: attempt!(Quant::from_id(bytes[QUANTS + 5], "head type")),
        },
        exponents: PerMatrix {
            embedding: exponents & 1 != 0,
            in_proj: exponents & 2 != 0,
            x_proj: exponents & 4 != 0,
            dt_proj: exponents & 8 != 0,
            out_proj: exponents & 16 != 0,
            head: exponents & 32 != 0,
        },
        logit_exponent: bytes[field::LOGIT_EXPONENT] as i8,
        block_bytes: word(bytes, field::BLOCK_BYTES.start, 0),
        data: DataSizes {
            tokenizer: word(bytes, SIZES, 0),
            chat_template: word(bytes, SIZES, 1),
            role_table: word(bytes, SIZES, 2),
            generation: word(bytes, SIZES, 3),
        },
    })
}

/// The fixed part of a file's header, given the CRC-32 of its section table and of its table of checksums.
#[must_use]
pub fn emit_header(layout: &Layout, table_checksum: u32, checksums_checksum: u32) -> [u8; Header::BYTES] {
    let mut bytes = emit_fields(layout.config());
    bytes[field::FILE_BYTES].copy_from_slice(&layout.file_bytes().to_le_bytes());
    put_words(&mut bytes[field::TABLE_CHECKSUM], &[table_checksum]);
    put_words(&mut bytes[field::CHECKSUMS_CHECKSUM], &[checksums_checksum]);
    let sum = checksum(&bytes[..field::CHECKSUM.start]);
    put_words(&mut bytes[field::CHECKSUM], &[sum]);
    bytes
}

/// Compared as they are stored: epsilons by their bits, since the fixed path may not compute with floats, and in little code.
impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        emit_fields(self) == emit_fields(other)
    }
}

/// What of a header follows from the configuration alone; the rest is 0.
#[inline(never)]
fn emit_fields(config: &Fields) -> [u8; Header::BYTES] {
    let mut bytes = [0; Header::BYTES];
    bytes[field::MAGIC].copy_from_slice(&MAGIC);
    bytes[field::VERSION].copy_from_slice(&VERSION.to_le_bytes());
    bytes[field::ARCH] = config.arch as u8;
    let flags = [
        (config.tied, flag::TIED),
        (config.bias, flag::BIAS),
        (config.conv_bias, flag::CONV_BIAS),
        (config.bcdt_eps.is_some(), flag::BCDT_NORM),
        (config.compact, flag::COMPACT),
    ];
    bytes[field::FLAGS] = flags.into_iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
    bytes[field::QUANTS].copy_from_slice(&config.quants.all().map(|q| q as u8));
    let exponents = config.exponents.all();
    bytes[field::EXPONENTS] = exponents.iter().rev().fold(0, |all, set| all << 1 | u8::from(*set));
    bytes[field::LOGIT_EXPONENT] = config.logit_exponent as u8;
    let dimensions = [
        config.d_model,
        config.d_inner,
        config.d_state,
        config.d_conv,
        config.dt_rank,
        config.n_layer,
        config.vocab,
    ];
    put_words(&mut bytes[field::DIMENSIONS], &dimensions);
    put_words(&mut bytes[field::BLOCK_BYTES], &[config.block_bytes]);
    put_words(&mut bytes[field::NORM_EPS], &[config.norm_eps.to_bits()]);
    put_words(&mut bytes[field::BCDT_EPS], &[config.bcdt_eps.unwrap_or(0.0).to_bits()]);
    let d = &config.data;
    put_words(&mut bytes[field::DATA_SIZES], &[d.tokenizer, d.chat_template, d.role_table, d.generation]);
    bytes
}

fn put_words(to: &mut [u8], words: &[u32]) {
    for (to, word) in to.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
}

/// A section's entry in the table: kind (u16), 0 (u16), index (u32), offset (u64), length (u64), blocks (u32), place of
/// the first block's checksum (u32).
#[must_use]
pub fn emit_table_entry(layout: &Layout, section: Section) -> [u8; ENTRY_BYTES as usize] {
    let place = layout.section(section);
    let mut entry = [0; ENTRY_BYTES as usize];
    entry[0..2].copy_from_slice(&section.id().to_le_bytes());
    entry[4..8].copy_from_slice(&section.index().to_le_bytes());
    entry[8..16].copy_from_slice(&place.offset.to_le_bytes());
    entry[16..24].copy_from_slice(&place.length.to_le_bytes());
    put_words(&mut entry[24..32], &[place.blocks, place.first_checksum]);
    entry
}
