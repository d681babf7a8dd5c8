#![no_main]

use elapid_tests::fuzz::data::{Input, run};

libfuzzer_sys::fuzz_target!(|input: Input| {
    run(&input);
});
