//! Shared helpers of the controller tests: CSI calls to any driver, checks of responses, the journal of the NAS.

use std::collections::HashMap;
use std::fmt::Debug;

use anyhow::Result;
use e2e::GIB;
use e2e::harness::nas::{Entry, Nas};
use e2e::harness::plugin::{CsiChannel, Plugin};
use e2e::harness::test_cluster::TestCluster;
use e2e::harness::test_volume::{Content, at_least, capability, create_request};
use proto::csi;
use proto::csi::controller_client::ControllerClient;
use proto::csi::volume_capability::access_mode::Mode;
use serde_json::{Value, json};
use tonic::{Code, Status};

pub(crate) const LUN: &str = "SYNO.Core.ISCSI.LUN";
pub(crate) const TARGET: &str = "SYNO.Core.ISCSI.Target";
pub(crate) const VOLUME: &str = "SYNO.Core.Storage.Volume";
pub(crate) const AUTH: &str = "SYNO.API.Auth";
pub(crate) const NODE_A: &str = "worker-a:0000000a";
pub(crate) const NODE_B: &str = "worker-b:0000000b";
/// A well-formed uuid that no LUN has.
pub(crate) const NO_UUID: &str = "00000000-0000-4000-8000-000000000000";

/// Client of a driver's controller that fills in the arguments which most tests do not care about.
#[derive(Clone)]
pub(crate) struct Csi(pub(crate) ControllerClient<CsiChannel>);

impl Csi {
    pub(crate) fn of(plugin: &Plugin) -> Self {
        Self(plugin.controller())
    }

    /// Creates an ext4 volume and returns its id.
    pub(crate) async fn create(&self, name: &str, size: i64) -> Result<String, Status> {
        Ok(self
            .create_as(create_request(name, size, Content::Fs("ext4")))
            .await?
            .volume_id)
    }

    /// Like `create`, but 1 GiB and with an owned name, for use in `join_all`.
    pub(crate) async fn create_owned(&self, name: String) -> Result<String, Status> {
        self.create(&name, GIB).await
    }

    pub(crate) async fn create_as(
        &self,
        request: csi::CreateVolumeRequest,
    ) -> Result<csi::Volume, Status> {
        Ok(self
            .0
            .clone()
            .create_volume(request)
            .await?
            .into_inner()
            .volume
            .unwrap_or_default())
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest {
            volume_id: id.to_owned(),
            ..Default::default()
        };
        self.0.clone().delete_volume(request).await.map(drop)
    }

    pub(crate) async fn publish(
        &self,
        id: &str,
        node: &str,
    ) -> Result<HashMap<String, String>, Status> {
        self.publish_as(
            id,
            node,
            capability(Content::Fs("ext4"), Mode::SingleNodeWriter),
        )
        .await
    }

