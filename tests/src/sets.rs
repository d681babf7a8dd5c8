//! The kernels that a test can run here, and a word about those that it can't.

use elapid_core::kernels;

/// All kernels that this CPU has, from slowest to fastest. Prints `skipped: …` for each other one of this architecture.
pub fn available() -> Vec<&'static dyn kernels::Kernels> {
    let mut all = Vec::new();
    kernels::for_each_available(&mut |kernels| all.push(kernels));
    tell(kernels::NAMES, &all.iter().map(|kernels| kernels.name()).collect::<Vec<_>>());
    all
}

/// The same in the fixed path.
pub fn available_fixed() -> Vec<&'static dyn kernels::fixed::Kernels> {
    let mut all = Vec::new();
    kernels::fixed::for_each_available(&mut |kernels| all.push(kernels));
    tell(kernels::fixed::NAMES, &all.iter().map(|kernels| kernels.name()).collect::<Vec<_>>());
    all
}

/// The first of `available` are the portable kernels.
fn tell(known: &[&str], available: &[&str]) {
    for name in &available[1..] {
        assert!(known.contains(name), "{name} is not among the names of all kernels, {known:?}");
    }
    for name in known.iter().filter(|name| !available.contains(name)) {
        println!("skipped: this CPU has no {name}");
    }
}
