"""The viewer's page in a real browser: what pointer and keys do, two runs side by side, and who can read it."""

import time

import numpy as np
import pytest
from viewing import FRAMES, ActionChains, Keys, inside, largest_track, perturbed

from data.draw.render import class_colors, track_colors
from data.labels import VOID

pytest_plugins = ["viewer_pages"]
pytestmark = pytest.mark.browser


# ---------------------------------------------------------------------------------------------------------------------
# The pointer
# ---------------------------------------------------------------------------------------------------------------------


def test_the_tip_names_what_is_beneath_the_pointer(opened, frames):
    viewer = opened("plain")
    viewer.go(2)
    _, semantic, track = frames[2]
    id_ = largest_track(semantic, track)
    viewer.at(*inside(track == id_))
    alive = [k for k, (_, _, t) in enumerate(frames) if (t == id_).any()]
    gaps = (np.diff(alive) > 1).sum()
    area = int((track == id_).sum())
    tip = viewer.text("#tip")
    assert f" {id_}" in tip and f"{area:,} px, {100 * area / track.size:.1f} %" in tip
    assert f"frames {100 + alive[0]} to {100 + alive[-1]}" in tip and ("gap" in tip) == (gaps > 0)
    yellow = (viewer.pixels()[..., :3] == (0xFF, 0xE1, 0x4D)).all(axis=-1)
    assert yellow.any() and (track[yellow] == id_).all()


def test_a_click_holds_a_segment_through_time_and_dims_the_rest(opened, frames):
    viewer = opened("plain")
    viewer.keys("4")
    id_ = largest_track(*frames[0][1:])
    viewer.at(*inside(frames[0][2] == id_), click=True)
    for k in (0, 1):
        viewer.go(k)
        pixels, mine = viewer.pixels(), frames[k][2] == id_
        assert (pixels[~mine, :3] < 40).all() and (pixels[~mine, 3] > 150).all()  # dark above the picture
        assert mine.any() and (pixels[mine, :3].max(axis=-1) > 90).all()
    assert str(id_) in viewer.text("#selected") and viewer.text("#status").endswith(viewer.text("#selected")[-9:])
    assert viewer.run("return document.querySelectorAll('.track.chosen').length") == 1
    viewer.at(*inside(frames[1][2] == id_), click=True)
    assert viewer.state("selected") is None


def test_a_click_on_a_bar_goes_there_and_selects(opened):
    viewer = opened("plain")
    bar = viewer.find(".track .axis")
    offset = round((5.5 / FRAMES - 0.5) * bar.size["width"])
    ActionChains(viewer.browser).move_to_element_with_offset(bar, offset, 0).click().perform()
    viewer.settle()
    assert viewer.state("frame") == 5
    assert viewer.state("selected.track") == viewer.run("return timeline.rows[0].segment.track")


def test_bars_show_gaps(opened, frames):
    viewer = opened("truth")
    rows = viewer.run("return timeline.rows.filter((r) => !r.segment.source).map((r) => "
                      "[r.segment.klass, r.segment.track, r.path.getAttribute('d')])")  # fmt: skip
    with_gaps = 0
    for klass, track, shape in rows:
        alive = [k for k, f in enumerate(frames) if _occurs(*perturbed(*f[1:], k), klass, track)]
        runs = np.split(alive, np.flatnonzero(np.diff(alive) > 1) + 1)
        assert shape == "".join(f"M{r[0]} 0h{len(r)}v1h-{len(r)}z" for r in runs)
        with_gaps += len(runs) > 1
    assert len(rows) > 8 and with_gaps > 3


def _occurs(semantic, track, klass, id_) -> bool:
    return bool(((semantic == klass) & (track == id_)).any())


