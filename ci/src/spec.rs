//! `cargo ci spec`: compares proto/csi.proto with the CSI specification.

use anyhow::{Context as _, Result};

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    go::Go,
    run::Cmd,
};

/// Compares proto/csi.proto with the specification. First runs the comparison's own tests, which show that it detects every kind
/// of difference.
///
/// # Errors
/// When they differ, Go is missing, or a module cannot be fetched.
pub(crate) fn spec(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Spec)?;
    let go = Go::find(context).context("no Go")?;
    let compare = context.root.join("proto/compare");
    let descriptor = context.target.join("csi.binpb");
    // --workspace, for the same features as everywhere.
    Cmd::new(
        context,
        "cargo build --locked --workspace --example descriptor",
    )
    .run_quietly("Building the compiler of proto/csi.proto")?;
    let program = context.target.join("debug/examples/descriptor");
    Cmd::new(context, &program.to_string_lossy())
        .arg(&descriptor)
        .run_quietly("Compiling proto/csi.proto")?;
    for command in [["vet", "./..."], ["test", "./..."]] {
        let cmd = go.cmd(context)?.current_dir(&compare);
        cmd.args(&command)
            .run_quietly(&format!("go {} proto/compare", command[0]))?;
    }
    let run = go
        .cmd(context)?
        .current_dir(&compare)
        .arg("run")
        .arg("-buildvcs=false")
        .arg(".")
        .arg(&descriptor);
    run.run()
}
