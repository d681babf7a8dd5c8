//! The original Mamba's folders, as torch.save writes them (tests/reference/make_pickles.py), against Hugging Face transformers.

use elapid_core::format::Quant;
use elapid_core::kernels::{self, Solo};
use elapid_core::model::StateKind;
use elapid_tests::runner::{Runner, pack, quant};

/// Tied storages, weights stored by columns, rows of padding in the vocabulary: the same logits from both formats.
#[test]
fn both_formats_of_torch_save_agree_with_transformers() {
    let fixture = elapid_tests::fixture::fixture("mamba-conv1");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut files = Vec::new();
    for format in ["zip", "old"] {
        let source = elapid_test_support::data::path(&format!("original/{format}"));
        let path = pack(&source, folder.path(), &quant(Quant::F32));
        let mut runner = Runner::open(&path, StateKind::F32, 7);
        let logits = runner.all_logits(kernels::detect(), &Solo, &fixture.tokens).expect("the step succeeds");
        let share = fixture.error(&logits);
        println!("{format}: {share:.2e} of the largest logit");
        assert!(share < 2e-5, "{format}: {share:e}");
        files.push(std::fs::read(path).expect("the packed file"));
    }
    assert!(files[0] == files[1], "the packed files differ");
}