def test_the_strip_of_errors_is_clicked(opened):
    viewer = opened("truth")
    strip = viewer.find(".strip .axis")
    offset = round((13.5 / FRAMES - 0.5) * strip.size["width"])
    ActionChains(viewer.browser).move_to_element_with_offset(strip, offset, 0).click().perform()
    viewer.settle()
    assert viewer.state("frame") == 13
    quality = viewer.run("return DATA.runs[0].quality")
    cells = viewer.run("return Array.from(document.querySelectorAll('#quality td'), (cell) => cell.textContent)")
    assert cells[:3] == [f"{100 * quality[name]:.1f}" for name in ("STQ", "AQ", "SQ")]


def test_classes_are_switched_and_have_their_share(opened, frames):
    viewer = opened("plain")
    viewer.run("setOpacity(100)")
    _, semantic, _ = frames[0]
    labels = viewer.run("return side.classes.map((c) => [c.number, c.shares[0].textContent])")
    assert {c for c, _ in labels} == {int(c) for _, s, _ in frames for c in np.unique(s)} - {VOID}
    for klass, share in labels:
        part = (semantic == klass).mean()
        assert share == (f"{100 * part:.1f} %" if part else "–")
    viewer.find("#classes input").click()  # road
    viewer.settle()
    road = semantic == 0
    assert (viewer.pixels()[road, 3] == 0).all() and (viewer.pixels()[semantic == 2, 3] > 0).all()
    viewer.find("#all").click()
    viewer.settle()
    assert (viewer.pixels()[semantic == 0, 3] == 255).all()


def test_an_id_is_found(opened, frames):
    viewer = opened("plain")
    last = max(int(t.max()) for *_, t in frames)
    first = next(k for k, (*_, t) in enumerate(frames) if (t == last).any())
    viewer.keys("/", str(last), Keys.ENTER)
    assert viewer.state("selected.track") == last
    assert viewer.state("frame") == (0 if (frames[0][2] == last).any() else first)
    assert viewer.run("return timeline.rows.filter((r) => !r.row.hidden).every((r) => String(r.segment.track)"
                      f".startsWith('{last}'))")  # fmt: skip
    viewer.find("#search").send_keys("x")
    assert viewer.text("#found") == "none found"


# ---------------------------------------------------------------------------------------------------------------------
# Keys, comparison, comfort
# ---------------------------------------------------------------------------------------------------------------------


def test_keys_do_what_the_help_says(opened):
    viewer = opened("truth")
    for key, frame in (
        (Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1), (Keys.END, 23), (Keys.HOME, 0),
    ):  # fmt: skip
        viewer.keys(key)
        assert viewer.state("frame") == frame
    viewer.shift(Keys.ARROW_RIGHT)
    assert viewer.state("frame") == 10
    viewer.shift(Keys.ARROW_LEFT)
    assert viewer.state("frame") == 0
    for key, layer in zip("123456", ("picture", "classes", "instances", "outlines", "errors", "truth"), strict=True):
        before = viewer.state(f"layers.{layer}")
        viewer.keys(key)
        assert viewer.state(f"layers.{layer}") is not before
        viewer.keys(key)
    viewer.keys("+")
    assert viewer.state("opacity") == 0.6
    viewer.keys("-", "-")
    assert viewer.state("opacity") == pytest.approx(0.4)
    viewer.keys(".")
    assert viewer.state("speed") == 2 and viewer.find("#speed").get_attribute("value") == "2"
    viewer.keys("n")
    first = viewer.state("selected.track")
    viewer.keys("n")
    assert first and viewer.state("selected.track") != first
    viewer.keys("p")
    assert viewer.state("selected.track") == first
    viewer.keys(Keys.ESCAPE)
    assert viewer.state("selected") is None
    viewer.keys("w")
    errors = viewer.run("return DATA.runs[0].errors.map((e) => e[0] + e[1])")
    assert viewer.state("frame") == int(np.argmax(errors)) > 0
    viewer.keys("?")
    assert viewer.find("#keys").is_displayed() and "play, pause" in viewer.find("#keys").text
    assert viewer.run("return document.querySelectorAll('#keys dt').length === KEYS.length && KEYS.length") == 25
    viewer.keys(Keys.ESCAPE)
    assert not viewer.find("#keys").is_displayed() and viewer.quiet()


