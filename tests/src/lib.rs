//! Shared pieces of the tests: references that owe nothing to the code under test.

pub mod fixed;
pub mod fixture;
pub mod forge;
pub mod fuzz;
pub mod oracle;
pub mod runner;
pub mod scaled;
pub mod sets;
pub mod steps;
pub mod storage;
pub mod streamed;
pub mod tokenizer_json;
