"""What the speed figures stand on: the optimised sampling is the plain one, the reference is what it says it is, and
the command measures, writes and compares."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from einops import rearrange
from small import CONFIG, lively_model, scene
from torch.nn import functional as F

import cli
from benchmarks import (
    earlier_design,
    speed,
    speed_compare,
    speed_estimate,
    speed_files,
    speed_growth,
    speed_report,
    speed_timing,
    speed_training,
)
from benchmarks.earlier_design import EarlierDesign
from benchmarks.earlier_unet import EarlierReference
from benchmarks.speed_timing import Row, Setup
from model import PRESETS, Pix2SeqD, StreamConfig, VideoPredictor
from model import checkpoint as checkpoints
from model.diffusion.draws import draw
from model.diffusion.loss import LossConfig, training_loss
from model.diffusion.samplers import SAMPLERS, denoiser_of
from model.diffusion.schedule import gamma, sampling_times
from model.network.layers import position_encoding
from training.fit import to_device

THREE_CODES = dataclasses.replace(CONFIG, code_bits=(8, 8, 8), loss="mse", scale=1.0, self_conditioning=True)


# ---------------------------------------------------------------------------------------------------------------------
# The plain, unoptimised network and sampler
# ---------------------------------------------------------------------------------------------------------------------


def plain_denoiser(model: Pix2SeqD, image, history, x, t, x0_previous):
    """TransUNet as published, everything from the image on in each step: one first convolution over the concatenation
    of noisy bits, features and history; keys and values from the image's tokens; attention written out."""
    net, c = model.denoiser, model.config
    features = model.encode(image, x.shape[-2:])
    noisy = torch.cat([x, x0_previous], dim=1) if c.self_conditioning else x
    noisy, past = F.pixel_unshuffle(noisy, c.patch), F.pixel_unshuffle(history, c.patch)
    history = [net.conv_history.weight] if net.conv_history else []
    weight = torch.cat([net.conv_in.weight, net.conv_image.weight, *history], dim=1)
    bias = net.conv_in.bias + net.conv_image.bias
    y = F.conv2d(torch.cat([noisy, features.map, past], dim=1), weight, bias)
    time = net.time(torch.full((len(x),), t))
    skips = []
    for block, downsample in zip(net.down, net.downsample, strict=True):
        y = block(y, block.time(time))
        skips.append(y)
        y = downsample(y)
    h, w = y.shape[-2:]
    tokens = rearrange(net.to_tokens(y), "b c h w -> b (h w) c")
    tokens = tokens + position_encoding(h, w, tokens.shape[-1], x.device) + net.time_token(time)[:, None]
    for layer in net.transformer:
        tokens = tokens + plain_attention(layer.attention, layer.norm1(tokens), None)
        tokens = tokens + plain_attention(layer.cross, layer.norm_cross(tokens), features.tokens)
        tokens = tokens + layer.mlp(layer.norm2(tokens))
    y = y + net.from_tokens(rearrange(tokens, "b (h w) c -> b c h w", h=h))
    for first, second in net.up:
        skip = skips.pop()
        y = first(torch.cat([F.interpolate(y, skip.shape[-2:], mode="nearest"), skip], dim=1), first.time(time))
        y = second(y, second.time(time))
    y = F.silu(net.norm_out(y))
    return net.conv_out(F.silu(F.pixel_shuffle(net.conv_patch(y), c.patch)) if c.patch > 1 else y)


def plain_attention(attention, x, context):
    q = attention.to_q(x)
    k, v = attention.to_kv(x if context is None else context).chunk(2, dim=-1)
    q, k, v = (n.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for n in (q, k, v))
    weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return attention.out((weight @ v).transpose(1, 2).flatten(2))


def plain_estimate(model: Pix2SeqD, output):
    c = model.config
    if c.loss == "mse":
        return output.clamp(-c.scale, c.scale)
    planes = []
    for logits, bits in zip(output.split(c.code_sizes, dim=1), c.code_bits, strict=True):
        probability = logits.softmax(dim=1)
        for shift in range(bits - 1, -1, -1):
            signs = torch.tensor([1.0 if code >> shift & 1 else -1.0 for code in range(logits.shape[1])])
            planes.append((probability * signs[:, None, None]).sum(dim=1) * c.scale)
    return torch.stack(planes, dim=1)


