//! How much memory there is: the machine's, and that of the control group it runs in.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the file system that describes this machine.
pub(super) const ROOT: &str = "/";

/// What [`Ram::Auto`](crate::Ram::Auto) leaves to others: an eighth.
const SHARE: u64 = 8;

/// Memory, in bytes, that can be taken without disturbing anybody: what the machine, or the control group of this process, has
/// free, with a margin. [`None`] where the system does not tell.
#[must_use]
pub fn available() -> Option<u64> {
    available_in(Path::new(ROOT))
}

/// The same of a system whose `proc` and `sys` are below `root`.
pub(super) fn available_in(root: &Path) -> Option<u64> {
    let machine = meminfo(root, "MemAvailable:")?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = group_room(&groups, &root.join("sys/fs/cgroup"));
    let least = group.map_or(machine, |group| group.min(machine));
    Some(least - least / SHARE)
}

/// Bytes that a line of `proc/meminfo` below `root` names.
pub(super) fn meminfo(root: &Path, name: &str) -> Option<u64> {
    kibibytes(&fs::read_to_string(root.join("proc/meminfo")).ok()?, name)
}

fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// Memory that all control groups of this process leave, by `/proc/self/cgroup` and where they are mounted.
fn group_room(groups: &str, mount: &Path) -> Option<u64> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (root, limit, usage) = match controllers {
            "" => (mount.to_path_buf(), "memory.max", "memory.current"),
            "memory" => (mount.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
            _ => continue,
        };
        // A limit may be on any group above this one. Within a container its path may start outside what is mounted.
        let mut path = root.join(group.trim_start_matches('/'));
        while path.starts_with(&root) {
            if let (Some(limit), Some(usage)) = (number(path.join(limit)), number(path.join(usage))) {
                let stat = fs::read_to_string(path.join("memory.stat")).unwrap_or_default();
                let room = limit.saturating_sub(usage.saturating_sub(cached(&stat)));
                least = Some(least.map_or(room, |least: u64| least.min(room)));
            }
            if !path.pop() {
                break;
            }
        }
    }
    least
}

/// Pages of files that a group is charged for and that the system would drop, by `memory.stat`. The first version of control
/// groups has lines of the group alone, too, without the groups below it.
fn cached(stat: &str) -> u64 {
    let number = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.trim().parse::<u64>().ok())
    };
    number("total_inactive_file").or_else(|| number("inactive_file")).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_tells() {
        assert_eq!(kibibytes("MemTotal: 9 kB\nMemAvailable:    2048 kB\n", "MemAvailable:"), Some(2 << 20));
        assert_eq!(kibibytes("MemTotal: 9 kB\n", "MemAvailable:"), None);
        for text in ["MemTotal: many kB", "MemTotal: 18446744073709551615 kB", "MemTotal: 5", "\0"] {
            assert_eq!(kibibytes(text, "MemTotal:"), None, "{text:?}");
        }
        #[cfg(target_os = "linux")]
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn the_tightest_group_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(group_room("0::/a/b\n", folder.path()), None);
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "5\n");
        assert_eq!(group_room("0::/a/b\n", folder.path()), None);
        write("a/memory.max", "1000\n");
        write("a/memory.current", "400\n");
        assert_eq!(group_room("0::/a/b\n", folder.path()), Some(600));
        write("memory/c/memory.limit_in_bytes", "300\n");
        write("memory/c/memory.usage_in_bytes", "100\n");
        assert_eq!(group_room("0::/a/b\n4:memory:/c\n", folder.path()), Some(200));
        write("memory/c/memory.stat", "inactive_file 10\ntotal_inactive_file 50\n");
        assert_eq!(group_room("4:memory:/c\n", folder.path()), Some(250));
        write("memory/c/memory.usage_in_bytes", "351\n");
        assert_eq!(group_room("4:memory:/c\n", folder.path()), Some(0));
    }
}
