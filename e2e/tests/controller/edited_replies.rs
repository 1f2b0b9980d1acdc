//! A controller and a simulated NAS in this process, with a transport between them that edits the replies: states and rows that
//! dsm-sim does not produce. Runs in tokio's paused time.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::Body;
use bytes::Bytes;
use driver::chap::Method;
use driver::chap::keys::{Key, Keys};
use driver::controller::Controller;
use driver::dsm;
use driver::dsm::client::credential::Refusals;
use driver::dsm::client::{Account, Client, Password};
use driver::dsm::transport::{Failure, Transport};
use driver::in_flight::InFlight;
use driver::owner_tag::Owner;
use dsm_sim::{DsmSim, Embedded};
use e2e::GIB;
use e2e::harness::nas::{CHAP_KEY, PASSWORD};
use e2e::harness::test_volume::{Content, capability, create_request};
use futures::future::BoxFuture;
use http::{Request, Response};
use proto::csi;
use proto::csi::controller_server::Controller as _;
use proto::csi::volume_capability::access_mode::Mode;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::{Code, Request as Rpc, Status};

use super::common::{LUN, NODE_A, NODE_B, TARGET, VOLUME};

pub(super) const SYSTEM: &str = "SYNO.Core.System";

/// Edits the JSON reply, including its envelope, to a call of this API and method.
type Edit = Box<dyn Fn(&str, &str, &mut Value) + Send>;

pub(super) struct EditingTransport {
    pub(super) nas: Embedded,
    edit: Mutex<Edit>,
    /// How far the NAS's clock has been advanced to follow the runtime's.
    synced: Mutex<Duration>,
    started: Instant,
}

impl fmt::Debug for EditingTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl EditingTransport {
    fn edited(&self, form: &str, body: &[u8]) -> Option<Vec<u8>> {
        let field = |name: &str| {
            url::form_urlencoded::parse(form.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let mut answer: Value = serde_json::from_slice(body).ok()?;
        let edit = self.edit.lock();
        if let Some(compound) = field("compound") {
            let calls: Vec<Value> = serde_json::from_str(&compound).ok()?;
            let results = answer["data"]["result"].as_array_mut()?;
            for (call, result) in calls.iter().zip(results) {
                edit(call["api"].as_str()?, call["method"].as_str()?, result);
            }
        } else {
            edit(&field("api")?, &field("method")?, &mut answer);
        }
        Some(answer.to_string().into_bytes())
    }
}

impl Transport for EditingTransport {
    fn send(&self, request: Request<String>) -> BoxFuture<'_, Result<Response<Bytes>, Failure>> {
        Box::pin(async move {
            let elapsed = self.started.elapsed();
            let last = std::mem::replace(&mut *self.synced.lock(), elapsed);
            self.nas.advance_clock(elapsed.saturating_sub(last));
            let form = request.body().clone();
            match self.nas.answer(request.map(Body::from)).await {
                Ok(Some(answer)) => {
                    let (head, body) = answer.into_parts();
                    let body = self.edited(&form, &body).map_or(body, Bytes::from);
                    Ok(Response::from_parts(head, body))
                }
                Ok(None) => Err(Failure::Lost("cut".into())),
                Err(error) => Err(Failure::Lost(error.into())),
            }
        })
    }
}

/// The controller, and the transport to its NAS.
pub(super) struct EditedCluster {
    controller: Controller,
    pub(super) line: Arc<EditingTransport>,
    _folder: tempfile::TempDir,
}

impl EditedCluster {
    pub(super) fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let volumes: Result<Vec<_>, _> = ["/volume1=btrfs:2TiB", "/volume2=btrfs:1TiB"]
            .iter()
            .map(|volume| volume.parse())
            .collect();
        let nas = DsmSim::builder()
            .state_dir(folder.path())
            .seed(7)
            .clock(1_767_225_600_000)
            .account("admin", PASSWORD)
            .volumes(volumes.map_err(anyhow::Error::msg)?)
            .embed()
            .map_err(anyhow::Error::msg)?;
        let line = Arc::new(EditingTransport {
            nas,
            edit: Mutex::new(Box::new(|_, _, _| {})),
            synced: Mutex::default(),
            started: Instant::now(),
        });
        let name: driver::volume::NasName = "nas1".parse().ok().context("a name")?;
        let account = Account {
            nas: name.clone(),
            url: "http://nas.example:5000".to_owned(),
            username: "admin".to_owned(),
            password: Password::Given(PASSWORD.to_owned().into()),
        };
        let client = Client::over(line.clone(), account, Arc::new(Refusals::open(None)?));
        let mut nas = dsm::Nas::new(name, "nas.example".to_owned(), client);
        nas.portals = vec!["10.0.0.5:3260".parse().ok().context("a portal")?];
        let key = Key::read(CHAP_KEY.as_bytes()).context("a key")?;
        let controller = Controller::new(
            Owner::new("csi.synology.com".to_owned(), None),
            vec![nas],
            Keys::new(Method::Mutual, key, vec![]),
            StdRng::seed_from_u64(7),
            InFlight::default(),
        );
        Ok(Self {
            controller,
            line,
            _folder: folder,
        })
    }

