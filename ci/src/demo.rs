//! `cargo ci demo` and `cargo ci bench`.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    run::Cmd,
    testing::{STARTED_PROGRAMS, build_optimized, build_programs},
};

/// Arguments of the demo.
#[derive(Debug, Default, Args)]
pub(crate) struct Demo {
    /// File system, or raw block; by default ext4 if a mounted ext4 can be grown here, else xfs
    #[arg(long, value_enum)]
    fs: Option<Filesystem>,
    /// Leave everything in place for inspection
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Filesystem {
    Ext4,
    Xfs,
    Btrfs,
    Block,
}

/// Runs the demo.
///
/// # Errors
/// When something is missing, or the demo fails.
pub(crate) fn demo(context: &Context, demo: &Demo) -> Result<()> {
    doctor::ready(context, Layer::Demo)?;
    build_programs(context)?;
    let program = context.target.join("debug/demo");
    let cmd = Cmd::new(context, &program.to_string_lossy()).interactive();
    cmd.args(&demo.arguments()).run()
}

impl Demo {
    fn arguments(&self) -> Vec<String> {
        let name = self
            .fs
            .and_then(|fs| Some(fs.to_possible_value()?.get_name().to_owned()));
        let fs = name
            .map(|name| ["--fs".to_owned(), name])
            .into_iter()
            .flatten();
        fs.chain(self.keep.then(|| "--keep".to_owned())).collect()
    }
}

/// Arguments of the benchmarks.
#[derive(Debug, Default, Args)]
pub(crate) struct Bench {
    /// The benchmark: all, costs, growth, or a part of growth (calls, start, memory, burst, list, soak); all by default
    part: Option<String>,
    /// Small numbers and short waits, as in `cargo ci all`
    #[arg(long)]
    sample: bool,
    /// Passed to the program itself: see `cargo ci bench -- --help`
    #[arg(last = true)]
    more: Vec<String>,
}

/// Runs the benchmarks on optimized programs.
///
/// # Errors
/// When something is missing, or a benchmark fails.
pub(crate) fn bench(context: &Context, bench: &Bench) -> Result<()> {
    doctor::ready(context, Layer::Bench)?;
    build_optimized(
        context,
        &[STARTED_PROGRAMS.as_slice(), &["bench", "model"]].concat(),
    )?;
    let program = context.target.join("release/bench");
    let cmd = Cmd::new(context, &program.to_string_lossy());
    cmd.args(&bench.arguments()).run()
}

impl Bench {
    fn arguments(&self) -> Vec<String> {
        let sample = self.sample.then(|| "--sample".to_owned());
        let own = self.part.iter().cloned().chain(sample);
        own.chain(self.more.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_passed_on() {
        assert!(Demo::default().arguments().is_empty());
        let demo = Demo {
            fs: Some(Filesystem::Btrfs),
            keep: true,
        };
        assert_eq!(demo.arguments(), ["--fs", "btrfs", "--keep"]);
        assert!(Bench::default().arguments().is_empty());
        let bench = Bench {
            part: Some("soak".to_owned()),
            sample: true,
            more: vec!["--lives".to_owned(), "9".to_owned()],
        };
        assert_eq!(bench.arguments(), ["soak", "--sample", "--lives", "9"]);
    }
}
