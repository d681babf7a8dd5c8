//! Arm's MPS2 boards as QEMU emulates them.

use super::elf::Memory;
use super::mcu::Mcu;

/// Cortex-M7 with FPU, 16 MB of external memory: the float path.
pub const AN500: Mcu = Mcu {
    name: "mps2-an500",
    target: "thumbv7em-none-eabihf",
    cpu: "cortex-m7",
    model: "address-4m.elp",
    model_at: 0x6080_0000,
    other_size: None,
    compute: &[],
    build_std: "core,alloc",
    memories: [
        Memory { name: "code memory", start: 0, bytes: 4 << 20 },
        Memory { name: "RAM", start: 0x2000_0000, bytes: 4 << 20 },
    ],
    logs: Some("bytes in fast memory"),
    stack: 16 << 10,
    // SysTick at 25 MHz, and QEMU takes a nanosecond for an instruction.
    instructions_a_tick: 40,
    instructions: 40_000_000,
};

/// Cortex-M3 without FPU and DSP instructions: the fixed path, no heap.
pub const AN385: Mcu = Mcu {
    name: "mps2-an385",
    target: "thumbv7m-none-eabi",
    cpu: "cortex-m3",
    model: "address-300k.elp",
    model_at: 0x2100_0000,
    other_size: Some("address-4m.elp"),
    compute: &["--path", "fixed"],
    // `alloc` is only compiled, for one and the same library for all boards: nothing links it.
    build_std: "core,alloc",
    memories: [
        Memory { name: "code memory", start: 0, bytes: 4 << 20 },
        Memory { name: "RAM", start: 0x2000_0000, bytes: 4 << 20 },
    ],
    logs: None,
    stack: 12 << 10,
    instructions_a_tick: 40,
    instructions: 4_500_000,
};

/// Cortex-M33, the RP2350's core: the same program with the DSP instructions.
pub const AN505: Mcu = Mcu {
    name: "mps2-an505",
    target: "thumbv8m.main-none-eabihf",
    cpu: "cortex-m33",
    model_at: 0x8000_0000,
    memories: [
        Memory { name: "code memory", start: 0x1000_0000, bytes: 4 << 20 },
        Memory { name: "RAM", start: 0x3800_0000, bytes: 4 << 20 },
    ],
    // SysTick at 20 MHz.
    instructions_a_tick: 50,
    instructions: 1_500_000,
    ..AN385
};
