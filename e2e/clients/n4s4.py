"""A whole life with N4S4's synology-api, unmodified, against the NAS at ADDRESS.

Says what it did, one line per call; ends with an error where an answer is not what a user of the library relies on.
Source: its own docstrings and dsm-api.md 4 and 5.
"""

import argparse

from synology_api import core_iscsi, snapshot
from synology_api.base_api import BaseApi

GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("--password", required=True)
    parser.add_argument("--dsm", type=int, default=7)
    parser.add_argument("--https", action="store_true")
    told = parser.parse_args()
    host, port = told.address.rsplit(":", 1)
    login = {
        "ip_address": host,
        "port": port,
        "username": "admin",
        "password": told.password,
        "secure": told.https,
        "cert_verify": False,
        "dsm_version": told.dsm,
        "debug": False,
    }
    lun, target, snapshots = core_iscsi.LUN(**login), core_iscsi.Target(**login), snapshot.Snapshot(**login)
    assert BaseApi.shared_session.sid, "logged in"
    uuid = luns(lun)
    clones(lun, uuid)
    targets(lun, target, uuid)
    of_lun(snapshots, uuid)
    refusals(lun)
    done("delete", lun.delete(uuid))
    done("safe_delete", lun.safe_delete([row["uuid"] for row in rows(lun)], 0.1))
    assert rows(lun) == [], rows(lun)
    lun.logout()
    print("logout")


def data(call, answer):
    assert answer["success"] is True, (call, answer)
    print(call)
    return answer["data"]


def done(call, answer):
    assert answer["success"] is True and not answer.get("data"), (call, answer)
    print(call)


def rows(lun):
    return data("list", lun.list())["luns"]


def luns(lun):
    assert rows(lun) == []
    uuid = data("create", lun.create("n4-a", "BLUN", "/volume1", GIB, description="hello world", can_snapshot=True))["uuid"]
    data("create thick", lun.create("n4-b", "BLUN_THICK", "/volume1", str(GIB), extent_size=0))
    assert data("get", lun.get(uuid))["lun"]["size"] == GIB
    assert data("get by name", lun.get("n4-a"))["lun"]["uuid"] == uuid
    done("set size", lun.set(uuid, new_size=2 * GIB))
    done("set name", lun.set(uuid, new_name="n4-c"))
    row = data("get", lun.get(uuid))["lun"]
    assert (row["size"], row["name"]) == (2 * GIB, "n4-c"), row
    assert [row["name"] for row in data("list", lun.list(location="/volume1"))["luns"]] == ["n4-c", "n4-b"]
    return uuid


def clones(lun, uuid):
    clone = data("clone", lun.clone(uuid, "n4-clone", dst_location="/volume1"))["dst_lun_uuid"]
    row = data("get", lun.get(clone))["lun"]
    assert (row["size"], row["type"]) == (2 * GIB, 263), row
    done("stop_clone", lun.stop_clone(uuid))


def targets(lun, target, uuid):
    number = data("create", target.create("n4-t", "iqn.2000-01.com.synology:n4", max_sessions=2))["target_id"]
    chap = {"auth_type": 1, "user": "alice", "password": "secret123456"}
    other = data("create chap", target.create("n4-t2", "iqn.2000-01.com.synology:n42", **chap))["target_id"]
    mapped = lambda: [row["lun_uuid"] for row in data("get", target.get(number))["target"]["mapped_luns"]]
    done("map_target", lun.map_target(uuid, number))
    assert mapped() == [uuid]
    done("unmap_target", lun.unmap_target(uuid, [str(number)]))
    assert mapped() == []
    done("map_lun", target.map_lun(number, uuid))
    found = data("list of lun", target.list(lun_uuid=uuid))["targets"]
    assert [row["target_id"] for row in found] == [number], found
    done("set", target.set(number, new_name="n4-tt", max_sessions=4))
    done("disable", target.disable(number))
    row = data("get", target.get(number))["target"]
    assert (row["name"], row["max_sessions"], row["is_enabled"]) == ("n4-tt", 4, False), row
    done("enable", target.enable(number))
    done("unmap_lun", target.unmap_lun(number, [uuid]))
    assert mapped() == []
    for number in (number, other):
        done("delete", target.delete(number))


def of_lun(snapshots, uuid):
    first = data("take_snapshot", snapshots.create_snapshot_lun(uuid, "first"))["snapshot_uuid"]
    data("take_snapshot", snapshots.create_snapshot_lun(uuid, "second", lock=False, app_aware=False))
    found = data("list_snapshot", snapshots.list_snapshots_lun(uuid))
    assert (found["count"], [row["description"] for row in found["snapshots"]]) == (2, ["first", "second"]), found
    assert found["snapshots"][0]["is_user_locked"] is True
    assert len(data("list", snapshots.list_luns())["luns"]) == 3
    assert data("delete_snapshot", snapshots.delete_snapshots_lun([first])) == []
    assert data("delete_snapshot", snapshots.delete_snapshots_lun([first])) == [{first: 18990540}]


def refusals(lun):
    try:
        answer = lun.get("00000000-0000-4000-8000-000000000000")
    except Exception as error:
        assert error.error_code == 18990531, vars(error)
    else:
        raise AssertionError(answer)
    print("get of a LUN that is not there")


main()
