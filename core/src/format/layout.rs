//! Where everything lies: all offsets follow from the configuration.

use core::ops::Range;

use super::config::Limit;
use super::{Config, FormatError, MatrixShape, round_up_u64};

/// Sections start at multiples of this, but in a compact file: the largest page in use (Raspberry Pi 5, Apple).
pub const SECTION_ALIGN: u64 = 16 << 10;
/// Blocks start at multiples of this, but in a compact file, and every file ends at one: what direct I/O wants.
pub const BLOCK_ALIGN: u64 = 4 << 10;
/// Sections and blocks of a compact file start at multiples of this: a sector of a card.
pub const COMPACT_ALIGN: u64 = 512;
/// Blocks of a file at most.
const MAX_BLOCKS: u64 = 1 << 28;
/// Bytes of the header's fixed part.
pub(super) const FIXED_BYTES: u64 = 256;
/// Bytes of an entry of the section table.
pub(super) const ENTRY_BYTES: u64 = 32;

/// A section of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// A CRC-32 of every block of the other sections, in order.
    Checksums,
    /// The compiled tokenizer.
    Tokenizer,
    /// The chat template as Jinja.
    ChatTemplate,
    /// The chat template as a role table.
    RoleTable,
    /// Generation defaults.
    Generation,
    /// Token embedding.
    Embedding,
    /// One layer.
    Layer(u32),
    /// The norm before the head.
    FinalNorm,
    /// The head, where it is not the embedding.
    Head,
}

impl Section {
    /// The number that stands for the kind in the section table.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Checksums => 1,
            Self::Tokenizer => 2,
            Self::ChatTemplate => 3,
            Self::RoleTable => 4,
            Self::Generation => 5,
            Self::Embedding => 6,
            Self::Layer(_) => 7,
            Self::FinalNorm => 8,
            Self::Head => 9,
        }
    }

    /// Which of its kind.
    #[must_use]
    pub const fn index(self) -> u32 {
        if let Self::Layer(i) = self { i } else { 0 }
    }
}

impl core::fmt::Display for Section {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Checksums => "checksums",
            Self::Tokenizer => "tokenizer",
            Self::ChatTemplate => "chat template",
            Self::RoleTable => "role table",
            Self::Generation => "generation defaults",
            Self::Embedding => "embedding",
            Self::Layer(i) => return write!(f, "layer {i}"),
            Self::FinalNorm => "final norm",
            Self::Head => "head",
        })
    }
}

/// A part of a section of weights: panels of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Layer: norm weights, `[d_model/16][16]` f32.
    Norm,
    /// Layer: in_proj.
    InProj,
    /// Layer: `[d_inner/16][d_conv + 1][16]` f32, the taps from oldest to newest, then the bias.
    Conv,
    /// Layer: x_proj.
    XProj,
    /// Layer: dt_proj.
    DtProj,
    /// Layer: `[d_inner/16][d_state + 1][16]` f32, A, then D.
    Scan,
    /// Layer: out_proj.
    OutProj,
    /// The whole of section embedding.
    Embedding,
    /// The whole of section final norm, `[d_model/16][16]` f32.
    FinalNorm,
    /// The whole of section head.
    Head,
}

impl Part {
    /// The parts of a layer, in the order in which they are used and lie.
    pub const LAYER: [Self; 7] =
        [Self::Norm, Self::InProj, Self::Conv, Self::XProj, Self::DtProj, Self::Scan, Self::OutProj];

    const COUNT: usize = 10;

    /// The name used in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::InProj => "in_proj",
            Self::Conv => "conv",
            Self::XProj => "x_proj",
            Self::DtProj => "dt_proj",
            Self::Scan => "scan",
            Self::OutProj => "out_proj",
            Self::Embedding => "embedding",
            Self::FinalNorm => "final norm",
            Self::Head => "head",
        }
    }
}

/// Where the panels of a part lie within their section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartGeometry {
    /// Panels of 16 rows or channels.
    pub panels: u32,
    /// Bytes of a panel, a multiple of 64.
    pub panel_bytes: u32,
    /// Panels in every block but the last.
    pub panels_per_block: u32,
    /// Bytes from one block to the next, a multiple of `align`.
    pub block_stride: u32,
    /// What blocks are aligned to, see [`Layout::block_align`].
    pub align: u32,
    /// Bytes from the section's start to the first block.
    pub offset: u64,
    /// The part's first block, counted within the section.
    pub first_block: u32,
}

