# ruff: noqa: E501  (a mutant a line)
"""Wrong changes to the science, one by one: does a test notice?

    python benchmarks/mutants.py                      all, an hour on one core -> the table of benchmarks/reliability.md
    python benchmarks/mutants.py history-shows-target clipping-off    some of them

Each mutant replaces one piece of text in a scratch copy of the repository and runs the nearest tests, which should fail.
A test that survives every mutant protects nothing; a mutant that survives every test is a fault that would go unnoticed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cli

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900  # seconds for the tests of one mutant


class Mutant(NamedTuple):
    name: str
    file: str
    before: str  # occurs once in the file
    after: str


# The test files to run for a mutant of a file, the nearest first.
TESTS = {
    "model/diffusion/": "by_hand diffusion plain_sampler golden",
    "model/network/": "by_hand plain_sampler diffusion backbones presets golden",
    "model/stream/": "by_hand streaming association plain_sampler loop golden",
    "model/checkpoint.py": "checkpoint",
    "training/": "by_hand optimizer training presets",
    "data/clips/": "by_hand clips data golden",
    "data/sets/": "data sets",
    "data/io/images.py": "data sets by_hand",
    "inference.py": "inference",
    "metrics/": "metrics metrics_random",
}

LOSS, UNET, STEP, TRACKS = (
    "model/diffusion/loss.py",
    "model/network/unet.py",
    "model/stream/step.py",
    "model/stream/tracks.py",
)
ANSWER, ENCODER, LAYERS = "model/stream/answer.py", "model/network/encoder.py", "model/network/layers.py"
SAMPLERS, BITS, SCHEDULE = "model/diffusion/samplers.py", "model/diffusion/bits.py", "model/diffusion/schedule.py"
ESTIMATE, PAST = "model/diffusion/estimate.py", "model/stream/history.py"
OPERATIONS = "model/network/operations.py"
OPTIMIZER, MUON = "training/optimizer.py", "training/muon.py"
TRAIN_STEP, FIT = "training/step.py", "training/fit.py"
CLIPS, SLOTS = "data/clips/clips.py", "data/clips/slots.py"
TRANSFORMS, FRAMES = "data/clips/transforms.py", "data/sets/frames.py"

MUTANTS = [
    # Bits and schedule
    Mutant("bits-reversed", BITS, "torch.arange(bits - 1, -1, -1,", "torch.arange(0, bits, 1,"),
    Mutant("unknown-bits-are-a-mask", BITS, "torch.zeros(1, bits, device=code.device)",
           "-scale * torch.ones(1, bits, device=code.device)"),
    Mutant("estimate-not-scaled", ESTIMATE, "torch.cat(estimates).mul_(scale)", "torch.cat(estimates)"),
    Mutant("history-bits-newest-first", BITS, "labels_to_bits(*(m.flatten(0, 1) for m in maps)",
           "labels_to_bits(*(m.flip(1).flatten(0, 1) for m in maps)"),
    Mutant("gamma-not-squared", SCHEDULE, "math.cos(angle) ** 2", "math.cos(angle)"),
    Mutant("noise-not-square-root", SCHEDULE, "(1 - g).sqrt() * noise", "(1 - g) * noise"),
    Mutant("sampler-starts-late", SAMPLERS, "(1 - k / steps, max", "(1 - (k + 1) / (steps + 1), max"),
    Mutant("time-difference-reversed", SAMPLERS, "/ steps - time_difference, 0.0)", "/ steps + time_difference, 0.0)"),
    # Samplers
    Mutant("ddim-keeps-no-noise", SAMPLERS, "kept * x, x0, alpha=math.sqrt(g_next) - kept * math.sqrt(g)",
           "0 * x, x0, alpha=math.sqrt(g_next)"),
    Mutant("ddim-drops-the-old-estimate", SAMPLERS, "math.sqrt(g_next) - kept * math.sqrt(g))", "math.sqrt(g_next))"),
    Mutant("ddpm-small-variance", SAMPLERS, "math.sqrt(1 - alpha) * noise()", "(1 - alpha) * noise()"),
    Mutant("classes-summed-not-averaged", SAMPLERS, "total.div_(len(times))", "total"),
    Mutant("sampler-reads-the-first-output", SAMPLERS, "modulation.at(k)", "modulation.at(0)"),
    # Loss
    Mutant("codes-summed-not-averaged", LOSS, 'losses["instance"]) / 2', 'losses["instance"])'),
    Mutant("slot-loss-without-a-slot", LOSS, "now[:2], now[2:], strict=True)",
           "now[:2], [now[2], now[2]], strict=True)"),
    Mutant("loss-without-weight", LOSS, "(error * weight * known).mean()", "(error * known).mean()"),
    Mutant("loss-of-unknown-pixels", LOSS, "(error * weight * known).mean()", "error.mean()"),
    Mutant("weights-grow-with-area", LOSS, "(1 / (area.gather(1, flat) + 1)).pow(power)",
           "(area.gather(1, flat) + 1).pow(power)"),
    Mutant("weights-not-normalised", LOSS, "return weight / mean.clamp_min(1e-12)", "return weight"),
    Mutant("stuff-by-class-ignored", LOSS, "if stuff_by_class:", "if False:"),
    Mutant("learn-void-without-effect", LOSS, "if loss.learn_void:", "if False:"),
    Mutant("learn-void-in-the-history", LOSS, "past = [m[:, :-1] for m in maps]",
           "past = [m[:, :-1] for m in (*maps[:2], maps[2] | True, maps[3] | True)]"),
    Mutant("history-shows-target", LOSS, "past = [m[:, :-1] for m in", "past = [m[:, 1:] for m in"),
    Mutant("loss-stride-always-the-same", LOSS, "divmod(step % loss.loss_stride**2, loss.loss_stride)",
           "divmod(0, loss.loss_stride)"),
    # Network
    Mutant("image-not-normalised", ENCODER, "x = (image - self.mean) / self.std", "x = image"),
    Mutant("mean-in-the-wrong-order", ENCODER, "IMAGE_MEAN = (0.485, 0.456, 0.406)", "IMAGE_MEAN = (0.406, 0.456, 0.485)"),
    Mutant("tokens-without-places", ENCODER, "tokens = tokens + self.place(", "tokens = tokens + 0 * self.place("),
    Mutant("denoiser-without-places", UNET, "tokens = tokens + position_encoding(h, w, tokens.shape[-1], x.device) + token",
           "tokens = tokens + token"),
    Mutant("time-token-left-out", UNET, " + token[:, None]", ""),
    Mutant("no-cross-attention", LAYERS, "x = x + dropped(self.cross(self.norm_cross(x), context), self.rate, key, 2, whole=True)", "pass"),
    Mutant("skip-left-out", UNET, "x = torch.cat([resized(x, skip.shape[-2:]), skip], dim=1)",
           "x = torch.cat([resized(x, skip.shape[-2:]), 0 * skip], dim=1)"),
    Mutant("history-left-out", UNET, "first = first + self.conv_history(", "first = first + 0 * self.conv_history("),
    Mutant("time-scale-without-one", LAYERS, "torch.addcmul(shift, self.norm2(h), 1 + scale)",
           "torch.addcmul(shift, self.norm2(h), scale)"),
    Mutant("recompute-without-effect", OPERATIONS, "if recompute and module.training and torch.is_grad_enabled():", "if False:"),
    Mutant("patch-pixels-transposed", OPERATIONS, "b (p q c) h w -> b (h p) (w q) c", "b (q p c) h w -> b (h p) (w q) c"),
    Mutant("places-mirrored", LAYERS, "+ 0.5)[:, None] / n * frequency", "+ 0.5).flip(0)[:, None] / n * frequency"),
    Mutant("dropout-not-scaled", OPERATIONS, " / (1 - rate)", ""),
    # Stream
    Mutant("time-difference-ignored-in-the-stream", STEP, "sampling_times(steps, config.time_difference)", "sampling_times(steps)"),
    Mutant("later-frames-take-first-steps", STEP, "look(config.steps, None, fresh=True)", "look(config.first_steps, None, fresh=True)"),
    Mutant("noise-the-same-in-each-frame", STEP, "seeded(device, config.seed, m.video, m.frame, *key)",
           "seeded(device, config.seed, m.video, *key)"),
    Mutant("seen-ahead-as-the-frame-after", "inference.py", "Moment(video, number, first)",
           "Moment(video, number + 1, first)"),
    Mutant("seen-ahead-with-a-lost-history", "inference.py", "first = bad  #", "first = False  #"),
    Mutant("second-look-has-the-history", STEP, "look(config.fresh_steps, None, fresh=True)", "look(config.fresh_steps, history, fresh=True)"),
    Mutant("crowd-known-in-the-history", PAST, "known & ~nameless", "known"),
    Mutant("void-is-an-answer", ANSWER, "codes = codes[..., 1:]  # void is never an answer\n    semantic = codes.max(dim=-1).indices + 1",
           "semantic = codes.max(dim=-1).indices\n    codes = codes[..., 1:]"),
    Mutant("classes-share-a-slot", STEP, "elif config.class_split:", "elif False:"),
    Mutant("parts-of-a-slot-tie", ANSWER, "certain = torch.where(is_part, scores.index_select(1, columns), tracked)", "certain = tracked"),
    Mutant("answers-decided-by-the-nearest", ANSWER, "label = torch.where(total > best, candidate, label)", "pass"),
    Mutant("scores-not-interpolated", ANSWER, "weights = [(1 - down) * (1 - across),", "weights = [1 + 0 * down * across,"),
    Mutant("small-segments-stay", TRACKS, "if areas[s] >= max(min_area, 1)]", "if areas[s] >= 1]"),
    Mutant("class-of-the-frame-alone", TRACKS, "votes = VOTE_DECAY * past + counts[s] / areas[s]", "votes = counts[s] / areas[s]"),
    Mutant("tracks-change-class", TRACKS, "if codes[s] == track.code:", "if True:"),
    Mutant("tracks-do-not-move", TRACKS, "d * (frame - track.frame)", "0 * d"),
    Mutant("lost-tracks-never-forgotten", TRACKS, "if away > max_gap or", "if"),
    Mutant("worst-match-first", TRACKS, "if score > LEAST), reverse=True)", "if score > LEAST))"),
    # Training
    Mutant("clipping-off", TRAIN_STEP, "accelerator.clip_grad_norm_(run.model.parameters(), config.clip)",
           "accelerator.clip_grad_norm_(run.model.parameters(), 1e9)"),
    Mutant("accumulated-gradients-not-averaged", TRAIN_STEP, "accelerator.backward(loss / config.accumulate)", "accelerator.backward(loss)"),
    Mutant("average-never-moves", TRAIN_STEP, "run.ema.update()", "pass"),
    Mutant("decay-on-norms-and-biases", OPTIMIZER, "(0.0, [p for p in part if p.ndim < 2]),",
           "(config.weight_decay, [p for p in part if p.ndim < 2]),"),
    Mutant("beta2-ignored", OPTIMIZER, "betas=(0.9, config.beta2), fused=True", "betas=(0.9, 0.999), fused=True"),
    Mutant("backbone-share-ignored", TRAIN_STEP, 'group["lr"] = lr * group.get("lr_share", 1.0)', 'group["lr"] = lr'),
    Mutant("muon-without-nesterov", MUON, "torch._foreach_lerp(buffers, grads, 1 - group[\"momentum\"])  # Nesterov", "[b.clone() for b in buffers]  # Nesterov"),
    Mutant("muon-not-scaled", MUON, "size = 0.2 * max(matrices[0].shape) ** 0.5", "size = 0.2"),
    Mutant("warm-up-left-out", TRAIN_STEP, "if step < config.warmup:", "if False:"),
    Mutant("learning-rate-does-not-fall", TRAIN_STEP, "(1 - (1 - config.final_lr) * done)", "1"),
    Mutant("freeze-backbone-without-effect", FIT, "if config.freeze_backbone:", "if False:"),
    Mutant("published-average-warms-up", OPTIMIZER, "min_value=config.ema_decay if model.config.published else 0.0", "min_value=0.0"),
    Mutant("ema-decay-ignored", OPTIMIZER, "beta=config.ema_decay", "beta=0.5"),
    # Data
    Mutant("things-by-their-id-alone", TRANSFORMS, "instance.astype(np.int64) * 256 + semantic, 0)", "instance, 0)"),
    Mutant("labels-not-flipped", TRANSFORMS, "return y, x[::-1] if view.flip else x", "return y, x"),
    Mutant("image-not-flipped", TRANSFORMS, "return pixels[:, ::-1] if view.flip else pixels", "return pixels"),
    Mutant("crowd-has-a-slot-loss", SLOTS, "counted & (slot == 0)", "counted & (slot == 0) & (instance > 0)"),
    Mutant("small-instances-take-the-slots", SLOTS, "np.argsort(-area, kind=\"stable\")", "np.argsort(area, kind=\"stable\")"),
    Mutant("slots-from-right-to-left", SLOTS, "mine = mine[np.argsort(centre[mine], kind=\"stable\")]",
           "mine = mine[np.argsort(-centre[mine], kind=\"stable\")]"),
    Mutant("history-never-absent", CLIPS, "generator.random() < config.history_absent", "generator.random() < 0"),
    Mutant("history-never-dropped", CLIPS, "generator.random(len(semantic)) < config.history_dropout", "generator.random(len(semantic)) < 0"),
    Mutant("history-of-another-sequence", FRAMES, "if k == 0 or gap:", "if not runs or gap:"),
    Mutant("history-across-gaps", FRAMES, "if k == 0 or gap:", "if k == 0:"),
    Mutant("void-is-known", CLIPS, "semantic_known = classes != VOID", "semantic_known = classes == classes"),
    Mutant("classes-shifted", CLIPS, "classes + np.uint8(1)", "classes"),
    Mutant("id-bytes-swapped", "data/io/images.py", "rgb[..., 1].astype(np.int32) * 256 + rgb[..., 2]",
           "rgb[..., 2].astype(np.int32) * 256 + rgb[..., 1]"),
    # Metrics
    Mutant("void-in-the-union", "metrics/matching.py", "- table.area - in_void[p]", "- table.area"),
    Mutant("match-at-any-overlap", "metrics/matching.py", "(2 * table.area > union)", "(table.area > 0)"),
    Mutant("crowd-is-missed", "metrics/matching.py", "missed = ~void & ~crowd", "missed = ~void"),
    Mutant("half-a-miss-is-whole", "metrics/matching.py", "tp + 0.5 * fp + 0.5 * fn", "tp + 0.5 * fp + fn"),
    Mutant("crowd-in-aq", "metrics/stq.py", "true_track &= ~crowd", "true_track = true_track"),
    Mutant("aq-not-weighted", "metrics/stq.py", "area * area / union", "area / union"),
]  # fmt: skip


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("names", nargs="*", help="mutants; none: all")
    args = parser.parse_args()
    if unknown := set(args.names) - {m.name for m in MUTANTS}:
        raise cli.UsageError(f"there is no mutant {min(unknown)}")
    chosen = [m for m in MUTANTS if not args.names or m.name in args.names]
    for mutant in chosen:
        if (ROOT / mutant.file).read_text().count(mutant.before) != 1:
            raise cli.UsageError(
                f"{mutant.name}: its text is not there once in {mutant.file}; mend benchmarks/mutants.py"
            )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "repository")
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "cache", "output")
        shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True)
        rows = []
        for mutant in chosen:
            rows.append((mutant, noticed_by(mutant, copy)))
            print(f"{mutant.name:<40}{rows[-1][1] or 'SURVIVED'}", flush=True)
    killed = sum(bool(test) for _, test in rows)
    print(f"\n{killed} of {len(rows)} killed\n\n| mutant | file | noticed by |\n|---|---|---|")
    for mutant, test in rows:
        print(f"| {mutant.name} | {mutant.file} | {test or '**survived**'} |")


def noticed_by(mutant: Mutant, copy: Path) -> str | None:
    """The first test that fails, or None if all pass."""
    file = copy / mutant.file
    whole = file.read_text()
    file.write_text(whole.replace(mutant.before, mutant.after))
    try:
        tests = next(names for start, names in TESTS.items() if mutant.file.startswith(start)).split()
        files = [f"tests/test_{name}.py" for name in tests if (copy / f"tests/test_{name}.py").exists()]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations", "0", *files]
        ran = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=LIMIT, env=os.environ)
        failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].split(" ")[1].removeprefix("tests/").split(" - ")[0] if failed else None
    except subprocess.TimeoutExpired:
        return "no end within the limit"
    finally:
        file.write_text(whole)


if __name__ == "__main__":
    cli.run(main)
