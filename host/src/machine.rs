//! The machine that the program runs on, and what suits it.
//!
//! Linux on a board shows the board's device tree below `/proc/device-tree`; what that can't tell is taken from the system.
//! Nothing here changes a bit of any result: only how fast it comes, and what is left to others.

use std::fs;
use std::path::Path;

use elapid_core::kernels::detect;

use crate::threads::default_threads;

mod free;

pub use free::available;
use free::{ROOT, available_in, meminfo};

/// Machines that differ in what suits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Machine {
    /// Raspberry Pi Zero 2 W: four Cortex-A53, 512 MB.
    PiZero2,
    /// Raspberry Pi 3, Compute Module 3, and the Raspberry Pi 2 that has their chip: four Cortex-A53, 1 GB.
    Pi3,
    /// Raspberry Pi 4, 400, Compute Module 4: four Cortex-A72.
    Pi4,
    /// Raspberry Pi 5, 500, Compute Module 5: four Cortex-A76.
    Pi5,
    /// Another machine with a device tree: it is known by its features.
    Other,
    /// A machine without one, such as a PC.
    Computer,
}

/// What a file is stored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drive {
    /// An SD card or soldered flash (MMC).
    Card,
    /// A solid-state disk with NVMe.
    Nvme,
    /// Another one, or one that the system does not tell.
    Other,
}

/// What suits a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// The machine.
    pub machine: Machine,
    /// What the board calls itself, if it does.
    pub model: Option<String>,
    /// Threads that compute: all cores that this process may use.
    pub threads: usize,
    /// The kernels' name.
    pub kernels: &'static str,
    /// Bytes of memory; [`None`] where the system does not tell.
    pub memory: Option<u64>,
    /// Bytes of it that [`Ram::Auto`](crate::Ram::Auto) takes now.
    pub cap: Option<u64>,
}

const DEVICE_TREE: &str = "proc/device-tree";

/// What [`Machine::cap`] leaves on a board, in bytes: a sixteenth of its memory, within these.
const LEAST_RESERVE: u64 = 32 << 20;
const MOST_RESERVE: u64 = 128 << 20;

impl Machine {
    /// The board of a device tree's `compatible`: names that end in zeros, from the board's own to its chip's.
    fn from_compatible(compatible: &[u8]) -> Self {
        const KNOWN: [(&[u8], Machine); 4] = [
            // It has the chip of a Raspberry Pi 3 in another package; its own name comes first.
            (b"raspberrypi,model-zero-2-w", Machine::PiZero2),
            (b"brcm,bcm2837", Machine::Pi3),
            (b"brcm,bcm2711", Machine::Pi4),
            (b"brcm,bcm2712", Machine::Pi5),
        ];
        let known = |name: &[u8]| KNOWN.iter().find(|(known, _)| *known == name).map(|(_, board)| *board);
        compatible.split(|byte| *byte == 0).find_map(known).unwrap_or(Self::Other)
    }

    /// This machine's.
    #[must_use]
    pub fn detect() -> Self {
        Self::in_root(Path::new(ROOT))
    }

    /// The machine of the system whose files are below `root`.
    fn in_root(root: &Path) -> Self {
        let tree = root.join(DEVICE_TREE);
        match fs::read(tree.join("compatible")) {
            Ok(compatible) => Self::from_compatible(&compatible),
            Err(_) if tree.is_dir() => Self::Other,
            Err(_) => Self::Computer,
        }
    }

    /// Whether a model that does not fit what is free is streamed also where no cap is asked for. A computer has swap and a
    /// large cache; a board has a card, from which a mapped file comes in pieces of some kilobytes.
    #[must_use]
    pub const fn streams_by_default(self) -> bool {
        !matches!(self, Self::Computer)
    }

    /// Of `free` bytes those that a model may take, on a machine with `memory` bytes. Boards run without much swap: what
    /// drivers, a login and a log ask for while text is generated must be there.
    fn cap(self, free: u64, memory: Option<u64>) -> u64 {
        let reserve = match self {
            Self::Computer => 0,
            _ => (memory.unwrap_or(u64::MAX) / 16).clamp(LEAST_RESERVE, MOST_RESERVE),
        };
        // Half of it at least: for a small model little is better than nothing.
        free.saturating_sub(reserve).max(free / 2)
    }

