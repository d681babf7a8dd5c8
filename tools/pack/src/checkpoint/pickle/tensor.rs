//! Tensors as a pickle describes them: views of storages.

/// The elements that tensors are views of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    /// The type, as safetensors spells it.
    pub(super) dtype: &'static str,
    /// Its name in the file.
    pub(super) key: &'a str,
    /// Elements.
    pub(super) count: u64,
}

/// A view of a storage.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    /// Index of the storage.
    pub(super) storage: usize,
    /// The first element.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    /// Elements from one index to the next in each dimension; `None` where rows lie after rows.
    pub(super) strides: Option<Vec<usize>>,
}

impl Tensor {
    /// A view that lies in its storage, or why there is none.
    pub(super) fn new(
        index: usize,
        storage: &Storage<'_>,
        offset: u64,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() {
            return Err(format!("has a tensor of shape {shape:?} with strides {strides:?}"));
        }
        let empty = shape.contains(&0);
        let last = shape.iter().zip(&strides).try_fold(offset, |sum, (&size, &stride)| {
            sum.checked_add((size as u64).saturating_sub(1).checked_mul(stride as u64)?)
        });
        if !empty && last.is_none_or(|last| last >= storage.count) {
            return Err(format!(
                "has a tensor of shape {shape:?} with strides {strides:?} at {offset} of a storage of {} elements, which it leaves",
                storage.count
            ));
        }
        let mut wanted = 1usize;
        let mut contiguous = true;
        for (&size, &stride) in shape.iter().zip(&strides).rev() {
            contiguous &= size <= 1 || stride == wanted;
            wanted = wanted.saturating_mul(size);
        }
        let strides = (!empty && !contiguous).then_some(strides);
        Ok(Self { storage: index, offset, shape, strides })
    }
}
