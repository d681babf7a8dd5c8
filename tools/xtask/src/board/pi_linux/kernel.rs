//! The program on a real Linux kernel: direct I/O and a cap on memory that somebody else enforces.
//!
//! QEMU's `virt` machine with a Cortex-A53 and 512 MB starts Debian's kernel; a shell script as its first program puts
//! Elapid into a control group and reports in lines `--- name value`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::initramfs::{self, Entry};
use super::{MODEL, PROMPT, work};
use crate::apt::Apt;
use crate::board::qemu::emulate;
use crate::board::report::{field, measured};
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::models::random_model;
use crate::programs::{Built, Program};
use crate::toolchain::root;

/// In the order in which they need each other. File systems and io_uring are part of the kernel.
const MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
];
/// The model whose file is twice as large as the cap: random weights, so that any tokens do.
const LARGE: &str = "mamba-130m";
const TOKENS: [u32; 5] = [1, 5000, 42, 50_000, 7];
/// Tokens that follow.
const GENERATED: usize = 3;
/// What the program may take, for a model of [`LARGE`]'s size and for one that is given.
const CAPS: [u64; 2] = [64 << 20, 384 << 20];
/// Pages of files that the group may be charged for: direct I/O leaves none.
const MOST_CACHED: u64 = 4 << 20;
const LIMITS: [Duration; 2] = [Duration::from_secs(900), Duration::from_secs(4 * 3600)];

/// Debian's kernel for virtual machines, and a shell for it.
pub(super) fn fetch(apt: &mut Apt) -> Result<()> {
    apt.unpack_arm64(kernel_package, &debian("kernel")?)?;
    apt.unpack_arm64(|| Ok("busybox-static".into()), &debian("busybox")?)
}

fn debian(name: &str) -> Result<PathBuf> {
    work(&format!("debian-{name}"))
}

fn kernel_package() -> Result<String> {
    let listing = capture(Command::new("apt-cache").args(["depends", "linux-image-cloud-arm64:arm64"]))?;
    let mut depends = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let name = depends.find(|name| name.starts_with("linux-image-"));
    let name = name.map(|name| name.trim_end_matches(":arm64").to_owned());
    name.ok_or_else(|| Error::new("apt-cache knows no linux-image-cloud-arm64:arm64"))
}

/// A model under a cap on a machine with 512 MB: `large`, or one of random weights that has twice the cap.
pub(super) fn test(program: &Path, large: Option<&Path>) -> Result<()> {
    let given = usize::from(large.is_some());
    let (cap, limit) = (CAPS[given], LIMITS[given]);
    let large = match large {
        Some(large) => large.to_path_buf(),
        None => random_model(LARGE, "q8")?,
    };
    let elapid = Program::Elapid.build()?;
    let tokens = with_greedy(&elapid, &large)?;
    let logits = sha256(&elapid.output(["logits", &large.to_string_lossy(), "--tokens", &tokens, "--all"])?)?;
    let text = sha256(&elapid.output(["run", MODEL, PROMPT, "-n", "64", "--seed", "7"])?)?;

    let script = script(&tokens, cap);
    let initrd = work("initramfs")?;
    write_initramfs(program, &script, &initrd)?;
    let disk = disk(&large)?;
    let mut command = Command::new("qemu-system-aarch64");
    command.args(["-M", "virt", "-cpu", "cortex-a53", "-m", "512M", "-smp", "4", "-display", "none"]);
    command.args(["-no-reboot", "-monitor", "none", "-serial", "stdio", "-kernel"]);
    command.arg(only_file(&debian("kernel")?.join("boot"), "vmlinuz-")?);
    command.arg("-initrd").arg(&initrd).args(["-append", "console=ttyAMA0 panic=-1 quiet"]);
    command.arg("-drive").arg(format!("if=virtio,format=raw,readonly=on,file={}", disk.display()));
    let console = emulate(&mut command, "", limit)?.console;

    says(&console, "text", &text)?;
    says(&console, "logits", &logits)?;
    let (peak, cached) = (measured(&console, "peak")?, measured(&console, "cached")?);
    println!("{cap} bytes allowed, {peak} taken, {cached} of them pages of files; the same logits as here");
    if measured(&console, "direct")? == 0 {
        return Err(Error::new("the model was not read by direct I/O: no open file has O_DIRECT"));
    }
    if cached > MOST_CACHED {
        return Err(Error::new(format!("{cached} bytes of files were cached, {MOST_CACHED} are allowed")));
    }
    // The canaries: a mapped model is cached, and what wants more than its group may have does not get it.
    if measured(&console, "cached-mapped")? <= MOST_CACHED {
        return Err(Error::new("a mapped model is not seen in the group's cache: the check of the cache is none"));
    }
    if measured(&console, "greedy")? == 0 {
        return Err(Error::new("a program took more memory than its control group may have: the cap is none"));
    }
    Ok(())
}

/// [`TOKENS`] and the most likely ones that follow, as a list.
fn with_greedy(elapid: &Built, model: &Path) -> Result<String> {
    let mut tokens = TOKENS.map(|token| token.to_string()).join(",");
    let model = model.to_string_lossy();
    for _ in 0..GENERATED {
        let json = elapid.output(["logits", &model, "--tokens", &tokens, "--json"])?;
        let json: serde_json::Value =
            serde_json::from_str(&json).context(|| "`elapid logits --json` printed something else".into())?;
        let logits = json["logits"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64);
        let best = logits.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        let (best, _) = best.ok_or_else(|| Error::new("`elapid logits --json` printed no logits"))?;
        tokens = format!("{tokens},{best}");
    }
    Ok(tokens)
}

