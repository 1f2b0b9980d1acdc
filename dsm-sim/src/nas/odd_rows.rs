//! Rows that fit no client's types. Of others (`odd_rows`, `nameless_rows`): a NAS has LUNs, targets and volumes that a driver
//! did not make (virtual machines, replicas, USB disks, whatever DSM comes up with next), and they stand in the same lists. And of
//! what a driver has made (`cut_rows`): that it cannot be read says nothing of whether it is there.
// ASSUMED: each of these shapes. Recorded is a `mapping_index` of -1 and `volume_id`s of none; the rest is what a client must
// not fall over, since nobody knows all that DSM may say of what is not a driver's own.

use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::api::lun::Form;
use crate::nas::clock::Millis;
use crate::nas::effect::Environment;
use crate::nas::params::Additional;
use crate::nas::state::lun::Family;
use crate::nas::state::lun::Lun;
use crate::nas::state::lun_type::{DevAttribs, LunType};
use crate::nas::state::target::Target;

/// Numbers that no LUN or target of the NAS itself ever gets.
const NUMBERS: u32 = 900_001;

impl Nas {
    /// What is listed besides the LUNs that are there, on this volume (all when none is asked for).
    pub(crate) fn odd_luns(
        &self,
        now: Millis,
        additional: &Additional,
        outside: &dyn Environment,
        location: Option<&str>,
    ) -> Vec<Value> {
        let mut rows = Vec::new();
        let mut number = NUMBERS;
        let mut add = |change: &dyn Fn(&mut Value)| {
            let lun = self.odd_lun(number);
            if location.is_none_or(|asked| asked == lun.location) {
                let mut row = self.lun_json(&lun, now, additional, outside, Form::List);
                change(&mut row);
                rows.push(row);
            }
            number += 1;
        };
        if self.settings.odd_rows {
            add(&|row| drop_field(row, "size"));
            add(&|row| row["size"] = json!(-1));
            add(&|row| row["size"] = json!("1073741824"));
            add(&|row| row["type"] = json!("VDISK_BLUN"));
            add(&|row| {
                row["type"] = json!(65_536);
                row["type_str"] = json!("OF_TOMORROW");
            });
            add(&|row| row["lun_id"] = json!(-1));
            add(&|row| row["location"] = Value::Null);
            add(&|row| row["description"] = Value::Null);
            add(&|row| {
                row["dev_attribs"] = Value::Null;
                row["dev_qos"] = Value::Null;
            });
            add(&|row| {
                row["status"] = Value::Null;
                row["is_action_locked"] = json!("no");
                row["is_mapped"] = Value::Null;
            });
            add(&|row| row["name"] = json!("Virtual Disk 1 (Büro)"));
        }
        if self.settings.nameless_rows {
            add(&|row| drop_field(row, "name"));
            add(&|row| row["name"] = Value::Null);
            add(&|row| drop_field(row, "uuid"));
            add(&|row| *row = Value::Null);
        }
        rows
    }

    /// What is listed besides the targets that are there.
    pub(crate) fn odd_targets(
        &self,
        additional: &Additional,
        outside: &dyn Environment,
    ) -> Vec<Value> {
        let mut rows = Vec::new();
        let mut number = NUMBERS;
        let mut add = |change: &dyn Fn(&mut Value)| {
            let target = odd_target(number);
            let mut row = self.target_json(&target, additional, outside, -1);
            change(&mut row);
            rows.push(row);
            number += 1;
        };
        let mapped = |mapped: Value| move |row: &mut Value| asked(row, "mapped_luns", &mapped);
        let sessions = |is: Value| move |row: &mut Value| asked(row, "connected_sessions", &is);
        if self.settings.odd_rows {
            add(&mapped(
                json!([{"lun_uuid": uuid(NUMBERS), "mapping_index": -1}]),
            ));
            add(&mapped(json!([{"lun_uuid": uuid(NUMBERS)}])));
            add(&mapped(json!([null])));
            add(&mapped(Value::Null));
            add(&|row| drop_field(row, "mapped_luns"));
            add(&|row| row["target_id"] = json!(number_text(row)));
            add(&|row| row["target_id"] = json!(-1));
            add(&|row| row["max_sessions"] = json!("1"));
            add(&|row| row["auth_type"] = json!("none"));
            add(&sessions(Value::Null));
            add(&sessions(json!([{"iqn": "iqn.1994-05.com.redhat:odd"}])));
            add(&sessions(json!([{"iqn": null, "ip": ""}])));
            add(&|row| row["network_portals"] = Value::Null);
            add(&|row| drop_field(row, "is_enabled"));
            add(&|row| row["status"] = json!("processing"));
            add(&|row| row["iqn"] = json!("naa.52004567BA64678D"));
        }
        if self.settings.nameless_rows {
            add(&|row| {
                drop_field(row, "name");
                drop_field(row, "iqn");
            });
            add(&|row| {
                row["name"] = Value::Null;
                row["iqn"] = Value::Null;
            });
            add(&|row| *row = json!("busy"));
        }
        rows
    }

