//! The program on a real Linux kernel: direct I/O, io_uring, and a cap on memory that somebody else enforces.
//!
//! QEMU's `virt` machine with four Cortex-A53 and 512 MB starts Debian's kernel. Its first program is a shell script, which
//! puts Elapid into control groups and reports in lines `--- name value`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::disk::{self, Disk};
use super::initramfs::{self, Entry};
use super::{EXT4, MODEL, PROMPT, download, work};
use crate::apt::{Apt, QEMU_SYSTEM, emulator};
use crate::board::qemu::emulate;
use crate::board::report::{field, measured};
use crate::board::{Request, Target};
use crate::cross;
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::models::random_model;
use crate::programs::{Built, Program};
use crate::toolchain::{AARCH64_LINUX, Toolchain};

/// In the order in which they need each other. File systems and io_uring are part of the kernel.
const MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
];
/// What the large model is asked to go on from: its weights are random, so that any tokens do.
const TOKENS: [u32; 5] = [1, 5000, 42, 50_000, 7];
/// Tokens that follow, each computed from all before it.
const GENERATED: usize = 3;
/// Least megabytes in which the small model runs, so that it is streamed.
const SMALL_MIB: u64 = 13;
/// Pages of files that a group may be charged for: direct I/O leaves none.
const MOST_CACHED: u64 = 4 << 20;

/// A run of a large model on the machine.
pub(super) struct Large {
    /// A preset of random weights, and how it is packed.
    preset: (&'static str, &'static str),
    /// What the program may take, by `--ram` and by its control group.
    mib: u64,
    /// A hang must end in an error.
    limit: Duration,
    /// The disk that fails, and what is compared for other reasons than bits.
    faults: bool,
}

/// What CI runs: its file is larger than the cap.
const SHORT: Large =
    Large { preset: ("mamba-130m", "q4"), mib: 64, limit: Duration::from_secs(900), faults: true };
/// Eight times the machine's memory.
pub(super) const LONG: Large = Large {
    preset: ("falcon-mamba-7b", "q4"),
    mib: 320,
    limit: Duration::from_secs(6 * 3600),
    faults: false,
};

/// A step of its own: the machine with a kernel.
#[derive(Debug)]
pub struct Kernel;

impl Target for Kernel {
    fn name(&self) -> &'static str {
        "pi-linux-kernel"
    }

    fn platform(&self) -> String {
        format!("{AARCH64_LINUX} (QEMU virt, Linux)")
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        tools(apt)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        cross::build(toolchain, AARCH64_LINUX).map(drop)
    }

    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let program = super::stripped(super::GLIBC.name, &cross::build(toolchain, AARCH64_LINUX)?)?;
        let large = request.model.clone().map_or_else(|| random_model(SHORT.preset.0, SHORT.preset.1), Ok)?;
        let disk = Disk::make(&[("large.elp", &large), ("small.elp", &super::model())])?;
        println!("elapid is there, models are in /model; `poweroff -f` ends the machine.");
        let shell = format!("{}cd /model\nexec setsid cttyhack sh\n", prologue());
        must(&mut machine(&program, &shell, &[disk.option("")])?)
    }

    fn test(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        test(&cross::build(toolchain, AARCH64_LINUX)?, &SHORT)
    }

    fn flash(&self, _toolchain: Toolchain, _request: &Request) -> Result<()> {
        Err(Error::new("this is an emulated machine; `cargo xtask board pi-linux package` is for boards"))
    }
}

/// The emulator, Debian's kernel for virtual machines, and a shell for it.
pub(super) fn tools(apt: &mut Apt) -> Result<Toolchain> {
    let toolchain = Toolchain::for_target(AARCH64_LINUX, &[QEMU_SYSTEM, EXT4], apt)?;
    apt.unpack_arm64(kernel_package, &download("linux")?)?;
    apt.unpack_arm64(|| Ok("busybox-static".into()), &download("busybox")?)?;
    Ok(toolchain)
}

fn kernel_package() -> Result<String> {
    let listing = capture(Command::new("apt-cache").args(["depends", "linux-image-cloud-arm64:arm64"]))?;
    let mut depends = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let name = depends.find(|name| name.starts_with("linux-image-"));
    let name = name.map(|name| name.trim_end_matches(":arm64").to_owned());
    name.ok_or_else(|| Error::new("apt-cache knows no linux-image-cloud-arm64:arm64"))
}

/// What this machine's own program makes of the same models.
struct Here {
    /// Tokens that followed [`TOKENS`].
    generated: String,
    /// Checksums of what it printed.
    logits: String,
    text: String,
    small: String,
}

