//! The web page at the control port in a browser: what it shows, and that its controls work.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::harness::nas::{Nas, Settings};
use e2e::harness::process::Process;
use e2e::harness::skip::skip;
use e2e::harness::until::until;
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::json;

const LUN: &str = "SYNO.Core.ISCSI.LUN";
const LISTENS: &str = "started successfully on port ";
/// A page that executed it would have another title.
const HOSTILE: &str = "<script>document.title='owned'</script><b>&\"'";

/// A headless browser and its WebDriver program.
struct Browser {
    client: Client,
    // Dropped after the client; ends the browser, too.
    _driver: Process,
}

impl Browser {
    async fn start(folder: &Path) -> Result<Self> {
        let log = folder.join("chromedriver.log");
        // Files that Chromium writes outside its profile, such as crash reports, stay in the folder, too.
        let config = format!("XDG_CONFIG_HOME={}", folder.display());
        let driver = Process::tool("env", [&config, "chromedriver", "--port=0"], &log)?;
        let output = until(
            "chromedriver listens",
            async || Ok(std::fs::read_to_string(&log)?),
            |output| output.contains(LISTENS),
        );
        let output = output.await?;
        let port = output
            .split(LISTENS)
            .nth(1)
            .and_then(|rest| rest.split('.').next());
        let url = format!("http://127.0.0.1:{}", port.context("chromedriver's port")?);
        let profile = folder.join("profile");
        // As root or in a container Chromium has no sandbox; it only loads our page.
        let options = json!({"goog:chromeOptions": {"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1600",
            format!("--user-data-dir={}", profile.display()),
        ]}});
        let capabilities = options.as_object().cloned().context("an object")?;
        let mut builder =
            ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&url).await?;
        Ok(Self {
            client,
            _driver: driver,
        })
    }

    /// The text of the selected element, once it contains `want`.
    async fn shows(&self, selector: &str, want: &str) -> Result<String> {
        until(
            &format!("{selector} shows {want}"),
            async || self.text(selector).await,
            |text| text.contains(want),
        )
        .await
    }

    async fn text(&self, selector: &str) -> Result<String> {
        let element = self.client.find(Locator::Css(selector)).await?;
        // The page may be replacing the element at this moment.
        Ok(element.text().await.unwrap_or_default())
    }

    async fn fill(&self, selector: &str, text: &str) -> Result<()> {
        let element = self.client.find(Locator::Css(selector)).await?;
        element.clear().await?;
        Ok(element.send_keys(text).await?)
    }

    /// Clicks an element that the page may replace at any moment.
    async fn click(&self, selector: &str) -> Result<()> {
        until(
            &format!("{selector} is clicked"),
            async || {
                let element = self.client.find(Locator::Css(selector)).await?;
                Ok(element.click().await.is_ok())
            },
            |clicked| *clicked,
        )
        .await
        .map(drop)
    }
}

async fn create_objects(nas: &Nas) -> Result<String> {
    let session = nas.session().await?;
    let uuid = session.call(
        LUN,
        "create",
        &[
            ("name", "pvc-1"),
            ("type", "BLUN"),
            ("location", "/volume1"),
            ("size", "1073741824"),
            ("description", HOSTILE),
        ],
    );
    let uuid = uuid.await?["uuid"].as_str().context("uuid")?.to_owned();
    let target = [("name", "t-1"), ("iqn", "iqn.2000-01.com.synology:t-1")];
    session
        .call("SYNO.Core.ISCSI.Target", "create", &target)
        .await?;
    session
        .call(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")])
        .await?;
    let take = [("src_lun_uuid", &*uuid), ("snapshot_name", HOSTILE)];
    session.call(LUN, "take_snapshot", &take).await?;
    Ok(uuid)
}

#[tokio::test(flavor = "multi_thread")]
async fn outsider_chromium_sees_the_nas_and_turns_its_knobs() -> Result<()> {
    if e2e::harness::process::run("chromedriver", ["--version"]).is_err() {
        skip(
            "outsider_chromium_sees_the_nas_and_turns_its_knobs",
            "chromedriver is not installed: cargo ci clients installs it",
        );
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let nas = Nas::start(folder.path(), Settings::default()).await?;
    let uuid = create_objects(&nas).await?;
    let browser = Browser::start(folder.path()).await?;
    let seen = shows_state(&browser, &nas, &uuid).await;
    // Also after a failure; and the browser ends in any case.
    let screenshot = browser.client.screenshot().await;
    browser.client.clone().close().await?;
    std::fs::write(screenshot_path()?, screenshot?)?;
    seen
}

/// The path of the screenshot, for people and as an artifact of a pipeline.
fn screenshot_path() -> Result<std::path::PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("target/")?;
    Ok(target.join("dsm-sim-page.png"))
}

async fn shows_state(browser: &Browser, nas: &Nas, uuid: &str) -> Result<()> {
    browser.client.goto(&nas.control).await?;
    let overview = browser.shows("#overview", "pvc-1").await?;
    for want in [
        "/volume1",
        "btrfs",
        "BLUN",
        "1.0 GiB",
        "t-1",
        "iqn.2000-01.com.synology:t-1",
        "1: pvc-1",
    ] {
        ensure!(overview.contains(want), "{want} is not in {overview}");
    }
    browser.click("#overview details summary").await?;
    browser.shows("#overview details", HOSTILE).await?;
    ensure!(
        browser.client.title().await? == "dsm-sim",
        "a name of a snapshot was run"
    );
    let text = browser.shows("#journal", "take_snapshot").await?;
    ensure!(
        text.contains("LUN.create") && !text.contains(e2e::harness::nas::PASSWORD),
        "{text}"
    );
    fault(browser, nas, uuid).await?;
    journal(browser).await?;
    controls(browser, nas).await
}

/// A fault that is set on the page takes effect, is shown, and can be removed.
async fn fault(browser: &Browser, nas: &Nas, uuid: &str) -> Result<()> {
    browser.fill("#fault [name=method]", "get").await?;
    browser.fill("#fault [name=object]", uuid).await?;
    browser.fill("#fault [name=times]", "0").await?;
    browser.fill("#fault [name=number]", "18990531").await?;
    browser.click("#fault button").await?;
    browser.shows("#overview", "refuse with 18990531").await?;
    let refused = nas
        .session()
        .await?
        .call(LUN, "get", &[("uuid", uuid)])
        .await;
    ensure!(refused.is_err(), "the fault did nothing");
    browser.shows("#journal", "injected fault").await?;
    browser.click("[data-remove-fault]").await?;
    browser.shows("#overview", "No faults are set.").await?;
    nas.session()
        .await?
        .call(LUN, "get", &[("uuid", uuid)])
        .await?;
    Ok(())
}

async fn journal(browser: &Browser) -> Result<()> {
    browser.fill("#search [name=api]", "LUN.take").await?;
    browser.click("#search button").await?;
    until(
        "only snapshots are listed",
        async || browser.text("#journal").await,
        |text| text.contains("take_snapshot") && !text.contains("create"),
    )
    .await
    .map(drop)
}

async fn controls(browser: &Browser, nas: &Nas) -> Result<()> {
    let choose = async || {
        let select = browser.client.find(Locator::Css("[data-latency]")).await?;
        Ok(select.select_by_label("ds918").await.is_ok())
    };
    until("the profile is chosen", choose, |chosen| *chosen).await?;
    until(
        "the NAS is slow",
        async || nas.latency().await,
        |profile| profile == "ds918",
    )
    .await
    .map(drop)
}
