//! Unpacks all test data and prints the folder.
#![forbid(unsafe_code)]

fn main() {
    println!("{}", elapid_test_support::data::path("").display());
}
