//! Mamba-1 and Falcon Mamba in `f64`, written for clarity from the equations.
//!
//! Sources: "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752), sections 3.2 to
//! 3.4, and the modelling code of Hugging Face transformers for names, norms and the softplus threshold. Nothing
//! here is shared with the code under test, and nothing is fast.
//!
//! Matrices are row-major `[rows, columns]` in one `Vec`, as checkpoints hold them.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// `x / sqrt(mean(x^2) + eps) * weight`; without a weight, as Falcon Mamba norms B, C and dt, just the quotient.
pub fn rms_norm(x: &[f64], weight: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let norm = (mean + eps).sqrt();
    match weight {
        Some(weight) => x.iter().zip(weight).map(|(v, w)| v / norm * w).collect(),
        None => x.iter().map(|v| v / norm).collect(),
    }
}

/// `weight · x + bias` with `weight` `[rows, x.len()]`.
pub fn linear(weight: &[f64], x: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let mut y: Vec<f64> = weight.chunks_exact(x.len()).map(|row| dot(row, x)).collect();
    if let Some(bias) = bias {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
    y
}

/// The sum of the products, in order.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `x * sigmoid(x)`.
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `ln(1 + e^x)`, and `x` itself above 20, which is the threshold of PyTorch.
pub fn softplus(x: f64) -> f64 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// One step of a causal depthwise convolution for one channel.
///
/// `past` holds the channel's last `d_conv - 1` inputs, oldest first, and takes `x` in; `weight` is `[d_conv]`, its
/// last tap for the newest input.
pub fn conv1d_step(past: &mut [f64], x: f64, weight: &[f64], bias: f64) -> f64 {
    let (newest, older) = weight.split_last().expect("a convolution has a tap");
    let y = dot(older, past) + newest * x + bias;
    if let Some(oldest) = past.first_mut() {
        *oldest = x;
        past.rotate_left(1);
    }
    y
}

/// One step of the selective scan for one channel; returns y without the D term (equations 2a, 2b and 4).
///
/// `h ← exp(dt A) h + dt B x`, `y = C · h`; `h`, `a`, `b` and `c` are `[d_state]`, `a` negative.
pub fn scan_step(h: &mut [f64], dt: f64, x: f64, a: &[f64], b: &[f64], c: &[f64]) -> f64 {
    for ((h, a), b) in h.iter_mut().zip(a).zip(b) {
        *h = (dt * a).exp() * *h + dt * b * x;
    }
    dot(c, h)
}

/// The index of the largest value, the first of equals.
pub fn argmax(values: &[f64]) -> u32 {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best as u32
}

/// The weights of one layer. Options that a model leaves out are `None`.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `[d_model]`
    pub norm: Vec<f64>,
    /// `[2 d_inner, d_model]`, the rows of x before those of z.
    pub in_proj: Vec<f64>,
    /// `[2 d_inner]`
    pub in_proj_bias: Option<Vec<f64>>,
    /// `[d_inner, d_conv]`
    pub conv: Vec<f64>,
    /// `[d_inner]`
    pub conv_bias: Option<Vec<f64>>,
    /// `[dt_rank + 2 d_state, d_inner]`, the rows of dt, then B, then C.
    pub x_proj: Vec<f64>,
    /// `[d_inner, dt_rank]`
    pub dt_proj: Vec<f64>,
    /// `[d_inner]`
    pub dt_bias: Vec<f64>,
    /// `-exp(A_log)`, `[d_inner, d_state]`
    pub a: Vec<f64>,
    /// `[d_inner]`
    pub d: Vec<f64>,
    /// `[d_model, d_inner]`
    pub out_proj: Vec<f64>,
    /// `[d_model]`
    pub out_proj_bias: Option<Vec<f64>>,
}

/// What a layer remembers between tokens.
#[derive(Clone, Debug)]
pub struct LayerState {
    /// The last inputs of the convolution, oldest first, `[d_inner, d_conv - 1]`.
    pub conv: Vec<f64>,
    /// `[d_inner, d_state]`
    pub h: Vec<f64>,
}

