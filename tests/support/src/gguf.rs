//! GGUF files, right until a test makes them wrong.
#![allow(missing_docs, reason = "the names say what they are")]

use half::f16;

/// A value of the metadata.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// GGML's numbers of types.
pub mod kind {
    pub const F32: u32 = 0;
    pub const F16: u32 = 1;
    pub const Q4_0: u32 = 2;
    pub const Q5_0: u32 = 6;
    pub const Q8_0: u32 = 8;
    pub const Q6K: u32 = 14;
    pub const BF16: u32 = 30;
}

/// A tensor: name, dimensions outermost first, type and bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
}

/// A file in memory.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub version: u32,
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

impl Default for Gguf {
    fn default() -> Self {
        Self { version: 3, metadata: Vec::new(), tensors: Vec::new() }
    }
}

impl Gguf {
    /// Sets a key.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.into(), value));
    }

    /// Adds a tensor.
    pub fn put(&mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) {
        self.tensors.push(Tensor { name: name.into(), shape: shape.into(), kind, bytes });
    }

    /// The file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut file, key);
            value.write(&mut file);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut file, &tensor.name);
            file.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| file.extend(size.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(&tensor.bytes);
        }
        file
    }
}

fn text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

impl Value {
    fn write(&self, file: &mut Vec<u8>) {
        let array = |file: &mut Vec<u8>, kind: u32, count: usize| {
            file.extend(9u32.to_le_bytes());
            file.extend(kind.to_le_bytes());
            file.extend((count as u64).to_le_bytes());
        };
        let scalar = |file: &mut Vec<u8>, kind: u32, bytes: &[u8]| {
            file.extend(kind.to_le_bytes());
            file.extend(bytes);
        };
        match self {
            Self::U32(number) => scalar(file, 4, &number.to_le_bytes()),
            Self::I32(number) => scalar(file, 5, &number.to_le_bytes()),
            Self::F32(number) => scalar(file, 6, &number.to_le_bytes()),
            Self::Bool(value) => scalar(file, 7, &[u8::from(*value)]),
            Self::Text(value) => {
                file.extend(8u32.to_le_bytes());
                text(file, value);
            }
            Self::Texts(values) => {
                array(file, 8, values.len());
                values.iter().for_each(|value| text(file, value));
            }
            Self::I32s(values) => {
                array(file, 5, values.len());
                values.iter().for_each(|value| file.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(file, 6, values.len());
                values.iter().for_each(|value| file.extend(value.to_le_bytes()));
            }
        }
    }
}

/// Pseudo-random bytes.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 24
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// The dimensions of [`model`].
pub const D_MODEL: u64 = 64;
pub const D_INNER: u64 = 96;
pub const VOCAB: u64 = 20;
pub const LAYERS: u64 = 2;

/// Bytes of a tensor of `count` values: small ones in a float, and any integers with usual scales in blocks.
#[must_use]
pub fn values(random: &mut Random, count: u64, of: u32) -> Vec<u8> {
    let small = |random: &mut Random| random.below(2001) as f32 / 1000.0 - 1.0;
    let block = |random: &mut Random, size: usize| {
        let scale = f16::from_f32(0.02 * small(random));
        let mut bytes = scale.to_le_bytes().to_vec();
        bytes.extend((2..size).map(|_| random.next() as u8));
        bytes
    };
    match of {
        kind::F32 => (0..count).flat_map(|_| (0.2 * small(random)).to_le_bytes()).collect(),
        kind::F16 => (0..count).flat_map(|_| f16::from_f32(0.2 * small(random)).to_le_bytes()).collect(),
        kind::Q4_0 => (0..count / 32).flat_map(|_| block(random, 18)).collect(),
        kind::Q5_0 => (0..count / 32).flat_map(|_| block(random, 22)).collect(),
        // -128 is no integer of its quantizer's.
        kind::Q8_0 => {
            let blocks = (0..count / 32).flat_map(|_| block(random, 34));
            blocks.enumerate().map(|(i, byte)| if i % 34 > 1 && byte == 0x80 { 1 } else { byte }).collect()
        }
        _ => panic!("no such type here"),
    }
}

/// A model of two layers whose matrices are of this type.
#[must_use]
pub fn model(falcon: bool, matrices: u32) -> Gguf {
    let mut random = Random(5);
    let mut gguf = Gguf::default();
    for (key, value) in [
        ("general.architecture", Value::Text("mamba".into())),
        ("general.name", Value::Text("made by a test".into())),
        ("mamba.context_length", Value::U32(1 << 20)),
        ("mamba.embedding_length", Value::U32(D_MODEL as u32)),
        ("mamba.block_count", Value::U32(LAYERS as u32)),
        ("mamba.ssm.conv_kernel", Value::U32(4)),
        ("mamba.ssm.inner_size", Value::U32(D_INNER as u32)),
        ("mamba.ssm.state_size", Value::U32(3)),
        ("mamba.ssm.time_step_rank", Value::U32(5)),
        ("mamba.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ] {
        gguf.set(key, value);
    }
    if falcon {
        gguf.set("mamba.ssm.dt_b_c_rms", Value::Bool(true));
    }
    let mut put = |name: String, shape: &[u64], of: u32| {
        let bytes = values(&mut random, shape.iter().product(), of);
        gguf.put(&name, shape, of, bytes);
    };
    put("token_embd.weight".into(), &[VOCAB, D_MODEL], matrices);
    for layer in 0..LAYERS {
        let name = |suffix: &str| format!("blk.{layer}.{suffix}");
        put(name("attn_norm.weight"), &[D_MODEL], kind::F32);
        put(name("ssm_in.weight"), &[2 * D_INNER, D_MODEL], matrices);
        put(name("ssm_conv1d.weight"), &[D_INNER, 4], kind::F32);
        put(name("ssm_conv1d.bias"), &[D_INNER], kind::F32);
        put(name("ssm_x.weight"), &[11, D_INNER], matrices);
        put(name("ssm_dt.weight"), &[D_INNER, 5], kind::F32);
        put(name("ssm_dt.bias"), &[D_INNER], kind::F32);
        put(name("ssm_a"), &[D_INNER, 3], kind::F32);
        put(name("ssm_d"), &[D_INNER], kind::F32);
        put(name("ssm_out.weight"), &[D_MODEL, D_INNER], matrices);
    }
    put("output_norm.weight".into(), &[D_MODEL], kind::F32);
    gguf
}

/// A tokenizer for the model: bytes, a word, a control token.
#[must_use]
pub fn with_tokens(mut gguf: Gguf, model: &str) -> Gguf {
    let letters = (33u32..127).chain(161..173).chain(174..256).chain(256..324);
    let mut tokens: Vec<String> = letters.filter_map(char::from_u32).map(String::from).collect();
    let mut kinds = vec![1; tokens.len()];
    tokens.extend(["ab".into(), "<|end|>".into(), "  ".into(), "[PAD]".into()]);
    kinds.extend([1, 3, 4, 5]);
    let count = tokens.len();
    gguf.tensors.retain(|tensor| tensor.name != "token_embd.weight");
    let bytes = values(&mut Random(2), count as u64 * D_MODEL, kind::F16);
    gguf.put("token_embd.weight", &[count as u64, D_MODEL], kind::F16, bytes);
    for (key, value) in [
        ("model", Value::Text(model.into())),
        ("pre", Value::Text("gpt-2".into())),
        ("tokens", Value::Texts(tokens)),
        ("token_type", Value::I32s(kinds)),
        ("merges", Value::Texts(vec!["a b".into()])),
        ("eos_token_id", Value::U32(count as u32 - 3)),
        ("bos_token_id", Value::U32(1 << 20)),
        ("padding_token_id", Value::U32(u32::MAX)),
    ] {
        gguf.set(&format!("tokenizer.ggml.{key}"), value);
    }
    gguf.set("tokenizer.chat_template", Value::Text("{{ messages[0].content }}{{ eos_token }}".into()));
    gguf
}