    pub(super) fn edit(&self, edit: impl Fn(&str, &str, &mut Value) + Send + 'static) {
        *self.line.edit.lock() = Box::new(edit);
    }

    pub(super) async fn create(
        &self,
        name: &str,
        parameters: &[(&str, &str)],
    ) -> Result<String, Status> {
        let mut request = create_request(name, GIB, Content::Block);
        for (key, value) in parameters {
            request
                .parameters
                .insert((*key).to_owned(), (*value).to_owned());
        }
        if parameters.is_empty() {
            request.parameters.clear();
        }
        let created = self.controller.create_volume(Rpc::new(request)).await?;
        Ok(created.into_inner().volume.unwrap_or_default().volume_id)
    }

    pub(super) async fn publish(&self, id: &str, node: &str) -> Result<String, Status> {
        self.publish_with(id, node, HashMap::new()).await
    }

    pub(super) async fn publish_with(
        &self,
        id: &str,
        node: &str,
        secrets: HashMap<String, String>,
    ) -> Result<String, Status> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            volume_capability: Some(capability(Content::Block, Mode::SingleNodeWriter)),
            secrets,
            ..csi::ControllerPublishVolumeRequest::default()
        };
        let created = self
            .controller
            .controller_publish_volume(Rpc::new(request))
            .await?;
        Ok(created.into_inner().publish_context["iqn"].clone())
    }

    pub(super) async fn unpublish(&self, id: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            ..csi::ControllerUnpublishVolumeRequest::default()
        };
        let result = self
            .controller
            .controller_unpublish_volume(Rpc::new(request));
        result.await.map(drop)
    }

    pub(super) async fn delete(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest {
            volume_id: id.to_owned(),
            ..csi::DeleteVolumeRequest::default()
        };
        let result = self.controller.delete_volume(Rpc::new(request));
        result.await.map(drop)
    }

    pub(super) async fn expand(&self, id: &str, size: i64) -> Result<i64, Status> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(csi::CapacityRange {
                required_bytes: size,
                limit_bytes: 0,
            }),
            ..csi::ControllerExpandVolumeRequest::default()
        };
        let grown = self.controller.controller_expand_volume(Rpc::new(request));
        Ok(grown.await?.into_inner().capacity_bytes)
    }

    async fn list(&self) -> Result<Vec<String>, Status> {
        let all = self
            .controller
            .list_volumes(Rpc::new(csi::ListVolumesRequest::default()))
            .await?;
        let entries = all.into_inner().entries.into_iter();
        Ok(entries
            .map(|entry| entry.volume.unwrap_or_default().volume_id)
            .collect())
    }

    async fn capacity(&self) -> Result<i64, Status> {
        let free = self
            .controller
            .get_capacity(Rpc::new(csi::GetCapacityRequest::default()));
        Ok(free.await?.into_inner().available_capacity)
    }

    pub(super) async fn targets(&self) -> Result<usize> {
        let state = self
            .line
            .nas
            .control(http::Method::GET, "/state", &json!(null));
        Ok(state.await?["targets"].as_array().map_or(0, Vec::len))
    }

    /// A volume's whole life cycle, each call twice.
    async fn volume(&self, name: &str) -> Result<(), Status> {
        let id = self.create(name, &[]).await?;
        assert_eq!(self.create(name, &[]).await?, id);
        let iqn = self.publish(&id, NODE_A).await?;
        assert_eq!(self.publish(&id, NODE_A).await?, iqn);
        for _ in 0..2 {
            assert_eq!(self.expand(&id, 2 * GIB).await?, 2 * GIB);
        }
        assert_eq!(self.list().await?, std::slice::from_ref(&id));
        for _ in 0..2 {
            self.unpublish(&id, NODE_A).await?;
        }
        for _ in 0..2 {
            self.delete(&id).await?;
        }
        assert_eq!(self.list().await?, Vec::<String>::new());
        assert!(self.capacity().await? > 0);
        Ok(())
    }
}

