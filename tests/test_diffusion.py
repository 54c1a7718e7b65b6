"""The mathematics: bits, schedule, samplers under an oracle, loss."""

import dataclasses
import math

import pytest
import torch
from small import CONFIG, lively_model, scene

from model import ConfigError, ModelConfig, Pix2SeqD
from model.diffusion.bits import bit_table, labels_to_bits
from model.diffusion.draws import draw, seeded
from model.diffusion.estimate import expected_bits
from model.diffusion.loss import LossConfig, pixel_weights, training_loss
from model.diffusion.samplers import SAMPLERS, ddpm_step, sampling_times
from model.diffusion.schedule import add_noise, gamma
from model.network.layers import COORDINATES, coordinates
from training.step import to_device


@pytest.mark.parametrize("code_bits", [(5, 5), (8, 8), (5, 7)])
def test_every_class_and_slot_survives_the_bits(code_bits):
    slots = torch.arange(2 ** code_bits[1]).view(1, 1, -1)
    semantic = slots % 20
    known = torch.ones_like(slots, dtype=torch.bool)
    analog = labels_to_bits(semantic, slots, known, known, code_bits, 0.1)
    assert analog.unique().tolist() == pytest.approx([-0.1, 0.1])
    back = []
    for part, bits in zip(analog.split(code_bits, dim=1), code_bits, strict=True):
        digits = 2 ** torch.arange(bits - 1, -1, -1)  # most significant first
        back.append(((part > 0) * digits[:, None, None]).sum(dim=1))
    assert torch.equal(back[0], semantic) and torch.equal(back[1], slots)


def test_unknown_pixels_have_zero_bits():
    semantic, slot = torch.full((1, 1, 2), 3), torch.full((1, 1, 2), 7)
    semantic_known, slot_known = torch.tensor([[[True, False]]]), torch.tensor([[[False, False]]])
    analog = labels_to_bits(semantic, slot, semantic_known, slot_known, (5, 5), 1.0)
    assert (analog[0, :5, 0, 0] != 0).all() and (analog[0, :5, 0, 1] == 0).all() and (analog[0, 5:] == 0).all()


