//! `elapid serve` with the clients that people have: packages of Python, see `tests/server/clients.py`.

use std::path::Path;
use std::process::Command;

use elapid_test_support::effort;

mod support;

#[test]
fn packages_of_python_use_the_server() {
    let python =
        std::env::var_os("ELAPID_PYTHON").expect("ELAPID_PYTHON names an interpreter that has the packages");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/server/clients.py");
    let server = support::Serving::start(&[]);
    let schemas = if effort::full() { "10000" } else { "200" };
    let status = Command::new(python).arg(script).args([server.address.as_str(), schemas]).status();
    assert!(status.expect("python starts").success());
}
