"""Downloads from a server that misbehaves, and archives that want out of their folder."""

import io
import os
import stat
import tarfile
import time
import zipfile

import numpy as np
import pytest
from serving import BODY, SHA

from data.sets import archives
from data.sets.archives import DownloadError, unpack
from data.sets.download import download


def get(server, path, **options):
    url = f"http://127.0.0.1:{server.server_address[1]}/file.zip"
    return download(url, path, len(BODY), SHA, **{"timeout": 0.4, "backoff": 0.01, "quiet": True} | options)


def test_plain_download(serve, tmp_path):
    server = serve()
    path = get(server, tmp_path / "new" / "file.zip")
    assert path.read_bytes() == BODY
    assert server.requests == [None]
    get(server, path)  # there and right: nothing is asked for
    assert len(server.requests) == 1
    assert not (tmp_path / "new" / "file.zip.part").exists()


@pytest.mark.parametrize(
    "script",
    [
        [("cut", 100_000), ("cut", 1_500_000), ("cut", 0)],
        [("stall", 700_000)],
        [("status", 503), ("cut", 5), ("status", 429)],
        [("cut", 1_000_000), ("range", 17)],  # answers another range than was asked for
        [("length", 1000), ("length", -1000)],  # lies about the length at once
        [("cut", 2_000_000), ("page", 0)],
        [("no length", 0)],
        [("wrong bytes", 0)],  # found by the hash; fetched once more from the start
        [("cut", 1_000_000), ("wrong bytes", 0)],
    ],
    ids=lambda script: "-".join(fault for fault, _ in script),
)
def test_download_survives(serve, tmp_path, script):
    server = serve(*script)
    assert get(server, tmp_path / "file.zip").read_bytes() == BODY
    assert not server.script  # all of it has happened


def test_download_goes_on_from_the_part_of_an_earlier_run(serve, tmp_path):
    path = tmp_path / "file.zip"
    with pytest.raises(DownloadError, match="what was fetched is kept"):
        get(serve(*[("cut", 1_000)] * 3), path, attempts=3)
    part = tmp_path / "file.zip.part"
    assert part.read_bytes() == BODY[:3000]
    assert not path.exists()
    server = serve()
    assert get(server, path).read_bytes() == BODY
    assert server.requests == ["bytes=3000-"]


def test_download_whose_part_is_wrong_starts_again(serve, tmp_path):
    for content in (b"x" * 1000, bytes(len(BODY)), bytes(len(BODY) + 1)):
        path = tmp_path / f"{len(content)}.zip"
        (tmp_path / f"{path.name}.part").write_bytes(content)
        assert get(serve(), path).read_bytes() == BODY


def test_server_without_ranges(serve, tmp_path):
    server = serve(("cut", 1_200_000), ranges=False)
    assert get(server, tmp_path / "file.zip").read_bytes() == BODY
    assert server.requests == [None, "bytes=1200000-"]


def test_a_crawling_server_is_given_up(serve, tmp_path):
    server = serve(("crawl", 1000))
    start = time.monotonic()
    assert get(server, tmp_path / "file.zip").read_bytes() == BODY
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([("status", 404)], "404"),
        ([("status", 416)], "shorter than the 3,000,000 bytes"),
        ([("wrong bytes", 0)] * 2, "sha256 differs"),
        ([("length", 5)] * 6, "3000005 bytes where 3000000 were expected"),
        ([("status", 500)] * 6, "answered 500"),
        ([("page", 0)] * 6, "cannot be fetched"),
    ],
    ids=lambda value: value[0][0] if isinstance(value, list) else "",
)
def test_download_gives_up_with_one_line(serve, tmp_path, script, message):
    path = tmp_path / "file.zip"
    with pytest.raises(DownloadError, match=message) as info:
        get(serve(*script), path, by_hand="ask a friend")
    assert str(info.value).endswith("By hand: ask a friend")
    assert "\n" not in str(info.value)
    assert not path.exists()


