//! Elapid on Arm's MPS2 board with the Cortex-M3 image (AN385): the fixed path, everything in `static`s, no heap.
#![no_std]
#![no_main]

elapid_mps2::program! {
    // UART 0 (AN385, table 3-1).
    uart: 0x4000_4000,
    // PSRAM, 16 MB: it stands for the flash memory in which a product would hold the model.
    model: (0x2100_0000, 16 << 20),
    run: elapid_tiny::run,
}
