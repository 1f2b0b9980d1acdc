//! Several portals: one map over all paths, made by multipathd (design.md#portals). Its configuration is the operator's.
//!
//! Recommended in `/etc/multipath.conf`:
//! ```text
//! defaults {
//!     find_multipaths      strict   # no map but those that the driver asks for
//!     user_friendly_names  yes
//!     no_path_retry        12       # × polling_interval 5 s; "queue" holds the processes of a pod for as long as the NAS is away
//!     recheck_wwid         yes      # a path that comes back as another LUN is not used
//! }
//! ```
//! `find_multipaths` may be anything. The driver asks for its map, and where every disk is grabbed it uses that map even for
//! one portal. `no_path_retry queue` is survived: an unstage whose paths are all lost stops the queueing.

use std::pin::Pin;
use std::time::Duration;

use super::Machine;
use super::attachment::Attachment;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Disk};
use crate::host::dm_multipath::{self, Map};
use crate::host::multipath::Daemon;
use crate::host::{Host, HostError, KernelFiles, Stat, Who, if_present, multipath};
use crate::in_flight;
use crate::volume::{Bytes, LunUuid};

/// How long multipathd may take to put a new disk below its map.
const MAP_CREATION_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two times of asking it.
const ADD_MAP_RETRIES: usize = 4;
/// How long a map may take to vanish or grow.
const MAP_CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at the paths of a map that is being let go.
const WATCH: Duration = Duration::from_secs(5);
/// Between two times of letting the I/O of a map fail.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

impl<H: Host> Machine<H> {
    /// True when multipathd runs on this node. That it is not installed or not started is as ordinary as that it is; whether one
    /// that says nothing of use runs is looked up, for its words differ between releases.
    pub(super) async fn multipathd_runs(&self) -> Result<bool, Error> {
        let doing = "asking whether multipathd runs";
        match multipath::read_daemon(self.host.run(multipath::show_daemon()).await)
            .context(doing)?
        {
            Daemon::Runs => Ok(true),
            Daemon::Missing => Ok(false),
            Daemon::Silent(source) => {
                let runs = self.host.runs(multipath::DAEMON, Who::Host).await;
                if !runs.context(doing)? {
                    return Ok(false);
                }
                let doing = "asking multipathd, which runs on this node and does not answer: systemctl restart multipathd".to_owned();
                Err(Error::Host { doing, source })
            }
        }
    }

    /// True when the only disk there is is used as it is and can be below no map any more.
    pub(super) async fn is_alone(&self, uuid: &LunUuid, disks: &[Disk]) -> Result<bool, Error> {
        let [disk] = disks else {
            return Ok(false);
        };
        if self.map_over(uuid, disks).await?.is_some() {
            return Ok(false);
        }
        let node = disk.block.node();
        let claimed = self.host.is_claimed(&node).await;
        Ok(claimed.context(format!("looking who uses {node}"))?
            || !self
                .uses(std::slice::from_ref(&disk.block))
                .await?
                .is_empty()
            || self.is_excluded(uuid, disks).await?)
    }

    /// True when multipathd's configuration keeps it from the disks. Only its own word counts: a disk may be new to it.
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

