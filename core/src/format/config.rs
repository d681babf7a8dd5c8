//! What a model is: the only way from a file's bytes to sizes.

use core::ops::{Deref, RangeInclusive};

use super::{FormatError, MatrixShape, Quant, power_of_two, round_up};
use crate::numbers::GROUP;

/// The family that a model belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Arch {
    /// Mamba-1.
    Mamba = 1,
    /// Falcon Mamba: Mamba-1 with B, C and dt normalised.
    FalconMamba = 2,
}

impl Arch {
    /// The name used by Hugging Face's `model_type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mamba => "mamba",
            Self::FalconMamba => "falcon_mamba",
        }
    }
}

/// Something of each kind of matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerMatrix<T> {
    /// Token embedding, `[vocab, d_model]`; also the head's when tied.
    pub embedding: T,
    /// `[2 d_inner, d_model]`.
    pub in_proj: T,
    /// `[dt_rank + 2 d_state, d_inner]`.
    pub x_proj: T,
    /// `[d_inner, dt_rank]`.
    pub dt_proj: T,
    /// `[d_model, d_inner]`.
    pub out_proj: T,
    /// `[vocab, d_model]`.
    pub head: T,
}

impl<T: Copy> PerMatrix<T> {
    /// All of them, in the order of the header's bytes.
    #[must_use]
    pub const fn all(&self) -> [T; 6] {
        [self.embedding, self.in_proj, self.x_proj, self.dt_proj, self.out_proj, self.head]
    }
}

/// How each kind of matrix is stored.
pub type Quants = PerMatrix<Quant>;

/// Bytes of the sections that are not weights; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataSizes {
    /// The compiled tokenizer.
    pub tokenizer: u32,
    /// The chat template's Jinja text.
    pub chat_template: u32,
    /// The chat template as a role table.
    pub role_table: u32,
    /// Generation defaults.
    pub generation: u32,
}

/// The fields of a model's configuration, not checked yet.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    /// The family.
    pub arch: Arch,
    /// Width of the residual stream.
    pub d_model: u32,
    /// Channels of the mixer.
    pub d_inner: u32,
    /// States of a channel.
    pub d_state: u32,
    /// Taps of the convolution.
    pub d_conv: u32,
    /// Rank of dt's projection.
    pub dt_rank: u32,
    /// Layers.
    pub n_layer: u32,
    /// Tokens that the model knows, padding included.
    pub vocab: u32,
    /// Epsilon of the layers' and the final norm.
    pub norm_eps: f32,
    /// Epsilon of the norms of B, C and dt, where the model has them.
    pub bcdt_eps: Option<f32>,
    /// The head is the embedding.
    pub tied: bool,
    /// in_proj and out_proj have biases.
    pub bias: bool,
    /// The convolution has a bias.
    pub conv_bias: bool,
    /// Sections and blocks start at multiples of 512 bytes rather than of pages, see [`Layout::section_align`](super::Layout::section_align).
    pub compact: bool,
    /// How matrices are stored.
    pub quants: Quants,
    /// Which matrices have an exponent for each row, see [`MatrixShape::exponent`].
    pub exponents: PerMatrix<bool>,
    /// The fixed path's logits are in units of 2^(this - 16), see [`Config::logit_unit`].
    pub logit_exponent: i8,
    /// Bytes of a block at most, a multiple of 16 KiB.
    pub block_bytes: u32,
    /// Bytes of the data sections.
    pub data: DataSizes,
}

/// Epsilons are compared by their bits: the fixed path may not compute with floats.
impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        let rest = |f: &Self| {
            let sizes =
                [f.d_model, f.d_inner, f.d_state, f.d_conv, f.dt_rank, f.n_layer, f.vocab, f.block_bytes];
            let eps = (f.norm_eps.to_bits(), f.bcdt_eps.map(f32::to_bits));
            let matrices = (f.quants, f.exponents, f.logit_exponent);
            (f.arch, sizes, eps, (f.tied, f.bias, f.conv_bias, f.compact), matrices, f.data)
        };
        rest(self) == rest(other)
    }
}

