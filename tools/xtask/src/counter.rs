//! Instructions counted by a plugin of QEMU: no matter how busy or fast this machine is, they are the same.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::Package;
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::toolchain::{Toolchain, root};

/// What builds the plugin.
pub const COMPILER: Package = Package { name: "gcc", tool: Some("cc") };

/// The plugin, built for one of QEMU's programs.
pub struct Counter {
    plugin: PathBuf,
}

impl Counter {
    /// Builds it for `emulator`.
    pub fn build(emulator: &Path) -> Result<Self> {
        let folder = Toolchain::Current.target_dir().join("count");
        fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
        let plugin = folder.join(emulator.file_name().unwrap_or_default()).with_extension("so");
        let version = capture(Command::new(emulator).arg("--version"))?;
        let interface = interface(&version).ok_or_else(|| {
            Error::new(format!("`{} --version` names no version: {version}", emulator.display()))
        })?;
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", &format!("-DAPI={interface}"), "-o"]);
        must(compiler.arg(&plugin).arg(root().join("tools/xtask/plugin/count.c")))?;
        Ok(Self { plugin })
    }

    /// Has `command`, which starts the emulator, count. Code in `waiting` is left out.
    pub fn attach<'c>(&self, command: &'c mut Command, waiting: &Range<u64>) -> &'c mut Command {
        let (plugin, Range { start, end }) = (self.plugin.display(), waiting);
        command.arg("-plugin").arg(format!("{plugin},start={start:#x},end={end:#x}"));
        command.args(["-d", "plugin", "-D"]).arg(self.log())
    }

    /// What was counted by the emulator that ended last, for each core that ran.
    pub fn cores(&self) -> Result<Vec<u64>> {
        let log = self.log();
        let text = fs::read_to_string(&log).context(|| format!("cannot read {}", log.display()))?;
        let counts = cores(&text);
        if counts.is_empty() {
            return Err(Error::new(format!("the plugin counted nothing; it wrote:\n{text}")));
        }
        Ok(counts)
    }

    fn log(&self) -> PathBuf {
        self.plugin.with_extension("log")
    }
}

fn cores(log: &str) -> Vec<u64> {
    log.lines()
        .filter_map(|line| line.strip_prefix("core ")?.split_once(": ")?.1.trim().parse().ok())
        .collect()
}

/// The plugin interface of a QEMU that says "qemu-aarch64 version 7.2.22 (Debian …)" or "QEMU emulator version 10.0.2".
fn interface(version: &str) -> Option<u32> {
    let major = version.split("version ").nth(1)?.split('.').next()?.parse::<u32>().ok()?;
    Some(if major < 9 { 1 } else { 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_follows_from_the_version() {
        assert_eq!(interface("qemu-aarch64 version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some(1));
        assert_eq!(interface("QEMU emulator version 10.0.2"), Some(2));
        assert_eq!(interface("no such thing"), None);
    }

    #[test]
    fn counts_are_read() {
        assert_eq!(cores("other\ncore 0: 12\ncore 3: 7\n"), [12, 7]);
    }
}