def test_a_page_instead_of_the_file_does_not_replace_what_was_fetched(serve, tmp_path):
    part = tmp_path / "file.zip.part"
    part.write_bytes(BODY[:2_000_000])
    with pytest.raises(DownloadError):
        get(serve(*[("no length", 0), ("length", 3)] * 2, ranges=False), tmp_path / "file.zip", attempts=3)
    assert part.read_bytes() == BODY[:2_000_000]


def test_no_network_and_no_room_are_one_clear_line(tmp_path):
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no network: .*put it at .*file\.zip"):
        download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip", 10, SHA, quiet=True, backoff=0.01)
    assert time.monotonic() - start < 5
    with pytest.raises(DownloadError, match=r"GB free, the download needs 1000000000\.0 GB"):
        download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip", 10**18, SHA, quiet=True)
    with pytest.raises(
        DownloadError, match=r"has .* free, the download needs 0\.00 MB and 1000000000\.0 GB to be unpacked"
    ):
        download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip", 10, SHA, unpacked=10**18, quiet=True)
    with pytest.raises(DownloadError, match="only http"):
        download(f"file://{tmp_path}/x", tmp_path / "file.zip", 10, SHA)


def test_a_wrong_file_of_the_user_is_left_alone(serve, tmp_path):
    path = tmp_path / "file.zip"
    path.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="remove it"):
        get(serve(), path)
    assert path.read_bytes() == b"mine"


def test_download_announces_its_size(serve, tmp_path, capsys):
    get(serve(), tmp_path / "file.zip", quiet=False)
    assert "downloading file.zip: 3.00 MB" in capsys.readouterr().out


# --- archives ---------------------------------------------------------------------------------------------------------