    pub(crate) async fn publish_as(
        &self,
        id: &str,
        node: &str,
        capability: csi::VolumeCapability,
    ) -> Result<HashMap<String, String>, Status> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            volume_capability: Some(capability),
            ..Default::default()
        };
        Ok(self
            .0
            .clone()
            .controller_publish_volume(request)
            .await?
            .into_inner()
            .publish_context)
    }

    pub(crate) async fn unpublish(&self, id: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        self.0
            .clone()
            .controller_unpublish_volume(request)
            .await
            .map(drop)
    }

    pub(crate) async fn expand(&self, id: &str, size: i64) -> Result<i64, Status> {
        self.expand_within(id, at_least(size)).await
    }

    pub(crate) async fn expand_within(
        &self,
        id: &str,
        range: csi::CapacityRange,
    ) -> Result<i64, Status> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(range),
            ..Default::default()
        };
        Ok(self
            .0
            .clone()
            .controller_expand_volume(request)
            .await?
            .into_inner()
            .capacity_bytes)
    }

    /// The size in bytes and the nodes it is published to.
    pub(crate) async fn get(&self, id: &str) -> Result<(i64, Vec<String>), Status> {
        let request = csi::ControllerGetVolumeRequest {
            volume_id: id.to_owned(),
        };
        let answer = self
            .0
            .clone()
            .controller_get_volume(request)
            .await?
            .into_inner();
        Ok((
            answer.volume.unwrap_or_default().capacity_bytes,
            answer.status.unwrap_or_default().published_node_ids,
        ))
    }

    /// Whether the driver confirmed the usual capability (ext4, single-node writer).
    pub(crate) async fn validate(&self, id: &str) -> Result<bool, Status> {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: id.to_owned(),
            volume_capabilities: vec![capability(Content::Fs("ext4"), Mode::SingleNodeWriter)],
            ..Default::default()
        };
        Ok(self
            .0
            .clone()
            .validate_volume_capabilities(request)
            .await?
            .into_inner()
            .confirmed
            .is_some())
    }

    pub(crate) async fn list(
        &self,
        max_entries: i32,
        starting_token: &str,
    ) -> Result<csi::ListVolumesResponse, Status> {
        let request = csi::ListVolumesRequest {
            max_entries,
            starting_token: starting_token.to_owned(),
        };
        Ok(self.0.clone().list_volumes(request).await?.into_inner())
    }

    /// Free bytes for these parameters.
    pub(crate) async fn capacity(
        &self,
        parameters: HashMap<String, String>,
    ) -> Result<i64, Status> {
        let request = csi::GetCapacityRequest {
            parameters,
            ..Default::default()
        };
        Ok(self
            .0
            .clone()
            .get_capacity(request)
            .await?
            .into_inner()
            .available_capacity)
    }

    /// Makes every call about one volume; the results by RPC, with responses dropped.
    pub(crate) async fn every(&self, id: &str) -> Vec<(&'static str, Result<(), Status>)> {
        vec![
            ("delete", self.delete(id).await),
            ("publish", self.publish(id, NODE_A).await.map(drop)),
            ("unpublish", self.unpublish(id, NODE_A).await),
            ("expand", self.expand(id, 2 * GIB).await.map(drop)),
            ("get", self.get(id).await.map(drop)),
            ("validate", self.validate(id).await.map(drop)),
        ]
    }
}

/// The uuid in a volume id.
pub(crate) fn uuid(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or_default()
}

/// Human-readable name of a publication, because target IQNs contain a random nonce.
pub(crate) fn publication(id: &str, node: &str) -> String {
    format!("{} to {node}", uuid(id))
}

/// The publication that an IQN belongs to, as `publication` writes it; the IQN itself if it is not one of ours.
fn describe_iqn(iqn: &str) -> String {
    e2e::testbed::publication(iqn)
        .map_or_else(|| iqn.to_owned(), |(lun, node)| format!("{lun} to {node}"))
}

/// The IQN format of the previous release, which had no nonce.
pub(crate) fn old_iqn(id: &str, node: &str) -> String {
    format!(
        "iqn.2000-01.com.synology:{}.{node}",
        uuid(id).replace('-', "")
    )
}

/// The IQN of a publication's only target.
pub(crate) async fn iqn(nas: &Nas, id: &str, node: &str) -> Result<String> {
    let targets = nas.targets_now().await?;
    let names = targets.iter().filter_map(|target| target["iqn"].as_str());
    let mut matching = names.filter(|iqn| describe_iqn(iqn) == publication(id, node));
    let found = matching.next().map(str::to_owned);
    anyhow::ensure!(matching.next().is_none(), "two targets of one publication");
    found.ok_or_else(|| anyhow::anyhow!("no target of {}", publication(id, node)))
}

/// Asserts that a call failed with `code`, and that the message contains all of `words`.
#[track_caller]
pub(crate) fn refused<T: Debug>(answer: Result<T, Status>, code: Code, words: &[&str]) {
    let status = answer.expect_err("refused");
    assert_eq!(status.code(), code, "{}", status.message());
    for word in words {
        assert!(
            status.message().contains(word),
            "{word:?} is not in {:?}",
            status.message()
        );
    }
}

