//! What the fixed path is made of once it is compiled: no floating point, no panic, no recursion, a stack of known size.
//!
//! `core` is compiled for the target as one object, with the compiler's own stack sizes, and disassembled. From the functions
//! of the step, and those that it reaches through a `dyn` (kernels, the source, the team), calls are followed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::toolchain::Toolchain;

/// Bytes of stack that a step may take.
const STACK: u64 = 4096;

/// Parts of the names of the functions that the check begins at.
const ROOTS: &[&str] = &[
    // What is shared out among cores is a closure of the step, and has its name.
    "elapid_core::fixed::step::",
    "elapid_core::fixed::kernels::",
    "elapid_core::source::SliceSource",
    "elapid_core::kernels::share::Solo",
];
/// The same of the float path, which must not pass.
const FLOAT_ROOTS: &[&str] = &["elapid_core::kernels::scalar::", "elapid_core::kernels::elementwise::"];
/// Parts of names that are no part of the step though they match: finding kernels, formatting.
const NOT_ROOTS: [&str; 4] = ["for_each_available", "fixed::kernels::detect", "::fmt", "SliceSource>::new"];

/// Ends of the names of the compiler's helpers for floats.
const FLOAT_ENDS: [&str; 8] = ["sf2", "sf3", "df2", "df3", "sfsi", "dfsi", "sisf", "sidf"];

/// One compiled function.
#[derive(Debug, Default)]
struct Function {
    calls: BTreeSet<String>,
    /// Whether it calls through a pointer.
    indirect: bool,
    /// Its first instruction that computes with floats.
    float: Option<String>,
    stack: u64,
}

type Functions = BTreeMap<String, Function>;

/// Compiles `core` for `target` and checks its fixed path.
pub fn check(toolchain: Toolchain, target: &str, rustflags: &str) -> Result<()> {
    let flags = format!("{rustflags} -Zemit-stack-sizes").trim().to_owned();
    let mut build = toolchain.cargo_for("rustc", target, &flags, "core");
    build.args(["-p", "elapid-core", "--no-default-features", "--release", "--target-dir"]);
    let folder = toolchain.target_dir().join("integers");
    build.arg(&folder).args(["--", "--emit=obj", "-Ccodegen-units=1"]);
    // An object of machine code, not of what a linker would compile.
    build.env("CARGO_PROFILE_RELEASE_LTO", "off").env("RUSTC_BOOTSTRAP", "1");
    must(&mut build)?;
    let functions = read(&newest_object(&folder.join(target).join("release/deps"))?)?;
    // The canary: in the same object, the float path computes with floats.
    let float = functions.keys().filter(|name| is_root(name, FLOAT_ROOTS)).any(|root| {
        let walked = depth(&functions, root, &mut Vec::new(), &mut BTreeMap::new());
        walked.is_err_and(|error| error.to_string().contains("computes with floats"))
    });
    if !float {
        return Err(Error::new("the check is broken: it finds no floats in the float path"));
    }
    let found = judge(&functions)?;
    println!(
        "{target}: {} functions in the fixed path's step, {} bytes of stack at most",
        found.reached, found.stack
    );
    Ok(())
}

/// What the step came to.
#[derive(Debug)]
struct Found {
    reached: usize,
    stack: u64,
}

fn newest_object(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
    let objects = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        let ours = name.starts_with("elapid_core-") && name.ends_with(".o");
        ours.then(|| Some((path.metadata().ok()?.modified().ok()?, path)))?
    });
    let newest = objects.max().map(|(_, path)| path);
    newest.ok_or_else(|| Error::new(format!("no object of elapid-core in {}", folder.display())))
}

fn read(object: &Path) -> Result<Functions> {
    let mut disassembly = Command::new("llvm-objdump");
    let listing = capture(disassembly.args(["-d", "-r", "--no-show-raw-insn", "--demangle"]).arg(object))?;
    let sizes = capture(Command::new("llvm-readelf").args(["--stack-sizes", "--demangle"]).arg(object))?;
    let mut functions = disassembled(&listing);
    if functions.is_empty() {
        return Err(Error::new(format!("no function could be read from {}", object.display())));
    }
    for (name, size) in stack_sizes(&sizes) {
        functions.entry(name).or_default().stack = size;
    }
    Ok(functions)
}

