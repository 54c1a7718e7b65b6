"""The mathematics of training and inference against numbers worked out by hand, or from the paper's formulas."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from ema_pytorch import EMA
from small import CONFIG, Scenes, lively_model, scene
from torch import nn

from model import Pix2SeqD, StreamConfig, StreamState, VideoPredictor
from model.diffusion.bits import history_to_bits, labels_to_bits
from model.diffusion.draws import Draws
from model.diffusion.estimate import expected_bits
from model.diffusion.loss import LossConfig, pixel_weights, training_loss
from model.diffusion.samplers import ddim_step, ddpm_step, sample, sampling_times
from model.diffusion.schedule import add_noise, gamma
from model.network.layers import ResidualBlock, coordinates
from model.network.operations import dropped
from model.stream.answer import candidates
from model.stream.history import past_masks
from training.config import TrainingConfig
from training.fit import fit
from training.muon import orthogonal
from training.optimizer import build_optimizer
from training.run import Run
from training.step import StepBatches, learning_rate, optimizer_step, set_learning_rate

pytestmark = pytest.mark.quick

ROAD, CAR = 1, 14  # semantic codes: class index + 1


# ---------------------------------------------------------------------------------------------------------------------
# The loss on a mask of 2x2 pixels, with one mask as history
# ---------------------------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """In place of the network: keeps what it is given, and answers with fixed logits (codes, 2, 2)."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, image, x, t, history, grid=None, key=None):
        self.x, self.t, self.history, self.grid = x, t, history, grid
        stride, top, left = grid or (1, 0, 0)
        return self.logits[None, :, top::stride, left::stride]


CODES = (20, 32)


def two_by_two():
    """A clip: road, road / a car in slot 3, void; before it the car was on the left."""
    maps = {
        "semantic": [[[CAR, ROAD], [ROAD, 0]], [[ROAD, ROAD], [CAR, 0]]],
        "instance": [[[5, 0], [0, 0]], [[0, 0], [3, 0]]],
        "semantic_known": [[[True, True], [True, False]], [[True, True], [True, False]]],
        "instance_known": [[[True, True], [True, False]], [[True, True], [True, False]]],
    }
    maps = {name: torch.tensor([values]) for name, values in maps.items()}
    return maps | {"image": torch.zeros(1, 3, 4, 4)}


def the_loss(loss=None, batch=None, step=0, t=0.25, logits=None):
    """The loss with code 1 three times as likely as each other semantic code, and all slots alike."""
    if logits is None:
        logits = torch.zeros(sum(CODES), 2, 2)
        logits[ROAD] = math.log(3)
    config = SimpleNamespace(code_bits=(5, 5), code_sizes=list(CODES), scale=0.5, dropout=0.0)
    noise = torch.linspace(-1, 1, 40).view(1, 10, 2, 2)
    drawn = Draws(torch.tensor([t]), noise)
    model = Recorder(logits)
    value, parts = training_loss(
        model, config, loss or LossConfig(instance_weight=0), batch or two_by_two(), drawn, step
    )
    return value.item(), parts, model, drawn


def test_the_loss_is_the_mean_over_codes_and_pixels():
    value, parts, *_ = the_loss()
    # Codes: 3 / 22 for road, 1 / 22 for car. Slots: 1 / 32. The void pixel counts as one without loss.
    semantic = (2 * math.log(22 / 3) + math.log(22)) / 4
    slot = 3 * math.log(32) / 4
    assert parts["semantic"].item() == pytest.approx(semantic, rel=1e-6)
    assert parts["instance"].item() == pytest.approx(slot, rel=1e-6)
    assert value == pytest.approx((semantic + slot) / 2, rel=1e-6)


def test_a_pixel_without_a_known_slot_has_a_semantic_loss_alone():
    batch = two_by_two()
    batch["instance_known"][0, -1, 1, 0] = False  # the car is a crowd
    _, parts, *_ = the_loss(batch=batch)
    assert parts["semantic"].item() == pytest.approx((2 * math.log(22 / 3) + math.log(22)) / 4, rel=1e-6)
    assert parts["instance"].item() == pytest.approx(2 * math.log(32) / 4, rel=1e-6)


