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


def opened(live):
    stream = urlopen(live.address + "stream", timeout=20)
    assert stream.readline() == b"--frame\r\n"
    return stream


def part(stream):
    """The next picture of a multipart stream whose first boundary was read, with the boundary after it."""
    lines = iter(stream.readline, b"")
    assert next(lines) == b"Content-Type: image/jpeg\r\n"
    length = int(next(lines).split(b":")[1])
    assert next(lines) == b"\r\n"
    picture = Image.open(io.BytesIO(stream.read(length)))
    assert next(lines) == b"\r\n" and next(lines) == b"--frame\r\n"
    return np.asarray(picture)


def test_the_page_shows_the_newest_frame_above_its_mask(live):
    with urlopen(live.address) as answer:
        assert b"stream" in answer.read()
    with opened(live) as stream:
        live.show(*frame(200))
        picture = part(stream)
        assert picture.shape == (80, 64, 3) and abs(int(picture[10, 10, 0]) - 200) < 8
        assert abs(int(picture[60, 30, 0]) - 200) > 20  # under the colour of its mask
        live.show(*frame(50))
        assert abs(int(part(stream)[10, 10, 0]) - 50) < 8


def test_a_tall_frame_has_its_mask_beside_it(live):
    with opened(live) as stream:
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


def test_the_last_picture_comes_again_where_no_new_one_does(live, monkeypatch):
    """A browser may hold a picture back until the next one begins."""
    monkeypatch.setattr(page, "REPEAT", 0.05)
    with opened(live) as stream:
        live.show(*frame(120))
        assert (part(stream) == part(stream)).all()


def test_a_browser_that_leaves_is_not_spoken_of(live, capfd):
    with opened(live) as stream:
        live.show(*frame(1))
        part(stream)
    end = time.monotonic() + 10
    while threading.active_count() > 3 and time.monotonic() < end:  # until the handler has met the closed socket
        live.show(*frame(2))
        time.sleep(0.02)
    assert "Traceback" not in capfd.readouterr().err


def test_the_end_ends_the_stream(live):
    with opened(live) as stream:
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
