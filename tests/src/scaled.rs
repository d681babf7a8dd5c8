//! Checkpoints with tensors scaled by powers of two.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Scales part of a checkpoint: is given a tensor's name and shape and the element's place, and returns the exponent of the power of
/// two that the element is multiplied by.
pub type Exponent<'a> = &'a dyn Fn(&str, &[usize], usize) -> i32;

/// A copy of a checkpoint as `name` in `folder`, its elements scaled and its epsilon too.
///
/// # Panics
/// If a file is missing or broken, or an element can't be scaled exactly.
pub fn scaled(checkpoint: &Path, folder: &Path, name: &str, exponent: Exponent<'_>, epsilon: i32) -> PathBuf {
    let target = folder.join(name);
    fs::create_dir_all(&target).expect("a folder");
    for entry in fs::read_dir(checkpoint).expect("the checkpoint") {
        let path = entry.expect("an entry").path();
        let to = target.join(path.file_name().expect("a name"));
        let mut bytes = fs::read(&path).expect("a file");
        let file = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if file == "config.json" {
            let mut config: Value = serde_json::from_slice(&bytes).expect("JSON");
            // As f32, which is what the packer makes of it.
            let eps = config["layer_norm_epsilon"].as_f64().expect("an epsilon") as f32;
            config["layer_norm_epsilon"] = Value::from(f64::from(eps) * f64::from(epsilon).exp2());
            bytes = serde_json::to_vec(&config).expect("JSON");
        } else if file.starts_with("model") && file.ends_with(".safetensors") {
            scale_file(&mut bytes, exponent);
        }
        fs::write(&to, bytes).expect("a copy");
    }
    target
}

/// Scales the elements of a file's tensors in place.
fn scale_file(bytes: &mut [u8], exponent: Exponent<'_>) {
    let start = bytes.as_ptr() as usize;
    let tensors: Vec<_> = SafeTensors::deserialize(bytes)
        .expect("safetensors")
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let at = view.data().as_ptr() as usize - start;
            (name, view.shape().to_vec(), view.dtype(), at..at + view.data().len())
        })
        .collect();
    for (name, shape, dtype, range) in tensors {
        let scale = |i: usize, x: f32| {
            let factor = (exponent(&name, &shape, i) as f32).exp2();
            assert_eq!(x * factor / factor, x, "{name}: {x} times {factor}");
            x * factor
        };
        match dtype {
            Dtype::F32 => {
                for (i, x) in bytes[range].as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *x = scale(i, f32::from_le_bytes(*x)).to_le_bytes();
                }
            }
            Dtype::BF16 => {
                for (i, x) in bytes[range].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let wide = half::bf16::from_le_bytes(*x).to_f32();
                    *x = half::bf16::from_f32(scale(i, wide)).to_le_bytes();
                }
            }
            other => panic!("{name} is {other:?}"),
        }
    }
}