def plain_sampling(model: Pix2SeqD, image, history, x, times, sampler, fresh):
    """Bit Diffusion, algorithm 2, with DDIM or DDPM steps; `fresh` gives the noise of each step."""
    x0 = torch.zeros_like(x)
    for k, (now, then) in enumerate(times):
        output = plain_denoiser(model, image, history, x, now, x0)
        x0 = plain_estimate(model, output)
        if k == len(times) - 1:
            return output
        g, g_next = gamma(now), gamma(then)
        if sampler == "ddim":
            x = math.sqrt(g_next) * x0 + math.sqrt(1 - g_next) * (x - math.sqrt(g) * x0) / math.sqrt(1 - g)
            continue
        alpha = g / g_next
        mean = (math.sqrt(g_next) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - g_next) * x) / (1 - g)
        x = mean + math.sqrt((1 - g_next) / (1 - g) * (1 - alpha)) * fresh()
    raise AssertionError("unreachable: the last step returns")


VARIANTS = {
    "softmax": {},
    "patch and self-conditioning": {"patch": 2, "self_conditioning": True},
    "three codes by squared error": {"code_bits": (5, 3, 4), "loss": "mse", "self_conditioning": True},
    "no history": {"history_offsets": ()},
}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_sampling_loop_equals_the_plain_sampler(variant, sampler):
    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    model = lively_model(config=config).to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, *config.image_size)
    shape = (2, config.bits, *config.mask_size)
    history = torch.randn(2, config.bits * len(config.history_offsets), *config.mask_size)
    x, drawn, times = torch.randn(shape), [torch.randn(shape) for _ in range(5)], sampling_times(5, 0.1)

    def fresh():
        left = iter(drawn)
        return lambda: next(left)

    with torch.inference_mode():
        expected = plain_sampling(model, image, history, x, times, sampler, fresh())
        condition = model.condition(model.encode(image), history)
        output = SAMPLERS[sampler](denoiser_of(model, condition), x, times, fresh())
        again = EarlierDesign(config).eval()
        again.load_state_dict(model.state_dict())
        without = again.condition(again.encode(image), history)
        recomputed = SAMPLERS[sampler](denoiser_of(again, without), x, times, fresh())
    size = expected.abs().max()
    assert expected.std() > 0.1
    assert (output - expected).abs().max() <= 1e-5 * size
    assert (recomputed - expected).abs().max() <= 1e-5 * size


def test_the_stream_answers_what_the_plain_sampler_does():
    config = dataclasses.replace(CONFIG, tracked=tuple(range(0, 19, 2)))  # so that some pixels are, and some are not
    model = lively_model(config=config)
    images = torch.rand(1, 3, *CONFIG.image_size)
    published = StreamConfig(first_steps=4, min_area=1, merge=0.0, fresh=False, average_classes=False)
    predictor = VideoPredictor(model, published, "cpu", "no")
    ((semantic, _),), (state,) = predictor.predict((images * 255).to(torch.uint8), [predictor.state])
    drawn = {}

    def watched(denoise, x, times, noise):
        drawn["x"] = x
        return SAMPLERS["ddim"](denoise, x, times, noise)

    SAMPLERS["watched"] = watched
    try:
        other = VideoPredictor(model, dataclasses.replace(published, sampler="watched"), "cpu", "no")
        other.predict((images * 255).to(torch.uint8), [other.state])
    finally:
        del SAMPLERS["watched"]
    history = torch.zeros(1, 2 * CONFIG.bits, *CONFIG.mask_size)
    with torch.inference_mode():
        rounded = (images * 255).to(torch.uint8).float() / 255
        output = plain_sampling(model, rounded, history, drawn["x"], sampling_times(4), "ddim", None)
    expected, slot = (n[0].numpy() for n in model.answer(output))
    untracked = ~np.isin(expected - 1, config.tracked)
    assert untracked.any() and len(np.unique(expected)) > 1
    assert np.array_equal(semantic[untracked], expected[untracked] - 1)
    kept = ~untracked & (slot > 0)
    assert len(np.unique(slot[kept])) > 1
    assert np.array_equal(state.slot[-1][kept], slot[kept])


# ---------------------------------------------------------------------------------------------------------------------
# The earlier design
# ---------------------------------------------------------------------------------------------------------------------