/// A checked configuration: every size that follows from it fits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config(Fields);

/// The range of a field, and a value outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: u32,
    /// The smallest that is allowed.
    pub min: u32,
    /// The largest that is allowed.
    pub max: u32,
}

impl Deref for Config {
    type Target = Fields;
    fn deref(&self) -> &Fields {
        &self.0
    }
}

impl Config {
    /// Checks the fields.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] names the field, its value and its range; [`FormatError::Unknown`] a value that is never
    /// valid (block size, epsilon, type).
    pub const fn new(fields: Fields) -> Result<Self, FormatError> {
        let f = &fields;
        let limits = [
            ("d_model", f.d_model, 1, 1 << 16),
            ("d_inner", f.d_inner, 1, MatrixShape::MAX_COLS),
            ("d_state", f.d_state, 1, 256),
            ("d_conv", f.d_conv, 1, 8),
            ("dt_rank", f.dt_rank, 1, 1 << 16),
            ("n_layer", f.n_layer, 1, 4096),
            ("vocab", f.vocab, 1, MatrixShape::MAX_ROWS),
            ("block_bytes", f.block_bytes, 1 << 14, 1 << 20),
            ("tokenizer bytes", f.data.tokenizer, 0, 1 << 28),
            ("chat template bytes", f.data.chat_template, 0, 1 << 24),
            ("role table bytes", f.data.role_table, 0, 1 << 16),
            ("generation defaults bytes", f.data.generation, 0, 1 << 16),
        ];
        // Loops by hand: this runs in the compiler too, where there are no iterators.
        let mut i = 0;
        while i < limits.len() {
            let (field, value, min, max) = limits[i];
            if value < min || value > max {
                return Err(FormatError::OutOfRange(Limit { field, value, min, max }));
            }
            i += 1;
        }
        if !f.block_bytes.is_multiple_of(1 << 14) {
            return Err(FormatError::Unknown { field: "block_bytes", value: f.block_bytes });
        }
        if f.logit_exponent < *Self::LOGIT_EXPONENTS.start()
            || f.logit_exponent > *Self::LOGIT_EXPONENTS.end()
        {
            return Err(FormatError::Unknown {
                field: "logit exponent",
                value: f.logit_exponent as u8 as u32,
            });
        }
        let bcdt_eps = match f.bcdt_eps {
            Some(eps) => eps,
            None => 0.0,
        };
        if !(f.norm_eps.is_finite() && f.norm_eps >= 0.0) {
            return Err(FormatError::Unknown { field: "norm_eps", value: f.norm_eps.to_bits() });
        }
        if !(bcdt_eps.is_finite() && bcdt_eps >= 0.0) {
            return Err(FormatError::Unknown { field: "bcdt_eps", value: bcdt_eps.to_bits() });
        }
        let q = &f.quants;
        if q.x_proj.is_coarse() {
            return Err(FormatError::Unknown { field: "x_proj type", value: q.x_proj as u32 });
        }
        if q.dt_proj.is_coarse() {
            return Err(FormatError::Unknown { field: "dt_proj type", value: q.dt_proj as u32 });
        }
        if f.tied && q.head as u32 != q.embedding as u32 {
            return Err(FormatError::Unknown { field: "type of a tied head", value: q.head as u32 });
        }
        if f.tied && f.exponents.head != f.exponents.embedding {
            let value = f.exponents.head as u32;
            return Err(FormatError::Unknown { field: "row exponents of a tied head", value });
        }
        Ok(Self(fields))
    }

    /// The fields, also in the compiler, where `Deref` can't be used.
    #[must_use]
    pub const fn fields(&self) -> &Fields {
        &self.0
    }