/// Reads the output of `llvm-objdump -d -r --demangle`.
fn disassembled(listing: &str) -> Functions {
    let mut functions = Functions::new();
    let mut current = None;
    for line in listing.lines() {
        if let Some(name) = header(line) {
            current = Some(name.to_owned());
            functions.entry(name.to_owned()).or_default();
            continue;
        }
        let Some(function) = current.as_ref().and_then(|name| functions.get_mut(name)) else { continue };
        if let Some((_, symbol)) =
            line.split_once("R_ARM_THM_CALL").or_else(|| line.split_once("R_ARM_THM_JUMP24"))
        {
            function.calls.insert(symbol.trim().to_owned());
            continue;
        }
        let Some((_, instruction)) = line.split_once(":\t") else { continue };
        let instruction = instruction.trim().replace('\t', " ");
        let (mnemonic, operands) = instruction.split_once(' ').unwrap_or((&instruction, ""));
        if mnemonic.starts_with("blx") || (mnemonic.starts_with("bx") && !operands.starts_with("lr")) {
            function.indirect = true;
        }
        if computes_with_floats(mnemonic) && function.float.is_none() {
            function.float = Some(instruction.clone());
        }
    }
    functions
}

/// `00000010 <name>:`.
fn header(line: &str) -> Option<&str> {
    let (address, name) = line.split_once(" <")?;
    let name = name.strip_suffix(">:")?;
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

fn is_root(name: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| name.contains(root)) && !NOT_ROOTS.iter().any(|not| name.contains(not))
}

/// Why a function that is called is refused, if it is.
fn refused(name: &str) -> Option<&'static str> {
    let helper = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.chars().next());
    if name.contains("panic")
        || name.contains("slice_index")
        || name.contains("_fail")
        || name.contains("unwrap_failed")
    {
        Some("can panic")
    } else if matches!(helper("__aeabi_"), Some('f' | 'd')) && !name.starts_with("__aeabi_div0")
        || name.starts_with("__") && FLOAT_ENDS.iter().any(|end| name.ends_with(end))
    {
        Some("computes with floats")
    } else {
        None
    }
}

/// The stack of everything that is reached from `roots`, if nothing of it is refused.
fn walk<'f>(functions: &'f Functions, roots: &[&str]) -> Result<BTreeMap<&'f str, u64>> {
    let mut depths = BTreeMap::new();
    for root in functions.keys().filter(|name| is_root(name, roots)) {
        depth(functions, root, &mut Vec::new(), &mut depths)?;
    }
    Ok(depths)
}

/// Checks everything that the step reaches.
fn judge(functions: &Functions) -> Result<Found> {
    let depths = walk(functions, ROOTS)?;
    for needed in ["fixed::step::Model", "fixed::kernels"] {
        if !depths.keys().any(|name| name.contains(needed)) {
            return Err(Error::new(format!(
                "nothing of {needed} is in the object: the check looks at nothing"
            )));
        }
    }
    // Through a pointer the step calls the team, the team a closure of the step, and that a kernel: each once.
    let deepest = |part: &str| {
        let of_part = depths.iter().filter(|(name, _)| name.contains(part)).map(|(_, depth)| *depth);
        of_part.max().unwrap_or(0)
    };
    let closures = depths.iter().filter(|(name, _)| name.contains("{closure") || name.contains("{{closure"));
    let closures = closures.map(|(_, depth)| *depth).max().unwrap_or(0);
    let stack = deepest("fixed::step::Model")
        + deepest("kernels::share::")
        + closures
        + deepest("fixed::kernels").max(deepest("SliceSource"));
    if stack > STACK {
        return Err(Error::new(format!(
            "the fixed path's step takes {stack} bytes of stack; {STACK} are allowed"
        )));
    }
    Ok(Found { reached: depths.len(), stack })
}