def test_expected_bits_are_the_mean_of_the_codes():
    logits = torch.randn(2, 22 + 8, 3, 4)  # of the 32 codes of 5 bits 22 exist
    expected = expected_bits(logits, (22, 8), (5, 3), 0.5)
    for part, bits, start in ((logits[:, :22], 5, 0), (logits[:, 22:], 3, 5)):
        probability = part.softmax(dim=1)
        mean = torch.einsum("bchw,cn->bnhw", probability, bit_table(bits)[: part.shape[1]]) * 0.5
        assert torch.allclose(expected[:, start : start + bits], mean, atol=1e-6)
    certain = torch.full((1, 22 + 8, 1, 1), -1e9)
    certain[0, 21], certain[0, 22 + 6] = 0.0, 0.0
    bits = expected_bits(certain, (22, 8), (5, 3), 1.0)
    assert bits.flatten().tolist() == [1, -1, 1, -1, 1, 1, 1, -1]  # 21 = 10101, 6 = 110


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_expected_bits_of_half_precision_are_within_a_percent(dtype):
    logits = (torch.randn(2, 22 + 8, 3, 4) * 6).to(dtype)
    logits[0, :, 0, 0] = 1_000.0  # beyond what can be an exponent: all codes alike, not NaN
    expected = expected_bits(logits.double(), (22, 8), (5, 3), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(expected_bits(logits, (22, 8), (5, 3), 0.5).double(), expected.double(), atol=0.005)
    assert expected.isfinite().all()


def test_gamma_falls_from_one_to_zero():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    g = gamma(t)
    assert (g[:-1] > g[1:]).all() and g[0] > 1 - 1e-6 and g[-1] < 1e-6
    assert gamma(0.37) == pytest.approx(g[37].item())
    assert gamma(0.5) == pytest.approx(math.cos((0.5002 / 1.00025) * math.pi / 2) ** 2)


@pytest.mark.parametrize("difference", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_times_are_those_of_the_step_count_and_the_time_difference(steps, difference):
    times = sampling_times(steps, difference)
    assert len(times) == steps and times[0][0] == 1.0 and times[-1][1] == 0.0
    for k, (now, then) in enumerate(times):
        assert now == pytest.approx(1 - k / steps)
        assert then == pytest.approx(max(now - 1 / steps - difference, 0.0))


@pytest.mark.parametrize("arguments", [(0, 0.0), (5, -0.1), (5, 1.1)])
def test_impossible_times_are_refused(arguments):
    with pytest.raises(ValueError, match="steps"):
        sampling_times(*arguments)


def visited(sampler, steps, difference, x0, noise):
    """The times and states of a sampler whose every estimate is the true x0."""
    seen, x = [], noise
    generator = torch.Generator().manual_seed(1)
    for now, then in sampling_times(steps, difference):
        seen.append((now, x))
        x = SAMPLERS[sampler](
            x, x0, now, then, lambda: torch.randn(noise.shape, generator=generator, dtype=noise.dtype)
        )
    return seen


@pytest.mark.parametrize("steps", range(1, 51))
def test_ddim_keeps_the_initial_noise_at_every_step(steps):
    x0 = (torch.randint(2, (1, 4, 8, 8)) * 0.6 - 0.3).double()  # in single precision the error is up to 2e-6
    noise = torch.randn_like(x0)
    start = math.sqrt(gamma(1.0)) * x0 + math.sqrt(1 - gamma(1.0)) * noise
    states = visited("ddim", steps, 0.0, x0, start)
    assert [t for t, _ in states] == [now for now, _ in sampling_times(steps)]
    for t, x in states:
        residual = (x - math.sqrt(gamma(t)) * x0) / math.sqrt(1 - gamma(t))
        assert torch.allclose(residual, noise, rtol=0, atol=1e-12)


def test_ddpm_keeps_the_variance_of_data_of_unit_variance():
    """With the variance beta, for which this holds (DDPM, section 3.2): E[x0 | x] = sqrt(g) x for normal x0."""
    for steps in (2, 5, 20, 50):
        x = torch.randn(1, 4, 200, 200, dtype=torch.float64)
        for now, then in sampling_times(steps)[:-1]:
            x = ddpm_step(x, math.sqrt(gamma(now)) * x, now, then, lambda like=x: torch.randn_like(like))
            assert x.mean().abs() < 0.02 and x.var().item() == pytest.approx(1, rel=0.03)


def test_ddpm_draws_fresh_noise_at_each_step():
    x0, noise = torch.zeros(1, 1, 64, 64), torch.randn(1, 1, 64, 64)
    states = visited("ddpm", 4, 0.0, x0, noise)
    correlation = torch.corrcoef(torch.stack([states[0][1].flatten(), states[3][1].flatten()]))[0, 1]
    assert correlation < 0.9


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_time_difference_changes_the_states(sampler):
    x0 = torch.where(torch.rand(1, 4, 8, 8) > 0.5, 0.3, -0.3)
    noise = torch.randn_like(x0)
    plain, different = (visited(sampler, 5, d, x0, noise) for d in (0.0, 0.2))
    assert [t for t, _ in plain] == [t for t, _ in different]
    # With it the second state has gamma of 0.6, not of 0.8: the cleaner one, where no noise is added.
    errors = [(states[1][1] - x0).square().mean() for states in (plain, different)]
    assert errors[1] < errors[0] if sampler == "ddim" else errors[1] != errors[0]


def test_noise_follows_the_number_of_the_sample_and_not_its_batch():
    model = Pix2SeqD(CONFIG)
    together = draw(7, [3, 4, 5], model, CONFIG.mask_size, "cpu")
    alone = draw(7, [5], model, CONFIG.mask_size, "cpu")
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[2:], b)
    assert not torch.equal(together.noise[0], together.noise[1])
    assert not torch.equal(draw(8, [5], model, CONFIG.mask_size, "cpu").noise, alone.noise)
    assert seeded("cpu", 1, 2).initial_seed() != seeded("cpu", 2, 1).initial_seed()


def test_pixel_weights_are_one_over_the_area():
    slot = torch.zeros(1, 4, 8, dtype=torch.uint8)
    slot[0, :2, :2], slot[0, 3, 0] = 3, 9
    semantic = torch.ones_like(slot)
    semantic[0, :, 6:] = 2
    known = torch.ones_like(slot, dtype=torch.bool)
    known[0, 0, 7] = False
    weight = pixel_weights(semantic, slot, known, 0.2)
    assert weight[0, 0, 7] == 0 and weight.sum().item() == pytest.approx(known.sum().item(), rel=1e-5)
    assert (weight[0, 0, 0] / weight[0, 2, 2]).item() == pytest.approx(((26 + 1) / (4 + 1)) ** 0.2, rel=1e-5)
    assert (weight[0, 3, 0] / weight[0, 0, 0]).item() == pytest.approx((5 / 2) ** 0.2, rel=1e-5)
    by_class = pixel_weights(semantic, slot, known, 0.2, stuff_by_class=True)
    assert (by_class[0, 2, 7] / by_class[0, 2, 2]).item() == pytest.approx((20 / 8) ** 0.2, rel=1e-5)
    assert torch.equal(pixel_weights(semantic, slot, known, 0.0), known.float())


def test_unknown_pixels_carry_no_loss():
    torch.manual_seed(0)
    model = Pix2SeqD(CONFIG)
    batch = to_device(torch.utils.data.default_collate([scene(0), scene(1)]), torch.device("cpu"))
    draws = draw(0, [0, 1], model, CONFIG.mask_size, "cpu")
    batch["semantic_known"][:, -1, :4] = batch["instance_known"][:, -1, :4] = False
    before, _ = training_loss(model, CONFIG, LossConfig(), batch, draws)
    batch["semantic"][:, -1, :4], batch["instance"][:, -1, :4] = 17, 30
    after, _ = training_loss(model, CONFIG, LossConfig(), batch, draws)
    assert torch.equal(before, after)


def test_with_void_learnt_every_pixel_of_the_target_counts_and_absent_history_stays_absent():
    torch.manual_seed(0)
    model = lively_model()
    batch = to_device(torch.utils.data.default_collate([scene(0), scene(1)]), torch.device("cpu"))
    batch["semantic"][:, :, :4] = batch["instance"][:, :, :4] = 0
    batch["semantic_known"][:, :, :4] = batch["instance_known"][:, :, :4] = False
    for name in ("semantic", "instance", "semantic_known", "instance_known"):
        batch[name][0, :2] = 0  # the first clip has no history
    seen = []
    forward = model.forward
    model.forward = lambda *inputs: seen.append(inputs) or forward(*inputs)
    draws = draw(0, [0, 1], model, CONFIG.mask_size, "cpu")
    losses = [training_loss(model, CONFIG, LossConfig(learn_void=v), batch, draws)[0].item() for v in (False, True)]
    assert losses[0] != losses[1]
    (_, plain, _, history, *_), (_, learnt, _, same, *_) = seen
    assert torch.equal(history, same) and not history[0].any() and not history[1][..., :4, :].any()
    noise, root = (n[:, None, None, None] for n in ((1 - gamma(draws.t)).sqrt(), gamma(draws.t).sqrt()))
    for x, bit in ((plain, 0.0), (learnt, -CONFIG.scale)):
        unknown = (x - noise * draws.noise)[..., :4, :]
        torch.testing.assert_close(unknown, (root * bit).expand_as(unknown), atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"patch": 2}])
