//! What becomes of a fault in a checkpoint: the first one ends the reading, or all are listed.

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
    /// They are listed, a few of each kind, and reading goes on.
    All(Vec<(Discriminant<PackError>, Vec<PackError>, usize)>),
}

impl Faults {
    /// A list of all, empty yet.
    pub(crate) fn all() -> Self {
        Self::All(Vec::new())
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
        let Self::All(kinds) = self else { return Err(fault) };
        let kind = discriminant(&fault);
        let at = kinds.iter().position(|(known, ..)| *known == kind).unwrap_or_else(|| {
            kinds.push((kind, Vec::new(), 0));
            kinds.len() - 1
        });
        let (_, listed, more) = &mut kinds[at];
        if listed.len() < OF_A_KIND {
            listed.push(fault)
        } else {
            *more += 1
        }
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

    /// All that were listed, in the order in which their kinds were found first, and how many of a kind are not.
    pub(crate) fn listed(self) -> Vec<(PackError, usize)> {
        let Self::All(kinds) = self else { return Vec::new() };
        let mut all = Vec::new();
        for (_, listed, more) in kinds {
            let last = listed.len() - 1;
            all.extend(
                listed.into_iter().enumerate().map(|(i, fault)| (fault, if i == last { more } else { 0 })),
            );
        }
        all
    }
}
