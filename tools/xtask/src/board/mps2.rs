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