pub(super) fn refused<T: fmt::Debug>(answer: Result<T, Status>, code: Code, words: &[&str]) {
    let status = answer.expect_err("the call must fail");
    assert_eq!(status.code(), code, "{status:?}");
    for word in words {
        assert!(status.message().contains(word), "{word}: {status:?}");
    }
}

pub(super) async fn seconds(seconds: u64) {
    // sleep: advances the paused clock
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Sets the status of the first volume in every reply that contains it.
fn set_volume_status(word: &Value, method: &str, answer: &mut Value) {
    let volume = match method {
        "list" => &mut answer["data"]["volumes"][0],
        _ => &mut answer["data"]["volume"],
    };
    if volume.is_object() {
        volume["status"] = word.clone();
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_status_is_not_an_error() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let words = [
        "attention",
        "has_unverified_disk",
        "background",
        "background_optimizing",
        "data_scrubbing",
        "degrade",
        "a word of DSM 8",
        "",
    ];
    for (n, word) in words.into_iter().enumerate() {
        cluster.edit(move |api, method, answer| {
            if api == VOLUME {
                set_volume_status(&json!(word), method, answer);
            }
        });
        let result = cluster.volume(&format!("volume-{n}")).await;
        result.with_context(|| format!("volume status {word:?}"))?;
    }
    for (n, word) in ["finished", "soft_limit_reach", "a word of DSM 8", ""]
        .into_iter()
        .enumerate()
    {
        cluster.edit(move |api, method, answer| {
            let data = &mut answer["data"];
            match (api, method) {
                (LUN, "get") if data["lun"].is_object() => data["lun"]["status"] = json!(word),
                (LUN, "list") => {
                    for row in data["luns"].as_array_mut().into_iter().flatten() {
                        row["status"] = json!(word);
                    }
                }
                _ => {}
            }
        });
        let result = cluster.volume(&format!("lun-{n}")).await;
        result.with_context(|| format!("LUN status {word:?}"))?;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_foreign_row_hides_nothing() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let luns = json!([
        {"uuid": "not one", "name": "vm", "size": "huge", "description": "a person's"},
        {"uuid": 5, "name": "x", "location": null},
        {"uuid": "9a4d2f6e-0000-4000-8000-000000000001", "name": "crashed", "description": null},
    ]);
    let targets = json!([
        {"target_id": 900, "name": "vm", "iqn": "iqn.2000-01.com.synology:vm", "mapped_luns":
            [{"lun_uuid": "9a4d2f6e-0000-4000-8000-000000000001", "mapping_index": -1}]},
        {"target_id": "901", "name": "x", "iqn": "iqn.2000-01.com.synology:x", "mapped_luns": null},
        {"target_id": -1, "name": "y", "iqn": "iqn.2000-01.com.synology:y"},
    ]);
    let volumes = json!([
        {"volume_path": "/volume8", "status": 3, "fs_type": null, "readonly": false},
        {"volume_path": "/volume9", "status": "read_only", "readonly": true},
    ]);
    cluster.edit(move |api, method, answer| {
        let (rows, more) = match (api, method) {
            (LUN, "list") => (&mut answer["data"]["luns"], &luns),
            (TARGET, "list") => (&mut answer["data"]["targets"], &targets),
            (VOLUME, "list") => (&mut answer["data"]["volumes"], &volumes),
            _ => return,
        };
        if let (Some(rows), Some(more)) = (rows.as_array_mut(), more.as_array()) {
            for (at, row) in more.iter().enumerate() {
                rows.insert(at.min(rows.len()), row.clone());
            }
        }
    });
    cluster.volume("pvc-1").await.map_err(Into::into)
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_row_affects_only_the_volume_it_could_be() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let (id, other) = (
        cluster.create("pvc-1", &[]).await?,
        cluster.create("pvc-2", &[]).await?,
    );
    let iqn = cluster.publish(&id, NODE_A).await?;
    cluster.edit(move |api, method, answer| {
        if (api, method) == (TARGET, "list") {
            for row in answer["data"]["targets"]
                .as_array_mut()
                .into_iter()
                .flatten()
            {
                if row["iqn"] == json!(iqn) {
                    row["mapped_luns"] = json!("?");
                }
            }
        }
    });
    let words = &["cannot be read"];
    refused(
        cluster.unpublish(&id, NODE_A).await,
        Code::Unavailable,
        words,
    );
    refused(cluster.publish(&id, NODE_A).await, Code::Unavailable, words);
    refused(cluster.publish(&id, NODE_B).await, Code::Unavailable, words);
    refused(cluster.delete(&id).await, Code::Unavailable, words);
    refused(cluster.list().await, Code::Unavailable, words);
    cluster.publish(&other, NODE_B).await?;
    cluster.unpublish(&other, NODE_B).await?;
    cluster.delete(&other).await?;
    cluster.edit(|_, _, _| {});
    cluster.unpublish(&id, NODE_A).await?;
    cluster.delete(&id).await.map_err(Into::into)
}

/// Sets the uptime in the NAS's reply.
fn set_up_time(api: &str, method: &str, answer: &mut Value, text: &Value) {
    if (api, method) == (SYSTEM, "info") {
        answer["data"]["up_time"] = text.clone();
    }
}

/// design.md#unknown-is-not-absent
#[tokio::test(start_paused = true)]
async fn a_nas_that_has_just_booted_cannot_confirm_absence() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let id = cluster.create("pvc-1", &[]).await?;
    let gone = cluster.create("pvc-2", &[]).await?;
    cluster.delete(&gone).await?;
    cluster.edit(|api, method, answer| set_up_time(api, method, answer, &json!("0:14:59")));
    let words = ["899 s", "15 minutes"];
    refused(
        cluster.unpublish(&id, NODE_A).await,
        Code::Unavailable,
        &words,
    );
    refused(cluster.delete(&gone).await, Code::Unavailable, &words);
    refused(cluster.list().await, Code::Unavailable, &words);
    // Calls that do not depend on absence still work.
    cluster.publish(&id, NODE_A).await?;
    cluster.unpublish(&id, NODE_A).await?;
    cluster.edit(|api, method, answer| set_up_time(api, method, answer, &json!("0:15:1")));
    cluster.unpublish(&id, NODE_A).await?;
    cluster.delete(&gone).await?;
    assert_eq!(cluster.list().await?, [id]);
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test(start_paused = true)]
async fn without_an_uptime_two_lists_are_compared() -> Result<()> {
    let cases = [
        json!({"success": false, "error": {"code": 105}}),
        json!({"success": true, "data": {}}),
        json!({"success": true, "data": {"up_time": "since Monday"}}),
    ];
    for way in cases {
        let cluster = EditedCluster::start()?;
        let id = cluster.create("pvc-1", &[]).await?;
        let blind = way.clone();
        cluster.edit(move |api, _, answer| {
            if api == SYSTEM {
                *answer = blind.clone();
            }
        });
        for pause in [0, 30] {
            seconds(pause).await;
            let answer = cluster.unpublish(&id, NODE_A).await;
            refused(answer, Code::Unavailable, &["may just have started"]);
        }
        seconds(30).await;
        cluster.unpublish(&id, NODE_A).await?;
        // A volume that existed before is missing.
        cluster.edit(move |api, method, answer| match (api, method) {
            (SYSTEM, _) => *answer = way.clone(),
            (VOLUME, "list") => drop(
                answer["data"]["volumes"]
                    .as_array_mut()
                    .map(|rows| rows.remove(0)),
            ),
            _ => {}
        });
        seconds(61).await;
        let answer = cluster.unpublish(&id, NODE_A).await;
        refused(answer, Code::Unavailable, &["/volume1", "missing"]);
    }
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test(start_paused = true)]
async fn a_missing_lun_may_be_on_a_crashed_volume() -> Result<()> {
    let cluster = EditedCluster::start()?;
    let (id, gone) = (
        cluster.create("pvc-1", &[]).await?,
        cluster.create("pvc-2", &[]).await?,
    );
    cluster.publish(&id, NODE_A).await?;
    cluster.delete(&gone).await?;
    for word in ["crashed", "locked"] {
        cluster.edit(move |api, method, answer| {
            if api == VOLUME {
                set_volume_status(&json!(word), method, answer);
                if let Some(volumes) = answer["data"]["volumes"].as_array_mut() {
                    volumes[0]
                        .as_object_mut()
                        .and_then(|row| row.remove("size_free_byte"));
                }
            }
        });
        refused(
            cluster.delete(&gone).await,
            Code::Unavailable,
            &["/volume1", word, "Storage Manager"],
        );
        // Targets are not stored on volumes, and the other volume is healthy.
        cluster.unpublish(&id, NODE_A).await?;
        cluster.unpublish(&id, NODE_A).await?;
        cluster.publish(&id, NODE_A).await?;
        assert_eq!(cluster.list().await?, std::slice::from_ref(&id));
        let other = cluster.create("pvc-3", &[]).await?;
        cluster.delete(&other).await?;
        assert!(cluster.capacity().await? > 0);
    }
    Ok(())
}
