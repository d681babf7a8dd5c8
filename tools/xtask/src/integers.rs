//! What the fixed path is made of once it is compiled: no floating point, no panic, no recursion, a stack of known size.
//!
//! `core` and an example with the whole step are compiled for the target as one object each, with the compiler's own stack sizes, and
//! disassembled. From the functions
//! of the step, and those that it reaches through a `dyn` (kernels, the source, the team), calls are followed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::toolchain::Toolchain;

/// Bytes of stack that a step may take.
const STACK: u64 = 4096;

/// Folders, and beginnings and ends of the names of what is read there: the step, which is generic over its numbers, `core`'s kernels,
/// and the checksums that a source computes.
const FILES: [(&str, &str, &str); 3] = [
    ("examples", "integers-", ".o"),
    ("deps", "libelapid_core-", ".rlib"),
    ("deps", "libcrc32fast-", ".rlib"),
];
/// The example.
const STEP: &str = "integers::step";
/// Part of the names of what the step is made of.
const PARTS: &str = "elapid_core::model::";

/// Parts of the names of the functions that the check begins at.
const ROOTS: &[&str] = &[
    // What is shared out among threads is a closure of one of its parts, and has that one's name.
    STEP,
    "elapid_core::model::fixed::Fixed",
    "elapid_core::kernels::fixed::",
    "elapid_core::source::SliceSource",
    "elapid_core::kernels::share::Solo",
];
/// Parts of the names of functions that may call through a pointer: what lies behind is one of the roots.
const DYN: [&str; 4] = [STEP, PARTS, "elapid_core::kernels::share::", "elapid_core::source::SliceSource"];
/// Parts of names that are no part of the step though they match: finding kernels, formatting.
const NOT_ROOTS: [&str; 5] =
    ["for_each_available", "kernels::fixed::detect", "::fmt", "SliceSource>::new", TEAM_OF_SEVERAL];
/// Begin of the names of what `share` calls for a team of several (`in_chunks`, `in_ranges`), whose counters need stack: a
/// microcontroller's has one.
const TEAM_OF_SEVERAL: &str = "elapid_core::kernels::share::in_";

/// Ends of the names of the compiler's helpers for floats.
const FLOAT_ENDS: [&str; 8] = ["sf2", "sf3", "df2", "df3", "sfsi", "dfsi", "sisf", "sidf"];
/// Beginnings of the names of its other helpers, which copy memory, shift, multiply and divide integers of 64 bits.
const HELPERS: [&str; 4] = ["mem", "__aeabi_mem", "__aeabi_l", "__aeabi_ul"];
/// Bytes of stack that one of those is taken to need.
const HELPER_STACK: u64 = 64;

const FLOATS: &str = "computes with floats";
const PANICS: &str = "can panic";
const RECURSION: &str = "calls itself";

/// One compiled function.
#[derive(Debug, Default)]
struct Function {
    calls: BTreeSet<String>,
    /// Whether it calls through a pointer.
    indirect: bool,
    /// Whether the disassembler did not know an instruction.
    unread: bool,
    /// Its first instruction that computes with floats.
    float: Option<String>,
    stack: Option<u64>,
}

type Functions = BTreeMap<String, Function>;

/// Compiles `core` for `target` and checks its fixed path, of which the module `kernels` must be a part.
pub fn check(toolchain: Toolchain, target: &str, cpu: &str, kernels: &str) -> Result<()> {
    // Both for the compiler's stack sizes and for `dsp`, which stable ones don't let programs see.
    let flags = format!(
        "-Ctarget-cpu={cpu} -Zemit-stack-sizes -Ccodegen-units=1 -Zmerge-functions=disabled -Zshare-generics=no"
    );
    let mut build = toolchain.cargo_for("rustc", target, &flags, "core");
    build.args([
        "-p",
        "elapid-core",
        "--example",
        "integers",
        "--no-default-features",
        "--release",
        "--target-dir",
    ]);
    let folder = toolchain.target_dir().join("integers");
    build.arg(&folder).args(["--", "--emit=obj"]);
    // An object of machine code, not of what a linker would compile.
    build.env("CARGO_PROFILE_RELEASE_LTO", "off").env("RUSTC_BOOTSTRAP", "1");
    must(&mut build)?;
    let folder = folder.join(target).join("release");
    let mut functions = Functions::new();
    for (within, begin, end) in FILES {
        functions.extend(read(&newest(&folder.join(within), begin, end)?, cpu)?);
    }
    let canaries = canaries(&functions)?;
    let found = judge(&functions, kernels)?;
    println!(
        "{target}: {} functions in the fixed path's step, {} bytes of stack at most. What is not allowed there is seen \
         elsewhere:\n    {}",
        found.reached,
        found.stack,
        canaries.join("\n    ")
    );
    Ok(())
}