def test_it_plays_to_the_end_and_stops(opened):
    viewer = opened("plain")
    viewer.run("setSpeed(0.5)")
    viewer.keys(" ")
    assert viewer.state("playing") and viewer.find("#play").get_attribute("aria-label") == "Pause"
    viewer.run("setSpeed(4)")
    end = time.monotonic() + 10
    while viewer.state("playing") and time.monotonic() < end:
        time.sleep(0.05)
    viewer.settle()
    assert viewer.state("frame") == FRAMES - 1 and viewer.find("#play").get_attribute("aria-label") == "Play"
    viewer.run("setSpeed(0.5)")
    viewer.keys(" ", " ")
    assert not viewer.state("playing") and viewer.state("frame") < FRAMES - 1  # it began again


def test_two_runs_are_linked(opened, frames):
    viewer = opened("two")
    assert [f.text for f in viewer.browser.find_elements("css selector", "figcaption")] == ["first", "second"]
    viewer.run("setOpacity(100); toggle('picture')")
    viewer.keys("4")
    counts = [np.bincount(track.ravel(), minlength=200) for _, _, track in frames]
    k, id_ = max(((k, i) for k in range(12, FRAMES) for i in range(2, 200, 2)), key=lambda at: counts[at[0]][at[1]])
    viewer.go(k)
    labels = frames[k][1:], perturbed(*frames[k][1:], k)
    for panel, (semantic, track) in enumerate(labels):
        expected = np.where((track > 0)[..., None], track_colors(200)[track], class_colors()[semantic])
        known = semantic != VOID
        assert (viewer.pixels(panel=panel)[known, :3] == expected[known]).all()
    viewer.at(*inside(labels[0][1] == id_), click=True)  # an even id: it is the same in both
    other = labels[1][1] == id_
    assert other.any() and (viewer.pixels(panel=1)[other, :3].max(axis=-1) > 90).all()
    assert (viewer.pixels(panel=1)[~other, :3] < 40).all()
    text = viewer.text("#selected")
    assert "first" in text and "second" in text
    viewer.at(*inside(other), panel=1)
    assert "first" in viewer.text("#tip") and "second" in viewer.text("#tip")


@pytest.mark.parametrize("name", ["truth", "two"])
@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible_and_controls_have_names(opened, browser, name, dark):
    viewer = opened(name)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    background = viewer.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
    poor = viewer.run("""
        const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
        const light = (color) => {
          const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          const [r, g, b] = numbers(color).map((v) => linear(v / 255));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = (element) => {
          for (let e = element; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor;
            if ((numbers(color)[3] ?? 1) === 1) return color;
          }
        };
        const texts = Array.from(document.querySelectorAll("body *")).filter((e) => e.getClientRects().length &&
          !e.matches("script, dialog *, option") &&
          Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim()));
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return [texts.length, ...texts
          .filter((e) => ratio(light(getComputedStyle(e).color), light(ground(e))) < 4.5).map((e) => e.outerHTML)];
    """)
    assert poor[0] > 50 and poor[1:] == []
    nameless = viewer.run("""
        return Array.from(document.querySelectorAll("button, input, select, [role=slider], [role=img]"))
          .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.[0]?.textContent.trim()))
          .map((e) => e.outerHTML);
    """)
    assert nameless == []


def test_the_switch_overrules_the_systems_light(opened, browser):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    viewer = opened("plain")
    colors = []
    for _ in range(2):
        viewer.keys("d")
        colors.append(viewer.run("return getComputedStyle(document.body).backgroundColor"))
    assert colors[0] != colors[1]


def test_a_phones_width_holds_everything(opened, browser):
    viewer = opened("two")
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    viewer.settle()
    assert viewer.run("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    outside = viewer.run(
        "return Array.from(document.querySelectorAll('button, select, input, canvas, .axis')).filter((e) => {"
        "const b = e.getBoundingClientRect(); return b.width && (b.left < -1 || b.right > 361)}).length"
    )
    assert outside == 0 and viewer.find(".mask").size["width"] > 340
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