def test_a_batch_of_four_is_learnt(changes):
    """Fixed ids, no augmentation, no dropout: below 0.05 within 500 steps."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **changes)
    model = Pix2SeqD(config)
    batch = to_device(torch.utils.data.default_collate([scene(n) for n in range(4)]), torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss_config = LossConfig()
    recent = []
    for step in range(500):
        draws = draw(0, range(4 * step, 4 * step + 4), model, config.mask_size, "cpu")
        loss, _ = training_loss(model, config, loss_config, batch, draws)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-19:], loss.item()]
        if len(recent) == 20 and sum(recent) / 20 < 0.05:
            return
    raise AssertionError(f"the loss is {sum(recent) / 20:.3f} after 500 steps")


def test_weights_do_not_depend_on_the_size():
    model = Pix2SeqD(CONFIG).eval()
    for size, mask in (((32, 64), (16, 32)), ((48, 80), (24, 40)), ((40, 70), (20, 35)), ((33, 65), (17, 33))):
        features = model.encode(torch.rand(1, 3, *size), mask)
        condition = model.denoiser.condition(features, torch.zeros(1, 2 * CONFIG.bits, *mask))
        output = model.denoiser(torch.randn(1, CONFIG.bits, *mask), torch.ones(1), condition)
        assert output.shape == (1, sum(CONFIG.code_sizes), *mask) and output.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"code_bits": (4, 5)},
        {"code_bits": (8,)},
        {"code_bits": (8, 8, 8)},
        {"history_offsets": (-1, -2)},
        {"history_offsets": (0,)},
        {"scale": 0.0},
        {"multipliers": (2, 2)},
        {"dim": 7},
        {"encoder_depth": -1},
        {"map_channels": 0},
        {"dropout": 1.0},
        {"patch": 3},
        {"detail": False},
        {"located": False},
        {"published": True, "patch": 2},
        {"mask_size": (16,)},
        {"tracked": (19,)},
    ],
)
def test_configurations_that_cannot_be_are_refused(changes):
    with pytest.raises(ConfigError):
        ModelConfig.from_dict(CONFIG.to_dict() | changes)


@pytest.mark.parametrize("values", [{"instance_weight": -1.0}, {"loss_stride": 0}])
def test_losses_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError):
        LossConfig(**values)


def test_noise_at_time_zero_and_one():
    x0, noise = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    assert torch.allclose(add_noise(x0, noise, torch.zeros(1)), x0, atol=2e-3)
    assert torch.allclose(add_noise(x0, noise, torch.ones(1)), noise, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "stride"), [({"published": True}, 2), ({"published": True}, 3), ({"patch": 4}, 2), ({"patch": 2}, 2)]
)
def test_the_loss_on_a_grid_is_that_of_its_pixels(changes, stride):
    """All phases of the grid together are the whole answer; their losses average to the whole loss."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **changes)
    model = Pix2SeqD(config).eval()
    torch.nn.init.normal_(model.denoiser.conv_out.weight, std=0.1)
    if not config.published:
        torch.nn.init.normal_(model.encoder.detail[-1].weight)
    batch = to_device(torch.utils.data.default_collate([scene(n) for n in range(2)]), torch.device("cpu"))
    draws = draw(0, range(2), model, config.mask_size, "cpu")
    with torch.no_grad():
        condition = model.denoiser.condition(
            model.encode(batch["image"]), torch.zeros(2, 2 * config.bits, *config.mask_size)
        )
        whole = model.denoiser(draws.noise, draws.t, condition)
        for top in range(stride):
            for left in range(stride):
                part = model.denoiser(draws.noise, draws.t, condition, grid=(stride, top, left))
                torch.testing.assert_close(part, whole[..., top::stride, left::stride])
        parts = [
            training_loss(model, config, LossConfig(instance_weight=0.0, loss_stride=stride), batch, draws, step)[0]
            for step in range(stride**2)
        ]
        full, _ = training_loss(model, config, LossConfig(instance_weight=0.0), batch, draws)
    assert len({float(p) for p in parts}) == stride**2
    assert torch.stack(parts).mean().item() == pytest.approx(full.item(), rel=0.1)


