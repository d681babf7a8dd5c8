//! The files that a Linux kernel starts with: an archive in cpio's "newc" format (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

/// A file or a folder.
pub struct Entry<'a> {
    name: &'a str,
    /// Type and permissions, as in `st_mode`.
    mode: u32,
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// A folder.
    pub const fn folder(name: &'a str) -> Self {
        Self { name, mode: 0o040_755, bytes: &[] }
    }

    /// A file that may be run.
    pub const fn file(name: &'a str, bytes: &'a [u8]) -> Self {
        Self { name, mode: 0o100_755, bytes }
    }
}

/// The archive of some entries, folders before what is in them.
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end = Entry { name: "TRAILER!!!", mode: 0, bytes: &[] };
    for (number, entry) in entries.iter().chain([&end]).enumerate() {
        // inode, mode, user, group, links, time, size, four numbers of devices, length of the name, checksum
        let (size, name) = (entry.bytes.len() as u32, entry.name.len() as u32 + 1);
        let fields = [number as u32 + 1, entry.mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        archive.extend_from_slice(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend_from_slice(entry.name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(entry.bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_where_they_should_be() {
        let archive = archive(&[Entry::folder("bin"), Entry::file("bin/x", b"hello")]);
        assert!(archive.starts_with(b"07070100000001000041ed"));
        // 110 bytes of header and "bin\0" are 114, padded 116.
        assert_eq!(&archive[116..122], b"070701");
        assert_eq!(&archive[116 + 54..116 + 62], b"00000005");
        assert_eq!(&archive[116 + 110..116 + 116], b"bin/x\0");
        assert_eq!(&archive[116 + 116..116 + 121], b"hello");
        assert!(archive.len().is_multiple_of(4) && archive.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
