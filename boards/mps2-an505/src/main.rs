//! Elapid on Arm's MPS2 board with the Cortex-M33 image (AN505): the fixed path, everything in `static`s, no heap.
#![no_std]
#![no_main]

elapid_mps2::program! {
    board: elapid_boards::MPS2_AN505,
    // UART 0 (AN505, table 3-3: its secure alias).
    uart: 0x5020_0000,
    hz: 20_000_000,
    run: elapid_tiny::run,
}
