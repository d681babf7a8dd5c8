//! Small models to stream, what must come out of them, and what does.

use std::sync::Arc;

use elapid::core::format::{Header, Quant, Section};
use elapid::core::model::StateKind;
use elapid::{Error, Model, ModelOptions, Numbers, Ram, Session, SessionOptions, Storage, Verify};
use elapid_pack::checkpoint::{Arch, ModelConfig};

use crate::storage::Fake;

/// What [`all`] feeds.
pub const TOKENS: [u32; 9] = [5, 300, 0, 33, 33, 17, 7, 299, 4];
/// What caps are counted in.
pub const MIB: u64 = 1 << 20;

/// A model of some MiB with blocks of 16 KiB: random weights, with a head of its own or not.
pub fn file(tied: bool, quant: Quant) -> Vec<u8> {
    packed(tied, quant, false)
}

/// The same, compact or not.
pub fn packed(tied: bool, quant: Quant, compact: bool) -> Vec<u8> {
    let config = ModelConfig {
        arch: if tied { Arch::Mamba } else { Arch::FalconMamba },
        d_model: 96,
        n_layer: 12,
        d_inner: 192,
        d_state: 16,
        d_conv: 4,
        dt_rank: 6,
        vocab_size: 3001,
        norm_eps: 1e-5,
        mixer_rms_eps: if tied { None } else { Some(1e-6) },
        use_bias: tied,
        use_conv_bias: true,
        tied,
    };
    let options = elapid_pack::Options { quant, block_bytes: 16 << 10, compact, ..Default::default() };
    let plan = elapid_pack::Plan::random(&config, 7, &options).expect("a valid configuration");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.elp");
    plan.write(&path, &options, &()).expect("a packed file");
    std::fs::read(path).expect("the packed file")
}

/// Two threads under a cap.
pub fn options(cap: u64, verify: Verify) -> ModelOptions {
    ModelOptions::default().threads(2).ram(Ram::Bytes(cap)).verify(verify)
}

/// Opens a model in storage.
pub fn open<S: Storage + 'static>(storage: &Arc<S>, cap: u64, verify: Verify) -> Model {
    let storage: Arc<S> = Arc::clone(storage);
    Model::open_storage("fake", storage, &options(cap, verify)).expect("the file is a model")
}

/// The least cap that a model works with.
pub fn least(bytes: &[u8]) -> u64 {
    let model = open(&Arc::new(Fake::new(bytes.to_vec())), MIB, Verify::Auto);
    match model.session(&SessionOptions::default()) {
        Err(Error::Cap { cap, least, .. }) => {
            assert_eq!(cap, MIB);
            least
        }
        other => panic!("a model in 1 MiB: {other:?}"),
    }
}

/// Logits, to be compared bit for bit.
pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// What must come out, computed from memory.
pub fn expected(bytes: &[u8], state: StateKind) -> Vec<u32> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.elp");
    std::fs::write(&path, bytes).expect("a file");
    let model = Model::open(&path, &ModelOptions::default().threads(1));
    let model = model.expect("the file is a model");
    let mut session =
        model.session(&SessionOptions::default().numbers(Numbers::Float(state))).expect("a session");
    all(&mut session).expect("logits")
}

/// A prompt, then tokens one by one: the logits after each of the latter.
pub fn all(session: &mut Session) -> Result<Vec<u32>, Error> {
    let (prompt, rest) = TOKENS.split_at(6);
    session.feed(prompt)?;
    let mut out = bits(session.logits()?);
    for token in rest {
        session.feed(&[*token])?;
        out.extend(bits(session.logits()?));
    }
    Ok(out)
}

/// What comes out of a new session of the model, with chunks of four tokens.
pub fn run(model: &Model, state: StateKind) -> Result<Vec<u32>, Error> {
    let mut session = model.session(&SessionOptions::default().numbers(Numbers::Float(state)).chunk(4))?;
    all(&mut session)
}

/// A byte of a layer's in_proj that is neither scale nor padding.
pub fn place(bytes: &[u8], layer: u32) -> u64 {
    let header = Header::parse(bytes).expect("a model");
    header.layout().block(Section::Layer(layer), 1).expect("a block").offset + 200
}