/// The stack of `name` and of what it calls, if nothing there is refused.
fn depth<'f>(
    functions: &'f Functions,
    name: &'f str,
    path: &mut Vec<&'f str>,
    depths: &mut BTreeMap<&'f str, u64>,
) -> Result<u64> {
    if let Some(depth) = depths.get(name) {
        return Ok(*depth);
    }
    let from = |path: &[&str]| path.iter().map(|name| format!("\n    from {name}")).rev().collect::<String>();
    if path.contains(&name) {
        return Err(Error::new(format!("{name} calls itself{}", from(path))));
    }
    if let Some(why) = refused(name) {
        return Err(Error::new(format!("{name} {why}{}", from(path))));
    }
    // What is not in the object (memcpy, division) takes little stack and calls nothing.
    let Some(function) = functions.get(name) else { return Ok(64) };
    if let Some(float) = &function.float {
        return Err(Error::new(format!("{name} computes with floats: {float}{}", from(path))));
    }
    path.push(name);
    let mut below = 0;
    for call in &function.calls {
        below = below.max(depth(functions, call, path, depths)?);
    }
    path.pop();
    depths.insert(name, function.stack + below);
    Ok(function.stack + below)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: &str = "elapid_core::fixed::step::Model::forward";
    const KERNEL: &str = "elapid_core::fixed::kernels::scalar::matmul";

    fn listing(calls: &str, instruction: &str) -> Functions {
        disassembled(&format!(
            "00000000 <{STEP}>:\n       0:\tpush\t{{r7, lr}}\n       2:\tbl\t0x2 <x>\t@ imm = #-4\n\
             \t\t\t00000002:  R_ARM_THM_CALL\t{calls}\n       6:\t{instruction}\n\n\
             00000000 <{KERNEL}>:\n       0:\tbx\tlr\n\n00000000 <helper>:\n       0:\tb.w\t0x0\n\
             \t\t\t00000000:  R_ARM_THM_JUMP24\thelper\n"
        ))
    }

    #[test]
    fn calls_and_pointers_are_read() {
        let functions = listing("memcpy", "blx\tr3");
        assert_eq!(functions[STEP].calls, BTreeSet::from(["memcpy".to_owned()]));
        assert!(functions[STEP].indirect && !functions[KERNEL].indirect);
        assert_eq!(judge(&functions).unwrap().reached, 2);
    }

    #[test]
    fn what_is_forbidden_is_found() {
        let error =
            |calls: &str, instruction: &str| judge(&listing(calls, instruction)).unwrap_err().to_string();
        assert!(error("__aeabi_fmul", "nop").contains("__aeabi_fmul computes with floats"));
        assert!(error("__addsf3", "nop").contains("computes with floats"));
        assert!(error("core::panicking::panic_bounds_check", "nop").contains("can panic"));
        assert!(error("memcpy", "vadd.f32\ts0, s0, s1").contains("vadd.f32 s0, s0, s1"));
        assert!(error("helper", "nop").contains("helper calls itself"));
        assert!(judge(&listing("__aeabi_uldivmod", "vldr\ts0, [sp]")).is_ok());
    }

    #[test]
    fn too_deep_a_stack_is_found() {
        let mut functions = listing("memcpy", "nop");
        for (name, size) in stack_sizes(&format!(
            "Stack Sizes:\n   Size     Functions\n   4000     {STEP}\n     96     {KERNEL}\n"
        )) {
            functions.get_mut(&name).unwrap().stack = size;
        }
        assert!(judge(&functions).unwrap_err().to_string().contains("4160 bytes"), "{:?}", judge(&functions));
    }

    #[test]
    fn an_object_without_the_step_is_no_success() {
        assert!(judge(&disassembled("00000000 <other>:\n   0:\tbx\tlr\n")).is_err());
    }
}
