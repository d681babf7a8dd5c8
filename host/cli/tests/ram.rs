//! The program under a cap on its memory.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use elapid_pack::checkpoint::{Arch, ModelConfig};

/// A model of random weights, 16 MB in blocks of 64 KiB, on a disk: a folder that goes away with the next clean build.
fn model() -> &'static Path {
    static MODEL: LazyLock<PathBuf> = LazyLock::new(|| {
        let config = ModelConfig {
            arch: Arch::FalconMamba,
            d_model: 256,
            n_layer: 24,
            d_inner: 768,
            d_state: 16,
            d_conv: 4,
            dt_rank: 16,
            vocab_size: 1024,
            norm_eps: 1e-5,
            mixer_rms_eps: Some(1e-6),
            use_bias: false,
            use_conv_bias: true,
            tied: false,
        };
        let options = elapid_pack::Options { block_bytes: 64 << 10, ..Default::default() };
        let plan = elapid_pack::Plan::random(&config, 3, &options).expect("a valid configuration");
        // Another process of this test may make the same file: each renames its own over it.
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ram.elp");
        plan.write(&path, &options, &()).expect("a packed file");
        path
    });
    &MODEL
}

fn elapid(command: &str, args: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_elapid"));
    program.arg(command).arg(model()).args(args).stdin(Stdio::null());
    program
}

fn output(command: &str, args: &[&str]) -> Output {
    elapid(command, args).output().expect("the program starts")
}

