//! System information: `SYNO.Core.System info` and `SYNO.DSM.Info getinfo`, dsm-web-api.md 9.

use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::call::{Answer, Call};
use crate::nas::clock::Millis;
use crate::nas::code::Code;
use crate::nas::model::Generation;

pub(crate) const HOSTNAME: &str = "dsm-sim";
const SERIAL: &str = "SIM0000000001";
/// This NAS among the nodes of `SYNO.Core.ISCSI.Node list`.
pub(crate) const NODE_UUID: &str = "0d51a1a0-5e1f-4c1d-9a8e-000000000001";

impl Nas {
    pub(crate) fn system_call(&self, now: Millis, call: &Call) -> Answer {
        if call.api == "SYNO.DSM.Info" {
            return Ok(Some(self.getinfo(now)));
        }
        match call.params.string("type").as_deref() {
            None | Some("") => Ok(Some(self.info(now))),
            Some("network") => Ok(Some(self.network_page())),
            Some("firmware") => Ok(Some(json!({
                "firmware_ver": self.config.dsm.firmware,
                "model": self.config.model.name,
            }))),
            Some("define") => Ok(Some(self.define())),
            Some(other) => {
                Err(Code::BadParameter.unsupported(&format!("SYNO.Core.System info type={other}")))
            }
        }
    }

    // Names and types as recorded from a DS918+ with DSM 6.2.3 (mib1185/py-synologydsm-api).
    // ASSUMED: DSM 7 has the same fields.
    fn info(&self, now: Millis) -> Value {
        let up = self.uptime(now);
        let mut info = json!({
            "cpu_clock_speed": 2600,
            "cpu_cores": "2",
            "cpu_family": "Ryzen",
            "cpu_series": "R1600",
            "cpu_vendor": "AMD",
            "enabled_ntp": true,
            "firmware_date": "2024/05/08",
            "firmware_ver": self.config.dsm.firmware,
            "model": self.config.model.name,
            "ntp_server": "time.google.com",
            "ram_size": 4096,
            "sata_dev": [],
            "serial": SERIAL,
            "support_esata": "yes",
            "sys_temp": 40,
            "sys_tempwarn": false,
            "systempwarn": false,
            "temperature_warning": false,
            "time": date(now).iso(),
            "time_zone": "London",
            "time_zone_desc": "(GMT) Dublin, Edinburgh, Lisbon, London",
            // Recorded: `75:12:9`, hours first.
            "up_time": format!("{}:{}:{}", up / 3_600, up / 60 % 60, up % 60),
            "usb_dev": [],
        });
        if !self.settings.up_time_shown {
            info.as_object_mut().map(|info| info.remove("up_time"));
        }
        info
    }

    fn getinfo(&self, now: Millis) -> Value {
        let build = self
            .config
            .dsm
            .firmware
            .split(['-', ' '])
            .nth(2)
            .unwrap_or_default();
        json!({
            "codepage": "enu",
            "model": self.config.model.name,
            "ram": 4096,
            "serial": SERIAL,
            "temperature": 40,
            "temperature_warn": false,
            "time": date(now).ctime(),
            "uptime": self.uptime(now),
            "version": build,
            "version_string": self.config.dsm.firmware,
        })
    }

    /// A subset of the 300-odd keys: those that a client is known to read, and the limits of the NAS.
    fn define(&self) -> Value {
        let model = &self.config.model;
        let mut keys = json!({
            "iscsi_target_type": "lio4x",
            "max_btrfs_snapshots": "65536",
            "max_iscsiluns": model.max_luns.to_string(),
            "max_iscsitrgs": model.max_targets.to_string(),
            "max_snapshot_per_lun": "256",
            "max_snapshots_per_share": "1024",
            "support_iscsi_btrfs_lun": "yes",
            "support_iscsi_target": "yes",
            // Measured: a DS918+ has no `SYNO.San.Nvme.*`, and this NAS has none either.
            "support_nvmeof": "no",
            "support_storage_mgr": "yes",
            "support_vaai": "yes",
            "supportsnapshot": "yes",
            "usbstation": "no",
        });
        if self.config.generation == Generation::Seven {
            keys["max_snapshot_per_lun_v2"] = json!("128");
            keys["max_snapshots_per_share_v2"] = json!("512");
        }
        keys
    }
}

/// The parts of a date, as text.
struct Date(Vec<String>);

fn date(now: Millis) -> Date {
    // `Sun, 06 Nov 1994 08:49:37 GMT`, always in these parts.
    let text =
        httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_millis(now));
    Date(
        text.split([' ', ','])
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect(),
    )
}

impl Date {
    /// `2020-10-19 23:33:52`, the format of `SYNO.Core.System`.
    fn iso(&self) -> String {
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let month = MONTHS
            .iter()
            .position(|month| *month == self.0[2])
            .unwrap_or_default()
            + 1;
        format!("{}-{month:02}-{} {}", self.0[3], self.0[1], self.0[4])
    }

    /// `Sun Mar 29 19:33:41 2020` (as `ctime` writes it), the format of `SYNO.DSM.Info`.
    fn ctime(&self) -> String {
        format!(
            "{} {} {} {} {}",
            self.0[0], self.0[2], self.0[1], self.0[4], self.0[3]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_recorded() {
        assert_eq!(date(784_111_777_000).iso(), "1994-11-06 08:49:37");
        assert_eq!(date(784_111_777_000).ctime(), "Sun Nov 06 08:49:37 1994");
    }
}
