//! Multipath: one map over all paths of a volume, made by multipathd (design.md#portals): waiting for it, resizing, queueing,
//! flushing. multipathd's configuration is the operator's.
//!
//! Recommended in `/etc/multipath.conf`:
//! ```text
//! defaults {
//!     find_multipaths      strict   # no maps except those that the driver requests
//!     user_friendly_names  yes
//!     no_path_retry        12       # × polling_interval 5 s; with "queue", I/O hangs for as long as the NAS is unreachable
//!     recheck_wwid         yes      # a path that comes back as another LUN is not used
//! }
//! ```
//! Any value of `find_multipaths` works: the driver requests its map, and if multipathd makes maps over all disks, the driver
//! uses that map even for one portal. `no_path_retry queue` works, too: an unstage whose paths are all lost stops the queueing.

use std::pin::Pin;
use std::time::Duration;

use super::Machine;
use super::attachment::Attachment;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Disk};
use crate::host::dm_multipath::{self, Map};
use crate::host::multipath::Daemon;
use crate::host::{Host, HostError, KernelFiles, ProcessScope, Stat, if_present, multipath};
use crate::in_flight;
use crate::volume::{Bytes, LunUuid};

/// How long multipathd may take to add a new disk to its map.
const MAP_CREATION_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a map is requested, or flushed, before the call gives up.
const MAP_ATTEMPTS: usize = 4;
/// How long a map may take to vanish or grow.
const MAP_CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Poll interval while waiting for a volume to be released.
const RELEASE_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How often queueing is disabled again while an action runs.
const DISABLE_QUEUEING_INTERVAL: Duration = Duration::from_secs(1);

impl<H: Host> Machine<H> {
    /// True if multipathd runs on this node. That it is not installed or not started is normal. If its client's answer is not
    /// understood (the messages differ between releases), the process list decides.
    ///
    /// # Errors
    /// If it runs and does not answer.
    pub(super) async fn multipathd_runs(&self) -> Result<bool, Error> {
        let doing = "asking whether multipathd runs";
        match multipath::read_daemon(self.host.run(multipath::show_daemon()).await)
            .context(doing)?
        {
            Daemon::Runs => Ok(true),
            Daemon::Missing => Ok(false),
            Daemon::Silent(source) => {
                let runs = self
                    .host
                    .is_running(multipath::DAEMON, ProcessScope::Host)
                    .await;
                if !runs.context(doing)? {
                    return Ok(false);
                }
                let doing = "asking multipathd, which runs on this node and does not answer: systemctl restart multipathd".to_owned();
                Err(Error::Host { doing, source })
            }
        }
    }

    /// True if there is one disk only and it cannot get a map any more: it is in use directly, or multipathd excludes it.
    pub(super) async fn is_single_path(
        &self,
        uuid: &LunUuid,
        disks: &[Disk],
    ) -> Result<bool, Error> {
        let [disk] = disks else {
            return Ok(false);
        };
        if self.map_over(uuid, disks).await?.is_some() {
            return Ok(false);
        }
        let node = disk.block.node();
        let claimed = self.host.is_claimed(&node).await;
        Ok(claimed.context(format!("checking what uses {node}"))?
            || !self
                .mount_points(std::slice::from_ref(&disk.block))
                .await?
                .is_empty()
            || self.is_excluded(uuid, disks).await?)
    }

    /// True if multipathd's configuration excludes the disks. Only its explicit answer counts: it may not know a new disk yet.
    pub(super) async fn is_excluded(&self, uuid: &LunUuid, disks: &[Disk]) -> Result<bool, Error> {
        let Some(disk) = disks.first() else {
            return Ok(false);
        };
        if self.map_over(uuid, disks).await?.is_some() {
            return Ok(false);
        }
        let name = &disk.block.name;
        let doing = format!("asking multipathd for {name}");
        let listed = self.host.run(multipath::show_paths()).await;
        let wwid = listed.and_then(|listed| multipath::read_wwid(listed, name));
        if wwid.context(&doing)?.is_some() {
            return Ok(false);
        }
        let asked = self
            .host
            .run(multipath::add_path(name))
            .await
            .context(doing)?;
        Ok(multipath::is_excluded(&asked))
    }