/// An example in the same object of all that the step must not have: the float path computes with floats, the tokenizer
/// sorts by recursion. Where none is found, the check no longer sees it.
fn canaries(functions: &Functions) -> Result<Vec<String>> {
    let examples = [FLOATS, PANICS, RECURSION].map(|what| {
        let seen = functions.keys().find_map(|name| {
            let error = Walk::new(functions).depth(name).err()?.to_string();
            let first = error.lines().next()?;
            first.contains(what).then(|| first.to_owned())
        });
        seen.ok_or_else(|| {
            Error::new(format!("the check is broken: it finds nothing in the object that {what}"))
        })
    });
    examples.into_iter().collect()
}

/// What the step came to.
#[derive(Debug)]
struct Found {
    reached: usize,
    stack: u64,
}

fn newest(folder: &Path, begin: &str, end: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
    let files = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        let ours = name.starts_with(begin) && name.ends_with(end);
        ours.then(|| Some((path.metadata().ok()?.modified().ok()?, path)))?
    });
    let newest = files.max().map(|(_, path)| path);
    newest.ok_or_else(|| Error::new(format!("{} has no {begin}…{end}", folder.display())))
}

fn read(object: &Path, cpu: &str) -> Result<Functions> {
    let mut disassembly = Command::new("llvm-objdump");
    disassembly
        .args(["-d", "-r", "--no-show-raw-insn", "--demangle"])
        .arg(format!("--mcpu={cpu}"))
        .arg(object);
    let listing = capture(&mut disassembly)?;
    let sizes = capture(Command::new("llvm-readelf").args(["--stack-sizes", "--demangle"]).arg(object))?;
    let mut functions = disassembled(&listing);
    if functions.is_empty() {
        return Err(Error::new(format!("no function could be read from {}", object.display())));
    }
    for (name, size) in stack_sizes(&sizes) {
        functions.entry(name).or_default().stack = Some(size);
    }
    Ok(functions)
}

/// Reads the output of `llvm-objdump -d -r --demangle`.
fn disassembled(listing: &str) -> Functions {
    let mut functions = Functions::new();
    let mut current = None;
    let mut lines = listing.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = header(line) {
            current = Some(name.to_owned());
            functions.entry(name.to_owned()).or_default();
            continue;
        }
        let Some((name, function)) = current.as_ref().and_then(|name| Some((name, functions.get_mut(name)?)))
        else {
            continue;
        };
        if let Some(symbol) = called(line) {
            function.calls.insert(symbol.to_owned());
            continue;
        }
        let Some((_, instruction)) = line.split_once(':') else { continue };
        let instruction = instruction.trim().replace('\t', " ");
        let (mnemonic, operands) = instruction.split_once(' ').unwrap_or((&instruction, ""));
        match mnemonic {
            "<unknown>" => function.unread = true,
            // What the assembler knew: each function has a section of its own, so it calls itself.
            "bl" if lines.peek().and_then(|next| called(next)).is_none() => {
                function.calls.insert(name.clone());
            }
            _ if mnemonic.starts_with("blx") => function.indirect = true,
            _ if mnemonic.starts_with("bx") && !operands.starts_with("lr") => function.indirect = true,
            _ if computes_with_floats(mnemonic) && function.float.is_none() => {
                function.float = Some(instruction.clone());
            }
            _ => {}
        }
    }
    functions
}

/// The symbol of a call that the linker completes.
fn called(line: &str) -> Option<&str> {
    let (_, symbol) = line.split_once("R_ARM_THM_CALL").or_else(|| line.split_once("R_ARM_THM_JUMP24"))?;
    Some(symbol.trim())
}

/// `00000010 <name>:`, but not the marks between code and data within a function, `<$t>` and `<$d>`.
fn header(line: &str) -> Option<&str> {
    let (address, name) = line.split_once(" <")?;
    let name = name.strip_suffix(">:").filter(|name| !name.starts_with('$'))?;
    address.bytes().all(|b| b.is_ascii_hexdigit()).then_some(name)
}

/// Whether an instruction is arithmetic of a floating-point unit: moving its registers is not.
fn computes_with_floats(mnemonic: &str) -> bool {
    let moves = ["vldr", "vstr", "vldm", "vstm", "vmov", "vpush", "vpop", "vmrs", "vmsr"];
    mnemonic.starts_with('v') && !moves.iter().any(|name| mnemonic.starts_with(name))
}