def test_pixels_are_weighted_by_the_area_of_their_instance():
    """Equation 4: (1 / (area + 1))^p with mean 1. Two pixels of road: 1 / 3; one of a car: 1 / 2."""
    weights = [math.sqrt(1 / 3), math.sqrt(1 / 3), math.sqrt(1 / 2)]
    weights = [w * 3 / sum(weights) for w in weights]
    _, parts, *_ = the_loss(LossConfig(instance_weight=0.5))
    semantic = (weights[0] + weights[1]) * math.log(22 / 3) + weights[2] * math.log(22)
    assert parts["semantic"].item() == pytest.approx(semantic / 4, rel=1e-6)


def test_stuff_is_one_area_or_one_for_each_class():
    semantic, slot = torch.tensor([[[1, 1, 2]]]), torch.zeros(1, 1, 3, dtype=torch.long)
    known = torch.ones(1, 1, 3, dtype=torch.bool)
    assert pixel_weights(semantic, slot, known, 1.0).flatten().tolist() == pytest.approx([1, 1, 1])
    by_class = pixel_weights(semantic, slot, known, 1.0, stuff_by_class=True).flatten().tolist()
    assert by_class == pytest.approx([6 / 7, 6 / 7, 9 / 7])  # 1/3, 1/3, 1/2 over their mean, 7/18


def test_the_target_is_noised_at_its_time():
    """x_t = sqrt(gamma) x0 + sqrt(1 - gamma) eps."""
    _, _, model, draws = the_loss(LossConfig(instance_weight=0), t=0.5)
    assert model.t.item() == pytest.approx(0.5)
    g = math.cos((0.5 + 0.0002) / 1.00025 * math.pi / 2) ** 2
    # The car's semantic code, 14 = 01110, at its pixel
    for bit, value in enumerate((-0.5, 0.5, 0.5, 0.5, -0.5)):
        expected = math.sqrt(g) * value + math.sqrt(1 - g) * draws.noise[0, bit, 1, 0].item()
        assert model.x[0, bit, 1, 0].item() == pytest.approx(expected, abs=1e-6)
    assert model.x[0, 0, 1, 1].item() == pytest.approx(math.sqrt(1 - g) * draws.noise[0, 0, 1, 1].item(), abs=1e-6)


def test_the_history_never_shows_the_target():
    before = the_loss()[2].history
    changed = two_by_two()
    changed["semantic"][:, -1], changed["instance"][:, -1] = 7, 9
    changed["semantic_known"][:, -1], changed["instance_known"][:, -1] = True, False
    assert torch.equal(the_loss(batch=changed)[2].history, before)
    changed["instance"][:, 0, 0, 0] = 6  # but it shows the past
    assert not torch.equal(the_loss(batch=changed)[2].history, before)


def test_history_is_oldest_first():
    known = torch.ones(1, 2, 1, 1, dtype=torch.bool)
    semantic, slot = torch.tensor([3, 1]).view(1, 2, 1, 1), torch.tensor([0, 2]).view(1, 2, 1, 1)
    bits = history_to_bits([semantic, slot, known, known], (2, 2), 1.0).flatten().tolist()
    assert bits == [1, 1, -1, -1, -1, 1, 1, -1]  # 3 = 11, 0 = 00; 1 = 01, 2 = 10


def test_void_is_learnt_in_the_target_alone():
    _, parts, model, _ = the_loss(LossConfig(instance_weight=0, learn_void=True))
    semantic = (2 * math.log(22 / 3) + 2 * math.log(22)) / 4  # of the void pixel, too
    assert parts["semantic"].item() == pytest.approx(semantic, rel=1e-6)
    assert parts["instance"].item() == pytest.approx(math.log(32), rel=1e-6)
    assert not model.history[..., 1, 1].any()  # unknown there, as at inference


def test_the_loss_visits_every_pixel_of_the_stride():
    grids = [the_loss(LossConfig(instance_weight=0, loss_stride=2), step=n)[2].grid for n in range(5)]
    assert grids == [(2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1), (2, 0, 0)]


# ---------------------------------------------------------------------------------------------------------------------
# Bits, schedule, samplers
# ---------------------------------------------------------------------------------------------------------------------


