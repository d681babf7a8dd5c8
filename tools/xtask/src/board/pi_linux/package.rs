//! The Debian package: the program, shell completions and manual pages.
//!
//! `dpkg-deb` makes it from a folder. cargo-deb would too, but it must be compiled first (140 s of CPU time), and knows
//! nothing of completions and pages that the program itself writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{user, work};
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::toolchain::root;

const COMPLETIONS: &str = "usr/share/bash-completion/completions/elapid";
/// The server as a service of systemd.
const UNIT: &str = "usr/lib/systemd/system/elapid.service";
const MANUAL: &str = "usr/share/man/man1";

/// What must be in it.
const CONTENT: [&str; 9] = [
    "usr/bin/elapid",
    UNIT,
    "usr/share/man/man1/elapid.1.gz",
    "usr/share/man/man1/elapid-run.1.gz",
    "usr/share/man/man1/elapid-board.1.gz",
    COMPLETIONS,
    "usr/share/zsh/vendor-completions/_elapid",
    "usr/share/fish/vendor_completions.d/elapid.fish",
    "usr/share/doc/elapid/copyright",
];

/// Makes the package. It depends on no other, so that any release of Debian or Raspberry Pi OS will do.
pub(super) fn make(program: &Path) -> Result<PathBuf> {
    let tree = work("package")?;
    let _ = fs::remove_dir_all(&tree);
    must(user("cortex-a72", program).arg("package").arg(&tree))?;
    let manual = tree.join(MANUAL);
    let pages = fs::read_dir(&manual).context(|| format!("cannot read {}", manual.display()))?;
    must(Command::new("gzip").args(["-9", "-n"]).args(pages.flatten().map(|page| page.path())))?;
    let put = |name: &str, from: &dyn Fn(&Path) -> std::io::Result<()>| {
        let to = tree.join(name);
        let made = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| from(&to));
        made.context(|| format!("cannot make {}", to.display()))
    };
    put("usr/bin/elapid", &|to| fs::copy(program, to).map(drop))?;
    put(UNIT, &|to| fs::copy(root().join("host/cli/debian/elapid.service"), to).map(drop))?;
    put("usr/share/doc/elapid/README.md", &|to| fs::copy(root().join("README.md"), to).map(drop))?;
    let license = root().join("LICENSE-MIT");
    let license = fs::read_to_string(&license).context(|| format!("cannot read {}", license.display()))?;
    put("usr/share/doc/elapid/copyright", &|to| fs::write(to, copyright(&license)))?;
    let installed = capture(Command::new("du").args(["-sk", "--apparent-size"]).arg(&tree))?;
    put("DEBIAN/control", &|to| fs::write(to, control(installed.split_whitespace().next().unwrap_or("0"))))?;
    // Whatever this user's files may be read by.
    must(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(&tree))?;
    let file = work("elapid_arm64.deb")?;
    must(Command::new("dpkg-deb").args(["--build", "--root-owner-group", "-Zxz"]).arg(&tree).arg(&file))?;
    Ok(file)
}

fn copyright(license: &str) -> String {
    format!(
        "Elapid's program is licensed under MIT or Apache-2.0, at your choice. The model that it carries was trained on
public-domain text and is free for any use (CC0). On Debian systems the text of the Apache License, version 2.0, is in
/usr/share/common-licenses/Apache-2.0, that of CC0 in /usr/share/common-licenses/CC0-1.0.

{license}"
    )
}

fn control(installed_kib: &str) -> String {
    format!(
        "Package: elapid
Version: {}
Architecture: arm64
Maintainer: The Elapid authors <elapid@localhost>
Installed-Size: {installed_kib}
Section: science
Priority: optional
Homepage: {}
Description: runs Mamba and Falcon Mamba language models
 From packed files, in as much memory as it is given, at constant memory and
 speed for each token. Carries a small model.
",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_REPOSITORY")
    )
}

/// Unpacks the package as `dpkg` would install it, looks at what came out, and returns the program in it.
pub(super) fn unpacked(package: &Path) -> Result<PathBuf> {
    let fields = capture(Command::new("dpkg-deb").arg("--field").arg(package))?;
    for field in ["Package: elapid", "Architecture: arm64", concat!("Version: ", env!("CARGO_PKG_VERSION"))] {
        if !fields.lines().any(|line| line == field) {
            return Err(Error::new(format!("{} does not say `{field}`:\n{fields}", package.display())));
        }
    }
    let owners = capture(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    if let Some(line) = owners.lines().find(|line| !line.contains(" root/root ")) {
        return Err(Error::new(format!("{}: a file is not root's: {line}", package.display())));
    }
    let folder = work("unpacked")?;
    let _ = fs::remove_dir_all(&folder);
    must(Command::new("dpkg-deb").arg("-x").arg(package).arg(&folder))?;
    if let Some(missing) = CONTENT.iter().find(|name| !folder.join(name).is_file()) {
        return Err(Error::new(format!("{} lacks {missing}", package.display())));
    }
    must(Command::new("bash").arg("-n").arg(folder.join(COMPLETIONS)))?;
    let size = package.metadata().context(|| format!("cannot find {}", package.display()))?.len();
    println!("{} ({:.1} MB)", package.display(), size as f64 / 1e6);
    Ok(folder.join("usr/bin/elapid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_file_is_one() {
        let control = control("1234");
        // Each line is a field, or begins with a space; dpkg-deb refuses anything else.
        assert!(control.lines().all(|line| line.starts_with(' ') || line.contains(": ")), "{control}");
        assert!(control.contains("\nInstalled-Size: 1234\n") && control.ends_with('\n'));
    }
}