    /// Waits for the map over all of `disks`; requests missing maps and paths from multipathd.
    pub(super) async fn ensure_map(&self, uuid: &LunUuid, disks: &[Disk]) -> Result<Map, Error> {
        let mut map = None;
        for _ in 0..MAP_ATTEMPTS {
            map = self.attachment(uuid).await?.map;
            let lacks = |disk: &&Disk| {
                map.as_ref()
                    .is_none_or(|map| !map.paths.contains(&disk.block.name))
            };
            let Some(missing) = disks.iter().find(lacks) else {
                break;
            };
            self.request_path(missing, map.is_some()).await?;
            let doing = "waiting for the multipath map";
            let check = || async {
                let (names, missing) = (self.map_names.clone(), [missing.clone()]);
                let read = move |files: &dyn KernelFiles| {
                    dm_multipath::maps_over(files, &names, &missing, &[])
                };
                let maps = self.host.blocking(doing, read).await?;
                Ok((!maps.is_empty()).then_some(()))
            };
            disk::poll_until(&self.host, MAP_CREATION_TIMEOUT, check)
                .await
                .context(doing)?;
        }
        let complete = |map: &Map| {
            disks
                .iter()
                .all(|disk| map.paths.contains(&disk.block.name))
        };
        match map {
            Some(map) if complete(&map) => {
                self.wait_for_node(&map).await?;
                Ok(map)
            }
            other => {
                let names: Vec<&str> = disks.iter().map(|disk| disk.block.name.as_str()).collect();
                let made = other.map_or_else(
                    || "none".to_owned(),
                    |map| format!("only map {} over {}", map.name, map.paths.join(", ")),
                );
                Err(Error::Unverified {
                    what: format!("the multipath map over {}", names.join(", ")),
                    seen: format!(
                        "multipathd has made {made}; does its configuration exclude the disks (multipathd show blacklist)? With one portal configured no map is needed"
                    ),
                })
            }
        }
    }

    /// Requests a map over `disk`, or adds it to the existing map. The answer is ignored: the caller checks the result in sysfs.
    async fn request_path(&self, disk: &Disk, has_map: bool) -> Result<(), Error> {
        let name = &disk.block.name;
        let doing = format!("asking multipathd for a map over {name}");
        if has_map {
            let asked = self.host.run(multipath::add_path(name)).await;
            return asked.context(&doing).map(|_| ());
        }
        // multipathd learns of a new disk from udev, a little later than this process.
        let check = || async {
            let listed = self.host.run(multipath::show_paths()).await?;
            multipath::read_wwid(listed, name)
        };
        let wwid = disk::poll_until(&self.host, MAP_CREATION_TIMEOUT, check)
            .await
            .context(&doing)?;
        if let Some(wwid) = wwid {
            let asked = self.host.run(multipath::add_map(&wwid)).await;
            asked.context(&doing)?;
        }
        Ok(())
    }

    async fn wait_for_node(&self, map: &Map) -> Result<(), Error> {
        let (node, number) = (map.block.node(), map.block.number);
        let check = || async {
            let there = if_present(self.host.stat(&node).await)?;
            Ok((there == Some(Stat::BlockDevice(number))).then_some(()))
        };
        disk::poll_until(&self.host, MAP_CREATION_TIMEOUT, check)
            .await
            .context(format!("waiting for {node}"))?
            .ok_or_else(|| Error::Unverified {
                what: format!("the map {}", map.name),
                seen: format!("{node} does not appear"),
            })
    }

    /// Resizes a map to the size of its paths, which must all be equal; returns that size.
    pub(super) async fn resize_map(&self, map: &Map, paths: &[Disk]) -> Result<Bytes, Error> {
        let doing = format!("measuring map {}", map.name);
        let mut sizes = Vec::new();
        for path in paths {
            sizes.push((
                path.block.size(&self.host).await.context(&doing)?,
                path.block.name.as_str(),
            ));
        }
        let Some((size, _)) = sizes.first().copied() else {
            return Err(Error::NotReady {
                what: format!("map {}", map.name),
                seen: "it has no path".to_owned(),
            });
        };
        if sizes.iter().any(|(other, _)| *other != size) {
            let sizes: Vec<String> = sizes
                .iter()
                .map(|(size, name)| format!("{name} is {size}"))
                .collect();
            return Err(Error::Unverified {
                what: format!("the size of map {}", map.name),
                seen: format!("its paths differ: {}", sizes.join(", ")),
            });
        }
        if map.block.size(&self.host).await.context(&doing)? < size {
            let doing = format!("resizing map {} (does multipathd run?)", map.name);
            self.run(&doing, multipath::resize(&map.block.name)).await?;
        }
        let check = || async {
            let seen = map.block.size(&self.host).await?;
            Ok((seen == size).then_some(()))
        };
        if disk::poll_until(&self.host, MAP_CHANGE_TIMEOUT, check)
            .await
            .context(&doing)?
            .is_none()
        {
            let seen = map.block.size(&self.host).await.context(&doing)?;
            return Err(Error::Unverified {
                what: format!("the size of map {}", map.name),
                seen: format!("it is {seen}, and its paths are {size}"),
            });
        }
        Ok(size)
    }