#[track_caller]
fn good(command: &str, args: &[&str]) -> String {
    let output = output(command, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*error), (Some(0), ""), "{command} {args:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The least cap in MiB, by the message that names it.
fn least(args: &[&str]) -> u64 {
    refusal("1M", args).0
}

/// The same, and what else helps, where `cap` does not work.
fn refusal(cap: &str, args: &[&str]) -> (u64, String) {
    let output = output("logits", &[&["--tokens", "1", "--ram", cap, "-t", "2"], args].concat());
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let after = error.split("give --ram ").nth(1).unwrap_or_else(|| panic!("{error}"));
    let (mib, rest) = after.split_once('M').unwrap_or_else(|| panic!("{error}"));
    (mib.parse().unwrap_or_else(|_| panic!("{error}")), rest.trim().to_owned())
}

#[test]
fn the_first_message_names_a_cap_that_works() {
    let float = "(--state f16 needs less)";
    for (args, hints) in [
        (&[][..], &["", float][..]),
        (&["--all"], &["", float]),
        (&["--state", "f16"], &[""]),
        (&["--path", "fixed"], &[""]),
        (&["--path", "fixed", "--state", "i32"], &["", "(--state i16 needs less)"]),
    ] {
        let named = refusal("1K", args);
        assert!(hints.contains(&named.1.as_str()), "{args:?}: {}", named.1);
        let cap = format!("{}M", named.0);
        good("logits", &[&["--tokens", "1", "--ram", &cap, "-t", "2"], args].concat());
        for cap in ["4K", "1M", "4M", &format!("{}M", named.0 - 1)] {
            assert_eq!(refusal(cap, args), named, "{args:?} {cap}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_mapped_needs_memory() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sparse.elp");
    fs::File::create(&path).and_then(|file| file.set_len(8 << 30)).expect("a sparse file");
    let output = Command::new("sh")
        .args(["-c", r#"ulimit -v 1000000 && exec "$@""#, "sh", env!("CARGO_BIN_EXE_elapid"), "info"])
        .arg(&path)
        .output()
        .expect("a shell");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("cannot map") && error.contains("--ram"), "{error}");
}

#[test]
fn the_least_that_is_named_works_and_all_caps_give_the_same_bits() {
    for state in ["f32", "f16"] {
        let args = ["--tokens", "1,2,3,4,5,900", "--all", "-t", "2", "--state", state];
        let expected = good("logits", &args);
        let least = least(&["--all", "--state", state]);
        let mut streamed = 0;
        for cap in [least, least + 3, least + 8, 1000] {
            let cap = format!("{cap}M");
            for verify in ["auto", "always", "never"] {
                let under = ["--ram", &cap, "--verify", verify];
                assert!(good("logits", &[&args[..], &under].concat()) == expected, "{cap} {verify} {state}");
            }
            let plan = &json(&good("info", &["--ram", &cap, "--state", state, "--json"]))["plan"];
            streamed += u64::from(plan["mapped"] == false);
        }
        assert!((1..4).contains(&streamed), "some caps stream and some do not: {streamed}");
        assert_eq!(good("logits", &[&args[..], &["--ram", "auto"]].concat()), expected);
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn the_process_stays_within_its_cap() {
    let least = least(&[]);
    for cap in [least, least + 3, least + 8, least + 40] {
        let report =
            good("bench", &["--ram", &format!("{cap}M"), "-t", "2", "-p", "40", "-n", "10", "--json"]);
        let report = json(&report);
        let peak = report["peak_rss_bytes"].as_u64().expect("Linux tells");
        assert!(peak <= cap << 20, "{peak} bytes of {cap} MiB: {report}");
        assert_eq!(report["cap_bytes"].as_u64(), Some(cap << 20));
    }
}

/// The peak is what is resident; this is what is reserved: no more than the cap and the program's own code, libraries and stacks.
#[test]
fn addresses_stay_within_the_cap_and_the_programs_own_size() {
    const OWN_MIB: u64 = 32;
    let args = ["--tokens", "1,2,3", "-t", "2"];
    let expected = good("logits", &args);
    let least = least(&[]);
    for cap in [least, least + 3, least + 8, least + 40] {
        let (limit, cap) = (((cap + OWN_MIB) << 10).to_string(), format!("{cap}M"));
        let output = Command::new("sh")
            .args(["-c", r#"ulimit -v "$0" && exec "$@""#, &limit, env!("CARGO_BIN_EXE_elapid"), "logits"])
            .arg(model())
            .args(args)
            .args(["--ram", &cap])
            .output()
            .expect("a shell");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{cap}: {error}");
        assert!(output.stdout == expected.as_bytes(), "{cap}");
    }
}

/// A control group of this test's own, below its present one; removed at the end.
struct Group(PathBuf);

impl Group {
    /// Where the system lets us make one whose memory is limited, in the first version or the second.
    fn new(limit: u64) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let made = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            let (root, file) = match controllers {
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                "" => ("/sys/fs/cgroup", "memory.max"),
                _ => return None,
            };
            let folder = Path::new(root).join(group).join(format!("elapid-{}-{limit}", std::process::id()));
            fs::create_dir(&folder).ok()?;
            let group = Self(folder);
            fs::write(group.0.join(file), limit.to_string()).ok().map(|()| group)
        });
        made.filter(|group| group.peak().is_some())
    }

    /// The most that was charged so far.
    fn peak(&self) -> Option<u64> {
        let files = ["memory.max_usage_in_bytes", "memory.peak"];
        files.iter().find_map(|file| fs::read_to_string(self.0.join(file)).ok()?.trim().parse().ok())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_control_group_is_not_charged_more_than_the_cap() {
    let least = least(&[]);
    for cap in [least, least + 8] {
        let Some(group) = Group::new(cap << 20) else {
            println!("skipped: no control group can be made here");
            return;
        };
        let script = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        let args = ["-c", script, group.0.to_str().expect("text"), env!("CARGO_BIN_EXE_elapid"), "bench"];
        let ram = format!("{cap}M");
        let output = Command::new("sh")
            .args(args)
            .arg(model())
            .args(["--ram", &ram, "-t", "2", "-p", "40", "-n", "10"])
            .output()
            .expect("a shell");
        assert!(output.status.success(), "{cap}: {}", String::from_utf8_lossy(&output.stderr));
        let peak = group.peak().expect("it told before");
        assert!((1 << 20..=cap << 20).contains(&peak), "{peak} bytes of {cap} MiB");
    }
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_behind() {
    let before = fs::read(model()).expect("the model");
    let cap = format!("{}M", least(&[]));
    for round in 0..12u64 {
        let args = ["--ram", &cap, "-n", "1000000", "-p", "1"];
        let mut child = elapid("bench", &args).stdout(Stdio::null()).spawn().expect("the program starts");
        std::thread::sleep(Duration::from_millis(3 * round * round));
        child.kill().expect("it runs");
        child.wait().expect("it ended");
    }
    assert!(fs::read(model()).expect("the model") == before);
    let args = ["--tokens", "1,2,3"];
    assert_eq!(good("logits", &[&args[..], &["--ram", &cap]].concat()), good("logits", &args));
}

#[test]
fn what_makes_no_sense_is_said() {
    let refused = |command: &str, args: &[&str], code, says: &str| {
        let output = output(command, args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(says) && error.lines().count() == 1, "{error}");
    };
    refused("info", &["--ram", "much"], 2, "512M");
    refused("info", &["--ram", "0"], 2, "512M");
    refused("info", &["--ram", "-5M"], 2, "512M");
    refused("info", &["--ram", "3 apples"], 2, "512M");
    refused("info", &["--ram", "1K"], 4, "give --ram");
    refused("verify", &["--ram", "100M"], 2, "leave out --ram");
    refused("info", &["--ram", "2M"], 4, "give --ram");
}