/// Reads the output of `llvm-readelf --stack-sizes`: lines of a size and a name.
fn stack_sizes(listing: &str) -> Vec<(String, u64)> {
    let lines = listing.lines().filter_map(|line| {
        let (size, name) = line.trim().split_once(char::is_whitespace)?;
        Some((name.trim().to_owned(), size.parse().ok()?))
    });
    lines.collect()
}

fn is_root(name: &str) -> bool {
    ROOTS.iter().any(|root| name.contains(root)) && !NOT_ROOTS.iter().any(|not| name.contains(not))
}

/// Why a function that is called is refused, if it is.
fn refused(name: &str) -> Option<&'static str> {
    let helper = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.chars().next());
    if name.contains("panic")
        || name.contains("slice_index")
        || name.contains("_fail")
        || name.contains("unwrap_failed")
    {
        Some(PANICS)
    } else if matches!(helper("__aeabi_"), Some('f' | 'd')) && !name.starts_with("__aeabi_div0")
        || name.starts_with("__") && FLOAT_ENDS.iter().any(|end| name.ends_with(end))
    {
        Some(FLOATS)
    } else {
        None
    }
}

/// Checks everything that the step reaches.
fn judge(functions: &Functions, kernels: &str) -> Result<Found> {
    let mut walk = Walk::new(functions);
    for root in functions.keys().filter(|name| is_root(name)) {
        walk.depth(root)?;
    }
    let depths = walk.depths;
    for needed in [STEP, kernels] {
        if !depths.keys().any(|name| name.contains(needed)) {
            return Err(Error::new(format!(
                "nothing of {needed} is in the object: the check looks at nothing"
            )));
        }
    }
    // A team of one is not called: the closures that it would get are called by the step, and counted there. Through a pointer it calls
    // a kernel or the source.
    let deepest = |part: &str| {
        let of_part = depths.iter().filter(|(name, _)| name.contains(part)).map(|(_, depth)| *depth);
        of_part.max().unwrap_or(0)
    };
    let behind = deepest("kernels::fixed::").max(deepest("SliceSource")).max(deepest("share::Solo"));
    let stack = deepest(STEP) + behind;
    if stack > STACK {
        return Err(Error::new(format!(
            "the fixed path's step takes {stack} bytes of stack; {STACK} are allowed"
        )));
    }
    Ok(Found { reached: depths.len(), stack })
}

/// Follows calls.
struct Walk<'f> {
    functions: &'f Functions,
    /// The functions that are being followed, each called by the one before.
    path: Vec<&'f str>,
    /// The stack of each function that was followed, and of what it calls.
    depths: BTreeMap<&'f str, u64>,
}

impl<'f> Walk<'f> {
    fn new(functions: &'f Functions) -> Self {
        Self { functions, path: Vec::new(), depths: BTreeMap::new() }
    }

    fn error(&self, what: String) -> Error {
        let callers = self.path.iter().rev().map(|name| format!("\n    from {name}"));
        Error::new(format!("{what}{}", callers.collect::<String>()))
    }

