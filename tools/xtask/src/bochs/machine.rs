//! One program in one emulated machine: Linux boots, the program is its first process, and what it writes comes over the
//! serial line.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cpio::Archive;
use crate::error::{Context, Error, Result};
use crate::exec::capture;

/// Bochs' PIIX machine with one CPU. Nothing is written but its log.
const CONFIG: &str = "\
config_interface: textconfig
memory: guest=512, host=512
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
boot: cdrom
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
clock: sync=none
";

/// Bochs 2.7 gives wrong sizes for the state that XSAVEC, XSAVES and protection keys keep, upon which Linux would do without
/// AVX: so it is told not to use them (bits 321, 323 and 515 of its table of features). The rest makes it boot sooner.
const LINUX: &str = "console=ttyS0 loglevel=1 panic=-1 rdinit=/init clearcpuid=321,323,515 noxsaves mitigations=off \
                     nokaslr nosmp lpj=1000000 tsc=reliable random.trust_cpu=on";

/// What boots, and how.
pub struct Machine<'a> {
    /// The emulator.
    pub bochs: &'a Path,
    /// Its name for the CPU.
    pub cpu: &'a str,
    pub kernel: &'a Path,
    /// A folder for what is made.
    pub folder: &'a Path,
    /// How long it may take.
    pub limit: Duration,
}

