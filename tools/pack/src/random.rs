//! Models of random weights at real sizes: for measuring speed and memory, not for their words.

use std::ops::Range;

use crate::PackError;
use crate::checkpoint::{Arch, LayerTensor, ModelConfig, TensorKind};
use crate::weights::Weights;

/// Random weights, a function of the seed alone: any row can be had at any time.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    config: ModelConfig,
    seed: u64,
}

/// Published sizes.
pub const PRESETS: [&str; 6] =
    ["mamba-130m", "mamba-370m", "mamba-790m", "mamba-1.4b", "mamba-2.8b", "falcon-mamba-7b"];

/// The configuration of a published model.
#[must_use]
pub fn preset(name: &str) -> Option<ModelConfig> {
    let mamba = |d_model: usize, n_layer| ModelConfig {
        arch: Arch::Mamba,
        d_model,
        n_layer,
        d_inner: 2 * d_model,
        d_state: 16,
        d_conv: 4,
        dt_rank: d_model.div_ceil(16),
        vocab_size: 50280,
        norm_eps: 1e-5,
        mixer_rms_eps: None,
        use_bias: false,
        use_conv_bias: true,
        tied: true,
    };
    Some(match name {
        "mamba-130m" => mamba(768, 24),
        "mamba-370m" => mamba(1024, 48),
        "mamba-790m" => mamba(1536, 48),
        "mamba-1.4b" => mamba(2048, 48),
        "mamba-2.8b" => mamba(2560, 64),
        "falcon-mamba-7b" => ModelConfig {
            arch: Arch::FalconMamba,
            vocab_size: 65024,
            mixer_rms_eps: Some(1e-6),
            tied: false,
            ..mamba(4096, 64)
        },
        _ => return None,
    })
}

impl RandomWeights {
    /// Weights for a model of this configuration.
    #[must_use]
    pub fn new(config: ModelConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// How a tensor's values are spread: chosen as training starts them, so that activations stay of order one.
    fn fill(&self, kind: TensorKind, columns: usize, random: &mut SplitMix, out: &mut [f32]) {
        let c = &self.config;
        let std = |n: usize| 1.0 / (n as f32).sqrt();
        let TensorKind::Layer(_, tensor) = kind else {
            return match kind {
                TensorKind::FinalNorm => out.fill(1.0),
                _ => random.normal(std(c.d_model), out),
            };
        };
        match tensor {
            LayerTensor::Norm | LayerTensor::D => out.fill(1.0),
            LayerTensor::InProj => random.normal(std(c.d_model), out),
            LayerTensor::XProj => random.normal(std(c.d_inner), out),
            LayerTensor::OutProj => random.normal(std(c.d_inner) * std(c.n_layer), out),
            LayerTensor::DtProj => random.normal(0.5 * std(c.dt_rank), out),
            LayerTensor::Conv => random.normal(std(c.d_conv), out),
            LayerTensor::ConvBias | LayerTensor::InProjBias | LayerTensor::OutProjBias => {
                random.normal(0.02, out)
            }
            // A = -1, -2, ..., -d_state in every channel.
            LayerTensor::ALog => {
                for (i, a) in out.iter_mut().enumerate() {
                    *a = libm::logf((i % columns + 1) as f32);
                }
            }
            // softplus(bias) is spread evenly in the logarithm between 0.001 and 0.1.
            LayerTensor::DtProjBias => {
                for bias in out {
                    let dt = 0.001 * libm::powf(100.0, random.unit());
                    *bias = libm::logf(libm::expm1f(dt));
                }
            }
        }
    }
}

impl Weights for RandomWeights {
    fn has(&self, kind: TensorKind) -> bool {
        match kind {
            TensorKind::Head => !self.config.tied,
            TensorKind::Layer(_, LayerTensor::InProjBias | LayerTensor::OutProjBias) => self.config.use_bias,
            TensorKind::Layer(_, LayerTensor::ConvBias) => self.config.use_conv_bias,
            _ => true,
        }
    }

    fn read(
        &self,
        kind: TensorKind,
        rows: Range<usize>,
        columns: usize,
        out: &mut [f32],
    ) -> Result<(), PackError> {
        let tensor = match kind {
            TensorKind::Embedding => 1,
            TensorKind::FinalNorm => 2,
            TensorKind::Head => 3,
            TensorKind::Layer(layer, tensor) => 16 * (layer as u64 + 1) + tensor as u64,
        };
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            let mut random =
                SplitMix(self.seed ^ (tensor << 32 | row as u64).wrapping_mul(0xd134_2543_de82_ef95));
            self.fill(kind, columns, &mut random, out);
        }
        Ok(())
    }

    fn name(&self, kind: TensorKind) -> String {
        format!("{kind:?}")
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in [0, 1).
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Nearly normal values: sums of four evenly distributed 16-bit numbers.
    fn normal(&mut self, std: f32, out: &mut [f32]) {
        // A sum of four has variance (2^16)^2 / 3.
        let scale = std * 3f32.sqrt() / 65536.0;
        for x in out {
            let r = self.next();
            let sum = (r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48);
            *x = (sum as f32 - 131_070.0) * scale;
        }
    }
}