impl Here {
    fn new(large: &Path) -> Result<Self> {
        let elapid = Program::Elapid.build()?;
        let generated = greedy(&elapid, large)?;
        let all = format!("{},{generated}", list(&TOKENS));
        let logits = ["logits", &large.to_string_lossy(), "--tokens", &all, "--all"].map(str::to_owned);
        Ok(Self {
            logits: sha256(&elapid.output(logits)?)?,
            text: sha256(&elapid.output(["run", MODEL, PROMPT, "-n", "64", "--seed", "7"])?)?,
            small: sha256(&elapid.output(["logits", MODEL, "--text", PROMPT, "--all"])?)?,
            generated,
        })
    }
}

/// The large model under a cap on a machine with 512 MB, and the small one.
pub(super) fn test(program: &Path, large: &Large) -> Result<()> {
    let model = random_model(large.preset.0, large.preset.1)?;
    let here = Here::new(&model)?;
    let (changed, damaged) = disk::with_faults(&super::model())?;
    let small = super::model();
    let files =
        [("large.elp", &model), ("small.elp", &small), ("changed.elp", &changed), ("damaged.elp", &damaged)];
    let disk = Disk::make(&files.map(|(name, file)| (name, file.as_path())))?;
    let program = super::stripped(super::GLIBC.name, program)?;
    // Progress is drawn on terminals only.
    let mut script = prologue() + "exec 2> /tmp/errors\n" + &same(large.mib);
    let mut disks = vec![disk.option("")];
    if large.faults {
        script += &canaries(large.mib);
        script += &faults(large.mib);
        // Once it is one error that goes away, then one that stays.
        let sector = disk.sector_within(&model)?;
        disks.extend([true, false].map(|once| disk.failing(sector, once)));
        disks.push(disk.option("gone"));
    }
    script += "cat /tmp/errors\npoweroff -f\n";
    let done = emulate(&mut machine(&program, &script, &disks)?, "", large.limit)?;
    judge(&done.console, &here, large)
}

/// The machine with some disks; `script` is its first program.
fn machine(program: &Path, script: &str, disks: &[Vec<String>]) -> Result<Command> {
    let initramfs = work("initramfs")?;
    write_initramfs(program, script, &initramfs)?;
    let mut command = Command::new(emulator("qemu-system-aarch64"));
    command.args(["-M", "virt", "-cpu", "cortex-a53", "-m", "512M", "-smp", "4", "-display", "none"]);
    command.args(["-no-reboot", "-monitor", "none", "-serial", "stdio", "-nic", "none", "-kernel"]);
    command.arg(only_file(&download("linux")?.join("boot"), "vmlinuz-")?);
    command.arg("-initrd").arg(&initramfs).args(["-append", "console=ttyAMA0 panic=-1 quiet"]);
    command.args(disks.iter().flatten());
    Ok(command)
}