def test_the_earlier_design_has_its_size():
    model = EarlierDesign(earlier_design.CONFIG)
    assert model.config.bits == 24 and model.config.slots == 65_536
    assert speed_timing.parameters(model.encoder) == pytest.approx(27.6, rel=0.01)
    assert speed_timing.parameters(model.denoiser) == pytest.approx(9.6, rel=0.03)
    assert speed_timing.parameters(EarlierReference(model.config).denoiser) == pytest.approx(9.6, rel=0.005)


def test_the_earlier_network_sees_all_that_it_is_given():
    torch.manual_seed(0)
    model = EarlierReference(dataclasses.replace(THREE_CODES, mask_size=(16, 32), multipliers=(1, 2))).eval()
    image, history = torch.rand(1, 3, 32, 64), torch.randn(1, 48, 16, 32)
    x, before, t = torch.randn(1, 24, 16, 32), torch.randn(1, 24, 16, 32), torch.tensor([0.5])
    with torch.no_grad():

        def answer(image=image, history=history, x=x, before=before, t=t):
            return model.predict(x, t, model.condition(model.encode(image), history), before)

        whole = answer()
        assert whole.shape == (1, 24, 16, 32)
        others = {"image": image.flip(3), "history": -history, "x": -x, "before": -before, "t": t / 2}
        for name, value in others.items():
            assert (answer(**{name: value}) - whole).abs().max() > 1e-4, name


def test_its_flags_give_its_configuration(monkeypatch):
    import train
    from training import options

    monkeypatch.setattr(sys, "argv", ["train.py", *earlier_design.flags((64, 128), (16, 32))])
    model, _, loss, *_ = options.parse("", train.OPTIONS, train.RECIPE)[1]
    expected = dataclasses.replace(earlier_design.CONFIG, image_size=(64, 128), mask_size=(16, 32))
    assert dataclasses.replace(model, backbone_norm=expected.backbone_norm) == expected
    assert loss.instance_weight == 0 and loss.self_conditioning_rate == 0.5


@pytest.mark.parametrize("kind", [torch.int16, torch.int32])
def test_ids_of_two_bytes_are_trained_on(kind):
    torch.manual_seed(0)
    model = EarlierDesign(THREE_CODES)
    batch = torch.utils.data.default_collate([scene(n) for n in range(2)])
    batch["instance"] = batch["instance"].to(kind) * 3_000  # 27,000 at most: int16
    if kind == torch.int32:
        batch["instance"] *= 2  # up to 54,000
    batch = to_device(batch, torch.device("cpu"))
    draws = draw(0, [0, 1], model, THREE_CODES.mask_size, "cpu", False)
    for coin in (0.0, 1.0):
        draws = draws._replace(coins=torch.full_like(draws.coins, coin))
        loss, parts = training_loss(model, THREE_CODES, LossConfig(), batch, draws)
        loss.backward()
        assert loss.isfinite() and set(parts) == {"semantic", "instance"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.denoiser.conv_out.parameters())


def test_ids_of_two_bytes_are_streamed():
    model = lively_model(config=THREE_CODES)
    with torch.no_grad():
        model.denoiser.conv_out.bias[:8] = torch.tensor([-9.0, -9, -9, -9, 9, 9, 9, -9])  # code 14: cars alone
        model.denoiser.conv_out.bias[8:16] = 9.0  # ids from 65,280 on
    predictor = VideoPredictor(model, StreamConfig(first_steps=2, steps=2), "cpu", "no")
    frame = np.random.default_rng(0).integers(0, 256, (*CONFIG.image_size, 3), np.uint8)
    predictor(frame)
    answer = predictor(frame)
    assert predictor.state.slot.max() >= 65_280
    assert (answer.semantic == 13).any() and answer.track.max() > 0


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", CONFIG)
    monkeypatch.setattr(speed_timing, "apart", lambda setup, function, *a: (function(*a), 2.0, 1.0))
    monkeypatch.setattr(speed_training, "apart", speed_timing.apart)
    monkeypatch.setitem(speed_training.CPU_BATCH, "tiny", 2)


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--device", "cpu", "--quick", "--preset", "tiny", *map(str, words)])
    speed.main()