    /// Reads of a file on `drive` that are worth having under way at a time.
    ///
    /// A card works on one command, and the next should be ready when it is done; a Raspberry Pi 5 gives its card several
    /// (command queueing). Solid-state disks want more than any other.
    #[must_use]
    pub const fn reads(self, drive: Drive) -> usize {
        match (drive, self) {
            (Drive::Card, Self::Pi5) => 4,
            (Drive::Card, _) => 2,
            (Drive::Nvme, _) => 8,
            (Drive::Other, _) => 4,
        }
    }

    /// The name for users.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PiZero2 => "Raspberry Pi Zero 2 W",
            Self::Pi3 => "Raspberry Pi 3",
            Self::Pi4 => "Raspberry Pi 4",
            Self::Pi5 => "Raspberry Pi 5",
            Self::Other => "another board",
            Self::Computer => "a computer",
        }
    }
}

impl Drive {
    /// What a file lies on, by the name of its block device; [`Drive::Other`] also where there is no such file.
    #[must_use]
    pub fn of(file: &Path) -> Self {
        device_of(file).map_or(Self::Other, |device| Self::from_device(&device))
    }

    fn from_device(device: &str) -> Self {
        match device {
            _ if device.starts_with("mmcblk") => Self::Card,
            _ if device.starts_with("nvme") => Self::Nvme,
            _ => Self::Other,
        }
    }

    /// The name for users.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::Nvme => "nvme",
            Self::Other => "other",
        }
    }
}