fn write_initramfs(program: &Path, script: &str, file: &Path) -> Result<()> {
    let busybox = read(&download("busybox")?.join("bin/busybox"))?;
    let folder = only_file(&download("linux")?.join("lib/modules"), "")?.join("kernel");
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

/// The beginning of the machine's first program: file systems, control groups, and functions for what follows.
fn prologue() -> String {
    let modules = MODULES.map(|module| format!("insmod /{}", file_name(module))).join("\n");
    // A process puts itself (0) into a group before it becomes the program.
    format!(
        r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /tmp /model /once /always /gone
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# What the kernel says must not stand in a report's lines.
dmesg -n 1
{modules}
mount -t ext4 -o ro /dev/vda /model
mount -t cgroup2 cgroup /sys/fs/cgroup
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
say() {{ echo "--- $*"; }}
group() {{ mkdir /sys/fs/cgroup/$1; echo $2 > /sys/fs/cgroup/$1/memory.max; }}
within() {{ echo 0 > /sys/fs/cgroup/$1/cgroup.procs; shift; exec "$@"; }}
cached() {{ grep '^file ' /sys/fs/cgroup/$1/memory.stat | cut -d' ' -f2; }}
sum() {{ sha256sum | cut -d' ' -f1; }}
best() {{ sed 's/.*"logits":\[//; s/\].*//' | tr ',' '\n' | awk 'NR == 1 || $1 + 0 > most {{ most = $1 + 0; best = NR - 1 }} END {{ print best }}'; }}
"#
    )
}

/// What must come out as it does here: text, tokens and logits, within a control group.
fn same(mib: u64) -> String {
    let (cap, prompt) = (mib << 20, list(&TOKENS));
    // O_DIRECT is 0200000 on ARM.
    format!(
        r#"
elapid board /model/large.elp
say text $(elapid run /model/small.elp '{PROMPT}' -n 64 --seed 7 --ram {SMALL_MIB}M | sum)
say small $(elapid logits /model/small.elp --text '{PROMPT}' --all | sum)

group capped {cap}
tokens={prompt}
generated=
for i in $(seq {GENERATED}); do
    next=$( (within capped elapid logits /model/large.elp --tokens $tokens --ram {mib}M) | best)
    tokens=$tokens,$next
    generated=$generated${{generated:+,}}$next
    say token $i $next after $(cut -d' ' -f1 /proc/uptime) s
done
say generated $generated
mkfifo /tmp/logits
sum < /tmp/logits > /tmp/sum &
(within capped elapid logits /model/large.elp --tokens $tokens --all --ram {mib}M > /tmp/logits) &
direct=0
while [ -e /proc/$!/exe ]; do
    if grep -q '^flags:.*[2367].....$' /proc/$!/fdinfo/* 2> /dev/null; then direct=1; fi
    sleep 0.1
done
wait
say logits $(cat /tmp/sum)
say peak $(cat /sys/fs/cgroup/capped/memory.peak)
say killed $(grep '^oom_kill ' /sys/fs/cgroup/capped/memory.events | cut -d' ' -f2)
say cached $(cached capped)
say direct $direct
"#
    )
}

/// That what a board does by itself is right, and that the checks see what they should.
fn canaries(mib: u64) -> String {
    let twice = 2 * mib;
    format!(
        r#"
say default $( (within capped elapid logits /model/large.elp --tokens $tokens --all 2> /tmp/note) | sum)
say note $(cat /tmp/note)
say changed $(elapid logits /model/changed.elp --text '{PROMPT}' --all | sum)
elapid logits /model/damaged.elp --tokens 1 --ram {SMALL_MIB}M > /dev/null 2> /tmp/error
say damaged $? $(cat /tmp/error)

group mapped max
(within mapped elapid logits /model/large.elp --tokens 1 > /dev/null)
say cached-mapped $(cached mapped)
(within capped dd if=/dev/zero of=/dev/null bs={twice}M count=1 2> /dev/null)
say greedy $?
"#
    )
}

/// Disks that fail: one with an error that goes away, one with an error that stays, and one that is taken out.
fn faults(mib: u64) -> String {
    format!(
        r#"
mount -t ext4 -o ro /dev/vdb /once
say once $(elapid logits /once/large.elp --tokens $tokens --all --ram {mib}M 2> /tmp/error | sum)
say retried $(cat /tmp/error)
mount -t ext4 -o ro /dev/vdc /always
elapid logits /always/large.elp --tokens $tokens --ram {mib}M > /tmp/out 2> /tmp/error
say always $? $(cat /tmp/error)
mount -t ext4 -o ro /dev/vdd /gone
elapid bench /gone/large.elp -p 8 -n 100000 --ram {mib}M > /tmp/out 2> /tmp/error &
# When it has been read for more than the whole model.
while [ -e /proc/$!/exe ] && [ $(awk '{{ print $3 }}' /sys/block/vdd/stat) -lt 200000 ]; do sleep 0.2; done
echo 1 > $(readlink -f /sys/block/vdd/device/..)/remove
wait $!
say gone $? $(cat /tmp/error)
"#
    )
}

/// Compares what the machine reported with what came out here.
fn judge(console: &str, here: &Here, large: &Large) -> Result<()> {
    let said = |name: &str| {
        field(console, name)
            .ok_or_else(|| Error::new(format!("the machine reported no {name}; it wrote:\n{console}")))
    };
    let same = |name: &str, value: &str| match said(name)? {
        there if there == value => Ok(()),
        there => Err(Error::new(format!("{name}: the machine says {there}, here it is {value}"))),
    };
    same("text", &here.text)?;
    same("small", &here.small)?;
    same("generated", &here.generated)?;
    same("logits", &here.logits)?;
    same("killed", "0")?;
    let (cap, peak, cached) = (large.mib << 20, measured(console, "peak")?, measured(console, "cached")?);
    println!(
        "the same 64 tokens of the small model, and tokens {} and logits of {}",
        here.generated, large.preset.0
    );
    println!("{cap} bytes allowed, {peak} charged at most, {cached} of them pages of files");
    if measured(console, "direct")? == 0 {
        return Err(Error::new("the model was not read by direct I/O: no open file has O_DIRECT"));
    }
    if cached > MOST_CACHED {
        return Err(Error::new(format!("{cached} bytes of files were cached, {MOST_CACHED} are allowed")));
    }
    if !large.faults {
        return Ok(());
    }
    // Without an option, on a board.
    same("default", &here.logits)?;
    let has = |name: &str, words: &[&str]| {
        let text = said(name)?;
        match words.iter().find(|word| !text.contains(**word)) {
            None => Ok(()),
            Some(word) => {
                Err(Error::new(format!("{name}: `{word}` is not in what the machine says: {text}")))
            }
        }
    };
    has("note", &["note: ", "do not fit", "read again for every token"])?;
    // The canaries: another weight, a weight that is not as it was written, a mapped file, too much memory.
    if said("changed")? == here.small {
        return Err(Error::new("the comparison is broken: it does not see that a weight was changed"));
    }
    has("damaged", &["3 error: ", "checksum does not match", "layer"])?;
    if measured(console, "cached-mapped")? <= MOST_CACHED {
        return Err(Error::new(
            "a mapped model is not seen in its group's cache: the check of the cache is none",
        ));
    }
    if said("greedy")? == "0" {
        return Err(Error::new(
            "a program took more memory than its control group may have: the cap is none",
        ));
    }
    same("once", &here.logits)?;
    has("retried", &["warning: ", "reads failed and were repeated"])?;
    has("always", &["error: ", "layer", "offset"])?;
    has("gone", &["error: ", "offset"])?;
    for name in ["always", "gone"] {
        if said(name)?.starts_with("0 ") {
            return Err(Error::new(format!("{name}: the program says that all is well")));
        }
    }
    println!("a disk with an error, one with an error that stays and one that was taken out: as they should");
    Ok(())
}

fn list(tokens: &[u32]) -> String {
    tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The most likely tokens after [`TOKENS`], one after the other.
fn greedy(elapid: &Built, model: &Path) -> Result<String> {
    let (mut tokens, mut generated) = (list(&TOKENS), Vec::new());
    for _ in 0..GENERATED {
        let arguments = ["logits", &model.to_string_lossy(), "--tokens", &tokens].map(str::to_owned);
        let json = elapid.output(arguments)?;
        let json: serde_json::Value = serde_json::from_str(&json)
            .context(|| "`elapid logits` printed something else than JSON".into())?;
        let logits = json["logits"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64);
        let best = logits.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
        let (best, _) = best.ok_or_else(|| Error::new("`elapid logits` printed no logits"))?;
        tokens = format!("{tokens},{best}");
        generated.push(best as u32);
    }
    Ok(list(&generated))
}

/// What `sha256sum` says of some output, here and on the machine.
fn sha256(output: &str) -> Result<String> {
    let file = work("output")?;
    fs::write(&file, output).context(|| format!("cannot write {}", file.display()))?;
    let line = capture(Command::new("sha256sum").arg(&file))?;
    line.split(' ').next().map(str::to_owned).ok_or_else(|| Error::new("sha256sum printed nothing"))
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
        let script = prologue();
        for module in MODULES {
            assert!(script.contains(&format!("insmod /{}\n", file_name(module))), "{module}");
        }
    }

    /// A report of a machine on which all is well, and one for each thing that is not.
    #[test]
    fn every_difference_is_seen() {
        let here =
            Here { generated: "7,8,9".into(), logits: "abc".into(), text: "def".into(), small: "012".into() };
        let good = [
            "text def",
            "small 012",
            "generated 7,8,9",
            "logits abc",
            "killed 0",
            "peak 60000000",
            "cached 4096",
            "direct 1",
            "default abc",
            "note note: x: its 9 MiB do not fit in the 8 MiB of memory: it is read again for every token",
            "changed 345",
            "damaged 3 error: x: layer 1: checksum does not match",
            "cached-mapped 70000000",
            "greedy 137",
            "once abc",
            "retried warning: 1 reads failed and were repeated",
            "always 1 error: layer 3 offset 5",
            "gone 1 error: offset 7",
        ];
        let console = |lines: &[&str]| lines.iter().map(|line| format!("--- {line}\n")).collect::<String>();
        judge(&console(&good), &here, &SHORT).unwrap();
        let bad = [
            "text x",
            "small x",
            "generated 7,8,8",
            "logits x",
            "killed 1",
            "peak x",
            "cached 9000000",
            "direct 0",
            "default x",
            "note",
            "changed 012",
            "damaged 0",
            "cached-mapped 0",
            "greedy 0",
            "once x",
            "retried",
            "always 0 error: layer 3 offset 5",
            "gone 1",
        ];
        for (i, line) in bad.iter().enumerate() {
            let mut lines = good;
            lines[i] = line;
            assert!(judge(&console(&lines), &here, &SHORT).is_err(), "{line}");
        }
    }
}