def test_a_run_is_written_and_compared(monkeypatch, small_preset, tmp_path, capsys):
    path = tmp_path / "speed.json"
    words = ("--sections", "inference", "training", "--mixed_precision", "no")
    run(monkeypatch, *words, "--json", path)
    written = json.loads(path.read_text())
    figures = {(f["section"], f["name"]): f for f in written["figures"]}
    assert written["machine"]["matrix_rate_gflops"]["float32"] > 0
    assert written["machine"]["other_work_cores"].keys() == {"inference", "training"}
    step = figures["inference", "tiny: denoiser, a step"]
    assert 0 < step["low"] <= step["value"] <= step["high"] and "GFLOP" in step["note"] and step["count"] >= 2
    assert written["machine"]["seconds"]["training"] > 0
    parts = [figures["training", f"tiny: {part}"]["value"] for part in speed_training.PARTS]
    assert all(p > 0 for p in parts) and figures["training", "tiny: step"]["value"] > max(parts)
    assert any(f["value"] is None and "GPU" in f["note"] for f in written["figures"])

    capsys.readouterr()
    page = tmp_path / "page.md"
    words = ("--sections", "inference", "--mixed_precision", "no", "--compare", path, "--markdown", page)
    run(monkeypatch, *words)
    printed = [line for line in capsys.readouterr().out.splitlines() if "denoiser, a step" in line]
    assert len(printed) == 1 and "was" in printed[0] and " x " in printed[0]
    table = [line.split(" | ") for line in page.read_text().splitlines() if "denoiser, a step" in line]
    assert len(table) == 1 and table[0][1] in printed[0] and table[0][4].startswith("was")


def test_files_without_figures_or_weights_are_refused(monkeypatch, tmp_path):
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(cli.UsageError, match="figures"):
        run(monkeypatch, "--compare", tmp_path / "no.json")
    with pytest.raises(cli.UsageError, match="weights"):
        run(monkeypatch, "--weights", tmp_path / "no.pt")


def test_files_to_files_counts_frames(small_preset, tmp_path):
    setup = Setup(("tiny",), tmp_path, mixed_precision="no", quick=True)
    checkpoint, trained = speed_files.checkpoint_of(setup, "tiny")
    assert not trained
    row = speed_files.frames_per_second(setup, checkpoint, CONFIG.image_size, "name", "--steps", "1")
    assert 0 < row.low <= row.value <= row.high and row.count == speed_files.PIECES
    assert len(list((tmp_path / "output").glob("*_panoptic.png"))) == 2 + speed_files.PIECES
    assert speed_compare.overlap(setup, "tiny").value > 0


def test_the_comparison_with_the_earlier_design(small_preset, monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "small", CONFIG)
    setup = Setup(("tiny",), tmp_path, mixed_precision="no", quick=True)
    rows = {row.name: row for row in speed_compare.earlier(setup, "small", THREE_CODES)}
    frame = rows["earlier: a frame"]
    assert frame.value > 50 * rows["earlier: a step"].value > 0
    for name in ("a frame after the first", "training step of batch 2"):
        assert rows[name].value == pytest.approx(rows[f"earlier: {name.replace(' after the first', '')}"].value
                                                 / rows[f"small: {name}"].value)  # fmt: skip


def test_each_optimisation_has_a_row(small_preset, tmp_path):
    setup = Setup(("tiny",), tmp_path, mixed_precision="bf16", quick=True)
    rows = {row.name.removeprefix("tiny: "): row for row in speed_compare._network_ones(setup, "tiny")}
    names = {"conditions once a frame", "channels-last", "fused attention", "autocast to bf16", "weights cast once"}
    assert rows.keys() == names | {"a frame with all of them"}
    for name in names:
        assert rows[name].low <= rows[name].value <= rows[name].high


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    setup = Setup(("tiny",), tmp_path)
    answer, peak, start = speed_timing.apart(setup, eval, "len(b'x' * 400_000_000)")
    assert answer == 400_000_000 and start + 300 < peak < start + 500


def test_medians_and_their_spread():
    assert speed_timing.row("name", [3.0, 1.0, 2.0]) == Row("name", 2.0, "ms", 1.0, 3.0, "", 3)
    ratio = speed_timing.ratio_row("name", [8.0, 4.0, 6.0], [2.0, 2.0, 1.0])
    assert (ratio.value, ratio.low, ratio.high) == (3.0, 2.0, 6.0)
    assert speed_timing.gflops(lambda: torch.ones(10, 20) @ torch.ones(20, 30)) == pytest.approx(2 * 10 * 20 * 30 / 1e9)


