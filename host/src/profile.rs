//! The board that the program runs on, and what suits it.
//!
//! A Linux on a board with a device tree shows it below `/proc/device-tree`; what it can't tell is taken from the system.

use std::fs;
use std::path::Path;

use elapid_core::kernels::detect;

use crate::default_threads;

/// A family of boards whose chip decides what suits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Board {
    /// Raspberry Pi Zero 2 W: four Cortex-A53, 512 MB.
    PiZero2,
    /// Raspberry Pi 3: four Cortex-A53, 1 GB.
    Pi3,
    /// Raspberry Pi 4, 400, Compute Module 4: four Cortex-A72.
    Pi4,
    /// Raspberry Pi 5, 500, Compute Module 5: four Cortex-A76.
    Pi5,
    /// Any other machine.
    Other,
}

/// What a machine is stored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// An SD card or soldered flash: it works on one request at a time.
    Card,
    /// A solid-state disk: it works on many.
    Nvme,
    /// Another one.
    Other,
}

/// A machine, and what suits it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The board.
    pub board: Board,
    /// What the board calls itself, if it does.
    pub model: Option<String>,
    /// Threads that compute.
    pub threads: usize,
    /// The kernels' name.
    pub kernels: &'static str,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes that a model may take of it, so that the rest of the system stays alive.
    pub cap: Option<u64>,
}

impl Board {
    /// The board of a device tree's `compatible`: names separated by zeros, the most special one first.
    fn from_compatible(compatible: &[u8]) -> Self {
        const KNOWN: [(&str, Board); 5] = [
            // A Zero 2 W has a Raspberry Pi 3's chip in another package: its own name comes first.
            ("raspberrypi,model-zero-2-w", Board::PiZero2),
            ("brcm,bcm2837", Board::Pi3),
            ("brcm,bcm2711", Board::Pi4),
            ("brcm,bcm2712", Board::Pi5),
            ("raspberrypi,3", Board::Pi3),
        ];
        let names = compatible.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
        names
            .filter_map(|name| KNOWN.iter().find(|(known, _)| name.starts_with(known)))
            .map(|(_, board)| *board)
            .next()
            .unwrap_or(Self::Other)
    }

    /// What is left to the system: a Raspberry Pi OS without a desktop takes about 100 MB, and its drivers' buffers need room.
    const fn reserve(self, memory: u64) -> u64 {
        const LEAST: u64 = 128 << 20;
        match self {
            Self::PiZero2 | Self::Pi3 => LEAST,
            _ if memory / 8 > LEAST => memory / 8,
            _ => LEAST,
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
            Self::Other => "other",
        }
    }
}

impl Drive {
    /// What a file lies on, by the name of its block device.
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

    /// Reads that are worth having under way at a time. A card does one, and the next should wait at its door.
    #[must_use]
    pub const fn queue_depth(self) -> usize {
        match self {
            Self::Card => 2,
            Self::Nvme => 16,
            Self::Other => 8,
        }
    }

    /// Bytes that it gives in a second on a board, as its makers or testers have it; `None` where that says little.
    #[must_use]
    pub const fn expected_rate(self, board: Board) -> Option<u64> {
        const MB: u64 = 1_000_000;
        match (self, board) {
            (Self::Card, Board::PiZero2 | Board::Pi3) => Some(23 * MB),
            (Self::Card, Board::Pi4) => Some(45 * MB),
            (Self::Card, Board::Pi5) => Some(90 * MB),
            (Self::Nvme, Board::Pi5) => Some(450 * MB),
            _ => None,
        }
    }
}

/// The name of the block device that a file lies on.
#[cfg(target_os = "linux")]
fn device_of(file: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let number = file.metadata().ok()?.dev();
    // As Linux packs it for programs.
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | (number >> 12) & 0xfff00);
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
        Self::from_root(Path::new("/"), default_threads())
    }

    /// That of a machine whose root folder is `root`.
    fn from_root(root: &Path, threads: usize) -> Self {
        let tree = root.join("proc/device-tree");
        let compatible = fs::read(tree.join("compatible")).unwrap_or_default();
        let board = Board::from_compatible(&compatible);
        let model = fs::read(tree.join("model")).ok();
        let model = model.map(|model| String::from_utf8_lossy(&model).trim_end_matches('\0').to_owned());
        let memory = fs::read_to_string(root.join("proc/meminfo")).ok().as_deref().and_then(total);
        let cap = memory.map(|memory| memory.saturating_sub(board.reserve(memory)));
        Self { board, model, threads, kernels: detect().name(), memory, cap }
    }
}

/// All memory, by `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `compatible` and `model` as these boards have them.
    const TREES: [(&[u8], &[u8], Board); 6] = [
        (b"raspberrypi,model-zero-2-w\0brcm,bcm2837\0", b"Raspberry Pi Zero 2 W Rev 1.0\0", Board::PiZero2),
        (b"raspberrypi,3-model-b-plus\0brcm,bcm2837\0", b"Raspberry Pi 3 Model B Plus Rev 1.3\0", Board::Pi3),
        (b"raspberrypi,4-model-b\0brcm,bcm2711\0", b"Raspberry Pi 4 Model B Rev 1.4\0", Board::Pi4),
        (b"raspberrypi,400\0brcm,bcm2711\0", b"Raspberry Pi 400 Rev 1.0\0", Board::Pi4),
        (b"raspberrypi,5-model-b\0brcm,bcm2712\0", b"Raspberry Pi 5 Model B Rev 1.0\0", Board::Pi5),
        (b"linux,dummy-virt\0", b"linux,dummy-virt\0", Board::Other),
    ];

    #[test]
    fn boards_are_known_by_their_device_tree() {
        for (compatible, model, board) in TREES {
            let root = tempfile::tempdir().unwrap();
            let tree = root.path().join("proc/device-tree");
            fs::create_dir_all(&tree).unwrap();
            fs::write(tree.join("compatible"), compatible).unwrap();
            fs::write(tree.join("model"), model).unwrap();
            fs::write(root.path().join("proc/meminfo"), "MemTotal:         430080 kB\nMemFree: 1 kB\n")
                .unwrap();
            let profile = Profile::from_root(root.path(), 4);
            assert_eq!(profile.board, board);
            assert_eq!(profile.model.as_deref(), std::str::from_utf8(&model[..model.len() - 1]).ok());
            assert_eq!((profile.memory, profile.cap), (Some(420 << 20), Some(292 << 20)));
        }
    }

    #[test]
    fn a_machine_that_tells_nothing_has_a_profile() {
        let root = tempfile::tempdir().unwrap();
        let profile = Profile::from_root(root.path(), 3);
        assert_eq!((profile.board, profile.threads, profile.memory), (Board::Other, 3, None));
        assert_eq!(Board::from_compatible(b"\xff\0\0brcm,bcm27"), Board::Other);
        assert_eq!(total("MemTotal: many kB"), None);
        assert!(Profile::detect().threads > 0);
    }

    #[test]
    fn drives_are_known_by_their_names() {
        let of = Drive::from_device;
        assert_eq!(
            [of("mmcblk0p2"), of("nvme0n1"), of("sda1"), of("vda")].map(Drive::queue_depth),
            [2, 16, 8, 8]
        );
        assert_eq!(Drive::Card.expected_rate(Board::Pi4), Some(45_000_000));
        assert_eq!(Drive::Other.expected_rate(Board::Pi4), None);
        assert_eq!(Drive::of(Path::new("/no/such/file")), Drive::Other);
    }
}
