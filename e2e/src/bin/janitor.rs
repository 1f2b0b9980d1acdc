//! Waits until its standard input closes, then cleans up the world in the folder that it was given. See `e2e::harness::janitor`.

use std::io::Read as _;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or_default());
    anyhow::ensure!(folder.is_absolute(), "give the folder of a world");
    // Whatever ends the wait, the world is over.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    e2e::harness::janitor::clean(&folder)
}