@pytest.mark.parametrize("patch", [1, 4])
def test_a_model_may_look_back_to_nothing(patch):
    config = dataclasses.replace(CONFIG, patch=patch, history_offsets=())
    model = Pix2SeqD(config)
    torch.nn.init.normal_(model.denoiser.conv_out.weight)  # it starts at zero, and nothing before it has a gradient
    batch = to_device(torch.utils.data.default_collate([scene(0, frames=1)]), torch.device("cpu"))
    loss, _ = training_loss(model, config, LossConfig(), batch, draw(0, [0], model, config.mask_size, "cpu"))
    loss.backward()
    assert loss.isfinite() and model.denoiser.conv_image.weight.grad.abs().sum() > 0


def test_detail_reaches_the_answer_of_its_own_pixel():
    """What the map sees changes nothing here, so that the answer differs where the detail does and nowhere else."""
    torch.manual_seed(0)
    model = Pix2SeqD(dataclasses.replace(CONFIG, patch=4)).eval()
    batch = to_device(torch.utils.data.default_collate([scene(0)]), torch.device("cpu"))
    with torch.no_grad():
        features = model.encode(batch["image"])
        assert features.detail.shape == (1, 32, *CONFIG.mask_size)
        history, x = torch.zeros(1, 2 * CONFIG.bits, *CONFIG.mask_size), torch.randn(1, CONFIG.bits, *CONFIG.mask_size)
        other = features.detail.clone()
        other[..., 5, 9] += 1
        first, second = (
            model.denoiser(x, torch.ones(1), model.denoiser.condition(features._replace(detail=d), history))
            for d in (features.detail, other)
        )
    changed = (first - second).abs().amax(dim=1)[0] > 0
    assert changed[5, 9] and changed.sum() == 1


