//! `cargo demo`: one volume's life cycle, printed in under 30 lines. Every figure is measured; the exit status is 0 only if
//! all checks succeeded.

#![expect(
    clippy::print_stdout,
    reason = "the output is the purpose of this program"
)]

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::{Table, presets};
use e2e::GIB;
use e2e::harness::call_costs::CallCosts;
use e2e::harness::skip::can_grow_mounted_ext4;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::tools::{device_bytes, fill, fs_bytes, sha256};
use indicatif::{ProgressBar, ProgressStyle};

/// A LUN is created on a simulated Synology NAS, attached, formatted, mounted, written and grown from 10 to 15 GiB.
#[derive(Parser)]
#[command(name = "demo", bin_name = "cargo demo")]
struct Args {
    /// File system of the volume; default: ext4 if a mounted ext4 can grow on this machine, else xfs
    #[arg(long, value_enum)]
    fs: Option<Fs>,
    /// Leave everything running at the end, for inspection
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Fs {
    Ext4,
    Xfs,
    Btrfs,
    Block,
}

impl Fs {
    fn content(self) -> Content {
        match self {
            Self::Ext4 => Content::Fs("ext4"),
            Self::Xfs => Content::Fs("xfs"),
            Self::Btrfs => Content::Fs("btrfs"),
            Self::Block => Content::Block,
        }
    }
}

const BEFORE: i64 = 10 * GIB;
const AFTER: i64 = 15 * GIB;
const WRITTEN: u64 = 64 << 20;
const NO_EXT4: &str = "a mounted ext4 cannot be grown here: the kernel asks for CAP_SYS_RESOURCE, which this process lacks";

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loop devices and mounts need root; type: sudo -E env PATH=\"$PATH\" cargo demo"
    );
    let content = choose(args.fs)?;
    let mut reporter = Reporter::new();
    let cluster = reporter
        .during("starting NAS, node and driver", Plan::with_node().start())
        .await?;
    reporter.say(
        "NAS",
        &format!("dsm-sim answers as DSM 7 at {}", cluster.nas.api),
    );
    let mut volume = story(&cluster, content, &mut reporter).await?;
    if args.keep {
        look_around(&cluster, &volume)?;
        return cluster.keep();
    }
    remove(&cluster, &mut volume, &mut reporter).await?;
    println!(
        "\nWhat each CSI call cost the NAS (calls joined by + share one request):\n{}",
        costs(&reporter.call_costs)
    );
    Ok(())
}

fn choose(requested: Option<Fs>) -> Result<Content> {
    match requested {
        Some(Fs::Ext4) if !can_grow_mounted_ext4() => {
            anyhow::bail!("{NO_EXT4}; type: cargo demo --fs xfs")
        }
        Some(fs) => Ok(fs.content()),
        None if can_grow_mounted_ext4() => Ok(Content::Fs("ext4")),
        None => {
            println!("xfs instead of ext4: {NO_EXT4}.");
            Ok(Content::Fs("xfs"))
        }
    }
}

async fn story(
    cluster: &TestCluster,
    content: Content,
    reporter: &mut Reporter,
) -> Result<TestVolume> {
    let nas = &cluster.nas;
    let created = reporter
        .call(
            cluster,
            "CreateVolume",
            TestVolume::create(cluster, "pvc-demo", BEFORE, content),
        )
        .await?;
    let mut volume = created;
    let luns = nas.luns().await?;
    let lun = luns
        .iter()
        .find(|lun| lun["uuid"] == volume.uuid())
        .context("the NAS has no such LUN")?;
    ensure!(lun["size"] == BEFORE, "the LUN has size {}", lun["size"]);
    reporter.say(
        "create",
        &format!(
            "LUN {} on {}, {}",
            volume.uuid(),
            lun["location"].as_str().unwrap_or("?"),
            gib(BEFORE)
        ),
    );

    reporter
        .call(cluster, "ControllerPublishVolume", volume.publish(cluster))
        .await?;
    let iqn = volume.publish_context.get("iqn").context("no iqn")?.clone();
    reporter.say(
        "publish",
        &format!(
            "target …{} exports it as LUN {}",
            &iqn[iqn.len().saturating_sub(30)..],
            volume.publish_context["lun"]
        ),
    );

    reporter
        .call(cluster, "NodeStageVolume", volume.stage(cluster))
        .await?;
    let device = volume.device(cluster)?;
    let size = device_bytes(&device)?;
    ensure!(
        size == BEFORE.unsigned_abs(),
        "{} has {size} bytes",
        device.display()
    );
    let staged = match content {
        Content::Fs(name) => format!("mkfs.{name}, mounted"),
        Content::Block => "left raw".to_owned(),
    };
    reporter.say(
        "stage",
        &format!(
            "login, {} appears ({}), {staged}",
            device.display(),
            gib(size.cast_signed())
        ),
    );

    reporter
        .call(cluster, "NodePublishVolume", volume.node_publish(cluster))
        .await?;
    let file = volume.file("data");
    let written = reporter
        .during("writing 64 MiB", async { fill(&file, WRITTEN, 1) })
        .await?;
    reporter.say("write", &format!("64 MiB, SHA-256 {}…", &written[..16]));
    grow(cluster, &volume, &device, reporter).await?;
    let read = reporter
        .during("reading 64 MiB", async { sha256(&file, WRITTEN) })
        .await?;
    ensure!(
        read == written,
        "the data changed: SHA-256 {read} after, {written} before"
    );
    reporter.say(
        "read",
        &format!(
            "64 MiB, SHA-256 {}…: equal, and the volume was never unmounted",
            &read[..16]
        ),
    );
    Ok(volume)
}