def test_bits_are_the_digits_with_the_most_significant_first():
    six, known = torch.full((1, 1, 1), 6), torch.tensor([[[True]]])
    bits = labels_to_bits(six, six, known, ~known, (3, 4), 0.1).flatten().tolist()
    assert bits == pytest.approx([0.1, 0.1, -0.1, 0, 0, 0, 0])


def test_the_estimate_is_the_mean_of_the_codes_by_their_probability():
    logits = torch.tensor([0.0, math.log(3), 0.0, 0.0]).view(1, 4, 1, 1)  # two codes of one bit: 1/4, 3/4; 1/2, 1/2
    assert expected_bits(logits, (2, 2), (1, 1), 0.2).flatten().tolist() == pytest.approx([0.1, 0.0], abs=1e-6)


def test_gamma_and_the_times_of_a_sampler():
    assert gamma(0.0) == pytest.approx(1, abs=1e-6) and gamma(1.0) == pytest.approx(0, abs=1e-6)
    assert gamma(0.5) == pytest.approx(math.cos(0.5002 / 1.00025 * math.pi / 2) ** 2)
    times = [n for pair in sampling_times(4, 0.1) for n in pair]
    assert times == pytest.approx([1, 0.65, 0.75, 0.4, 0.5, 0.15, 0.25, 0])
    x0, noise = torch.tensor(0.5).view(1, 1, 1, 1), torch.tensor(2.0).view(1, 1, 1, 1)
    g = gamma(0.3)
    assert add_noise(x0, noise, torch.tensor([0.3])).item() == pytest.approx(math.sqrt(g) * 0.5 + math.sqrt(1 - g) * 2)


def test_a_step_of_ddim_and_of_ddpm():
    x, x0, now, then = torch.tensor(0.7), torch.tensor(-0.5), 0.8, 0.4
    g, h = gamma(now), gamma(then)
    eps = (0.7 + math.sqrt(g) * 0.5) / math.sqrt(1 - g)
    assert ddim_step(x, x0, now, then).item() == pytest.approx(math.sqrt(h) * -0.5 + math.sqrt(1 - h) * eps, rel=1e-5)
    alpha = g / h
    mean = (math.sqrt(h) * (1 - alpha) * -0.5 + math.sqrt(alpha) * (1 - h) * 0.7) / (1 - g)
    for noise in (0.0, 1.5):
        expected = mean + math.sqrt(1 - alpha) * noise
        assert ddpm_step(x, x0, now, then, lambda n=noise: torch.tensor(n)).item() == pytest.approx(expected, rel=1e-5)


