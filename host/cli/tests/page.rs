//! The page of `elapid serve` in headless Chromium, see `host/server/tests/page.py`.

use std::path::Path;
use std::process::Command;

mod support;

#[test]
fn a_browser_uses_the_page() {
    let python =
        std::env::var_os("ELAPID_PYTHON").expect("ELAPID_PYTHON names an interpreter that has playwright");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/tests/page.py");
    let chromium = Path::new("/usr/bin/chromium");
    assert!(chromium.exists(), "Chromium is not in {}", chromium.display());
    let server = support::Serving::start(&[]);
    let status = Command::new(python).arg(script).arg(format!("{}/", server.address)).arg(chromium).status();
    assert!(status.expect("python starts").success());
}
