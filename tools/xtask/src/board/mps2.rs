//! Arm's MPS2 boards as QEMU emulates them.

use elapid_boards as table;

use super::mcu::{Mcu, Runner};

/// Cortex-M7 with FPU, 16 MB of external memory: the float path.
pub const AN500: Mcu = Mcu {
    name: table::MPS2_AN500.name,
    runner: Runner::Qemu,
    features: "",
    board: &table::MPS2_AN500,
    triple: "thumbv7em-none-eabihf",
    cpu: "cortex-m7",
    model: "address-4m.elp",
    other_size: None,
    build_std: "core,alloc",
    logs: Some("bytes in fast memory"),
    // SysTick at 25 MHz, and QEMU takes a nanosecond for an instruction.
    instructions_a_tick: Some(40),
    instructions: 16_000_000,
};

/// Cortex-M3 without FPU and DSP instructions: the fixed path, no heap.
pub const AN385: Mcu = Mcu {
    name: table::MPS2_AN385.name,
    runner: Runner::Qemu,
    features: "",
    board: &table::MPS2_AN385,
    triple: "thumbv7m-none-eabi",
    cpu: "cortex-m3",
    model: "address-300k.elp",
    other_size: Some("address-4m.elp"),
    // `alloc` is only compiled, for one and the same library for all boards: nothing links it.
    build_std: "core,alloc",
    logs: None,
    instructions_a_tick: Some(40),
    instructions: 2_400_000,
};

/// Cortex-M33, the RP2350's core: the same program with the DSP instructions.
pub const AN505: Mcu = Mcu {
    name: table::MPS2_AN505.name,
    board: &table::MPS2_AN505,
    triple: "thumbv8m.main-none-eabihf",
    cpu: "cortex-m33",
    // SysTick at 20 MHz.
    instructions_a_tick: Some(50),
    // The aim is 1.5 million.
    instructions: 1_550_000,
    ..AN385
};