@torch.inference_mode()
def test_classes_are_averaged_over_the_steps_and_each_step_knows_its_time():
    model = lively_model()
    condition = model.denoiser.condition(model.encode(torch.rand(1, 3, *CONFIG.image_size)), None)
    x, seen, times = torch.randn(1, CONFIG.bits, *CONFIG.mask_size), [], []
    modulation = model.denoiser.modulation
    model.denoiser.modulation = lambda t: times.extend(t.tolist()) or modulation(t)
    given = (model, "ddim", condition, x, sampling_times(3), None)
    output = sample(*given, average_classes=True, callback=lambda now, x, output: seen.append((now, x, output.clone())))
    assert times == pytest.approx([1, 2 / 3, 1 / 3]) and [now for now, *_ in seen] == pytest.approx(times)
    assert torch.allclose(output[:, :20], torch.stack([o for *_, o in seen])[:, :, :20].mean(dim=0), atol=1e-5)
    alone = model.denoiser(seen[2][1], torch.tensor([1 / 3]), condition)
    assert torch.allclose(output[:, 20:], alone[:, 20:], atol=1e-4)
    x0 = expected_bits(seen[0][2], CONFIG.code_sizes, CONFIG.code_bits, CONFIG.scale)
    assert torch.allclose(seen[1][1], ddim_step(x, x0, 1.0, 2 / 3), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Network
# ---------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_an_image_is_normalised_as_the_backbone_expects():
    model, seen = lively_model(), []
    model.encoder.stem.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mean = torch.tensor([0.485, 0.456, 0.406])  # of ImageNet: R, G, B
    std = torch.tensor([0.229, 0.224, 0.225])
    image = torch.ones(1, 3, *CONFIG.image_size)
    model.encode(image * mean[:, None, None])
    model.encode(image * (mean + 2 * std)[:, None, None])
    assert torch.allclose(seen[0], 0 * image, atol=1e-6) and torch.allclose(seen[1], 2 * image, atol=1e-5)


@torch.inference_mode()
def test_a_block_is_its_input_and_a_branch_that_the_time_scales():
    """AdaGN, arXiv 2105.05233: (1 + scale) norm(h) + shift. No scale and no shift leave the norm as it is."""
    torch.manual_seed(0)
    block = ResidualBlock(16, 16, 8)
    nn.init.normal_(block.conv2.weight, std=0.1)
    x = torch.randn(1, 16, 4, 4)
    h = block.norm2(block.conv1(nn.functional.silu(block.norm1(x))))
    assert torch.allclose(block(x, torch.zeros(1, 32)), x + block.conv2(nn.functional.silu(h)), atol=1e-5)
    modulation = torch.cat([torch.full((1, 16), 0.5), torch.full((1, 16), 2.0)], dim=1)
    assert torch.allclose(block(x, modulation), x + block.conv2(nn.functional.silu(1.5 * h + 2)), atol=1e-5)


@torch.inference_mode()
def test_tokens_know_their_places():
    model = lively_model()
    for part in (model.encoder.to_tokens, model.encoder.token_norm):
        part.weight.data.fill_(0 if part is model.encoder.to_tokens else 1)
    tokens = model.encode(torch.rand(1, 3, *CONFIG.image_size)).tokens[0]
    assert len(tokens) == 8 and torch.pdist(tokens).min() > 0.1


def test_coordinates_run_from_the_upper_left_to_the_lower_right():
    places = coordinates(2, 4, torch.device("cpu"))[0]
    half = [math.cos((n + 0.5) / 4 * math.pi) for n in range(4)]  # half a period across the picture
    assert places[21, 0].tolist() == pytest.approx(half) and places[7, :, 0].tolist() == pytest.approx(
        [math.cos(math.pi / 4), math.cos(3 * math.pi / 4)], abs=1e-6
    )


def test_dropout_keeps_the_mean():
    values = dropped(torch.ones(4, 1000), 0.25, torch.arange(4))
    assert values.unique().tolist() == pytest.approx([0, 4 / 3])
    assert values.mean().item() == pytest.approx(1, abs=0.05)


def test_recomputing_runs_each_block_again_for_the_gradient():
    model, calls = Pix2SeqD(CONFIG).train(), []
    model.encoder.recompute = model.denoiser.recompute = True
    model.denoiser.transformer[0].register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(1, CONFIG.bits, *CONFIG.mask_size)
    history = torch.zeros(1, CONFIG.bits * 2, *CONFIG.mask_size)
    model(torch.rand(1, 3, *CONFIG.image_size), x, torch.ones(1), history).sum().backward()
    assert len(calls) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Optimizer
# ---------------------------------------------------------------------------------------------------------------------


def adamw(p, gradients, lr, decay, beta2):
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, on one number."""
    m = v = 0.0
    for k, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m / (1 - 0.9**k)) / (math.sqrt(v / (1 - beta2**k)) + 1e-8) - lr * decay * p
    return p


def test_one_weight_of_each_kind_moves_as_worked_out():
    """Two steps, gradients 1 and 3: AdamW's second one depends on beta2."""
    torch.manual_seed(0)
    model = Pix2SeqD(CONFIG)
    config = TrainingConfig(optimizer="muon", lr=0.01, weight_decay=0.5, beta2=0.9, backbone_lr=0.25)
    optimizer = build_optimizer(model, config)
    last, norm = model.denoiser.conv_out, model.denoiser.norm_out
    stem = model.encoder.stem[0]
    kinds = {  # parameter: learning rate, weight decay
        "matrix": (last.weight, 0.01, 0.5),
        "bias": (last.bias, 0.01, 0.0),
        "norm": (norm.weight, 0.01, 0.0),
        "backbone": (stem.weight, 0.0025, 0.5),
    }
    hidden = model.denoiser.to_tokens.weight
    before = {name: p.detach().clone() for name, (p, *_) in kinds.items()}
    start = hidden.detach().clone()
    set_learning_rate(optimizer, 0.01)
    pulls = [torch.randn_like(hidden) for _ in range(2)]
    for gradient, pull in zip((1.0, 3.0), pulls, strict=True):
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        hidden.grad = pull.clone()
        optimizer.step()
    for name, (p, lr, decay) in kinds.items():
        expected = adamw(before[name].double(), (1.0, 3.0), lr, decay, 0.9)
        assert torch.allclose(p.double(), expected, atol=1e-6), name
    # Muon: momentum 0.95 with Nesterov, orthogonal, scaled to 0.2 sqrt(larger side), decay apart
    buffer, matrix = torch.zeros(hidden.shape[:2]), start.flatten(1)
    for pull in pulls:
        g = pull.flatten(1)
        buffer = 0.95 * buffer + 0.05 * g
        size = 0.2 * math.sqrt(max(g.shape))
        step = orthogonal((0.95 * buffer + 0.05 * g)[None], optimizer.muon.dtype)[0]
        matrix = matrix * (1 - 0.01 * 0.5) - 0.01 * size * step
    assert torch.allclose(hidden.flatten(1), matrix, atol=1e-5)


def test_adamw_alone_moves_as_worked_out():
    torch.manual_seed(0)
    model = Pix2SeqD(CONFIG)
    optimizer = build_optimizer(model, TrainingConfig(optimizer="adamw", lr=0.01, weight_decay=0.5, beta2=0.9))
    kinds = {model.denoiser.to_tokens.weight: 0.5, model.denoiser.norm_out.weight: 0.0}
    before = [p.detach().double() for p in kinds]
    for gradient in (1.0, 3.0):
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step()
    for start, (p, decay) in zip(before, kinds.items(), strict=True):
        assert torch.allclose(p.double(), adamw(start, (1.0, 3.0), 0.01, decay, 0.9), atol=1e-6)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_frozen_backbone_stays_and_without_decay_the_average_is_the_weights(freeze, tmp_path):
    torch.manual_seed(0)
    model = Pix2SeqD(CONFIG)
    stem, rest = (p.detach().clone() for p in (model.encoder.stem[0].weight, model.denoiser.conv_out.weight))
    config = TrainingConfig(
        steps=3, batch_size=1, warmup=0, lr=1e-2, ema_decay=0.0, freeze_backbone=freeze, num_workers=0,
        validate_every=0, save_every=3,
    )  # fmt: skip
    fit(model, LossConfig(), config, Scenes(), tmp_path, Accelerator(cpu=True), quiet=True)
    assert torch.equal(model.encoder.stem[0].weight, stem) == freeze
    assert not torch.equal(model.denoiser.conv_out.weight, rest)
    averaged = torch.load(tmp_path / "model-latest.pt", weights_only=True)["weights"]
    assert torch.allclose(averaged["denoiser.conv_out.weight"], model.denoiser.conv_out.weight, atol=1e-7)


def test_orthogonal_matrices_have_singular_values_near_one():
    matrices = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(0))
    for chosen in (matrices, matrices.mT):
        for matrix, ours in zip(chosen, orthogonal(chosen, torch.float32), strict=True):
            u, _, v = torch.linalg.svd(matrix, full_matrices=False)
            assert ((torch.linalg.svdvals(ours) - 1).abs() < 0.4).all()
            assert torch.nn.functional.cosine_similarity(ours.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_the_learning_rate_rises_and_falls_in_lines():
    config = TrainingConfig(steps=110, warmup=10, lr=1.0, final_lr=0.1)
    rates = [learning_rate(step, config) for step in (0, 4, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1])


@pytest.mark.parametrize("slices", [1, 2])
def test_a_step_is_clipped_averaged_and_followed_by_the_mean(slices, tmp_path):
    """With plain gradient descent of rate 1 the weights move by the clipped norm; the average by a share of that."""
    torch.manual_seed(0)
    model = Pix2SeqD(CONFIG)
    config = TrainingConfig(steps=1, batch_size=2, accumulate=slices, clip=1e-3)
    optimizer, accelerator = torch.optim.SGD(model.parameters(), lr=1.0), Accelerator(cpu=True)
    ema = EMA(model, beta=0.5, update_every=1, update_after_step=0, include_online_model=False)
    ema.initted.fill_(True), ema.step.fill_(100)  # its decay has warmed up
    run = Run(model, model, ema, accelerator.prepare(optimizer), accelerator, config, LossConfig(), tmp_path)
    batches = StepBatches(config, 0, 0, 1)
    scenes = [torch.utils.data.default_collate([scene(n) for n in numbers]) for numbers in batches]
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    stop = SimpleNamespace(asked=False)
    values, _ = optimizer_step(run, iter(scenes), batches, stop)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert values["grad_norm"] > 0.1 and moved.norm().item() == pytest.approx(1e-3, rel=1e-3)
    followed = nn.utils.parameters_to_vector(ema.ema_model.parameters()) - before
    assert torch.allclose(followed, moved / 2, atol=1e-7)
    # The norm is that of the mean gradient, whatever the slices
    whole = torch.utils.data.default_collate([scene(n) for n in range(2)])
    again, config = Pix2SeqD(CONFIG), dataclasses.replace(config, accumulate=1)
    nn.utils.vector_to_parameters(before, again.parameters())
    run = Run(again, again, ema, optimizer, accelerator, config, LossConfig(), tmp_path)
    one, _ = optimizer_step(run, iter([whole]), StepBatches(config, 0, 0, 1), stop)
    assert values["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Stream
# ---------------------------------------------------------------------------------------------------------------------


def test_the_stream_visits_the_times_of_its_settings():
    """First frame: 4 steps. Later: 1 with history and 2 without, or all without; all with the time difference."""
    model, visited, pasts, noises = lively_model(), [], [], []
    config = StreamConfig(first_steps=4, steps=3, history_steps=1, time_difference=0.2, min_area=1)
    predictor = VideoPredictor(model, config, "cpu", "no")
    condition = model.denoiser.condition
    model.denoiser.condition = lambda features, past: pasts.append(past is not None) or condition(features, past)

    def watched(model, sampler, condition, x, times, *rest):
        visited.append(list(times))
        noises.append(x[0])
        return sample(model, sampler, condition, x, times, *rest)

    predictor.sampling = watched
    frame = np.random.default_rng(0).integers(0, 256, (*CONFIG.image_size, 3), np.uint8)
    predictor(frame)
    predictor(frame)
    assert visited == [sampling_times(4, 0.2), sampling_times(1, 0.2), sampling_times(2, 0.2)]
    assert pasts == [False, True, False]
    assert not torch.equal(noises[0], noises[1]) and not torch.equal(noises[1], noises[2])
    predictor.config = dataclasses.replace(config, history_steps=0)
    predictor(frame)
    assert visited[3:] == [sampling_times(3, 0.2)] and pasts[3:] == [False]


def test_the_slots_of_things_without_a_track_are_unknown_in_the_history():
    size = CONFIG.mask_size
    maps = {"semantic": np.full((2, *size), 15, np.uint8), "slot": np.zeros((2, *size), np.uint8)}  # trucks, no slots
    maps["slot"][1, 0] = 4
    state = StreamState(0, frame=2, known=np.ones((2, *size), bool), **maps)
    _, slot, known, slot_known = past_masks([state], CONFIG, size, torch.device("cpu"))
    assert known.all() and slot_known[0, 1, 0].all() and not slot_known[0, 1, 1:].any() and not slot_known[0, 0].any()
    assert (slot[0, 1, 0] == 4).all()


def test_void_is_never_an_answer():
    output = torch.zeros(1, sum(CONFIG.code_sizes), 1, 2)
    output[:, 0] = 9.0
    output[:, ROAD, :, 0], output[:, CAR, :, 1] = 1.0, 1.0
    output[:, CONFIG.code_sizes[0]] = 5.0  # slot 0 is none for a tracked class
    output[:, CONFIG.code_sizes[0] + 7] = 1.0
    semantic, other, slot = (m.flatten().tolist() for m in candidates(CONFIG, output))
    assert semantic == [ROAD, CAR] and other[0] == ROAD and other[1] not in (0, CAR) and slot == [0, 7]
