"""What Home Assistant does with a NAS, through its own library (py-synologydsm-api), unmodified: the login of its set-up, and every
value that it makes a sensor of.

Says what it did, one line per step; ends with an error where Home Assistant would have refused the NAS.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import struct
import time
import urllib.request

from aiohttp import ClientSession, TCPConnector
from synology_dsm import SynologyDSM
from synology_dsm.exceptions import (
    SynologyDSMLogin2SAFailedException,
    SynologyDSMLogin2SARequiredException,
    SynologyDSMLoginInvalidException,
    SynologyDSMNotLoggedInException,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("--password", required=True)
    parser.add_argument("--https", action="store_true")
    parser.add_argument("--otp-secret", help="of the account's second factor")
    parser.add_argument("--control", help="the simulator's control port, as a URL")
    asyncio.run(visit(parser.parse_args()))


async def visit(told) -> None:
    async with ClientSession(connector=TCPConnector(ssl=False)) as http:
        nas = client(http, told)
        if told.otp_secret:
            nas = await second_factor(http, told, nas)
        assert await nas.login() is True
        print("login")
        await set_up(nas)
        await refresh(nas)
        sensors(nas)
        if told.control:
            await again(nas, told.control)
        await wrong_password(http, told)
        assert await nas.logout() is True
        print("logout")


def client(http, told, password=None, device_token=None):
    host, port = told.address.rsplit(":", 1)
    password = told.password if password is None else password
    return SynologyDSM(http, host, int(port), "admin", password, told.https, timeout=30, device_token=device_token)


async def second_factor(http, told, nas):
    """The code is asked for once; from then on the device is known."""
    try:
        await nas.login()
    except SynologyDSMLogin2SARequiredException:
        print("a code is asked for")
    code = totp(told.otp_secret)
    assert await nas.login(otp_code=code) is True
    token = nas.device_token
    assert token
    print("login with a code")
    try:
        await client(http, told).login(otp_code=code)
    except SynologyDSMLogin2SAFailedException:
        print("the code is used up")
    else:
        raise AssertionError("one code logged in twice")
    return client(http, told, device_token=token)


def totp(secret: str) -> str:
    """RFC 6238."""
    counter = struct.pack(">Q", int(time.time()) // 30)
    digest = hmac.new(base64.b32decode(secret), counter, hashlib.sha1).digest()
    offset = digest[-1] & 15
    number = struct.unpack(">I", digest[offset : offset + 4])[0] & 0x7FFFFFFF
    return f"{number % 1000000:06d}"


async def set_up(nas) -> None:
    """Home Assistant takes no NAS that cannot answer these."""
    await nas.utilisation.update()
    await nas.storage.update()
    await nas.network.update()
    assert nas.information.serial, "a serial number"
    assert nas.utilisation.cpu_user_load, "a load"
    assert nas.storage.volumes_ids, "volumes"
    assert nas.network.macs, "an address"
    assert nas.network.hostname
    assert not nas.apis.get("SYNO.SurveillanceStation.Camera"), "a package that is not there"
    assert not nas.apis.get("SYNO.FileStation.List"), "another"
    await nas.upgrade.update()
    print("set up")


async def refresh(nas) -> None:
    """All at once, as every quarter of an hour."""
    await nas.security.update()
    await nas.system.update()
    await nas.share.update()
    await nas.external_usb.update()
    await nas.hardware.update()
    await nas.update(with_information=True, with_network=True)
    print("refresh")


def sensors(nas) -> None:
    load = nas.utilisation
    for name in ("cpu_other_load", "cpu_user_load", "cpu_total_load", "cpu_1min_load", "cpu_5min_load", "cpu_15min_load"):
        assert getattr(load, name) is not None, name
    for name in ("memory_real_usage", "memory_size", "memory_cached", "memory_available_real", "memory_total_real"):
        assert getattr(load, name)() if callable(getattr(load, name)) else getattr(load, name), name
    assert load.network_up() is not None and load.network_down() is not None
    storage = nas.storage
    assert storage.volumes_ids == ["volume_1", "volume_2"], storage.volumes_ids
    for volume in storage.volumes_ids:
        assert storage.volume_status(volume) == "normal"
        assert storage.volume_device_type(volume)
        assert storage.volume_size_total(volume) > 1 << 40
        assert storage.volume_size_used(volume) is not None
        assert storage.volume_percentage_used(volume) is not None
        assert storage.volume_disk_temp_avg(volume) and storage.volume_disk_temp_max(volume)
    assert len(storage.disks_ids) == 4, storage.disks_ids
    for disk in storage.disks_ids:
        assert storage.disk_name(disk) and storage.disk_device(disk)
        assert (storage.disk_status(disk), storage.disk_smart_status(disk)) == ("normal", "normal")
        assert storage.disk_temp(disk) > 0
        assert storage.disk_exceed_bad_sector_thr(disk) is False and storage.disk_below_remain_life_thr(disk) is False
    about = nas.information
    assert about.model and about.version_string.startswith("DSM ") and about.uptime > 0 and about.temperature > 0
    assert about.awesome_version
    assert nas.system.up_time.count(":") == 2 and nas.system.firmware_ver.startswith("DSM ")
    assert nas.security.status == "safe" and nas.security.status_by_check
    assert nas.upgrade.update_available is False
    assert nas.hardware.fan_speed and nas.share.shares == [] and nas.external_usb.get_devices == {}
    print("sensors")


async def again(nas, control: str) -> None:
    """A session that has ended: Home Assistant logs in anew."""
    request = urllib.request.Request(f"{control}/sessions/expire", data=b"{}", method="POST")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    try:
        await nas.system.update()
    except SynologyDSMNotLoggedInException:
        print("the session has ended")
    else:
        raise AssertionError("a session that nobody knows was good")
    assert await nas.login() is True
    await nas.system.update()
    print("login again")


async def wrong_password(http, told) -> None:
    try:
        await client(http, told, password="wrong").login()
    except SynologyDSMLoginInvalidException:
        print("a wrong password is one")
    else:
        raise AssertionError("a wrong password logged in")


main()
