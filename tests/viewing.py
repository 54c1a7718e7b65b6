"""The viewer's page, opened in a browser and used as by hand; and what else its browser tests share."""

import base64
import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

try:
    from selenium import webdriver
    from selenium.webdriver import ActionChains, Keys
except ImportError:
    webdriver = ActionChains = Keys = None

from data.streets.source import render_video, tracked_only

FRAMES, SIZE = 24, (96, 320)


def street(frames: int = 3, size: tuple[int, int] = (48, 160), seed: int = 0):
    """Frames of the built-in world: image, semantic, track."""
    for image, semantic, instance in render_video(seed, "test", frames, size):
        yield image, semantic, tracked_only(semantic, instance)


def standing(frames: int, size: tuple[int, int] = (96, 192)):
    """Frames of a camera that stands, with the noise of a sensor: a square moves over a picture."""
    rng = np.random.default_rng(0)
    background, semantic, track = next(street(1, size))
    for k in range(frames):
        image = background.copy()
        image[40:56, 4 * k : 4 * k + 16] = (200, 40, 30)
        yield (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8), semantic, track


class Viewer:
    """An open page."""

    def __init__(self, browser, path: Path):
        self.browser = browser
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.get_log("browser")  # what an earlier page said
        browser.get(path.as_uri())
        self.settle()

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def settle(self) -> None:
        """Wait until the page shows what it was asked for."""
        end = time.monotonic() + 20
        while not self.run("return typeof state !== 'undefined' && state.frame === state.wanted && !busy && !stale"):
            assert time.monotonic() < end, self.browser.get_log("browser")
            time.sleep(0.01)

    def go(self, k: int) -> None:
        self.run("go(arguments[0])", k)
        self.settle()

    def keys(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()
        self.settle()

    def shift(self, key: str) -> None:
        ActionChains(self.browser).key_down(Keys.SHIFT).send_keys(key).key_up(Keys.SHIFT).perform()
        self.settle()

    def state(self, name: str):
        return self.run(f"return state.{name}")

    def find(self, css: str):
        return self.browser.find_element("css selector", css)

    def text(self, css: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", css)

    def pixels(self, canvas: str = "mask", panel: int = 0) -> np.ndarray:
        """What a canvas holds: uint8 (H, W, 4)."""
        url = self.run("return panels[arguments[0]][arguments[1]].toDataURL('image/png')", panel, canvas)
        image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        return np.asarray(image.convert("RGBA"))

    def labels(self, source: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The label map that the page has unpacked for the frame it shows: class, track."""
        flat = self.run(
            "const map = shown.maps[arguments[0]]; const of = SOURCES[arguments[0]].segments;"
            "return Array.from(map.index, (i) => of[map.segments[i]][1] * 256 + of[map.segments[i]][0])",
            source,
        )
        key = np.array(flat).reshape(self.run("return [DATA.height, DATA.width]"))
        return key % 256, key // 256

    def at(self, y: int, x: int, panel: int = 0, click: bool = False) -> None:
        """Move the pointer to a pixel of a panel's mask, as a hand does."""
        mask = self.browser.find_elements("css selector", ".mask")[panel]
        height, width = self.run("return [DATA.height, DATA.width]")
        across = (x + 0.5) / width * mask.size["width"] - mask.size["width"] / 2
        down = (y + 0.5) / height * mask.size["height"] - mask.size["height"] / 2
        actions = ActionChains(self.browser, duration=0).move_to_element_with_offset(mask, round(across), round(down))
        (actions.click() if click else actions).perform()
        self.settle()

    def quiet(self) -> bool:
        return self.browser.get_log("browser") == []


def perturbed(semantic, track, k):
    """The world a little to the right; from frame 12 on odd ids are others, and now and then a track is lost."""
    semantic, track = np.roll(semantic, 2, axis=1), np.roll(track, 2, axis=1)
    lost = (track > 0) & ((track + k) % 9 == 0)
    renamed = np.where((track % 2 == 1) & (k >= 12), track + 40, track)
    return np.where(lost, 0, semantic).astype(np.uint8), np.where(lost, 0, renamed).astype(np.int32)


def inside(mask: np.ndarray) -> tuple[int, int]:
    """A pixel well inside an area: the last that is left when its border is taken away again and again."""
    left = mask.copy()
    while True:
        smaller = left.copy()
        smaller[1:] &= left[:-1]
        smaller[:-1] &= left[1:]
        smaller[:, 1:] &= left[:, :-1]
        smaller[:, :-1] &= left[:, 1:]
        smaller[[0, -1]] = smaller[:, [0, -1]] = False
        if not smaller.any():
            return tuple(np.argwhere(left)[0].tolist())
        left = smaller


def largest_track(semantic: np.ndarray, track: np.ndarray) -> int:
    return int(np.bincount(track[track > 0]).argmax())


def processor_seconds(browser) -> float:
    """What the browser and all its processes have computed so far; the clock where the system does not tell."""
    if not os.path.isdir("/proc/self"):
        return time.monotonic()
    children: dict[int, list[tuple[int, int]]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append((int(name), int(fields[11]) + int(fields[12])))
    ticks, waiting = 0, [browser.service.process.pid]
    while waiting:
        for process, used in children.get(waiting.pop(), []):
            ticks += used
            waiting.append(process)
    return ticks / os.sysconf("SC_CLK_TCK")


def unpack(frame: bytes, size: tuple[int, int], maps: int) -> tuple[list[tuple[np.ndarray, dict[int, int]]], bytes]:
    """The label maps of a packed frame, each as (segment numbers (H, W), {number: area}), and its picture."""
    end = 4 + struct.unpack_from("<I", frame)[0]
    numbers = read_varints(zlib.decompress(frame[4:end], -15))
    return [_unpack_map(numbers, size) for _ in range(maps)], frame[end:]


def _unpack_map(numbers, size: tuple[int, int]) -> tuple[np.ndarray, dict[int, int]]:
    table = [(next(numbers), next(numbers)) for _ in range(next(numbers))]
    count, _ = next(numbers), next(numbers)
    skips = [next(numbers) for _ in range(count)]
    exceptions = dict(zip((np.cumsum(np.add(skips, 1)) - 1).tolist(), (next(numbers) for _ in skips), strict=True))
    height, width = size
    index = np.zeros((height + 1, width + 1), int)  # with an extra row above and column to the left
    for y in range(1, height + 1):
        index[y, 0] = index[y - 1, 0] = index[y - 1, 1]
        for x in range(1, width + 1):
            up, corner = index[y - 1, x], index[y - 1, x - 1]
            guess = index[y, x - 1] if up == corner else up
            index[y, x] = exceptions.get((y - 1) * width + x - 1, guess)
    return np.array([number for number, _ in table])[index[1:, 1:]], dict(table)


def read_varints(data: bytes):
    value = place = 0
    for byte in data:
        value |= (byte & 127) << place
        place += 7
        if byte < 128:
            yield value
            value = place = 0
