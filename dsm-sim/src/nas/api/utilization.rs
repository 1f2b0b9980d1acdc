//! Load and storage overview for home automation and monitoring: `SYNO.Core.System.Utilization get` and `SYNO.Storage.CGI.Storage
//! load_info`; dsm-web-api.md 6 and 7. Keys and types as recorded by mib1185/py-synologydsm-api; the load is that of an idle NAS.

use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::clock::Millis;
use crate::nas::effect::Environment;
use crate::nas::state::volume::{Volume, volume_number};

impl Nas {
    // ASSUMED: the keys of a LUN's row beyond the first six, by analogy with the six that were written down.
    pub(crate) fn utilization(&self, now: Millis) -> Value {
        let lun = |lun: &crate::nas::state::lun::Lun| {
            json!({
                "lun_name": lun.name,
                "uuid": lun.uuid,
                "read_iops": 0,
                "write_iops": 0,
                "read_throughput": 0,
                "write_throughput": 0,
                "read_avg_latency": 0,
                "write_avg_latency": 0,
                "total_iops": 0,
                "total_throughput": 0,
            })
        };
        let access = |device: &str| {
            json!({
                "device": device,
                "read_access": 0,
                "read_byte": 0,
                "utilization": 0,
                "write_access": 0,
                "write_byte": 0,
            })
        };
        let volume = |volume: &Volume| {
            let number = volume_number(&volume.path).unwrap_or_default();
            let mut row = access(&format!("md{}", number + 1));
            row["display_name"] = json!(volume.path.trim_start_matches('/'));
            row
        };
        json!({
            "cpu": {
                "15min_load": 10,
                "1min_load": 10,
                "5min_load": 10,
                "device": "System",
                "other_load": 0,
                "system_load": 1,
                "user_load": 1,
            },
            "disk": {"disk": [], "total": access("total")},
            "lun": self.luns_by_number().map(lun).collect::<Vec<_>>(),
            "memory": {
                "avail_real": 2_000_000,
                "avail_swap": 2_000_000,
                "buffer": 15_000,
                "cached": 1_000_000,
                "device": "Memory",
                "memory_size": 4_194_304,
                "real_usage": 24,
                "si_disk": 0,
                "so_disk": 0,
                "swap_usage": 0,
                "total_real": 3_900_000,
                "total_swap": 2_000_000,
            },
            "network": [
                {"device": "total", "rx": 0, "tx": 0},
                {"device": "eth0", "rx": 0, "tx": 0},
            ],
            "space": {
                "total": access("total"),
                "volume": self.state.volumes.values().map(volume).collect::<Vec<_>>(),
            },
            "time": now / 1_000,
        })
    }

    // ASSUMED: the rows of LUNs and targets; every recording comes from a NAS that has none.
    pub(crate) fn load_info(&self, env: &dyn Environment) -> Value {
        let lun = |lun: &crate::nas::state::lun::Lun| {
            json!({
                "lid": lun.lun_id,
                "location": lun.location,
                "name": lun.name,
                "size": lun.size.to_string(),
                "status": lun.status,
                "uuid": lun.uuid,
            })
        };
        let target = |target: &crate::nas::state::target::Target| {
            json!({
                "iqn": target.iqn,
                "name": target.name,
                "status": if target.enabled { "online" } else { "offline" },
                "tid": target.target_id,
            })
        };
        let volumes = self.state.volumes.values();
        let volumes: Vec<Value> = volumes
            .map(|volume| self.load_info_volume(volume, env))
            .collect();
        json!({
            "detected_pools": [],
            "disks": self.disks(),
            "env": {"batchtask": {"max_task": 64, "remain_task": 64}, "bay_number": "4", "ebox": []},
            "iscsiLuns": self.luns_by_number().map(lun).collect::<Vec<_>>(),
            "iscsiTargets": self.state.targets.values().map(target).collect::<Vec<_>>(),
            "overview_data": {},
            "ports": [],
            "sharedCaches": [],
            "ssdCaches": [],
            "storagePools": self.pools(),
            "volumes": volumes,
        })
    }

    fn load_info_volume(&self, volume: &Volume, env: &dyn Environment) -> Value {
        let number = volume_number(&volume.path).unwrap_or_default();
        let free = self.free(volume, env);
        json!({
            "atime_checked": false,
            "atime_opt": "relatime",
            "cacheStatus": "",
            "can_do": {"delete": true, "raid_cross": true},
            "container": "internal",
            "deploy_path": format!("volume_{number}"),
            "desc": "",
            "device_type": "raid_1",
            "disk_failure_number": 0,
            "disks": [],
            "drive_type": 0,
            "eppool_used": self.used_by_luns(volume, env).to_string(),
            "exist_alive_vdsm": false,
            "fs_type": volume.fs,
            "id": format!("volume_{number}"),
            "is_acting": false,
            "is_actioning": false,
            "is_inode_full": false,
            "is_scheduled": false,
            "is_writable": volume.writable().is_ok(),
            "last_done_time": 0,
            "limited_disk_number": 24,
            "max_fs_size": "1152921504606846976",
            "next_schedule_time": 0,
            "num_id": number,
            "pool_path": format!("reuse_{number}"),
            "progress": {"percent": "-1", "step": "none"},
            "raidType": "single",
            "scrubbingStatus": "no_action",
            "size": {
                "free_inode": "0",
                "total": volume.size.to_string(),
                "total_device": volume.size.to_string(),
                "total_inode": "0",
                "used": volume.size.saturating_sub(free).to_string(),
            },
            "ssd_trim": {"support": "not support"},
            "status": volume.status,
            "suggestions": [],
            "timebackup": false,
            "used_by_gluster": false,
            "vol_path": volume.path,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::nas::tests::{GIB, NasFixture};

    #[test]
    fn monitors_see_luns_and_volumes() {
        let mut sim = NasFixture::new();
        let uuid = sim.lun("a", "BLUN_THICK", 40 * GIB);
        sim.target("t");
        let load = sim.ok("SYNO.Core.System.Utilization", "get", &[]);
        assert_eq!(
            (&load["lun"][0]["uuid"], &load["lun"][0]["lun_name"]),
            (&uuid.clone().into(), &"a".into())
        );
        let info = sim.ok("SYNO.Storage.CGI.Storage", "load_info", &[]);
        let volume = &info["volumes"][0];
        assert_eq!(
            (&volume["id"], &volume["vol_path"]),
            (&"volume_1".into(), &"/volume1".into())
        );
        assert_eq!(volume["size"]["used"], (40 * GIB).to_string());
        assert_eq!(info["iscsiLuns"][0]["uuid"], *uuid);
        assert_eq!(info["iscsiTargets"][0]["name"], "t");
        assert_eq!(info["storagePools"].as_array().unwrap().len(), 2);
    }
}
