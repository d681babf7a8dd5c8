//! A step that a source failed is resumed where it stood, and gives the same bits.

use elapid_core::format::Quant;
use elapid_core::kernels::{self, Solo};
use elapid_core::model::{Rows, StateKind, StepError};
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
