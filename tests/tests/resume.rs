//! A step that a source failed is resumed where it stood, and gives the same bits.

use elapid_core::format::{Config, Header, Quant};
use elapid_core::kernels::{self, Scale, Solo, SsmState};
use elapid_core::model::{
    Model, Position, Rows, Scratch, ScratchSize, Session, State, StateKind, StateSize, StepError,
};
use elapid_core::source::SliceSource;
use elapid_tests::fixture::fixture;
use elapid_tests::runner::{Runner, pack};
use elapid_tests::steps::{failures_change_nothing, feed, out_of_order};

#[test]
fn a_failed_step_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture("falcon-odd");
    for quant in [Quant::F32, Quant::Q8] {
        let options = elapid_pack::Options { quant, block_bytes: 16 << 10, ..Default::default() };
        let path = pack(&fixture.checkpoint, folder.path(), &options);
        for kind in [StateKind::F32, StateKind::F16] {
            failures_change_nothing(&format!("{} {kind:?}", quant.name()), |fail_at| {
                let mut runner = Runner::open(&path, kind, 5);
                runner.with(kernels::detect(), &Solo, |model, session, source| {
                    feed((model, session), source, fail_at)
                })
            });
        }
    }
}

#[test]
fn a_session_of_another_model_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let open = |name: &str| {
        let fixture = fixture(name);
        Runner::open(&pack(&fixture.checkpoint, folder.path(), &Default::default()), StateKind::F32, 4)
    };
    let (mut one, mut other) = (open("falcon-odd"), open("mamba-odd"));
    one.with(kernels::detect(), &Solo, |_, session, source| {
        other.with(kernels::detect(), &Solo, |model, _, _| {
            assert_eq!(model.forward(session, source, &[1]), Err(StepError::OtherModel));
            assert_eq!(
                model.logits(session, source, Rows::Last, &mut [0.0; 4096]),
                Err(StepError::OtherModel)
            );
        });
    });
}

#[test]
fn steps_out_of_order_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture("mamba-odd");
    let path = pack(&fixture.checkpoint, folder.path(), &Default::default());
    Runner::open(&path, StateKind::F32, 4).with(kernels::detect(), &Solo, |model, session, source| {
        out_of_order((model, session), source);
    });
}

/// The buffers of a session that is put together for every call.
struct Apart {
    conv: Vec<f32>,
    ssm: Vec<f32>,
    undo_conv: Vec<f32>,
    undo_ssm: Vec<f32>,
    floats: Vec<f32>,
    ints: Vec<i8>,
    scales: Vec<Scale>,
    slots: usize,
    position: Position,
}

impl Apart {
    fn new(config: &Config, slots: usize, chunk: usize) -> Self {
        let all = StateSize::of(config, slots * config.n_layer as usize);
        let (one, scratch) = (StateSize::of(config, slots), ScratchSize::of(config, chunk));
        Self {
            conv: vec![0.0; all.conv],
            ssm: vec![0.0; all.ssm],
            undo_conv: vec![0.0; one.conv],
            undo_ssm: vec![0.0; one.ssm],
            floats: vec![0.0; scratch.floats],
            ints: vec![0; scratch.ints],
            scales: vec![Scale::default(); scratch.scales],
            slots,
            position: Position::default(),
        }
    }

    fn with<R>(
        &mut self,
        model: &Model<'_>,
        work: impl FnOnce(&mut Session<'_>) -> R,
    ) -> Result<R, StepError> {
        let state = State { conv: &mut self.conv, ssm: SsmState::F32(&mut self.ssm) };
        let undo = State { conv: &mut self.undo_conv, ssm: SsmState::F32(&mut self.undo_ssm) };
        let scratch = Scratch { floats: &mut self.floats, ints: &mut self.ints, scales: &mut self.scales };
        let mut session = Session::resume_at(model, self.slots, state, undo, scratch, self.position)?;
        let result = work(&mut session);
        self.position = session.position();
        Ok(result)
    }
}

#[test]
fn a_session_that_is_put_together_again_goes_on_with_the_same_bits() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
    let file = std::fs::read(path).expect("the model");
    let header = Header::parse(&file).expect("a model");
    let (layout, config) = (header.layout(), header.layout().config());
    let model = Model::float(layout, kernels::detect(), &Solo);
    let mut source = SliceSource::new(&file, &header, &mut []).expect("the file is whole");
    let tokens = [5, 900, 33];
    let mut rows = [(); 2].map(|()| vec![0.0f32; 3 * config.padded_vocab() as usize]);

    let mut whole = Apart::new(config, 1, 3);
    whole
        .with(&model, |session| {
            model.forward(session, &mut source, &tokens)?;
            model.logits(session, &mut source, Rows::All, &mut rows[0])
        })
        .and_then(|done| done)
        .expect("the step succeeds");

    let mut apart = Apart::new(config, 1, 3);
    let begun = apart.with(&model, |session| model.begin(session, &mut source, &tokens));
    begun.and_then(|begun| begun).expect("it begins");
    // In the middle, it does not fit buffers for fewer tokens.
    let mut small = Apart { position: apart.position, ..Apart::new(config, 1, 2) };
    assert_eq!(small.with(&model, |_| ()), Err(StepError::OtherModel));
    for layer in 0..config.n_layer {
        let more = apart.with(&model, |session| {
            assert_eq!(session.position().suspended(), Some((layer, 3)));
            model.advance(session, &mut source)
        });
        assert_eq!(more, Ok(Ok(layer + 1 < config.n_layer)));
    }
    let logits = apart.with(&model, |session| model.logits(session, &mut source, Rows::All, &mut rows[1]));
    assert_eq!(logits, Ok(Ok(())));
    assert!(rows[0].iter().zip(&rows[1]).all(|(a, b)| a.to_bits() == b.to_bits()));

    // Nor one without its slot.
    let mut several = Apart::new(config, 2, 1);
    let begun = several.with(&model, |session| model.begin_slot(session, &mut source, 1, &[5]));
    assert_eq!(begun, Ok(Ok(())));
    let mut one = Apart { position: several.position, ..Apart::new(config, 1, 1) };
    assert_eq!(one.with(&model, |_| ()), Err(StepError::OtherModel));
}
