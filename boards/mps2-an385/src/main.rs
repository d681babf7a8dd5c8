//! Elapid on Arm's MPS2 board with the Cortex-M3 image (AN385): the fixed path, everything in `static`s, no heap.
#![no_std]
#![no_main]

elapid_mps2::program! {
    board: elapid_boards::MPS2_AN385,
    // UART 0 (AN385, table 3-1).
    uart: 0x4000_4000,
    hz: 25_000_000,
    run: elapid_tiny::run,
}