impl PartGeometry {
    /// Blocks of the part.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        // Never 0 in a layout; said here so that no panic is compiled for it.
        let per_block = if self.panels_per_block == 0 { 1 } else { self.panels_per_block };
        self.panels.div_ceil(per_block)
    }
    /// The part's blocks, counted within the section.
    #[must_use]
    pub const fn block_range(&self) -> Range<u32> {
        self.first_block..self.first_block + self.blocks()
    }
    /// The first panel in block `block` of the section, counted within the part.
    #[must_use]
    pub const fn first_panel(&self, block: u32) -> u32 {
        (block - self.first_block) * self.panels_per_block
    }
    /// Panels in block `block` of the section.
    #[must_use]
    pub const fn panels_in(&self, block: u32) -> u32 {
        let rest = self.panels - self.first_panel(block);
        if rest < self.panels_per_block { rest } else { self.panels_per_block }
    }
    /// Bytes of the part with its padding.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        let last = self.first_block + self.blocks() - 1;
        (last - self.first_block) as u64 * self.block_stride as u64 + self.block_len(last)
    }
    /// Bytes of block `block` of the section, padded to `align`.
    #[must_use]
    pub const fn block_len(&self, block: u32) -> u64 {
        round_up_u64(self.panels_in(block) as u64 * self.panel_bytes as u64, self.align as u64)
    }
}

/// Where a section lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionGeometry {
    /// Bytes from the start of the file, a multiple of [`Layout::section_align`].
    pub offset: u64,
    /// Bytes, padding between sections left out; 0 where the section does not exist.
    pub length: u64,
    /// Blocks.
    pub blocks: u32,
    /// The first block's place in the table of checksums.
    pub first_checksum: u32,
}

/// A block's place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes; for weights with their zero padding, a multiple of [`Layout::block_align`].
    pub length: u64,
    /// Its place in the table of checksums.
    pub checksum: u32,
}

/// Where everything lies in the file of a model with a given configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    config: Config,
    parts: [PartGeometry; Part::COUNT],
    layer: (u64, u32),
    header_bytes: u64,
    checksums: (u64, u64),
    data: [(u64, u32); 4],
    embedding: u64,
    layers: u64,
    final_norm: u64,
    head: u64,
    file_bytes: u64,
    data_blocks: [u32; 5],
}

impl Layout {
    /// Lays out a file.
    ///
    /// # Errors
    /// [`FormatError::Block`] where one panel of a matrix is larger than a block, [`FormatError::OutOfRange`] for a
    /// file of too many blocks.
    pub fn new(config: Config) -> Result<Self, FormatError> {
        let mut parts = [PartGeometry::default(); Part::COUNT];
        let (mut offset, mut first_block) = (0, 0);
        for part in Part::LAYER {
            let geometry = geometry(&config, part, offset, first_block)?;
            offset += geometry.bytes();
            first_block += geometry.blocks();
            parts[part as usize] = geometry;
        }
        let layer = (offset, first_block);
        for part in [Part::Embedding, Part::FinalNorm, Part::Head] {
            parts[part as usize] = geometry(&config, part, 0, 0)?;
        }

        let head_blocks = if config.tied { 0 } else { parts[Part::Head as usize].blocks() };
        let sizes = [
            config.data.tokenizer,
            config.data.chat_template,
            config.data.role_table,
            config.data.generation,
        ];
        let mut data_blocks = [0; 5];
        for (i, size) in sizes.into_iter().enumerate() {
            data_blocks[i + 1] = data_blocks[i] + size.div_ceil(config.block_bytes);
        }
        let single = data_blocks[4]
            + parts[Part::Embedding as usize].blocks()
            + parts[Part::FinalNorm as usize].blocks()
            + head_blocks;
        let blocks = u64::from(single) + u64::from(config.n_layer) * u64::from(layer.1);
        if blocks > MAX_BLOCKS {
            let value = blocks.min(u64::from(u32::MAX)) as u32;
            return Err(FormatError::OutOfRange(Limit {
                field: "blocks",
                value,
                min: 1,
                max: MAX_BLOCKS as u32,
            }));
        }

        let header_bytes = FIXED_BYTES + ENTRY_BYTES * section_count(&config);
        let align = section_align(&config);
        let mut at = round_up_u64(header_bytes, align);
        let mut place = |bytes: u64| {
            let start = at;
            at = round_up_u64(at + bytes, align);
            start
        };
        let checksum_bytes = 4 * blocks;
        let checksums = (place(checksum_bytes), checksum_bytes);
        let data = sizes.map(|size| (place(u64::from(size)), size));
        let embedding = place(parts[Part::Embedding as usize].bytes());
        let stride = round_up_u64(layer.0, align);
        let layers = place(stride * u64::from(config.n_layer));
        let final_norm = place(parts[Part::FinalNorm as usize].bytes());
        let head = place(if config.tied { 0 } else { parts[Part::Head as usize].bytes() });
        Ok(Self {
            config,
            parts,
            layer,
            header_bytes,
            checksums,
            data,
            embedding,
            layers,
            final_norm,
            head,
            file_bytes: round_up_u64(at, BLOCK_ALIGN),
            data_blocks,
        })
    }