async fn grow(
    cluster: &TestCluster,
    volume: &TestVolume,
    device: &Path,
    reporter: &mut Reporter,
) -> Result<()> {
    let holds = visible_bytes(volume, device)?;
    let returned = reporter
        .call(
            cluster,
            "ControllerExpandVolume",
            volume.expand_lun(cluster, AFTER),
        )
        .await?;
    ensure!(
        returned == AFTER,
        "ControllerExpandVolume answered {returned}"
    );
    reporter.say(
        "expand",
        &format!(
            "on the NAS the LUN grew from {} to {}",
            gib(BEFORE),
            gib(returned)
        ),
    );
    let stale = device_bytes(device)?;
    ensure!(
        stale == BEFORE.unsigned_abs(),
        "{} has {stale} bytes before the rescan",
        device.display()
    );
    reporter.say(
        "",
        &format!(
            "before the rescan {} still has {}",
            device.display(),
            gib(stale.cast_signed())
        ),
    );

    let returned = reporter
        .call(
            cluster,
            "NodeExpandVolume",
            volume.expand_on_node(cluster, AFTER),
        )
        .await?;
    let (fresh, now_holds) = (device_bytes(device)?, visible_bytes(volume, device)?);
    ensure!(
        fresh == AFTER.unsigned_abs(),
        "{} has {fresh} bytes after the rescan",
        device.display()
    );
    let least = AFTER.unsigned_abs() / 100 * 95;
    ensure!(
        now_holds > least.max(holds),
        "it holds {now_holds} bytes, and held {holds} before"
    );
    reporter.say(
        "",
        &format!(
            "after the rescan {} has {}, and NodeExpandVolume answers {}",
            device.display(),
            gib(fresh.cast_signed()),
            gib(returned)
        ),
    );
    if let Content::Fs(name) = volume.content {
        reporter.say(
            "",
            &format!(
                "{name} grew from {} to {} (df), mounted all the while",
                gib(holds.cast_signed()),
                gib(now_holds.cast_signed())
            ),
        );
    }
    Ok(())
}

async fn remove(
    cluster: &TestCluster,
    volume: &mut TestVolume,
    reporter: &mut Reporter,
) -> Result<()> {
    reporter
        .call(
            cluster,
            "NodeUnpublishVolume",
            volume.node_unpublish(cluster),
        )
        .await?;
    reporter
        .call(cluster, "NodeUnstageVolume", volume.unstage(cluster))
        .await?;
    reporter
        .call(
            cluster,
            "ControllerUnpublishVolume",
            volume.unpublish(cluster),
        )
        .await?;
    reporter
        .call(cluster, "DeleteVolume", volume.delete(cluster))
        .await?;
    let leftovers = cluster.leftovers().await?;
    ensure!(
        leftovers.is_empty(),
        "left behind: {}",
        leftovers.join(", ")
    );
    reporter.say(
        "remove",
        "unmounted, logged out, target and LUN deleted: nothing left on NAS or node",
    );
    Ok(())
}

/// What a user of the volume sees: the file system's size, or the size of the raw device.
fn visible_bytes(volume: &TestVolume, device: &Path) -> Result<u64> {
    match volume.content {
        Content::Fs(_) => fs_bytes(&volume.path()),
        Content::Block => device_bytes(device),
    }
}

/// In GiB, with two decimals unless it is a whole number.
fn gib(bytes: i64) -> String {
    if bytes % GIB == 0 {
        return format!("{} GiB", bytes / GIB);
    }
    let hundredths = bytes * 100 / GIB;
    format!("{}.{:02} GiB", hundredths / 100, hundredths % 100)
}

fn costs(call_costs: &CallCosts) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for row in &call_costs.rows {
        table.add_row([
            row.rpc,
            &format!("{} requests", row.requests),
            &row.call_sequence(),
        ]);
    }
    table.trim_fmt()
}

fn look_around(cluster: &TestCluster, volume: &TestVolume) -> Result<()> {
    println!(
        "\nKept. Look at {} ({}), at the driver's log in {},",
        volume.path().display(),
        volume.device(cluster)?.display(),
        cluster.folder().join("driver.log").display()
    );
    println!(
        "at the NAS's journal (curl {}/journal), or talk CSI at unix://{}.",
        cluster.nas.control,
        cluster.plugin.socket.display()
    );
    println!(
        "Remove all of it with:  rm {0}/keep && {1} {0} </dev/null",
        cluster.folder().display(),
        e2e::harness::process::binary("janitor")?.display()
    );
    Ok(())
}

/// Prints the story line by line, with a spinner on a terminal while a step runs.
struct Reporter {
    call_costs: CallCosts,
    spinner: ProgressBar,
}

impl Reporter {
    fn new() -> Self {
        let spinner = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        spinner.set_style(
            ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        Self {
            call_costs: CallCosts::default(),
            spinner,
        }
    }

    fn say(&self, step: &str, text: &str) {
        self.spinner.suspend(|| println!("{step:>8}  {text}"));
    }

    async fn during<T>(
        &self,
        what: &'static str,
        step: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.spinner.reset_elapsed();
        self.spinner.set_message(what);
        self.spinner.enable_steady_tick(Duration::from_millis(120));
        let outcome = step.await.context(what);
        self.spinner.disable_steady_tick();
        self.spinner.set_message("");
        outcome
    }

    async fn call<T>(
        &mut self,
        cluster: &TestCluster,
        rpc: &'static str,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T> {
        let spinner = self.spinner.clone();
        spinner.reset_elapsed();
        spinner.set_message(rpc);
        spinner.enable_steady_tick(Duration::from_millis(120));
        let answer = self.call_costs.call(&cluster.nas, rpc, call).await;
        spinner.disable_steady_tick();
        spinner.set_message("");
        answer
    }
}