/// The name of the block device that a file lies on.
#[cfg(target_os = "linux")]
fn device_of(file: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let number = file.metadata().ok()?.dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

#[cfg(not(target_os = "linux"))]
fn device_of(_: &Path) -> Option<String> {
    None
}

impl Profile {
    /// This machine's.
    #[must_use]
    pub fn detect() -> Self {
        Self::in_root(Path::new(ROOT))
    }

    /// That of a machine with this one's CPU, whose `proc` and `sys` are below `root`.
    #[must_use]
    pub fn in_root(root: &Path) -> Self {
        let machine = Machine::in_root(root);
        let memory = meminfo(root, "MemTotal:");
        let cap = available_in(root).map(|free| machine.cap(free, memory));
        let model = fs::read(root.join(DEVICE_TREE).join("model")).ok().and_then(|model| printable(&model));
        Self { machine, model, threads: default_threads(), kernels: detect().name(), memory, cap }
    }
}

/// A text of the device tree, which ends in zeros, in a form that does no harm to a terminal; [`None`] if nothing is left.
fn printable(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end_matches('\0').replace(char::is_control, "\u{fffd}");
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A folder with a device tree and a memory, as the root of a system.
    fn system(compatible: Option<&[u8]>, model: Option<&[u8]>, meminfo: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join(DEVICE_TREE);
        fs::create_dir_all(&tree).unwrap();
        for (name, text) in [("compatible", compatible), ("model", model)] {
            if let Some(text) = text {
                fs::write(tree.join(name), text).unwrap();
            }
        }
        fs::write(root.path().join("proc/meminfo"), meminfo).unwrap();
        root
    }

    /// `compatible` and `model` as boards have them, their memory in kB, and the bytes that are left to others.
    const BOARDS: [(&[u8], &str, Machine, u64, u64); 10] = [
        (
            b"raspberrypi,model-zero-2-w\0brcm,bcm2837\0",
            "Raspberry Pi Zero 2 W Rev 1.0",
            Machine::PiZero2,
            436_656,
            32 * MIB,
        ),
        (
            b"raspberrypi,3-model-b-plus\0brcm,bcm2837\0",
            "Raspberry Pi 3 Model B Plus Rev 1.3",
            Machine::Pi3,
            1_048_576,
            64 * MIB,
        ),
        (
            b"raspberrypi,3-compute-module\0brcm,bcm2837\0",
            "Raspberry Pi Compute Module 3 Rev 1.0",
            Machine::Pi3,
            1_048_576,
            64 * MIB,
        ),
        (
            b"raspberrypi,2-model-b-rev2\0brcm,bcm2837\0",
            "Raspberry Pi 2 Model B Rev 1.2",
            Machine::Pi3,
            1_048_576,
            64 * MIB,
        ),
        (
            b"raspberrypi,4-model-b\0brcm,bcm2711\0",
            "Raspberry Pi 4 Model B Rev 1.4",
            Machine::Pi4,
            3_884_288,
            128 * MIB,
        ),
        (b"raspberrypi,400\0brcm,bcm2711\0", "Raspberry Pi 400 Rev 1.0", Machine::Pi4, 3_884_288, 128 * MIB),
        (
            b"raspberrypi,5-model-b\0brcm,bcm2712\0",
            "Raspberry Pi 5 Model B Rev 1.0",
            Machine::Pi5,
            8_252_416,
            128 * MIB,
        ),
        (b"raspberrypi,500\0brcm,bcm2712\0", "Raspberry Pi 500 Rev 1.0", Machine::Pi5, 8_252_416, 128 * MIB),
        (b"radxa,rock-5b\0rockchip,rk3588\0", "Radxa ROCK 5B", Machine::Other, 16_252_416, 128 * MIB),
        (b"linux,dummy-virt\0", "linux,dummy-virt", Machine::Other, 494_592, 32 * MIB),
    ];

    #[test]
    fn boards_are_known_by_their_device_tree() {
        for (compatible, model, board, kib, reserve) in BOARDS {
            let with_zero = [model.as_bytes(), b"\0"].concat();
            let free = kib - 100_000;
            let meminfo = format!("MemTotal:      {kib} kB\nMemFree: 1 kB\nMemAvailable:   {free} kB\n");
            let root = system(Some(compatible), Some(&with_zero), &meminfo);
            let profile = Profile::in_root(root.path());
            assert_eq!((profile.machine, profile.model.as_deref()), (board, Some(model)));
            assert_eq!(profile.memory, Some(kib << 10));
            let available = (free << 10) - (free << 10) / 8;
            assert!(profile.cap.is_some_and(|cap| (available - cap).abs_diff(reserve) < MIB), "{profile:?}");
            assert!(board.streams_by_default() && profile.threads > 0);
        }
    }

    #[test]
    fn a_machine_that_tells_nothing_has_a_profile() {
        let nowhere = tempfile::tempdir().unwrap();
        let profile = Profile::in_root(nowhere.path());
        let Profile { machine, model, memory, cap, .. } = profile;
        assert_eq!((machine, model, memory, cap), (Machine::Computer, None, None, None));
        assert!(!machine.streams_by_default());
        // A tree that says nothing is a board's all the same.
        let bare = system(None, None, "");
        assert_eq!(Profile::in_root(bare.path()).machine, Machine::Other);
    }

    #[test]
    fn odd_bytes_are_no_board_and_no_harm() {
        for compatible in [
            &b""[..],
            b"\0\0\0",
            b"\xff\xfe\0brcm,bcm27",
            b"brcm,bcm27\0brcm,bcm28377\0",
            b"xbrcm,bcm2711",
            b"raspberrypi,6-model-b\0brcm,bcm9999\0",
        ] {
            assert_eq!(Machine::from_compatible(compatible), Machine::Other, "{compatible:?}");
        }
        // The last zero may be missing, and what comes first may be anything.
        assert_eq!(Machine::from_compatible(b"\xff\0brcm,bcm2711"), Machine::Pi4);
        assert_eq!(printable(b"a\x1b[31m\xffb\0").as_deref(), Some("a\u{fffd}[31m\u{fffd}b"));
        assert_eq!((printable(b"\0\0"), printable(b" \0")), (None, None));
    }

    #[test]
    fn a_cap_leaves_the_system_alive() {
        assert_eq!(Machine::Pi4.cap(1 << 30, Some(4 << 30)), (1 << 30) - 128 * MIB);
        assert_eq!(Machine::PiZero2.cap(40 * MIB, Some(512 * MIB)), 20 * MIB);
        assert_eq!(Machine::Other.cap(1 << 30, None), (1 << 30) - 128 * MIB);
        assert_eq!(Machine::Computer.cap(12345, Some(1 << 34)), 12345);
        assert_eq!(Machine::Pi3.cap(0, Some(0)), 0);
    }

    #[test]
    fn drives_are_known_by_their_names() {
        let of = Drive::from_device;
        let names = ["mmcblk0p2", "nvme0n1", "sda1", "vda"];
        assert_eq!(names.map(|name| Machine::Pi4.reads(of(name))), [2, 8, 4, 4]);
        assert_eq!(Machine::Pi5.reads(of("mmcblk0")), 4);
        assert_eq!(Drive::of(Path::new("/no/such/file")), Drive::Other);
    }
}
