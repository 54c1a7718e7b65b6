"""The live page: served as frames come, never in inference's way."""

import io
import json
import threading
import time
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from data.draw import live as page
from data.draw.live import Live


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    live = Live()
    yield live
    if not live.closed:
        live.close()


def frame(value, height=40, width=64):
    return (
        np.full((height, width, 3), value, np.uint8),
        np.full((height, width), 13, np.uint8),
        np.ones((height, width), np.int32),
    )


def part(stream):
    """The next picture of a multipart stream."""
    lines = iter(stream.readline, b"")
    assert next(lines) == b"--frame\r\n" and next(lines) == b"Content-Type: image/jpeg\r\n"
    length = int(next(lines).split(b":")[1])
    assert next(lines) == b"\r\n"
    picture = Image.open(io.BytesIO(stream.read(length)))
    stream.readline()
    return np.asarray(picture)


def test_the_page_shows_the_newest_frame_above_its_mask(live):
    with urlopen(live.address) as answer:
        assert b"stream" in answer.read()
    with urlopen(live.address + "stream", timeout=20) as stream:
        live.show(*frame(200))
        picture = part(stream)
        assert picture.shape == (80, 64, 3) and abs(int(picture[10, 10, 0]) - 200) < 8
        assert abs(int(picture[60, 30, 0]) - 200) > 20  # under the colour of its mask
        live.show(*frame(50))
        assert abs(int(part(stream)[10, 10, 0]) - 50) < 8


def test_a_tall_frame_has_its_mask_beside_it(live):
    with urlopen(live.address + "stream", timeout=20) as stream:
        live.show(*frame(90, 64, 40))
        assert part(stream).shape == (64, 80, 3)


def test_showing_never_waits_and_the_rate_is_told(live, monkeypatch):
    monkeypatch.setattr(page.render, "overlay", lambda image, *_, **__: time.sleep(0.2) or image)
    begin = time.monotonic()
    for _ in range(200):
        live.show(*frame(0))
    assert time.monotonic() - begin < 1  # 200 drawings would take 40 seconds
    state = json.loads(urlopen(live.address + "state").read())
    assert state["frames"] == 200 and state["rate"] > 20


def test_the_end_ends_the_stream(live):
    with urlopen(live.address + "stream", timeout=20) as stream:
        live.show(*frame(1))
        part(stream)
        threading.Thread(target=live.close).start()
        assert stream.read() == b""


def test_the_address_is_said_and_opened_where_there_is_a_display(live, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(page.webbrowser, "open", opened.append)
    monkeypatch.setattr(page.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    live.open()
    assert not opened and live.address in capsys.readouterr().out
    monkeypatch.setenv("DISPLAY", ":0")
    live.open()
    assert opened == [live.address]
