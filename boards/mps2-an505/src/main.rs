//! Elapid on Arm's MPS2 board with the Cortex-M33 image (AN505): the fixed path, everything in `static`s, no heap.
#![no_std]
#![no_main]

elapid_mps2::program! {
    // UART 0 (AN505, table 3-3: its secure alias).
    uart: 0x5020_0000,
    // PSRAM, 16 MB: it stands for the flash memory in which a product would hold the model.
    model: (0x8000_0000, 16 << 20),
    run: elapid_tiny::run,
}
