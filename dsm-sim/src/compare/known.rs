//! Allowlists for recordings: the APIs that this project needs, and the fields that are not private. Of any other field a
//! recording shows the name and the type, but not the value.

/// Whether calls of this API are recorded with parameters and data. Of other APIs only the call and its result code are
/// recorded.
pub(super) fn is_api(name: &str) -> bool {
    const FAMILIES: [&str; 2] = ["SYNO.Core.ISCSI.", "SYNO.San.Nvme."];
    APIS.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Whether the value of a field with this name may be shown.
pub(super) fn is_field(name: &str) -> bool {
    FIELDS.binary_search(&name).is_ok()
}

const APIS: [&str; 20] = [
    "SYNO.API.Auth",
    "SYNO.API.Encryption",
    "SYNO.API.Info",
    "SYNO.Core.FileServ.NFS",
    "SYNO.Core.FileServ.NFS.SharePrivilege",
    "SYNO.Core.Network",
    "SYNO.Core.Network.Interface",
    "SYNO.Core.Security.DSM",
    "SYNO.Core.Share",
    "SYNO.Core.Share.Permission",
    "SYNO.Core.Share.Snapshot",
    "SYNO.Core.Storage.Disk",
    "SYNO.Core.Storage.Pool",
    "SYNO.Core.Storage.Volume",
    "SYNO.Core.System",
    "SYNO.Core.System.Utilization",
    "SYNO.DSM.Info",
    "SYNO.DSM.Network",
    "SYNO.Entry.Request",
    "SYNO.Storage.CGI.Storage",
];

/// Sorted, for a binary search.
#[rustfmt::skip]
const FIELDS: &[&str] = &[
    "15min_load", "1min_load", "5min_load", "acls", "action", "additional", "addr", "address", "allocated_size",
    "api", "async", "atime_checked", "atime_opt", "auth_type", "avail_real", "avail_swap", "batchtask",
    "bay_number", "block_size", "buffer", "cacheStatus", "cached", "can_do", "capacity", "cipherkey", "ciphertoken",
    "client", "clone_type", "cloned_lun_name", "cloned_lun_uuid", "codepage", "compound",
    "connected_sessions", "container", "controller_id", "count", "cpu", "cpu_clock_speed", "cpu_cores",
    "cpu_family", "cpu_series", "cpu_vendor", "crashed", "create_from", "create_time", "crossmnt", "cur_step",
    "data", "data_scrubbing", "deduped", "delete", "deleted_by", "deploy_path", "desc", "description", "detail",
    "detected_pools", "dev_attrib", "dev_attribs", "dev_attribs_bitmap", "dev_config", "dev_limit", "dev_qos",
    "dev_reservation", "dev_weight", "device", "device_type", "direct_io_pattern", "disk", "diskType",
    "disk_failure_number", "disks", "display_name", "dns", "drive_type", "dst_location", "dst_lun_name",
    "dst_lun_uuid", "duplex", "ebox", "enable", "enable_csrf_protection", "enable_device_token", "enable_nfs",
    "enable_nfs_v4", "enable_recycle_bin", "enable_share_cow", "enable_syno_token", "enabled_domain", "enabled_ntp",
    "enabled_samba", "env", "eppool_used", "eppool_used_byte", "error", "error_type", "errors", "exist_alive_vdsm",
    "extent_size", "family_config", "firm", "firmware_date", "firmware_ver", "flashcache_id", "flashcache_status",
    "format", "free_inode", "fs_type", "gateway", "has_data_checksum", "has_fail", "has_header_checksum",
    "has_unverified_disk", "hdd_info", "host_id", "hosts", "id", "ifname", "import_done", "import_errno",
    "import_total", "initiator_ids", "insecure", "interface_name", "interfaces", "iops_enable", "ip", "iqn",
    "is_acting", "is_action_locked", "is_actioning", "is_app_consistent", "is_backgroundbuilding", "is_bound",
    "is_data_clone", "is_data_encrypted", "is_default_target", "is_enabled", "is_encrypted", "is_inode_full",
    "is_locked", "is_mapped", "is_portal_port", "is_same_pool", "is_scheduled", "is_soft_feas_ignored",
    "is_system_crashed", "is_thin_provision", "is_user_locked", "is_vhost_mapped", "is_worm_locked", "is_writable",
    "iscsiLuns", "iscsiTargets", "iscsi_target_type", "items", "last_done_time", "lid", "limit",
    "limited_disk_number", "location", "lock", "locked_app_keys", "lun", "lun_id", "lun_name", "lun_uuid",
    "lun_uuids", "luns", "mac", "mapped_luns", "mapped_size", "mapping_index", "mask", "maxVersion",
    "max_btrfs_snapshots", "max_fs_size", "max_iscsiluns", "max_iscsitrgs", "max_recv_seg_bytes",
    "max_send_seg_bytes", "max_sessions", "max_snapshot_count", "max_snapshot_per_lun", "max_snapshot_per_lun_v2",
    "max_snapshot_size", "max_snapshots_per_share", "max_snapshots_per_share_v2", "max_task", "memory",
    "memory_size", "method", "minVersion", "missing_drives", "mode", "model", "mtu", "name", "namespace",
    "namespaces", "netmask", "network", "network_portals", "new_controller", "new_location", "new_name", "new_size",
    "new_type", "next_schedule_time", "nif", "no_copy", "nodes", "nqn", "num_id", "offset", "other_load",
    "overview_data", "overview_status", "parent_lun_id", "parent_lun_name", "parent_lun_uuid",
    "parent_snapshot_time", "parent_snapshot_uuid", "parent_uuid", "path", "percent", "permission", "permissions",
    "pool_child", "pool_path", "port", "ports", "privilege", "progress", "query", "quota_value", "raidType",
    "raid_cross", "raid_type", "raids", "ram", "ram_size", "read_access", "read_avg_latency", "read_byte",
    "read_iops", "read_size", "read_throughput", "readonly", "real_usage", "recycle_bin_admin_only", "relay_node",
    "remain_life", "remain_task", "requestFormat", "restored_time", "result", "retention", "root_path",
    "root_squash", "rule", "rx", "sata_dev", "scheduled_task", "scrubbingStatus", "server_time", "session",
    "sessions", "shareType", "share_quota", "sharedCaches", "shareinfo", "shares", "show_attention", "show_danger",
    "si_disk", "single_volume", "size", "size_free_byte", "size_total", "size_total_byte", "skip_ip_checking",
    "smart_status", "snapinfo", "snapshot", "snapshot_id", "snapshot_name", "snapshot_time", "snapshot_uuid",
    "snapshot_uuids", "snapshots", "so_disk", "space", "space_status", "speed", "src_lun_file", "src_lun_uuid",
    "ssdCaches", "ssd_trim", "status", "step", "stop_when_error", "storagePools", "subsystem_uuid", "success",
    "suggestions", "summary", "summary_status", "support", "support_discard", "support_encrypt_share",
    "support_esata", "support_fua", "support_iscsi_btrfs_lun", "support_iscsi_target", "support_major_ver",
    "support_minor_ver", "support_nvmeof", "support_snapshot", "support_storage_mgr", "support_vaai",
    "supportsnapshot", "swap_usage", "sync_done", "sync_errno", "sync_total", "sys_temp", "sys_tempwarn",
    "system_load", "systempwarn", "taken_by", "target", "target_id", "target_ids", "targets", "temp", "temperature",
    "temperature_warn", "temperature_warning", "tid", "time", "time_zone", "time_zone_desc", "timebackup",
    "timeout", "total", "total_device", "total_inode", "total_iops", "total_real", "total_size", "total_step",
    "total_swap", "total_throughput", "trustable", "tx", "type", "type_str", "types", "unix_pri_enable", "up_time",
    "upgrade_ready", "uptime", "usb_dev", "usbstation", "use_dhcp", "used", "used_by_gluster", "user_load",
    "utilization", "uuid", "uuids", "vendor", "version", "version_string", "vol_info", "vol_path",
    "volume", "volume_attribute", "volume_id", "volume_name", "volume_path", "volume_quota_status", "volumes",
    "whitelist", "wins", "worm_lock", "write_access", "write_avg_latency", "write_byte", "write_iops", "write_size",
    "write_throughput",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret_names::is_secret;

    #[test]
    fn fields_are_sorted_and_none_is_secret() {
        assert!(FIELDS.is_sorted());
        for name in FIELDS {
            assert!(!is_secret(name), "{name}");
            assert!(is_field(name), "{name}");
        }
    }

    #[test]
    fn other_apis_are_not_recorded() {
        for (name, is) in [
            ("SYNO.Core.ISCSI.LUN", true),
            ("SYNO.API.Auth", true),
            ("SYNO.Core.User", false),
            ("SYNO.FileStation.List", false),
            ("SYNO.API.Auth.Key", false),
        ] {
            assert_eq!(is_api(name), is, "{name}");
        }
    }
}
