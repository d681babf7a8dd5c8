//! Hands the linker the board's memory layout.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        println!("cargo:rustc-link-arg-bins=-T{here}/kernel8.ld");
    }
    println!("cargo:rerun-if-changed=kernel8.ld");
}