def make_zip(path, *entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = compression
            file.writestr(info, content)
    return path


def make_tar(path, *entries, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def zip_special(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def tar_special(name, kind, target="/etc"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def everything(folder):
    """All files below, but for locks."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.name.endswith(".lock")}


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unpack(tmp_path, make):
    archive = make(tmp_path / "archive", ("top/a.txt", b"a"), ("top/sub/b.txt", BODY), ("other/c.txt", b"c"))
    whole = unpack(archive, tmp_path / "whole", quiet=True)
    assert everything(whole) == {"top", "top/a.txt", "top/sub", "top/sub/b.txt", "other", "other/c.txt"}
    assert (whole / "top/sub/b.txt").read_bytes() == BODY
    inner = unpack(archive, tmp_path / "inner", inner="top", quiet=True)
    assert everything(inner) == {"a.txt", "sub", "sub/b.txt"}
    (inner / "a.txt").write_bytes(b"mine")
    unpack(archive, inner, inner="top", quiet=True)  # there: left alone
    assert (inner / "a.txt").read_bytes() == b"mine"
    with pytest.raises(DownloadError, match="no folder none"):
        unpack(archive, tmp_path / "none", inner="none", quiet=True)


ESCAPES = ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:evil", "C:\\evil", "a/..", "evil\nname"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_outside_are_refused(tmp_path, make, name):
    folder = tmp_path / "home"
    folder.mkdir()
    archive = make(tmp_path / "archive", ("good", b"x"), (name, b"evil"))
    with pytest.raises(DownloadError, match="nothing was unpacked"):
        unpack(archive, folder / "out", quiet=True)
    assert everything(tmp_path) == {"archive", "home"}


SPECIAL = {
    "zip link": (make_zip, zip_special("x", stat.S_IFLNK | 0o777)),
    "zip device": (make_zip, zip_special("x", stat.S_IFCHR | 0o666)),
    "tar link": (make_tar, tar_special("x", tarfile.SYMTYPE)),
    "tar hard link": (make_tar, tar_special("x", tarfile.LNKTYPE, "../../evil")),
    "tar device": (make_tar, tar_special("x", tarfile.CHRTYPE)),
    "tar fifo": (make_tar, tar_special("x", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_links_and_devices_are_refused(tmp_path, case):
    make, entry = SPECIAL[case]
    archive = make(tmp_path / "archive", (entry, b"/etc" if make is make_zip else b""), ("x/evil", b"x"))
    with pytest.raises(DownloadError, match="link or a device"):
        unpack(archive, tmp_path / "out", quiet=True)
    assert everything(tmp_path) == {"archive"}


def test_bombs_are_refused(tmp_path, monkeypatch):
    bomb = make_zip(tmp_path / "bomb", ("zeros", bytes(70 << 20)), compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DownloadError, match="which is refused"):
        unpack(bomb, tmp_path / "out", quiet=True)
    large = make_zip(tmp_path / "large", ("a", BODY), ("b", BODY))
    with pytest.raises(DownloadError, match="which is refused"):
        unpack(large, tmp_path / "out", max_bytes=5_000_000, quiet=True)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    many = make_tar(tmp_path / "many", *((f"{i}", b"") for i in range(4)))
    with pytest.raises(DownloadError, match="which is refused"):
        unpack(many, tmp_path / "out", quiet=True)
    packed = make_tar(tmp_path / "packed", ("zeros", bytes(1000)), mode="w:gz")
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        unpack(packed, tmp_path / "out", quiet=True)
    assert everything(tmp_path) == {"bomb", "large", "many", "packed"}


@pytest.mark.parametrize("claimed", [100, 10_000_000])
def test_a_member_of_another_size_than_it_claims_is_refused(tmp_path, claimed):
    archive = make_zip(tmp_path / "archive", ("good", b"x"), ("liar", BODY), compression=zipfile.ZIP_DEFLATED)
    data = archive.read_bytes()
    archive.write_bytes(data.replace(len(BODY).to_bytes(4, "little"), claimed.to_bytes(4, "little")))
    with pytest.raises(DownloadError):
        unpack(archive, tmp_path / "out", quiet=True)
    assert everything(tmp_path) == {"archive"}


@pytest.mark.parametrize("entries", [("a", "a"), ("a", "a/b"), ("a/b", "a")], ids=str)
def test_names_in_each_others_way_are_refused(tmp_path, entries):
    with pytest.warns(UserWarning) if entries == ("a", "a") else open(os.devnull):
        archive = make_zip(tmp_path / "archive", *((name, b"x") for name in entries))
    with pytest.raises(DownloadError, match="nothing was unpacked"):
        unpack(archive, tmp_path / "out", quiet=True)
    assert everything(tmp_path) == {"archive"}


def test_damaged_archives_leave_nothing(tmp_path):
    good = make_zip(tmp_path / "good", ("a", BODY[:20_000]), ("b", b"y" * 20_000), compression=zipfile.ZIP_DEFLATED)
    data = good.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for n in range(60):
        damaged = bytearray(data[: rng.integers(len(data))] if n % 3 == 0 else data)
        for place in rng.integers(0, len(damaged), 3 if n % 3 else 0):
            damaged[place] ^= 1 << rng.integers(8)
        (tmp_path / "bad").write_bytes(damaged)
        out = tmp_path / f"out{n}"
        try:
            unpack(tmp_path / "bad", out, quiet=True)
        except DownloadError:
            refused += 1
            assert not out.exists()
    assert refused > 50
    assert not list(tmp_path.glob("*.unpack"))
    with pytest.raises(DownloadError, match="missing"):
        unpack(tmp_path / "missing", tmp_path / "out", quiet=True)


def test_what_a_killed_run_left_is_removed(tmp_path):
    archive = make_zip(tmp_path / "archive", ("a", b"new"))
    (tmp_path / ".out.unpack").mkdir()
    (tmp_path / ".out.unpack" / "half").write_bytes(b"old")
    assert everything(unpack(archive, tmp_path / "out", quiet=True)) == {"a"}
    assert everything(tmp_path) == {"archive", "out", "out/a"}
