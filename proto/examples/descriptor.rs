//! Writes the descriptor set of `csi.proto` to the file named: what `cargo ci spec` compares with upstream.

use std::{env, error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).ok_or("usage: descriptor FILE")?;
    fs::write(path, proto::FILE_DESCRIPTOR_SET)?;
    Ok(())
}