/// A whole model with its state.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// The width of the residual stream.
    pub d_model: usize,
    /// The number of columns of A.
    pub d_state: usize,
    /// The taps of the convolution.
    pub d_conv: usize,
    /// The epsilon of the norms with weights.
    pub norm_eps: f64,
    /// Falcon Mamba's epsilon for the norms of B, C and dt; `None` for Mamba, which has no such norms.
    pub mixer_eps: Option<f64>,
    /// `[vocab, d_model]`
    pub embedding: Vec<f64>,
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// `[d_model]`
    pub norm_f: Vec<f64>,
    /// `[vocab, d_model]`; `None` if the embedding serves.
    pub head: Option<Vec<f64>>,
    /// One for each layer.
    pub state: Vec<LayerState>,
}

impl Oracle {
    /// Reads a Hugging Face folder, sharded or not.
    ///
    /// # Panics
    /// If a file is missing or broken.
    pub fn load(folder: &Path) -> Self {
        let config = json(&folder.join("config.json"));
        let mut tensors = read_tensors(folder);
        let mut take = |name: &str| tensors.remove(name);
        let mut need = |name: &str| take(name).unwrap_or_else(|| panic!("{}: no {name}", folder.display()));
        let size = |name: &str| config[name].as_u64().unwrap_or_else(|| panic!("no {name}")) as usize;
        let epsilon = |name: &str| config[name].as_f64().unwrap_or_else(|| panic!("no {name}"));

        let embedding = need("backbone.embeddings.weight");
        let norm_f = need("backbone.norm_f.weight");
        let layers = (0..size("num_hidden_layers")).map(|i| read_layer(&mut tensors, i)).collect();
        let head = tensors.remove("lm_head.weight");
        assert!(tensors.is_empty(), "{}: unknown tensors {:?}", folder.display(), tensors.keys());

        let mut oracle = Self {
            d_model: size("hidden_size"),
            d_state: size("state_size"),
            d_conv: size("conv_kernel"),
            norm_eps: epsilon("layer_norm_epsilon"),
            mixer_eps: (config["model_type"] == "falcon_mamba").then(|| epsilon("mixer_rms_eps")),
            embedding,
            layers,
            norm_f,
            head,
            state: Vec::new(),
        };
        oracle.reset();
        oracle
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        let (taps, d_state) = (self.d_conv - 1, self.d_state);
        let empty = |layer: &Layer| LayerState {
            conv: vec![0.0; layer.d.len() * taps],
            h: vec![0.0; layer.d.len() * d_state],
        };
        self.state = self.layers.iter().map(empty).collect();
    }

    /// Takes one token in and returns the logits `[vocab]` after it.
    pub fn step(&mut self, token: u32) -> Vec<f64> {
        let mut x = self.embedding[token as usize * self.d_model..][..self.d_model].to_vec();
        for index in 0..self.layers.len() {
            let u = rms_norm(&x, Some(&self.layers[index].norm), self.norm_eps);
            let y = self.mixer(index, &u);
            x.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
        }
        let x = rms_norm(&x, Some(&self.norm_f), self.norm_eps);
        linear(self.head.as_ref().unwrap_or(&self.embedding), &x, None)
    }

    /// The logits after the last of `tokens`, which are fed on top of the current state.
    pub fn feed(&mut self, tokens: &[u32]) -> Vec<f64> {
        tokens.iter().fold(Vec::new(), |_, token| self.step(*token))
    }