/// Asserts that an error code is not final, so that the CO does not forget the volume (design.md#final-codes).
#[track_caller]
pub(crate) fn not_final(what: &str, status: &Status) {
    let unfinished = matches!(
        status.code(),
        Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled
    );
    assert!(
        unfinished,
        "{what}: {:?} is final: {}",
        status.code(),
        status.message()
    );
}

/// The calls since journal position `since`, without logins.
pub(crate) async fn calls(nas: &Nas, since: u64) -> Result<Vec<Entry>> {
    Ok(nas
        .journal(since)
        .await?
        .0
        .into_iter()
        .filter(|entry| !entry.is_session())
        .collect())
}

/// The current end of the journal.
pub(crate) async fn journal_end(nas: &Nas) -> Result<u64> {
    Ok(nas.journal(0).await?.1)
}

/// The calls in short form: `["LUN.get", "LUN.set"]`.
pub(crate) fn call_names(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(Entry::short).collect()
}

/// All targets on the NAS: as publications where they are ours, otherwise as IQNs.
pub(crate) async fn publications(nas: &Nas) -> Result<Vec<String>> {
    Ok(nas
        .targets_now()
        .await?
        .iter()
        .map(|target| describe_iqn(target["iqn"].as_str().unwrap_or_default()))
        .collect())
}

/// Like `publications`, but only targets to which this LUN is mapped.
pub(crate) async fn exports(nas: &Nas, id: &str) -> Result<Vec<String>> {
    let maps = |target: &&Value| {
        target["mapped_luns"]
            .as_array()
            .is_some_and(|luns| luns.iter().any(|lun| lun["lun_uuid"] == uuid(id)))
    };
    let targets = nas.targets_now().await?;
    Ok(targets
        .iter()
        .filter(maps)
        .map(|target| describe_iqn(target["iqn"].as_str().unwrap_or_default()))
        .collect())
}

/// The LUN's row in the state of the NAS.
pub(crate) async fn lun(nas: &Nas, id: &str) -> Result<Option<Value>> {
    Ok(nas
        .luns()
        .await?
        .into_iter()
        .find(|lun| lun["uuid"] == uuid(id)))
}

/// The LUN's size in bytes, 0 if there is no such LUN.
pub(crate) async fn lun_size(nas: &Nas, id: &str) -> Result<i64> {
    Ok(lun(nas, id)
        .await?
        .and_then(|lun| lun["size"].as_i64())
        .unwrap_or_default())
}

/// Fault `refuse` with a DSM error code.
pub(crate) fn refuse(code: u32) -> Value {
    json!({"kind": "refuse", "code": code})
}

/// Fault `lose_reply`: the call is carried out, but the connection is cut before the reply.
pub(crate) fn lose_reply() -> Value {
    json!({"kind": "lose_reply"})
}

/// Fault `hang`: until the faults are cleared.
pub(crate) fn hang() -> Value {
    json!({"kind": "hang"})
}

/// Waits until a call, for instance `LUN.set`, has arrived at the NAS. It may still be hanging.
pub(crate) async fn until_called(nas: &Nas, since: u64, short: &str) -> Result<()> {
    e2e::harness::until::until(
        short,
        async || Ok(call_names(&calls(nas, since).await?)),
        |seen| seen.iter().any(|call| call == short),
    )
    .await?;
    Ok(())
}

/// A Web API call by an administrator, which must succeed.
pub(crate) async fn admin_call(cluster: &TestCluster, call: &[(&str, &str)]) -> Result<Value> {
    let answer = cluster.nas.dsm(call).await?;
    anyhow::ensure!(answer["success"] == true, "{call:?}: {answer}");
    Ok(answer)
}