    /// The model's configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What sections start at multiples of: [`SECTION_ALIGN`], in a compact file [`COMPACT_ALIGN`].
    #[must_use]
    pub const fn section_align(&self) -> u64 {
        section_align(&self.config)
    }

    /// What blocks start at multiples of: [`BLOCK_ALIGN`], in a compact file [`COMPACT_ALIGN`].
    #[must_use]
    pub const fn block_align(&self) -> u64 {
        block_align(&self.config)
    }

    /// Bytes of the file, a multiple of [`BLOCK_ALIGN`].
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of the header with its section table, without padding.
    #[must_use]
    pub const fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    /// Where the panels of a part lie.
    #[must_use]
    pub const fn part(&self, part: Part) -> &PartGeometry {
        &self.parts[part as usize]
    }

    /// The section and part that hold the head's weights: the embedding's when tied.
    #[must_use]
    pub fn head(&self) -> (Section, Part) {
        if self.config.tied { (Section::Embedding, Part::Embedding) } else { (Section::Head, Part::Head) }
    }

    /// All sections, in the order in which they lie.
    pub fn sections(&self) -> impl Iterator<Item = Section> + use<> {
        [
            Section::Checksums,
            Section::Tokenizer,
            Section::ChatTemplate,
            Section::RoleTable,
            Section::Generation,
        ]
        .into_iter()
        .chain([Section::Embedding])
        .chain((0..self.config.n_layer).map(Section::Layer))
        .chain([Section::FinalNorm, Section::Head])
    }

    /// Where a section lies; of length 0 past the last layer.
    #[must_use]
    pub fn section(&self, section: Section) -> SectionGeometry {
        let weights = self.data_blocks[4] + self.part(Part::Embedding).blocks();
        let (layer_bytes, layer_blocks) = self.layer;
        let n_layer = self.config.n_layer;
        let data = |i: usize| {
            let (offset, size) = self.data[i];
            (offset, u64::from(size), self.data_blocks[i + 1] - self.data_blocks[i], self.data_blocks[i])
        };
        let after = weights + n_layer * layer_blocks;
        let (offset, length, blocks, first_checksum) = match section {
            Section::Checksums => (self.checksums.0, self.checksums.1, 0, 0),
            Section::Tokenizer => data(0),
            Section::ChatTemplate => data(1),
            Section::RoleTable => data(2),
            Section::Generation => data(3),
            Section::Embedding => {
                let part = self.part(Part::Embedding);
                (self.embedding, part.bytes(), part.blocks(), self.data_blocks[4])
            }
            Section::Layer(i) if i < n_layer => {
                let offset = self.layers + u64::from(i) * round_up_u64(layer_bytes, self.section_align());
                (offset, layer_bytes, layer_blocks, weights + i * layer_blocks)
            }
            Section::Layer(_) => (0, 0, 0, 0),
            Section::FinalNorm => {
                let part = self.part(Part::FinalNorm);
                (self.final_norm, part.bytes(), part.blocks(), after)
            }
            Section::Head if self.config.tied => (self.head, 0, 0, after),
            Section::Head => {
                let part = self.part(Part::Head);
                (self.head, part.bytes(), part.blocks(), after + self.part(Part::FinalNorm).blocks())
            }
        };
        SectionGeometry { offset, length, blocks, first_checksum }
    }