    /// What is listed besides the NAS's own volumes.
    pub(crate) fn odd_volumes(&self) -> Vec<Value> {
        let mut rows = Vec::new();
        if self.settings.odd_rows {
            rows.push(json!({
                "container": "external",
                "fs_type": "ntfs",
                "location": "external",
                "size_free_byte": 1_000_000,
                "volume_id": -1,
                "volume_path": "/volumeUSB1/usbshare1-1",
            }));
        }
        if self.settings.nameless_rows {
            rows.push(json!({"status": "normal", "size_free_byte": "0"}));
        }
        rows
    }

    /// A row of what is there, without this field where `cut_rows` says so.
    pub(crate) fn cut(&self, mut row: Value, field: &str) -> Value {
        if self.settings.cut_rows {
            drop_field(&mut row, field);
        }
        row
    }

    fn odd_lun(&self, number: u32) -> Lun {
        let volume = self.state.volumes.values().next();
        Lun {
            uuid: uuid(number),
            name: format!("odd-{number}"),
            lun_id: number,
            size: 1 << 30,
            kind: LunType::Blun,
            location: volume.map_or_else(String::new, |volume| volume.path.clone()),
            description: String::new(),
            dev_attribs: DevAttribs::default_for(LunType::Blun, true),
            direct_io_pattern: 0,
            status: "normal".to_owned(),
            held: false,
            locked_until: 0,
            half_done_until: None,
            deleting_until: None,
            family: Family::default(),
            restored_time: 0,
            last_snapshot_id: 0,
        }
    }
}

fn odd_target(number: u32) -> Target {
    Target {
        target_id: number,
        name: format!("odd-{number}"),
        iqn: format!("iqn.2000-01.com.synology:somebody.odd-{number}"),
        ..Target::blank()
    }
}

/// Well-formed, and none that is ever drawn: those are of version 4.
fn uuid(number: u32) -> String {
    format!("0dd00000-0000-0000-0000-{number:012}")
}

fn number_text(row: &Value) -> String {
    row["target_id"].to_string()
}

fn drop_field(row: &mut Value, name: &str) {
    row.as_object_mut().map(|row| row.remove(name));
}

/// Changes a field where it was asked for.
fn asked(row: &mut Value, name: &str, value: &Value) {
    if let Some(field) = row.get_mut(name) {
        *field = value.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nas::tests::{GIB, LUN, NasFixture, TARGET};

    const VOLUME: &str = "SYNO.Core.Storage.Volume";

    fn rows(bench: &mut NasFixture, api: &str, name: &str) -> Vec<Value> {
        let additional = r#"["mapped_lun","connected_sessions","status","is_action_locked"]"#;
        let data = bench.ok(api, "list", &[("additional", additional)]);
        data[name].as_array().unwrap().clone()
    }

    #[test]
    fn odd_rows_stand_around_what_is_there_and_tell_whose_they_are() {
        let mut bench = NasFixture::new();
        let uuid = bench.lun("a", "BLUN", GIB);
        bench.target("t");
        for (api, name) in [(LUN, "luns"), (TARGET, "targets"), (VOLUME, "volumes")] {
            let plain = rows(&mut bench, api, name);
            bench.nas.settings.odd_rows = true;
            let odd = rows(&mut bench, api, name);
            assert!(odd.len() > plain.len(), "{api}");
            for row in &plain {
                assert!(odd.contains(row), "{api} {row}");
            }
            for row in &odd {
                let told = ["name", "iqn", "volume_path"].map(|name| row[name].is_string());
                assert!(told.contains(&true), "{api} {row}");
            }
            bench.nas.settings.nameless_rows = true;
            assert!(rows(&mut bench, api, name).len() > odd.len(), "{api}");
            bench.nas.settings.odd_rows = false;
            bench.nas.settings.nameless_rows = false;
            assert_eq!(rows(&mut bench, api, name), plain);
        }
        bench.nas.settings.odd_rows = true;
        let found = bench.ok(TARGET, "list", &[("lun_uuid", &uuid)]);
        assert_eq!(found["targets"], json!([]), "of this LUN there is none");
        let elsewhere = bench.ok(LUN, "list", &[("location", "/volume2")]);
        assert_eq!(elsewhere["luns"], json!([]));
        let mapped = rows(&mut bench, TARGET, "targets");
        let minus = |row: &Value| row["mapped_luns"][0]["mapping_index"] == -1;
        assert!(mapped.iter().any(minus));
        let sizeless = |row: &Value| row.get("size").is_none();
        assert!(rows(&mut bench, LUN, "luns").iter().any(sizeless));
    }

    #[test]
    fn a_row_that_is_cut_is_cut_in_lists_only() {
        let mut bench = NasFixture::new();
        let uuid = bench.lun("a", "BLUN", GIB);
        bench.target("t");
        bench.nas.settings.cut_rows = true;
        for (api, name, field) in [(LUN, "luns", "size"), (TARGET, "targets", "mapped_luns")] {
            let listed = rows(&mut bench, api, name);
            assert_eq!(listed.len(), 1, "{api}");
            assert!(listed[0].get(field).is_none(), "{api}: {}", listed[0]);
        }
        assert_eq!(bench.get(&uuid, "[]")["size"], GIB);
        let target = bench.ok(
            TARGET,
            "get",
            &[("target_id", "\"1\""), ("additional", r#"["mapped_lun"]"#)],
        );
        assert_eq!(target["target"]["mapped_luns"], json!([]));
    }
}