    /// Waits for the map over all of `disks`, and asks multipathd for what is missing.
    pub(super) async fn map_of_all(&self, uuid: &LunUuid, disks: &[Disk]) -> Result<Map, Error> {
        let mut map = None;
        for _ in 0..ADD_MAP_RETRIES {
            map = self.attachment(uuid).await?.map;
            let lacks = |disk: &&Disk| {
                map.as_ref()
                    .is_none_or(|map| !map.paths.contains(&disk.block.name))
            };
            let Some(missing) = disks.iter().find(lacks) else {
                break;
            };
            self.ask_for(missing, map.is_some()).await?;
            let doing = "waiting for the multipath map";
            let look = || async {
                let (names, missing) = (self.maps.clone(), [missing.clone()]);
                let look =
                    move |files: &dyn KernelFiles| dm_multipath::over(files, &names, &missing, &[]);
                let maps = self.host.blocking(doing, look).await?;
                Ok((!maps.is_empty()).then_some(()))
            };
            disk::until(&self.host, MAP_CREATION_TIMEOUT, look)
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

    /// What multipathd answers is not believed; sysfs shows what came of it.
    async fn ask_for(&self, disk: &Disk, has_map: bool) -> Result<(), Error> {
        let name = &disk.block.name;
        let doing = format!("asking multipathd for a map over {name}");
        if has_map {
            let asked = self.host.run(multipath::add_path(name)).await;
            return asked.context(&doing).map(|_| ());
        }
        // It learns of a new disk from udev, a little later than we do.
        let look = || async {
            let listed = self.host.run(multipath::show_paths()).await?;
            multipath::read_wwid(listed, name)
        };
        let wwid = disk::until(&self.host, MAP_CREATION_TIMEOUT, look)
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
        let look = || async {
            let there = if_present(self.host.stat(&node).await)?;
            Ok((there == Some(Stat::BlockDevice(number))).then_some(()))
        };
        disk::until(&self.host, MAP_CREATION_TIMEOUT, look)
            .await
            .context(format!("waiting for {node}"))?
            .ok_or_else(|| Error::Unverified {
                what: format!("the map {}", map.name),
                seen: format!("{node} does not appear"),
            })
    }

    /// Makes a map as large as its paths, which must agree; answers that size.
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
        let look = || async {
            let seen = map.block.size(&self.host).await?;
            Ok((seen == size).then_some(()))
        };
        if disk::until(&self.host, MAP_CHANGE_TIMEOUT, look)
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

    /// Removes a map. udev may still hold it for a moment, so it is tried a few times.
    pub(super) async fn flush(&self, map: &Map) -> Result<(), Error> {
        let doing = format!("removing map {}", map.name);
        let mut said = String::new();
        for _ in 0..ADD_MAP_RETRIES {
            let exit = self
                .host
                .run(multipath::flush(&map.name))
                .await
                .context(&doing)?;
            if exit.status == 0 {
                return self.must_be_flushed(map).await;
            }
            if !self.is_there(map).await.context(&doing)? {
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
        let look = || async { Ok((!self.is_there(map).await?).then_some(())) };
        let gone = disk::until(&self.host, MAP_CHANGE_TIMEOUT, look)
            .await
            .context(&doing)?;
        gone.ok_or_else(|| Error::Unverified {
            what: doing,
            seen: "the kernel still has it".to_owned(),
        })
    }

    async fn is_there(&self, map: &Map) -> Result<bool, HostError> {
        let all = self.maps_with(vec![map.wwid.clone()]).await?;
        Ok(!all.is_empty())
    }

    /// Lets the I/O of a map fail when no path of it works: else an unmount waits for as long as the NAS is away, and udev's
    /// look at a map keeps it in use for as long.
    pub(super) async fn disable_queueing(&self, held: &Attachment) {
        let Some(map) = &held.map else {
            return;
        };
        let exit = self
            .host
            .run(multipath::disable_queueing(&map.block.name))
            .await;
        // Without its daemon a map does not queue.
        if let Err(error) = exit.and_then(|exit| exit.ok(multipath::DAEMON)) {
            tracing::warn!(map = map.name, %error, "the map may go on queueing");
        }
    }

    /// Lets a map that is used again do what its configuration says.
    pub(super) async fn restore_queueing(&self, held: &Attachment) {
        if let Some(map) = &held.map {
            let exit = self
                .host
                .run(multipath::restore_queueing(&map.block.name))
                .await;
            if let Err(error) = exit.and_then(|exit| exit.ok(multipath::DAEMON)) {
                tracing::warn!(map = map.name, %error, "the map may not queue");
            }
        }
    }

    /// Runs `act`, which ends the use of disks that are gone, and lets the I/O of the map over them fail meanwhile. Once is not
    /// enough: multipathd queues again when it takes a path out of a map (0.9.4).
    pub(super) async fn failing_io<T>(
        &self,
        held: &Attachment,
        mut act: Pin<Box<impl Future<Output = T> + Send>>,
    ) -> T {
        if held.map.is_none() {
            return act.await;
        }
        loop {
            self.disable_queueing(held).await;
            tokio::select! {
                biased;
                done = &mut act => return done,
                () = self.host.pause(RECHECK_INTERVAL) => {}
            }
        }
    }

    /// Stops the queueing of the volume's map when it has not been let go for as long as a single path may be lost. Sessions
    /// tell nothing: they also live on when their LUN is unmapped. Of a map with a working path nothing fails by it.
    pub(super) async fn stop_queueing(&self, uuid: &LunUuid) {
        // (multipathd lowers that of a map's sessions to its `fast_io_fail_tmo`, 5 s, and queues instead.)
        for _ in 0..self.replacement_timeout.as_secs().div_ceil(WATCH.as_secs()) {
            match in_flight::unlocked(self.attachment(uuid)).await {
                Ok(held) if held.map.is_none() => return,
                Ok(_) | Err(_) => self.host.pause(WATCH).await,
            }
        }
        if let Ok(held) = in_flight::unlocked(self.attachment(uuid)).await {
            tracing::warn!(%uuid, "the volume takes too long to be let go: what cannot be written now is lost");
            self.disable_queueing(&held).await;
        }
    }

    /// Runs `act`, which lets a volume go, and [`Machine::unblock`]s it meanwhile, again and again.
    pub(super) async fn unblocking<T>(
        &self,
        uuid: &LunUuid,
        mut act: Pin<Box<impl Future<Output = T> + Send>>,
    ) -> T {
        let unblock = Box::pin(async {
            self.stop_queueing(uuid).await;
            loop {
                self.host.pause(WATCH).await;
                if let Ok(held) = in_flight::unlocked(self.attachment(uuid)).await {
                    self.disable_queueing(&held).await;
                }
            }
        });
        tokio::select! {
            biased;
            done = &mut act => done,
            () = unblock => act.await,
        }
    }
}
