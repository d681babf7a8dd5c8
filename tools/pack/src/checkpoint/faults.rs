//! What becomes of a fault in a checkpoint: the first one ends the reading, or all are listed.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};

use crate::PackError;

/// Faults of one kind that are listed; the others are counted.
const OF_A_KIND: usize = 3;

/// Takes faults as they are found.
#[derive(Debug, Default)]
pub(crate) enum Faults {
    /// The first one is returned.
    #[default]
    First,
    /// They are listed, and reading goes on.
    All(Box<Listed>),
}

/// What is found where all faults are listed.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// A few faults of each kind, and how many more there are.
    kinds: Vec<(Kind, Vec<PackError>, usize)>,
    /// Tensors and values of each type.
    pub(crate) tensors: BTreeMap<String, (usize, u64)>,
}

/// What faults of a kind have in common: those of a configuration the key, too.
type Kind = (Discriminant<PackError>, Option<String>);

impl Faults {
    /// A list of all, empty yet.
    pub(crate) fn all() -> Self {
        Self::All(Box::default())
    }

    /// Whether faults are listed: only headers are read then.
    pub(crate) fn are_listed(&self) -> bool {
        matches!(self, Self::All(_))
    }

    /// Ends with a fault, or lists it.
    ///
    /// # Errors
    /// The fault, where only the first counts.
    pub(crate) fn meet(&mut self, fault: PackError) -> Result<(), PackError> {
        let Self::All(listed) = self else { return Err(fault) };
        listed.add(fault);
        Ok(())
    }

    /// What a result holds, or `instead` if its fault is listed.
    ///
    /// # Errors
    /// The fault, where only the first counts.
    pub(crate) fn or<T>(&mut self, result: Result<T, PackError>, instead: T) -> Result<T, PackError> {
        match result {
            Ok(value) => Ok(value),
            Err(fault) => self.meet(fault).map(|()| instead),
        }
    }

    /// Counts a tensor of a file.
    pub(crate) fn count(&mut self, dtype: &str, shape: &[usize]) {
        if let Self::All(listed) = self {
            let values = shape.iter().fold(1, |product: u64, n| product.saturating_mul(*n as u64));
            let (tensors, sum) = listed.tensors.entry(dtype.to_owned()).or_default();
            (*tensors, *sum) = (*tensors + 1, sum.saturating_add(values));
        }
    }

    /// What was listed.
    pub(crate) fn listed(self) -> Listed {
        match self {
            Self::First => Listed::default(),
            Self::All(listed) => *listed,
        }
    }
}

impl Listed {
    /// Lists a fault.
    pub(crate) fn add(&mut self, fault: PackError) {
        let key = match &fault {
            PackError::InvalidConfig { key, .. } | PackError::UnsupportedFeature { key, .. } => {
                Some(key.clone())
            }
            _ => None,
        };
        let kind = (discriminant(&fault), key);
        let at = self.kinds.iter().position(|(known, ..)| *known == kind).unwrap_or_else(|| {
            self.kinds.push((kind, Vec::new(), 0));
            self.kinds.len() - 1
        });
        let (_, faults, more) = &mut self.kinds[at];
        if faults.len() < OF_A_KIND { faults.push(fault) } else { *more += 1 }
    }

    /// The faults, in the order in which their kinds were found first; beside the last of a kind how many more there are.
    pub(crate) fn faults(self) -> Vec<(PackError, usize)> {
        let mut all = Vec::new();
        for (_, faults, more) in self.kinds {
            all.extend(faults.into_iter().map(|fault| (fault, 0)));
            if let Some((_, last)) = all.last_mut() {
                *last = more;
            }
        }
        all
    }
}