def test_a_stride_that_does_not_fit_is_refused():
    model = Pix2SeqD(dataclasses.replace(CONFIG, patch=4))
    with pytest.raises(ValueError, match="does not divide"):
        model.denoiser._answer(torch.zeros(1, CONFIG.dim, 4, 8), (3, 0, 0), torch.zeros(1, 32, *CONFIG.mask_size))


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_recomputed_activations_give_the_same_gradient(norm):
    torch.manual_seed(0)
    model = Pix2SeqD(dataclasses.replace(CONFIG, backbone_norm=norm)).train()
    torch.nn.init.normal_(model.denoiser.conv_out.weight, std=0.1)
    batch = to_device(torch.utils.data.default_collate([scene(n) for n in range(2)]), torch.device("cpu"))
    draws = draw(0, range(2), model, CONFIG.mask_size, "cpu")
    gradients = []
    for recompute in (False, True):
        model.encoder.recompute = model.denoiser.recompute = recompute
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            loss, _ = training_loss(model, CONFIG, LossConfig(), batch, draws)
        loss.backward()
        gradients.append(([p.grad.clone() for p in model.parameters() if p.grad is not None], sum(kept)))
        model.zero_grad()
    (plain, much), (recomputed, little) = gradients
    assert len(plain) == len(recomputed) and all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert little < 0.6 * much


def test_a_place_is_a_fraction_of_the_picture_whatever_its_width():
    narrow, wide = (coordinates(4, width, torch.device("cpu"))[0] for width in (8, 24))
    assert narrow.shape == (COORDINATES, 4, 8)
    # centres 1/16 and 3/48 of the width are one place; so are all rows of one height
    assert torch.allclose(narrow[:, :, 0], wide[:, :, 1], atol=1e-5)
    y_sine, x_sine = narrow[0], narrow[COORDINATES // 2]  # half a period across the picture
    assert torch.allclose(y_sine[:, 0], torch.sin(torch.pi * torch.tensor([1, 3, 5, 7]) / 8), atol=1e-5)
    assert torch.allclose(x_sine[0, :2], torch.sin(torch.pi * torch.tensor([1, 3]) / 16), atol=1e-5)


@pytest.mark.parametrize("patch", [1, 4])
def test_the_network_knows_where_a_position_is(patch):
    config = dataclasses.replace(CONFIG, patch=patch)
    model = lively_model(config=config)
    history = torch.zeros(1, 2 * CONFIG.bits, *CONFIG.mask_size)
    with torch.no_grad():
        features = model.encode(torch.zeros(1, 3, *CONFIG.image_size))
        flat = features._replace(map=torch.zeros_like(features.map))
        first = model.denoiser.condition(flat, history).first[0]
    assert not torch.allclose(first[:, 0, 0], first[:, 0, -1], atol=1e-3)
    assert not torch.allclose(first[:, 0, 0], first[:, -1, 0], atol=1e-3)