    /// The mixer of one layer for the normalised residual `u` `[d_model]`.
    fn mixer(&mut self, index: usize, u: &[f64]) -> Vec<f64> {
        let (layer, state) = (&self.layers[index], &mut self.state[index]);
        let (d_inner, d_state, d_conv) = (layer.d.len(), self.d_state, self.d_conv);

        let xz = linear(&layer.in_proj, u, layer.in_proj_bias.as_deref());
        let (x, z) = xz.split_at(d_inner);
        let x: Vec<f64> = (0..d_inner)
            .map(|i| {
                let past = &mut state.conv[i * (d_conv - 1)..][..d_conv - 1];
                let bias = layer.conv_bias.as_ref().map_or(0.0, |b| b[i]);
                silu(conv1d_step(past, x[i], &layer.conv[i * d_conv..][..d_conv], bias))
            })
            .collect();

        let dt_b_c = linear(&layer.x_proj, &x, None);
        let (dt, b_c) = dt_b_c.split_at(dt_b_c.len() - 2 * d_state);
        let (b, c) = b_c.split_at(d_state);
        let norm = |v: &[f64]| self.mixer_eps.map_or_else(|| v.to_vec(), |eps| rms_norm(v, None, eps));
        let (dt, b, c) = (norm(dt), norm(b), norm(c));
        let dt = linear(&layer.dt_proj, &dt, Some(&layer.dt_bias));

        let y: Vec<f64> = (0..d_inner)
            .map(|i| {
                let (h, a) = (&mut state.h[i * d_state..][..d_state], &layer.a[i * d_state..][..d_state]);
                let y = scan_step(h, softplus(dt[i]), x[i], a, &b, &c) + layer.d[i] * x[i];
                y * silu(z[i])
            })
            .collect();
        linear(&layer.out_proj, &y, layer.out_proj_bias.as_deref())
    }
}

fn read_layer(tensors: &mut HashMap<String, Vec<f64>>, index: usize) -> Layer {
    let mut option = |name: &str| tensors.remove(&format!("backbone.layers.{index}.{name}"));
    let in_proj_bias = option("mixer.in_proj.bias");
    let conv_bias = option("mixer.conv1d.bias");
    let out_proj_bias = option("mixer.out_proj.bias");
    let mut need = |name: &str| option(name).unwrap_or_else(|| panic!("layer {index}: no {name}"));
    Layer {
        norm: need("norm.weight"),
        in_proj: need("mixer.in_proj.weight"),
        in_proj_bias,
        conv: need("mixer.conv1d.weight"),
        conv_bias,
        x_proj: need("mixer.x_proj.weight"),
        dt_proj: need("mixer.dt_proj.weight"),
        dt_bias: need("mixer.dt_proj.bias"),
        a: need("mixer.A_log").iter().map(|a_log| -a_log.exp()).collect(),
        d: need("mixer.D"),
        out_proj: need("mixer.out_proj.weight"),
        out_proj_bias,
    }
}

/// Every tensor of a folder by its name.
fn read_tensors(folder: &Path) -> HashMap<String, Vec<f64>> {
    let index = folder.join("model.safetensors.index.json");
    let files: BTreeSet<String> = if index.exists() {
        let map = json(&index)["weight_map"].as_object().cloned().unwrap_or_default();
        map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect()
    } else {
        BTreeSet::from(["model.safetensors".to_owned()])
    };
    let mut tensors = HashMap::new();
    for file in files {
        let path = folder.join(file);
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let shard = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for (name, tensor) in shard.iter() {
            tensors.insert(name.to_owned(), to_f64(tensor.dtype(), tensor.data()));
        }
    }
    tensors
}