/// Ends the emulator, whatever becomes of us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Runs `program`, a static one, with folders of this machine beside it, and returns its exit code. What it writes
    /// goes to standard output.
    pub fn run(
        &self,
        program: &Path,
        arguments: &[String],
        env: &[(String, String)],
        trees: &[PathBuf],
    ) -> Result<u8> {
        let image = self.image(program, arguments, env, trees)?;
        let serial = TcpListener::bind("127.0.0.1:0").context(|| "cannot listen for the machine".into())?;
        let port = serial.local_addr().context(|| "cannot listen for the machine".into())?.port();
        let mut running = Running(self.start(&image, port)?);
        self.listen(&serial, &mut running.0)
    }

    /// A CD with a boot loader, the kernel, and the first file system.
    fn image(
        &self,
        program: &Path,
        arguments: &[String],
        env: &[(String, String)],
        trees: &[PathBuf],
    ) -> Result<PathBuf> {
        let mut archive = Archive::default();
        archive.file(Path::new("/init"), program)?;
        archive.folder(Path::new("/tmp"));
        trees.iter().try_for_each(|tree| archive.tree(tree))?;

        let disc = self.folder.join("disc");
        let fail = || format!("cannot write into {}", disc.display());
        std::fs::create_dir_all(disc.join("isolinux")).context(fail)?;
        std::fs::write(disc.join("initrd"), archive.finish()).context(fail)?;
        std::fs::copy(self.kernel, disc.join("vmlinuz")).context(fail)?;
        for (folder, name) in [("ISOLINUX", "isolinux.bin"), ("syslinux/modules/bios", "ldlinux.c32")] {
            let from = Path::new("/usr/lib").join(folder).join(name);
            std::fs::copy(&from, disc.join("isolinux").join(name))
                .context(|| format!("cannot copy {}", from.display()))?;
        }
        let mut line = format!("{LINUX} ");
        for (name, value) in env {
            let _ = write!(line, "{name}={value} ");
        }
        line.push_str("--");
        for argument in arguments {
            let _ = write!(line, " {argument}");
        }
        let boot =
            format!("DEFAULT linux\nPROMPT 0\nLABEL linux\nKERNEL /vmlinuz\nINITRD /initrd\nAPPEND {line}\n");
        std::fs::write(disc.join("isolinux/isolinux.cfg"), boot).context(fail)?;

        let image = self.folder.join("disc.iso");
        let mut xorriso = Command::new("xorriso");
        xorriso.args(["-as", "mkisofs", "-quiet", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"]);
        xorriso.args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-o"]);
        capture(xorriso.arg(&image).arg(&disc).stderr(Stdio::null()))?;
        Ok(image)
    }

    fn start(&self, image: &Path, port: u16) -> Result<Child> {
        // A lock that an earlier run left, when it was ended.
        let _ = std::fs::remove_file(image.with_extension("iso.lock"));
        let config = self.folder.join("bochsrc");
        let commands = self.folder.join("commands");
        // Debian's is built with a debugger, which waits for a command; its only display without a terminal is the one
        // for a remote viewer, which none is waited for.
        let help = help(self.bochs, "");
        let display = if help.contains("-rc") { "rfb, options=\"timeout=0\"" } else { "nogui" };
        let text = format!(
            "{CONFIG}display_library: {display}\ncpu: model={}, count=1, ips=100000000, reset_on_triple_fault=0\n\
             ata0-master: type=cdrom, path=\"{}\", status=inserted\n\
             com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}\nlog: \"{}\"\n{}",
            self.cpu,
            image.display(),
            self.folder.join("bochs.log").display(),
            roms(self.bochs),
        );
        let fail = || format!("cannot write into {}", self.folder.display());
        std::fs::write(&config, text).context(fail)?;
        std::fs::write(&commands, "continue\n").context(fail)?;
        let mut command = Command::new(self.bochs);
        command.arg("-q").arg("-f").arg(&config);
        if help.contains("-rc") {
            command.arg("-rc").arg(&commands);
        }
        let output = || std::fs::File::create(self.folder.join("bochs.out")).context(fail);
        command.stdin(Stdio::null()).stdout(output()?).stderr(output()?);
        command.spawn().context(|| format!("cannot start {}", self.bochs.display()))
    }

    /// Passes on what the program writes until Linux says how it ended.
    fn listen(&self, serial: &TcpListener, child: &mut Child) -> Result<u8> {
        let start = Instant::now();
        let fail = || "cannot read the machine's serial line".into();
        serial.set_nonblocking(true).context(fail)?;
        let mut stream: Option<TcpStream> = None;
        let mut line = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if start.elapsed() > self.limit {
                return Err(Error::new(format!("not done after {} s", self.limit.as_secs())));
            }
            let read = match &mut stream {
                None => match serial.accept() {
                    Ok((accepted, _)) => {
                        accepted.set_nonblocking(false).context(fail)?;
                        accepted.set_read_timeout(Some(Duration::from_millis(500))).context(fail)?;
                        stream = Some(accepted);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Some(stream) => stream.read(&mut buffer),
            };
            let count = match read {
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    std::thread::sleep(Duration::from_millis(20));
                    if child.try_wait().context(fail)?.is_none() {
                        continue;
                    }
                    0
                }
                Err(_) => 0,
            };
            if count == 0 {
                let log = self.folder.join("bochs.log");
                return Err(Error::new(format!("the emulator ended early, see {}", log.display())));
            }
            for &byte in &buffer[..count] {
                match byte {
                    b'\r' => {}
                    b'\n' => {
                        let text = String::from_utf8_lossy(&line);
                        if let Some(code) = exit_code(&text) {
                            return Ok(code);
                        }
                        if !is_kernels(&text) {
                            let mut out = std::io::stdout().lock();
                            writeln!(out, "{text}").and_then(|()| out.flush()).context(fail)?;
                        }
                        line.clear();
                    }
                    byte => line.push(byte),
                }
            }
        }
    }
}

/// What Bochs says of itself; nothing if it can't be started.
pub fn help(bochs: &Path, topic: &str) -> String {
    let mut command = Command::new(bochs);
    command.arg("--help").args((!topic.is_empty()).then_some(topic)).stdin(Stdio::null());
    command.output().map_or_else(
        |_| String::new(),
        |output| {
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
        },
    )
}

/// The BIOS files: those of Debian's packages, or those beside a Bochs that was built by hand.
fn roms(bochs: &Path) -> String {
    let beside = bochs.parent().unwrap_or(bochs).join("bios");
    let first = |paths: [PathBuf; 2]| paths.into_iter().find(|path| path.is_file()).unwrap_or_default();
    let bios = first([beside.join("BIOS-bochs-latest"), "/usr/share/bochs/BIOS-bochs-latest".into()]);
    let video = first([beside.join("VGABIOS-lgpl-latest.bin"), "/usr/share/vgabios/vgabios.bin".into()]);
    format!("romimage: file=\"{}\"\nvgaromimage: file=\"{}\"\n", bios.display(), video.display())
}

/// `[   12.345678] ` in front of what Linux says itself.
fn is_kernels(line: &str) -> bool {
    let Some((time, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else { return false };
    time.contains('.') && time.chars().all(|c| c == ' ' || c == '.' || c.is_ascii_digit())
}

/// The code with which the first process ended, from the kernel's last words. A signal counts as 128 and its number.
fn exit_code(line: &str) -> Option<u8> {
    let (_, code) = line.split_once("Attempted to kill init! exitcode=0x")?;
    let status = u32::from_str_radix(code.trim(), 16).ok()?;
    let signal = (status & 0x7f) as u8;
    Some(if signal == 0 { (status >> 8) as u8 } else { 128 + signal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_told_from_the_programs() {
        assert!(is_kernels("[    0.640233] x86/fpu: Enabled xstate features 0xe7"));
        assert!(!is_kernels("[1, 2] and more") && !is_kernels("test a ... ok") && !is_kernels(""));
    }

    #[test]
    fn an_end_is_read() {
        let line =
            |code| format!("[   19.3] Kernel panic - not syncing: Attempted to kill init! exitcode=0x{code}");
        assert_eq!(exit_code(&line("00000000")), Some(0));
        assert_eq!(exit_code(&line("00006500")), Some(101));
        assert_eq!(exit_code(&line("00000004")), Some(132));
        assert_eq!(exit_code("test result: ok. 1 passed"), None);
    }
}
