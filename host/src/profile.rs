//! The board that the program runs on, and what suits it.
//!
//! A Linux on a board with a device tree shows it below `/proc/device-tree`; what that can't tell is taken from the system.

use std::fs;
use std::path::Path;

use elapid_core::kernels::detect;

use crate::default_threads;
use crate::residency::available;

/// A family of boards whose chip decides what suits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Board {
    /// Raspberry Pi Zero 2 W: four Cortex-A53, 512 MB.
    PiZero2,
    /// Raspberry Pi 3, Compute Module 3: four Cortex-A53, 1 GB.
    Pi3,
    /// Raspberry Pi 4, 400, Compute Module 4: four Cortex-A72.
    Pi4,
    /// Raspberry Pi 5, 500, Compute Module 5: four Cortex-A76.
    Pi5,
    /// Any other machine.
    Other,
}

/// What a file is stored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// An SD card or soldered flash.
    Card,
    /// A solid-state disk.
    Nvme,
    /// Another one, or one that the system does not tell.
    Other,
}

/// A machine, and what suits it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Bytes of it that `--ram auto` takes now.
    pub cap: Option<u64>,
}

impl Board {
    /// The board of a device tree's `compatible`: names separated by zeros, the most special one first.
    fn from_compatible(compatible: &[u8]) -> Self {
        const KNOWN: [(&str, Board); 5] = [
            // A Zero 2 W has a Raspberry Pi 3's chip in another package: its own name comes first.
            ("raspberrypi,model-zero-2-w", Board::PiZero2),
            ("raspberrypi,3", Board::Pi3),
            ("brcm,bcm2837", Board::Pi3),
            ("brcm,bcm2711", Board::Pi4),
            ("brcm,bcm2712", Board::Pi5),
        ];
        let names = compatible.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
        names
            .filter_map(|name| KNOWN.iter().find(|(known, _)| name.starts_with(known)))
            .map(|(_, board)| *board)
            .next()
            .unwrap_or(Self::Other)
    }

    fn in_tree(tree: &Path) -> Self {
        Self::from_compatible(&fs::read(tree.join("compatible")).unwrap_or_default())
    }

    /// This machine's.
    pub(crate) fn here() -> Self {
        Self::in_tree(Path::new(DEVICE_TREE))
    }

    /// Bytes left to others beyond what is free by the system's count: boards with little memory run without swap, and
    /// what their drivers, a login and a log then ask for must be there.
    const fn reserve(self) -> u64 {
        match self {
            Self::PiZero2 => 32 << 20,
            Self::Pi3 => 64 << 20,
            Self::Pi4 | Self::Pi5 => 128 << 20,
            Self::Other => 0,
        }
    }

    /// Of the bytes that are free those that a model may take.
    const fn cap(self, free: u64) -> u64 {
        // Half of it at least: with a model that fits, little is better than nothing.
        let rest = free.saturating_sub(self.reserve());
        if rest > free / 2 { rest } else { free / 2 }
    }

    /// Reads of a file on `drive` that are worth having under way at a time. A card does one, and the next one should wait
    /// at its door; on a Raspberry Pi 5 it may take several commands.
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

const DEVICE_TREE: &str = "/proc/device-tree";

/// Memory that a model may take on this machine; `None` where the system does not tell.
pub(crate) fn free() -> Option<u64> {
    available().map(|bytes| Board::here().cap(bytes))
}

impl Profile {
    /// This machine's.
    #[must_use]
    pub fn detect() -> Self {
        let memory = fs::read_to_string("/proc/meminfo").ok();
        Self { cap: free(), ..Self::from_files(Path::new(DEVICE_TREE), memory.as_deref()) }
    }

    /// That of a machine with this device tree and `/proc/meminfo`.
    fn from_files(tree: &Path, meminfo: Option<&str>) -> Self {
        let model = fs::read(tree.join("model")).ok();
        let model = model.map(|model| String::from_utf8_lossy(&model).trim_end_matches('\0').to_owned());
        let (threads, kernels) = (default_threads(), detect().name());
        Self { board: Board::in_tree(tree), model, threads, kernels, memory: meminfo.and_then(total), cap: None }
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
            let tree = tempfile::tempdir().unwrap();
            fs::write(tree.path().join("compatible"), compatible).unwrap();
            fs::write(tree.path().join("model"), model).unwrap();
            let profile = Profile::from_files(tree.path(), Some("MemTotal:      430080 kB\nMemFree: 1 kB\n"));
            assert_eq!(profile.board, board);
            assert_eq!(profile.model.as_deref(), std::str::from_utf8(&model[..model.len() - 1]).ok());
            assert_eq!(profile.memory, Some(420 << 20));
        }
    }

    #[test]
    fn a_machine_that_tells_nothing_has_a_profile() {
        let nowhere = tempfile::tempdir().unwrap();
        let profile = Profile::from_files(nowhere.path(), None);
        assert_eq!((profile.board, profile.memory, profile.model), (Board::Other, None, None));
        assert_eq!(Board::from_compatible(b"\xff\0\0brcm,bcm27"), Board::Other);
        assert_eq!(total("MemTotal: many kB"), None);
        assert!(Profile::detect().threads > 0);
    }

    #[test]
    fn a_cap_leaves_the_system_alive() {
        assert_eq!(Board::Pi4.cap(1 << 30), (1 << 30) - (128 << 20));
        assert_eq!(Board::PiZero2.cap(40 << 20), 20 << 20);
        assert_eq!(Board::Other.cap(12345), 12345);
    }

    #[test]
    fn drives_are_known_by_their_names() {
        let of = Drive::from_device;
        let names = ["mmcblk0p2", "nvme0n1", "sda1", "vda"];
        assert_eq!(names.map(|name| Board::Pi4.reads(of(name))), [2, 8, 4, 4]);
        assert_eq!(Drive::of(Path::new("/no/such/file")), Drive::Other);
    }
}
