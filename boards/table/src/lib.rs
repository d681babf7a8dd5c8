//! The memories of the boards with a microcontroller that there are programs for: one table, from which the programs take
//! where the model lies, `cargo xtask board` what they may take, and `elapid info --board` whether a model fits. And what
//! speed is estimated from on boards that run Linux.
#![no_std]
#![forbid(unsafe_code)]

/// A memory of a board, or a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// As it is called in messages.
    pub name: &'static str,
    /// Its first address.
    pub start: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// Which numbers a board's program computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// In floating point, state in f32.
    Float,
    /// In integers, state in 16 bits.
    Fixed,
}

/// A board and the program for it in `boards/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Board {
    /// Its folder.
    pub name: &'static str,
    /// Its processor.
    pub core: &'static str,
    /// Which numbers its program computes with.
    pub numbers: Numbers,
    /// Code and constants, as `memory.x` says.
    pub code: Memory,
    /// Data, with the stack in what is left of it, as `memory.x` says.
    pub ram: Memory,
    /// Where the packed model lies, to be read in place.
    pub model: Memory,
    /// Where state and working memory of any model come from; `None` where the program is built for one model, and has
    /// them in `ram`.
    pub heap: Option<Memory>,
    /// Bytes of stack that the program may use.
    pub stack: u64,
    /// Bytes of the program's data that are no model's: conversation and console.
    pub data: u64,
}

/// Arm MPS2 with the Cortex-M7 image of application note AN500.
pub const MPS2_AN500: Board = Board {
    name: "mps2-an500",
    core: "Cortex-M7 with FPU",
    numbers: Numbers::Float,
    code: Memory { name: "code memory", start: 0, bytes: 4 << 20 },
    ram: Memory { name: "RAM", start: 0x2000_0000, bytes: 4 << 20 },
    model: Memory { name: "upper half of the PSRAM", start: 0x6080_0000, bytes: 8 << 20 },
    heap: Some(Memory { name: "lower half of the PSRAM", start: 0x6000_0000, bytes: 8 << 20 }),
    stack: 16 << 10,
    data: CONVERSATION,
};

/// Arm MPS2 with the Cortex-M3 image of application note AN385.
pub const MPS2_AN385: Board = Board {
    name: "mps2-an385",
    core: "Cortex-M3",
    numbers: Numbers::Fixed,
    code: Memory { name: "code memory", start: 0, bytes: 4 << 20 },
    ram: Memory { name: "RAM", start: 0x2000_0000, bytes: 4 << 20 },
    model: Memory { name: "PSRAM", start: 0x2100_0000, bytes: 16 << 20 },
    heap: None,
    stack: 12 << 10,
    data: CONVERSATION,
};

/// Arm MPS2+ with the Cortex-M33 image of application note AN505.
pub const MPS2_AN505: Board = Board {
    name: "mps2-an505",
    core: "Cortex-M33 with DSP instructions",
    code: Memory { name: "code memory", start: 0x1000_0000, bytes: 4 << 20 },
    ram: Memory { name: "RAM", start: 0x3800_0000, bytes: 4 << 20 },
    model: Memory { name: "PSRAM", start: 0x8000_0000, bytes: 16 << 20 },
    ..MPS2_AN385
};

/// Raspberry Pi Pico 2: RP2350 with 4 MB of flash, the last three for the model.
pub const PICO2: Board = Board {
    name: "pico2",
    core: "Cortex-M33 with DSP instructions (RP2350)",
    numbers: Numbers::Fixed,
    code: Memory { name: "flash", start: 0x1000_0000, bytes: 1 << 20 },
    ram: Memory { name: "RAM", start: 0x2000_0000, bytes: 512 << 10 },
    model: Memory { name: "model partition", start: 0x1010_0000, bytes: 3 << 20 },
    heap: None,
    stack: 16 << 10,
    // USB's buffers, and what of the PSRAM's driver runs in RAM.
    data: CONVERSATION + 1184,
};

/// What `elapid_console::Shell` takes (a line and what is typed ahead of the next, tokens of prompt and text, what their speed is
/// computed from, what the tokenizer needs for a line), with the few words of other data. `cargo xtask board` compares with the linker.
const CONVERSATION: u64 = 11080;

/// All of them.
pub const BOARDS: [Board; 4] = [MPS2_AN500, MPS2_AN385, MPS2_AN505, PICO2];

/// The board of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Board> {
    const ALL: &[Board] = &BOARDS;
    ALL.iter().find(|board| board.name == name)
}

/// Storage of boards that run Linux: published rates in bytes a second.
pub const STORAGE: [(&str, f64); 5] = [
    ("Pi Zero 2 W, Pi 3: card", 23e6),
    ("Pi 4: card", 45e6),
    ("Pi 5: card", 90e6),
    ("Pi 5: NVMe, PCIe 2", 450e6),
    ("Pi 5: NVMe, PCIe 3", 900e6),
];

/// A board that runs Linux.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Computer {
    /// As options call it.
    pub name: &'static str,
    /// Its maker's name for it.
    pub title: &'static str,
    /// Its cores.
    pub cores: u64,
    /// Bytes of memory: those of the smallest that is sold.
    pub memory: u64,
    /// Bytes a second that all cores together read from memory: a round figure of published benchmarks.
    pub memory_rate: f64,
    /// Bytes a second of its card, as in [`STORAGE`].
    pub card_rate: f64,
}

impl Computer {
    /// Bytes that a model may take where nothing else is said: three quarters of the memory. The rest is the system's.
    #[must_use]
    pub const fn ram(&self) -> u64 {
        self.memory / 4 * 3
    }
}

/// The boards that run Linux.
pub const COMPUTERS: [Computer; 4] = [
    Computer {
        name: "pi-zero2",
        title: "Raspberry Pi Zero 2 W",
        cores: 4,
        memory: 512 << 20,
        memory_rate: 2e9,
        card_rate: STORAGE[0].1,
    },
    Computer {
        name: "pi3",
        title: "Raspberry Pi 3",
        cores: 4,
        memory: 1 << 30,
        memory_rate: 2e9,
        card_rate: STORAGE[0].1,
    },
    Computer {
        name: "pi4",
        title: "Raspberry Pi 4",
        cores: 4,
        memory: 1 << 30,
        memory_rate: 4e9,
        card_rate: STORAGE[1].1,
    },
    Computer {
        name: "pi5",
        title: "Raspberry Pi 5",
        cores: 4,
        memory: 2 << 30,
        memory_rate: 10e9,
        card_rate: STORAGE[2].1,
    },
];

/// The board that runs Linux and has this name.
#[must_use]
pub fn find_computer(name: &str) -> Option<&'static Computer> {
    const ALL: &[Computer] = &COMPUTERS;
    ALL.iter().find(|board| board.name == name)
}