fn says(console: &str, name: &str, value: &str) -> Result<()> {
    match field(console, name) {
        Some(said) if said == value => Ok(()),
        said => Err(Error::new(format!("{name}: the machine says {said:?}, here it is {value}"))),
    }
}

/// What `sha256sum` says of some output, here and on the machine.
fn sha256(output: &str) -> Result<String> {
    let file = work("output")?;
    fs::write(&file, output).context(|| format!("cannot write {}", file.display()))?;
    let line = capture(Command::new("sha256sum").arg(&file))?;
    line.split(' ').next().map(str::to_owned).ok_or_else(|| Error::new("sha256sum printed nothing"))
}

/// A disk with an ext4 file system that holds both models.
fn disk(large: &Path) -> Result<PathBuf> {
    let (disk, content) = (work("model.ext4")?, work("content")?);
    fs::create_dir_all(&content).context(|| format!("cannot make {}", content.display()))?;
    let small = root().join(MODEL);
    let mut bytes = 64 << 20;
    for (name, model) in [("small.elp", small.as_path()), ("large.elp", large)] {
        let to = content.join(name);
        let _ = fs::remove_file(&to);
        // A second name where the file system allows, so that gigabytes are copied once, not twice.
        let put = fs::hard_link(model, &to).or_else(|_| fs::copy(model, &to).map(drop));
        put.context(|| format!("cannot put {} into {}", model.display(), content.display()))?;
        bytes += to.metadata().context(|| format!("cannot find {}", to.display()))?.len();
    }
    let _ = fs::remove_file(&disk);
    let kib = format!("{}k", bytes.div_ceil(1024));
    must(Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0", "-d"]).arg(&content).arg(&disk).arg(kib))?;
    Ok(disk)
}

fn write_initramfs(program: &Path, script: &str, file: &Path) -> Result<()> {
    let busybox = read(&debian("busybox")?.join("bin/busybox"))?;
    let folder = only_file(&debian("kernel")?.join("lib/modules"), "")?.join("kernel");
    let modules = MODULES.map(|module| read(&folder.join(module)).map(|bytes| (file_name(module), bytes)));
    let modules = modules.into_iter().collect::<Result<Vec<_>>>()?;
    let elapid = read(program)?;
    let mut entries = vec![
        Entry::folder("bin"),
        Entry::folder("dev"),
        Entry::file("init", script.as_bytes()),
        Entry::file("bin/busybox", &busybox),
        Entry::file("bin/elapid", &elapid),
    ];
    entries.extend(modules.iter().map(|(name, bytes)| Entry::file(name, bytes)));
    fs::write(file, initramfs::archive(&entries)).context(|| format!("cannot write {}", file.display()))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The first program of the machine.
fn script(tokens: &str, cap: u64) -> String {
    let modules: Vec<_> = MODULES.iter().map(|module| format!("insmod /{}", file_name(module))).collect();
    let (modules, mib) = (modules.join("\n"), cap >> 20);
    let twice = 2 * mib;
    // A process puts itself (0) into a group before it becomes the program. O_DIRECT is 0200000 on ARM.
    format!(
        "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /tmp /model
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
{modules}
mount -t ext4 -o ro /dev/vda /model
mount -t cgroup2 cgroup /sys/fs/cgroup
cd /sys/fs/cgroup
echo +memory > cgroup.subtree_control
group() {{ mkdir $1; echo {cap} > $1/memory.max; }}
within() {{ echo 0 > $1/cgroup.procs; shift; exec \"$@\"; }}
cached() {{ grep '^file ' $1/memory.stat | cut -d' ' -f2; }}

elapid board /model/large.elp
echo \"--- text $(elapid run /model/small.elp '{PROMPT}' -n 64 --seed 7 --ram 64M | sha256sum | cut -d' ' -f1)\"

group capped
mkfifo /tmp/logits
sha256sum < /tmp/logits > /tmp/sum &
(within capped elapid logits /model/large.elp --tokens {tokens} --all --ram {mib}M > /tmp/logits) &
direct=0
while [ -e /proc/$!/exe ]; do
    if grep -q '^flags:.*[2367].....$' /proc/$!/fdinfo/* 2> /dev/null; then direct=1; fi
    sleep 0.1
done
wait
echo \"--- logits $(cut -d' ' -f1 /tmp/sum)\"
echo \"--- peak $(cat capped/memory.peak)\"
echo \"--- cached $(cached capped)\"
echo \"--- direct $direct\"

group mapped
(within mapped elapid logits /model/large.elp --tokens 1 > /dev/null)
echo \"--- cached-mapped $(cached mapped)\"
(within mapped dd if=/dev/zero of=/dev/null bs={twice}M count=1 2> /dev/null)
echo \"--- greedy $?\"
poweroff -f
"
    )
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).context(|| format!("cannot read {}", file.display()))
}

/// The one entry of a folder whose name begins so.
fn only_file(folder: &Path, start: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
    let mut entries =
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    let entry = entries.next().ok_or_else(|| Error::new(format!("{} has no {start}…", folder.display())))?;
    Ok(entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_loads_every_module() {
        let script = script("1,2", 64 << 20);
        for module in MODULES {
            assert!(script.contains(&format!("insmod /{}\n", file_name(module))), "{module}");
        }
    }
}