    /// `d_model` padded to 32, as every vector of that width is.
    #[must_use]
    pub const fn padded_model(&self) -> u32 {
        round_up(self.0.d_model, GROUP as u32)
    }
    /// `d_inner` padded to 32.
    #[must_use]
    pub const fn padded_inner(&self) -> u32 {
        round_up(self.0.d_inner, GROUP as u32)
    }
    /// `dt_rank` padded to 32.
    #[must_use]
    pub const fn padded_rank(&self) -> u32 {
        round_up(self.0.dt_rank, GROUP as u32)
    }
    /// `d_state` padded to 16, as B and C are.
    #[must_use]
    pub const fn padded_state(&self) -> u32 {
        round_up(self.0.d_state, 16)
    }
    /// `vocab` padded to 16, as logits are.
    #[must_use]
    pub const fn padded_vocab(&self) -> u32 {
        round_up(self.0.vocab, 16)
    }

    /// What `logit_exponent` may be: the unit is then a normal f32, and the largest logit, 2^127, a finite one.
    pub const LOGIT_EXPONENTS: RangeInclusive<i8> = -100..=112;

    /// What the fixed path's integer logits are multiples of: 2^-16, or another power of two where the model's logits would not fit
    /// 32 bits then, or would all be small.
    #[must_use]
    pub const fn logit_unit(&self) -> f32 {
        power_of_two(self.0.logit_exponent as i32 - 16)
    }

    /// Token embedding, `[vocab, d_model]`.
    #[must_use]
    pub const fn embedding(&self) -> MatrixShape {
        MatrixShape::within_limits(self.0.vocab, self.0.d_model, self.0.quants.embedding, false)
            .with_exponents(self.0.exponents.embedding)
    }
    /// `x` and `z`, each padded to 32 rows.
    #[must_use]
    pub const fn in_proj(&self) -> MatrixShape {
        MatrixShape::within_limits(
            2 * self.padded_inner(),
            self.0.d_model,
            self.0.quants.in_proj,
            self.0.bias,
        )
        .with_exponents(self.0.exponents.in_proj)
    }
    /// `dt` padded to 32 rows, then `B` and `C`, each padded to 16.
    #[must_use]
    pub const fn x_proj(&self) -> MatrixShape {
        let rows = self.padded_rank() + 2 * self.padded_state();
        MatrixShape::within_limits(rows, self.0.d_inner, self.0.quants.x_proj, false)
            .with_exponents(self.0.exponents.x_proj)
    }
    /// `[d_inner, dt_rank]`, with dt's bias.
    #[must_use]
    pub const fn dt_proj(&self) -> MatrixShape {
        MatrixShape::within_limits(self.padded_inner(), self.0.dt_rank, self.0.quants.dt_proj, true)
            .with_exponents(self.0.exponents.dt_proj)
    }
    /// `[d_model, d_inner]`.
    #[must_use]
    pub const fn out_proj(&self) -> MatrixShape {
        MatrixShape::within_limits(self.padded_model(), self.0.d_inner, self.0.quants.out_proj, self.0.bias)
            .with_exponents(self.0.exponents.out_proj)
    }
    /// `[vocab, d_model]`; the embedding's shape when tied.
    #[must_use]
    pub const fn head(&self) -> MatrixShape {
        MatrixShape::within_limits(self.0.vocab, self.0.d_model, self.0.quants.head, false)
            .with_exponents(self.0.exponents.head)
    }

    /// Floats of one layer's convolution state, `[d_inner/16][d_conv - 1][16]`.
    #[must_use]
    pub const fn conv_state_len(&self) -> usize {
        self.padded_inner() as usize * (self.0.d_conv as usize - 1)
    }
    /// Elements of one layer's recurrent state, `[d_inner/16][d_state][16]`.
    #[must_use]
    pub const fn ssm_state_len(&self) -> usize {
        self.padded_inner() as usize * self.0.d_state as usize
    }
}