    /// The stack of `name` and of what it calls, if nothing there is refused.
    fn depth(&mut self, name: &'f str) -> Result<u64> {
        if let Some(depth) = self.depths.get(name) {
            return Ok(*depth);
        }
        if name.contains(TEAM_OF_SEVERAL) {
            return Ok(0);
        }
        if self.path.contains(&name) {
            return Err(self.error(format!("{name} {RECURSION}")));
        }
        if let Some(why) = refused(name) {
            return Err(self.error(format!("{name} {why}")));
        }
        let Some(function) = self.functions.get(name) else {
            if HELPERS.iter().any(|helper| name.starts_with(helper)) {
                return Ok(HELPER_STACK);
            }
            return Err(self.error(format!("{name} is not in the object: what it does can't be seen")));
        };
        if let Some(float) = &function.float {
            return Err(self.error(format!("{name} {FLOATS}: {float}")));
        }
        if function.unread {
            return Err(self.error(format!("{name} has an instruction that the disassembler does not know")));
        }
        if function.indirect && !DYN.iter().any(|part| name.contains(part)) {
            return Err(self.error(format!("{name} calls through a pointer: what it calls can't be seen")));
        }
        let own = function.stack.ok_or_else(|| self.error(format!("the stack of {name} is not known")))?;
        self.path.push(name);
        let mut below = 0;
        for call in &function.calls {
            below = below.max(self.depth(call)?);
        }
        self.path.pop();
        self.depths.insert(name, own + below);
        Ok(own + below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNELS: &str = "elapid_core::kernels::fixed::scalar";
    const KERNEL: &str = "elapid_core::kernels::fixed::scalar::matmul";

    /// The step calls `called` and has `instruction`, after data; a helper has `tail`.
    fn listing(called: &str, instruction: &str, tail: &str) -> Functions {
        let mut functions = disassembled(&format!(
            "00000000 <{STEP}>:\n       0:      \tpush\t{{r7, lr}}\n       2:      \t.word\t0x00000000\n\n\
             00000006 <$t>:\n       6:      \tbl\t0x6 <x>\t@ imm = #-4\n\
             \t\t\t00000006:  R_ARM_THM_CALL\t{called}\n       a:      \t{instruction}\n\n\
             00000000 <{KERNEL}>:\n       0:      \tbx\tlr\n\n00000000 <helper>:\n       0:      \t{tail}\n"
        ));
        for (name, size) in stack_sizes(&format!(
            "Stack Sizes:\n   Size     Functions\n   8     {STEP}\n   0     {KERNEL}\n   16     helper\n"
        )) {
            functions.get_mut(&name).unwrap().stack = Some(size);
        }
        functions
    }

    fn error(called: &str, instruction: &str, tail: &str) -> String {
        judge(&listing(called, instruction, tail), KERNELS).unwrap_err().to_string()
    }

    #[test]
    fn calls_and_pointers_are_read() {
        let functions = listing("helper", "blx\tr3", "bx\tlr");
        assert_eq!(functions.len(), 3, "{functions:?}");
        assert_eq!(functions[STEP].calls, BTreeSet::from(["helper".to_owned()]));
        assert!(functions[STEP].indirect && !functions[KERNEL].indirect);
        let found = judge(&functions, KERNELS).unwrap();
        assert_eq!((found.reached, found.stack), (3, 24));
    }

    #[test]
    fn what_is_forbidden_is_found() {
        let nop = "nop";
        assert!(error("__aeabi_fmul", nop, nop).contains("__aeabi_fmul computes with floats"));
        assert!(error("__addsf3", nop, nop).contains("computes with floats"));
        assert!(error("core::panicking::panic_bounds_check", nop, nop).contains("can panic"));
        assert!(error("memcpy", "vadd.f32\ts0, s0, s1", nop).contains("vadd.f32 s0, s0, s1"));
        assert!(error("helper", nop, "vadd.f32\ts0, s0, s1").contains("helper computes with floats"));
        assert!(error("somewhere::else", nop, nop).contains("not in the object"));
        assert!(error("helper", nop, "blx\tr3").contains("helper calls through a pointer"));
        assert!(error("helper", nop, "<unknown>").contains("helper has an instruction"));
        assert!(judge(&listing("__aeabi_uldivmod", "vldr\ts0, [sp]", nop), KERNELS).is_ok());
    }

    #[test]
    fn recursion_is_found() {
        // By a call that the assembler completes, by one that the linker does, and by way of others.
        let itself = "bl\t0x0 <helper> @ imm = #-4";
        assert!(error("helper", "nop", itself).contains("helper calls itself"));
        let jump = "b.w\t0x0 <x>\n\t\t\t00000000:  R_ARM_THM_JUMP24\thelper";
        assert!(error("helper", "nop", jump).contains("helper calls itself"));
        let back = jump.replace("helper", STEP);
        assert!(error("helper", "nop", &back).contains("calls itself\n    from helper"));
    }

    #[test]
    fn too_deep_a_stack_is_found() {
        let mut functions = listing("memcpy", "nop", "nop");
        functions.get_mut(STEP).unwrap().stack = Some(4000);
        functions.get_mut(KERNEL).unwrap().stack = Some(96);
        assert!(error_of(&functions).contains("4160 bytes"), "{}", error_of(&functions));
        functions.get_mut(KERNEL).unwrap().stack = None;
        assert!(error_of(&functions).contains("is not known"));
    }

    fn error_of(functions: &Functions) -> String {
        judge(functions, KERNELS).unwrap_err().to_string()
    }

    #[test]
    fn an_object_without_examples_is_refused() {
        let functions = listing("memcpy", "nop", "bl\t0x0 <helper> @ imm = #-4");
        assert!(
            canaries(&functions).unwrap_err().to_string().contains("nothing in the object that computes")
        );
    }

    #[test]
    fn an_object_without_the_step_is_no_success() {
        assert!(judge(&disassembled("00000000 <other>:\n   0:      \tbx\tlr\n"), KERNELS).is_err());
        let other = judge(&listing("memcpy", "nop", "nop"), "elapid_core::kernels::fixed::arm::token::Dsp");
        assert!(other.unwrap_err().to_string().contains("looks at nothing"));
    }
}