def test_a_page_holds_what_was_measured(tmp_path):
    about = {
        "device": "x86_64", "cpu": "avx2", "cores": 2, "threads": 2, "autocast": "none", "torch": "2",
        "matrix_rate_gflops": {"float32": 1234.5}, "other_work_cores": {"files": 0.5, "loading": 0.0},
        "seconds": {"files": 61.2},
    }  # fmt: skip
    rows = [Row("a", 2.0, "ms", 1.0, 3.0, "of 3 | 4", 3), Row("b", None, note="no GPU")]
    figures = [{"section": "files", **row._asdict()} for row in rows]
    figures.append({"section": "loading", **Row("c", 1234.5, "MB")._asdict()})
    speed_report.write_markdown(tmp_path / "page.md", "the command", about, figures, {("files", "a"): {"value": 4.0}})
    text = (tmp_path / "page.md").read_text()
    assert "| a | 2.00 | ms | [1.00 .. 3.00] of 3 | was 4.00: x 0.50 | of 3 / 4 |" in text
    assert "| b | - |  |  |  | no GPU |" in text and "| c | 1,234 | MB |" in text
    assert "`the command`" in text and "float32 1,234 GFLOP/s" in text
    assert text.count("the machine was busy") == 1 and "Measured in 61 s. the machine was busy: 0.50" in text
    assert text.index(speed_report.TITLES["files"]) < text.index(speed_report.TITLES["loading"])


def test_the_growth_has_each_point_once():
    points = speed_growth.points_of(CONFIG, True, False)
    assert len({(config, steps, videos) for _, config, steps, videos in points}) == len(points) == 13
    assert points[0][1:] == (CONFIG, 8, 1)
    fewer = speed_growth.points_of(CONFIG, False, False)
    assert {p[1:] for p in fewer} < {p[1:] for p in points}


def test_the_work_of_training_is_counted_without_computing():
    loss = LossConfig()
    model = Pix2SeqD(CONFIG).train()
    batch = to_device(torch.utils.data.default_collate([scene(0)]), torch.device("cpu"))
    draws = draw(0, [0], model, CONFIG.mask_size, "cpu", False)
    counted = speed_timing.gflops(lambda: training_loss(model, CONFIG, loss, batch, draws)[0].backward())
    # attention without values is counted as plain products
    assert speed_estimate.work_of(CONFIG, loss) == pytest.approx(counted, rel=0.01) and counted > 0.01


def test_memory_is_followed_over_a_video(small_preset, tmp_path, monkeypatch):
    monkeypatch.setattr(speed_files, "LONG", CONFIG.image_size)
    rows = speed_files.memory(Setup(("tiny",), tmp_path, mixed_precision="no", quick=True), "tiny")
    peak, *resident, grown = (row.value for row in rows)
    assert all(100 < r <= peak for r in resident)
    assert grown == pytest.approx(1e3 * (resident[2] - resident[0]) / (0.9 * 12))


def test_connected_components_of_frames_are_written_as_predictions(tmp_path, monkeypatch):
    """Two cars apart in one frame are two ids, and keep them."""
    from benchmarks import connected_components
    from data.labels import read_panoptic, write_image

    semantic = np.zeros((16, 32), np.uint8)
    semantic[4:8, 2:8] = semantic[4:8, 20:26] = 13
    monkeypatch.setattr(connected_components, "semantic_map", lambda *_: semantic)
    model = lively_model()
    model_file, frames = tmp_path / "model.pt", tmp_path / "in"
    checkpoints.save(
        model_file, {"format": checkpoints.FORMAT, "config": CONFIG.to_dict(), "weights": model.state_dict()}
    )
    for n in range(2):
        write_image(frames / f"{n}.png", np.zeros((32, 64, 3), np.uint8))
    flags = ["--input_folder", frames, "--output_folder", tmp_path / "out", "--checkpoint", model_file]
    monkeypatch.setattr(sys, "argv", ["connected_components.py", *map(str, flags)])
    connected_components.main()
    (first, ids), (second, later) = (read_panoptic(tmp_path / "out" / f"{n}_panoptic.png") for n in range(2))
    assert first.shape == (32, 64) and (first == second).all() and (ids == later).all()
    assert len(np.unique(ids[first == 13])) == 2 and (ids[first != 13] == 0).all()
