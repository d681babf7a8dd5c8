#![no_main]

use elapid_tests::fuzz::session::{Input, run};

libfuzzer_sys::fuzz_target!(|input: Input| {
    run(&input);
});