    /// Where a block of a section lies, or `None` past the last.
    #[must_use]
    pub fn block(&self, section: Section, block: u32) -> Option<Block> {
        let place = self.section(section);
        if block >= place.blocks {
            return None;
        }
        let (within, length) = self.within(section, &place, block);
        Some(Block { offset: place.offset + within, length, checksum: place.first_checksum + block })
    }

    /// Where a block of a section lies within it, and its length.
    fn within(&self, section: Section, place: &SectionGeometry, block: u32) -> (u64, u64) {
        match self.part_of(section, block) {
            Some(part) => {
                let skipped = u64::from(block - part.first_block) * u64::from(part.block_stride);
                (part.offset + skipped, part.block_len(block))
            }
            None => {
                let within = u64::from(block) * u64::from(self.config.block_bytes);
                (within, (place.length - within).min(u64::from(self.config.block_bytes)))
            }
        }
    }

    /// The bytes of consecutive blocks of a section, or `None` where they don't exist.
    #[must_use]
    pub fn blocks(&self, section: Section, blocks: Range<u32>) -> Option<Range<u64>> {
        let place = self.section(section);
        let last = blocks.end.checked_sub(1).filter(|last| *last < place.blocks && blocks.start <= *last)?;
        let (first, _) = self.within(section, &place, blocks.start);
        let (within, length) = self.within(section, &place, last);
        Some(place.offset + first..place.offset + within + length)
    }

    /// The part that a block of a section of weights belongs to.
    fn part_of(&self, section: Section, block: u32) -> Option<&PartGeometry> {
        match section {
            Section::Layer(_) => {
                Part::LAYER.iter().rev().map(|part| self.part(*part)).find(|part| part.first_block <= block)
            }
            Section::Embedding => Some(self.part(Part::Embedding)),
            Section::FinalNorm => Some(self.part(Part::FinalNorm)),
            Section::Head => Some(self.part(Part::Head)),
            _ => None,
        }
    }

    /// Blocks of all sections, each of which has a checksum.
    #[must_use]
    pub const fn block_count(&self) -> u32 {
        (self.checksums.1 / 4) as u32
    }
}

const fn section_align(config: &Config) -> u64 {
    if config.fields().compact { COMPACT_ALIGN } else { SECTION_ALIGN }
}

const fn block_align(config: &Config) -> u64 {
    if config.fields().compact { COMPACT_ALIGN } else { BLOCK_ALIGN }
}

/// Sections in the table of a model's file.
fn section_count(config: &Config) -> u64 {
    8 + u64::from(config.n_layer)
}

/// Lays out the panels of a part in blocks, from `offset` on.
fn geometry(config: &Config, part: Part, offset: u64, first_block: u32) -> Result<PartGeometry, FormatError> {
    let matrix = |m: MatrixShape| (m.panels(), m.panel_bytes());
    let channels = config.padded_inner() / 16;
    let (panels, panel_bytes) = match part {
        Part::Norm | Part::FinalNorm => (config.padded_model() / 16, 64),
        Part::InProj => matrix(config.in_proj()),
        Part::Conv => (channels, (config.d_conv + 1) * 64),
        Part::XProj => matrix(config.x_proj()),
        Part::DtProj => matrix(config.dt_proj()),
        Part::Scan => (channels, (config.d_state + 1) * 64),
        Part::OutProj => matrix(config.out_proj()),
        Part::Embedding => matrix(config.embedding()),
        Part::Head => matrix(config.head()),
    };
    let panels_per_block = config.block_bytes / panel_bytes;
    if panels_per_block == 0 {
        let (part, panel) = (part.name(), u64::from(panel_bytes));
        return Err(FormatError::Block { part, panel, block: config.block_bytes });
    }
    let align = block_align(config) as u32;
    let block_stride = round_up_u64(u64::from(panels_per_block * panel_bytes), u64::from(align)) as u32;
    Ok(PartGeometry { panels, panel_bytes, panels_per_block, block_stride, align, offset, first_block })
}