    /// Removes a map. Retries, because udev may still have it open for a moment.
    pub(super) async fn flush(&self, map: &Map) -> Result<(), Error> {
        let doing = format!("removing map {}", map.name);
        let mut said = String::new();
        for _ in 0..MAP_ATTEMPTS {
            let exit = self
                .host
                .run(multipath::flush(&map.name))
                .await
                .context(&doing)?;
            if exit.status == 0 {
                return self.must_be_flushed(map).await;
            }
            if !self.map_exists(map).await.context(&doing)? {
                return Ok(());
            }
            said = exit.failed(multipath::PROGRAM).to_string();
            self.host.pause(Duration::from_secs(1)).await;
        }
        Err(Error::NotReady {
            what: format!("the release of map {}", map.name),
            seen: format!(
                "something on this node still uses it (a container that has not ended, LVM, RAID): {said}"
            ),
        })
    }

    pub(super) async fn must_be_flushed(&self, map: &Map) -> Result<(), Error> {
        let doing = format!("removing map {}", map.name);
        let check = || async { Ok((!self.map_exists(map).await?).then_some(())) };
        let gone = disk::poll_until(&self.host, MAP_CHANGE_TIMEOUT, check)
            .await
            .context(&doing)?;
        gone.ok_or_else(|| Error::Unverified {
            what: doing,
            seen: "the kernel still has it".to_owned(),
        })
    }

    async fn map_exists(&self, map: &Map) -> Result<bool, HostError> {
        let all = self.maps_with(vec![map.wwid.clone()]).await?;
        Ok(!all.is_empty())
    }

    /// Makes the I/O of a map fail when it has no working path. Otherwise an unmount hangs for as long as the NAS is unreachable,
    /// and udev's probe keeps the map open for as long.
    pub(super) async fn disable_queueing(&self, attachment: &Attachment) {
        let Some(map) = &attachment.map else {
            return;
        };
        let exit = self
            .host
            .run(multipath::disable_queueing(&map.block.name))
            .await;
        // Without its daemon a map does not queue.
        if let Err(error) = exit.and_then(|exit| exit.ok(multipath::DAEMON)) {
            tracing::warn!(map = map.name, %error, "disabling the map's queueing failed: it may keep queueing");
        }
    }

    /// Lets a map that is used again queue as configured.
    pub(super) async fn restore_queueing(&self, attachment: &Attachment) {
        if let Some(map) = &attachment.map {
            let exit = self
                .host
                .run(multipath::restore_queueing(&map.block.name))
                .await;
            if let Err(error) = exit.and_then(|exit| exit.ok(multipath::DAEMON)) {
                tracing::warn!(map = map.name, %error, "restoring the map's queueing failed: it may fail I/O at once");
            }
        }
    }

    /// Runs `action`, which unmounts lost disks, while the I/O of the map over them fails. Queueing is disabled repeatedly,
    /// because multipathd enables it again when it removes a path from a map (0.9.4).
    pub(super) async fn with_queueing_disabled<T>(
        &self,
        attachment: &Attachment,
        mut action: Pin<Box<impl Future<Output = T> + Send>>,
    ) -> T {
        if attachment.map.is_none() {
            return action.await;
        }
        loop {
            self.disable_queueing(attachment).await;
            tokio::select! {
                biased;
                done = &mut action => return done,
                () = self.host.pause(DISABLE_QUEUEING_INTERVAL) => {}
            }
        }
    }

    /// Disables the queueing of the volume's map if the map still exists after the replacement timeout. Session state does not
    /// tell whether that is needed: sessions stay alive when their LUN is unmapped. Harmless for a map with a working path.
    pub(super) async fn stop_queueing(&self, uuid: &LunUuid) {
        // (multipathd lowers the replacement timeout of a map's sessions to its `fast_io_fail_tmo`, 5 s, and queues instead.)
        for _ in 0..self
            .replacement_timeout
            .as_secs()
            .div_ceil(RELEASE_POLL_INTERVAL.as_secs())
        {
            match in_flight::unlocked(self.attachment(uuid)).await {
                Ok(attachment) if attachment.map.is_none() => return,
                Ok(_) | Err(_) => self.host.pause(RELEASE_POLL_INTERVAL).await,
            }
        }
        if let Ok(attachment) = in_flight::unlocked(self.attachment(uuid)).await {
            tracing::warn!(%uuid, "the volume takes too long to be released: data that cannot be written now is lost");
            self.disable_queueing(&attachment).await;
        }
    }

    /// Runs `action`, which releases a volume. After the replacement timeout, the I/O of the volume's map is made to fail,
    /// repeatedly, so that `action` cannot hang on an unreachable NAS.
    pub(super) async fn with_queueing_timeout<T>(
        &self,
        uuid: &LunUuid,
        mut action: Pin<Box<impl Future<Output = T> + Send>>,
    ) -> T {
        let unblock = Box::pin(async {
            self.stop_queueing(uuid).await;
            loop {
                self.host.pause(RELEASE_POLL_INTERVAL).await;
                if let Ok(attachment) = in_flight::unlocked(self.attachment(uuid)).await {
                    self.disable_queueing(&attachment).await;
                }
            }
        });
        tokio::select! {
            biased;
            done = &mut action => done,
            () = unblock => action.await,
        }
    }
}
