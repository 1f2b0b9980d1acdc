//! Waits until its standard input closes, then cleans up the test cluster in the folder given as argument. See
//! `e2e::harness::janitor`.

use std::io::Read as _;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or_default());
    anyhow::ensure!(
        folder.is_absolute(),
        "pass the absolute path of a test cluster's folder"
    );
    // However the wait ended, the test cluster is no longer used.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    e2e::harness::janitor::clean(&folder)
}