fn to_f64(dtype: Dtype, data: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F32 => {
            data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
        }
        Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).into()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).into()).collect(),
        other => panic!("weights of type {other:?}"),
    }
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, fixture, fixtures};

    /// How far from Hugging Face's float32 an `f64` may be, as a share of the largest logit.
    const BOUND: f64 = 2e-5;

    /// The largest distance from the expected logits, as a share of the largest of them.
    fn error(oracle: &mut Oracle, fixture: &Fixture) -> f64 {
        oracle.reset();
        let mut worst = 0.0f64;
        for (index, token) in fixture.tokens.iter().enumerate() {
            for (have, want) in oracle.step(*token).iter().zip(fixture.logits_after(index)) {
                worst = worst.max((have - f64::from(*want)).abs());
            }
        }
        worst / f64::from(fixture.scale())
    }

    #[test]
    fn agrees_with_every_fixture() {
        for fixture in fixtures() {
            let error = error(&mut Oracle::load(&fixture.checkpoint), &fixture);
            println!("{}: {error:.1e} of the largest logit", fixture.name);
            assert!(error < BOUND, "{}: {error}", fixture.name);
        }
    }

    #[test]
    fn continues_as_every_fixture() {
        for fixture in fixtures() {
            let mut oracle = Oracle::load(&fixture.checkpoint);
            let mut logits = oracle.feed(&fixture.prompt);
            for (index, want) in fixture.greedy.iter().enumerate() {
                assert_eq!(argmax(&logits), *want, "{}: token {index}", fixture.name);
                logits = oracle.step(*want);
            }
        }
    }

    /// A model with one thing wrong in its last layer must be seen to be wrong: a fixture in which some weight does
    /// not show would guard nothing. Trained models have idle channels, so only the random ones can promise this.
    #[test]
    fn every_weight_shows_in_every_fixture() {
        type Break = (&'static str, fn(&mut Layer));
        let breaks: [Break; 12] = [
            ("norm", |l| l.norm[0] += 0.1),
            ("x of in_proj", |l| l.in_proj[0] += 0.1),
            ("z of in_proj", |l| *l.in_proj.last_mut().unwrap() += 0.1),
            ("in_proj bias", |l| l.in_proj_bias.iter_mut().for_each(|b| b[0] += 0.1)),
            ("oldest tap of conv", |l| l.conv[0] += 0.1),
            ("conv bias", |l| l.conv_bias.iter_mut().for_each(|b| b[0] += 0.1)),
            ("x_proj", |l| *l.x_proj.last_mut().unwrap() += 0.1),
            ("dt_proj", |l| l.dt_proj.iter_mut().for_each(|w| *w *= 1.1)),
            ("dt bias", |l| l.dt_bias.iter_mut().for_each(|b| *b += 0.1)),
            ("A", |l| l.a.iter_mut().for_each(|a| *a *= 1.1)),
            ("D", |l| l.d[0] += 0.1),
            ("out_proj bias", |l| l.out_proj_bias.iter_mut().for_each(|b| b[0] += 0.1)),
        ];
        for fixture in fixtures().iter().filter(|f| !f.name.starts_with("address-")) {
            let whole = Oracle::load(&fixture.checkpoint);
            for (what, break_it) in breaks {
                let mut broken = whole.clone();
                let layer = broken.layers.last_mut().expect("a model has a layer");
                let absent = match what {
                    "in_proj bias" => layer.in_proj_bias.is_none(),
                    "conv bias" => layer.conv_bias.is_none(),
                    "out_proj bias" => layer.out_proj_bias.is_none(),
                    _ => false,
                };
                break_it(layer);
                let error = error(&mut broken, fixture);
                assert!(absent || error > BOUND, "{}: {what} does not show: {error}", fixture.name);
            }
        }
    }

    #[test]
    fn epsilons_show_where_they_are_unusual() {
        let mamba = fixture("mamba-bias");
        let mut oracle = Oracle::load(&mamba.checkpoint);
        assert_eq!(oracle.norm_eps, 1e-3);
        oracle.norm_eps = 1e-5;
        assert!(error(&mut oracle, &mamba) > BOUND);
        for name in ["falcon-bias", "falcon-state1"] {
            let falcon = fixture(name);
            let mut oracle = Oracle::load(&falcon.checkpoint);
            oracle.mixer_eps = Some(1e-6);
            assert!(error(&mut oracle, &falcon) > BOUND, "{name}");
        }
    }

    #[test]
    fn convolution_takes_its_taps_in_order() {
        let mut past = [1.0, 2.0];
        assert_eq!(conv1d_step(&mut past, 3.0, &[100.0, 10.0, 1.0], 0.5), 123.5);
        assert_eq!(past, [2.0, 3.0]);
        assert_eq!(conv1d_step(&mut [], 3.0, &[2.0], 0.5), 6.5);
    }

    #[test]
    fn softplus_keeps_tiny_results_and_its_threshold() {
        assert!((softplus(-28.6) / (-28.6f64).exp() - 1.0).abs() < 1e-12);
        assert_eq!(softplus(20.5), 20.5);
        assert!((softplus(0.0) - std::f64::consts::LN_2).abs() < 1e-15);
    }
}
