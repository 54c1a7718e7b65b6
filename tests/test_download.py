"""Downloads and archives: what goes wrong is one line, and nothing half-done is taken for whole."""

import hashlib
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import BODY, SHA

from data.sets import download
from data.sets.download import DownloadError, from_hub, unpack


def at_hub(monkeypatch, url):
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(serve, monkeypatch):
    """A hub that follows a script."""

    def start(*script, **options):
        server = serve(*script, **options)
        at_hub(monkeypatch, server.url)
        return server

    monkeypatch.setattr("time.sleep", lambda _: None)
    return start


def fetch(folder, sha256=SHA, needed=0):
    return from_hub("us/data", "a.zip", "1" * 40, folder, sha256, needed)


def test_a_file_is_fetched_once(hub, tmp_path):
    server = hub()
    assert fetch(tmp_path) == tmp_path / "a.zip" and (tmp_path / "a.zip").read_bytes() == BODY
    asked = len(server.requests)
    assert fetch(tmp_path) == tmp_path / "a.zip" and len(server.requests) == asked == 1


def test_several_processes_fetch_a_file_once(hub, tmp_path):
    server = hub()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: fetch(tmp_path), range(4))) == {tmp_path / "a.zip"}
    assert len(server.requests) == 1 and {p.name for p in tmp_path.iterdir()} <= {"a.zip", ".a.zip.lock"}


def test_a_download_that_breaks_is_continued(hub, tmp_path):
    body = bytes(25_000_000)
    server = hub(("cut", 21_000_000), body=body)
    assert fetch(tmp_path, hashlib.sha256(body).hexdigest()).read_bytes() == body
    assert server.requests[0] is None and server.requests[1].startswith("bytes=")


def test_a_refusal_is_one_line(hub, tmp_path):
    hub(("status", 404))
    with pytest.raises(DownloadError, match=r"404.*put it at .*a\.zip") as info:
        fetch(tmp_path)
    assert "\n" not in str(info.value) and not (tmp_path / "a.zip").exists()


def test_other_bytes_than_expected_are_not_kept(hub, tmp_path):
    hub(("wrong bytes", None))
    with pytest.raises(DownloadError, match=r"a\.zip of us/data is not the file expected; nothing was kept"):
        fetch(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size >= len(BODY)]
    assert fetch(tmp_path).read_bytes() == BODY


def test_no_network_and_no_room_are_one_line(tmp_path, monkeypatch):
    at_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(DownloadError, match=r"a\.zip cannot be fetched \(.*put it at .*a\.zip") as info:
        fetch(tmp_path)
    assert "\n" not in str(info.value)
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=r"has 1\.0 GB free, and 3\.0 GB are needed"):
        fetch(tmp_path, needed=3 * 10**9)


def zipped(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_the_folder_of_an_archive_is_unpacked_once(tmp_path):
    archive = zipped(tmp_path / "a.zip", **{"images/x/1.png": "one", "images/2.png": "two", "README": "no"})
    (tmp_path / ".images.unpack/half").mkdir(parents=True)  # of a killed run
    assert unpack(archive, tmp_path / "images") == tmp_path / "images"
    assert (tmp_path / "images/x/1.png").read_text() == "one" and (tmp_path / "images/2.png").read_text() == "two"
    assert {p.name for p in tmp_path.iterdir()} <= {"a.zip", "images", ".images.unpack.lock"}
    archive.write_bytes(b"")
    unpack(archive, tmp_path / "images")  # it is there


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out-of-it.txt", "images/../../out.txt"])
def test_nothing_is_written_outside(tmp_path, name):
    unpack(zipped(tmp_path / "a.zip", **{"images/1.png": "one", name: "evil"}), tmp_path / "in" / "images")
    assert [p.name for p in (tmp_path / "in").rglob("*.*") if p.is_file() and p.suffix != ".lock"] == ["1.png"]
    assert not (tmp_path / "out.txt").exists() and not (tmp_path.parent / "out.txt").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "another folder"])
def test_damaged_archives_leave_nothing(tmp_path, damage):
    archive = zipped(tmp_path / "a.zip", **{"images/1.png": BODY[:100_000].hex()})
    data = bytearray(archive.read_bytes())
    data[50_000] ^= 255
    content = {"cut": data[:60_000], "flipped": data, "text": b"<html>please log in</html>"}.get(damage)
    if content is not None:
        archive.write_bytes(content)
    folder = tmp_path / ("images" if content is not None else "labels")
    with pytest.raises(DownloadError, match=r"a\.zip cannot be unpacked to .*; make room, or fetch it again") as info:
        unpack(archive, folder)
    assert "\n" not in str(info.value)
    assert {p.name for p in tmp_path.iterdir()} <= {"a.zip", f".{folder.name}.unpack.lock"}
