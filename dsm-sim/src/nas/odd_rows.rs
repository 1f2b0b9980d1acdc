//! Malformed rows in lists. `odd_rows` and `nameless_rows` add foreign rows: a NAS has LUNs, targets and volumes that a driver
//! did not create (virtual machines, replicas, USB disks, whatever DSM adds next), in the same lists. `cut_rows` removes fields
//! from the rows of existing objects: that a row cannot be read does not mean that its object is gone.
// ASSUMED: each of these shapes. Recorded are a `mapping_index` of -1 and volumes without a usable `volume_id`; the others are
// what a client must tolerate, since not everything that DSM may report about foreign objects is known.

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

/// First number of the odd rows, above any number of a real LUN or target.
const FIRST_ODD_NUMBER: u32 = 900_001;

impl Nas {
    /// Odd rows for the list of LUNs, on this volume (`None`: all).
    pub(crate) fn odd_luns(
        &self,
        now: Millis,
        additional: &Additional,
        env: &dyn Environment,
        location: Option<&str>,
    ) -> Vec<Value> {
        let mut rows = Vec::new();
        let mut number = FIRST_ODD_NUMBER;
        let mut add = |change: &dyn Fn(&mut Value)| {
            let lun = self.odd_lun(number);
            if location.is_none_or(|path| path == lun.location) {
                let mut row = self.lun_json(&lun, now, additional, env, Form::List);
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

    /// Odd rows for the list of targets.
    pub(crate) fn odd_targets(&self, additional: &Additional, env: &dyn Environment) -> Vec<Value> {
        let mut rows = Vec::new();
        let mut number = FIRST_ODD_NUMBER;
        let mut add = |change: &dyn Fn(&mut Value)| {
            let target = odd_target(number);
            let mut row = self.target_json(&target, additional, env, -1);
            change(&mut row);
            rows.push(row);
            number += 1;
        };
        let mapped =
            |mapped: Value| move |row: &mut Value| set_if_present(row, "mapped_luns", &mapped);
        let sessions =
            |is: Value| move |row: &mut Value| set_if_present(row, "connected_sessions", &is);
        if self.settings.odd_rows {
            add(&mapped(
                json!([{"lun_uuid": uuid(FIRST_ODD_NUMBER), "mapping_index": -1}]),
            ));
            add(&mapped(json!([{"lun_uuid": uuid(FIRST_ODD_NUMBER)}])));
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

    /// Odd rows for the list of volumes.
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

    /// A row of an existing object, without this field if `cut_rows` is on.
    pub(crate) fn cut_row(&self, mut row: Value, field: &str) -> Value {
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

/// Well-formed, but never equal to a generated uuid: those are version 4.
fn uuid(number: u32) -> String {
    format!("0dd00000-0000-0000-0000-{number:012}")
}

fn number_text(row: &Value) -> String {
    row["target_id"].to_string()
}

fn drop_field(row: &mut Value, name: &str) {
    row.as_object_mut().map(|row| row.remove(name));
}

/// Sets a field only if the row has it, which means that the client requested it.
fn set_if_present(row: &mut Value, name: &str, value: &Value) {
    if let Some(field) = row.get_mut(name) {
        *field = value.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nas::tests::{GIB, LUN, NasFixture, TARGET};

    const VOLUME: &str = "SYNO.Core.Storage.Volume";

    fn rows(sim: &mut NasFixture, api: &str, name: &str) -> Vec<Value> {
        let additional = r#"["mapped_lun","connected_sessions","status","is_action_locked"]"#;
        let data = sim.ok(api, "list", &[("additional", additional)]);
        data[name].as_array().unwrap().clone()
    }

    #[test]
    fn odd_rows_are_listed_with_real_ones_and_have_a_name_or_path() {
        let mut sim = NasFixture::new();
        let uuid = sim.lun("a", "BLUN", GIB);
        sim.target("t");
        for (api, name) in [(LUN, "luns"), (TARGET, "targets"), (VOLUME, "volumes")] {
            let plain = rows(&mut sim, api, name);
            sim.nas.settings.odd_rows = true;
            let odd = rows(&mut sim, api, name);
            assert!(odd.len() > plain.len(), "{api}");
            for row in &plain {
                assert!(odd.contains(row), "{api} {row}");
            }
            for row in &odd {
                let names = ["name", "iqn", "volume_path"].map(|name| row[name].is_string());
                assert!(names.contains(&true), "{api} {row}");
            }
            sim.nas.settings.nameless_rows = true;
            assert!(rows(&mut sim, api, name).len() > odd.len(), "{api}");
            sim.nas.settings.odd_rows = false;
            sim.nas.settings.nameless_rows = false;
            assert_eq!(rows(&mut sim, api, name), plain);
        }
        sim.nas.settings.odd_rows = true;
        let found = sim.ok(TARGET, "list", &[("lun_uuid", &uuid)]);
        assert_eq!(found["targets"], json!([]), "no odd row maps a real LUN");
        let elsewhere = sim.ok(LUN, "list", &[("location", "/volume2")]);
        assert_eq!(elsewhere["luns"], json!([]));
        let mapped = rows(&mut sim, TARGET, "targets");
        let negative_index = |row: &Value| row["mapped_luns"][0]["mapping_index"] == -1;
        assert!(mapped.iter().any(negative_index));
        let without_size = |row: &Value| row.get("size").is_none();
        assert!(rows(&mut sim, LUN, "luns").iter().any(without_size));
    }

    #[test]
    fn rows_are_cut_in_lists_only() {
        let mut sim = NasFixture::new();
        let uuid = sim.lun("a", "BLUN", GIB);
        sim.target("t");
        sim.nas.settings.cut_rows = true;
        for (api, name, field) in [(LUN, "luns", "size"), (TARGET, "targets", "mapped_luns")] {
            let listed = rows(&mut sim, api, name);
            assert_eq!(listed.len(), 1, "{api}");
            assert!(listed[0].get(field).is_none(), "{api}: {}", listed[0]);
        }
        assert_eq!(sim.get(&uuid, "[]")["size"], GIB);
        let target = sim.ok(
            TARGET,
            "get",
            &[("target_id", "\"1\""), ("additional", r#"["mapped_lun"]"#)],
        );
        assert_eq!(target["target"]["mapped_luns"], json!([]));
    }
}
