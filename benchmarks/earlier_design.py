"""The earlier repository's network and sampling, rebuilt from the configuration, to compare with.

    python benchmarks/earlier_design.py                                    print its flags for train.py
    python train.py $(python benchmarks/earlier_design.py --image_size 96 320 --mask_size 48 160) \
        --dataset streets --results_folder results/runs/earlier            train it

What it was: the 24 bits of the RGB of a panoptic PNG (class, id // 256, id % 256), scaled by 1, each learnt by squared
error; a ResNet-50 based encoder of 27.6 M parameters; a U-Net of dim 32 with multipliers 1, 2, 4, 8, of 9.6 M, on a
mask of 88x304 for an image of 352x1216; five history masks; self-conditioning half the time; 100 steps a frame, all
that depends on the conditions computed anew in each of them; float32.

Where this differs, because the blocks are ours (parameters 27.6 M and 9.8 M):
  * The encoder has ten transformer layers of width 384 on the stride-16 map in place of ResNet-50's last stage and a
    feature pyramid. It counts 196 GFLOP; a ResNet-50 and a pyramid of 256 channels at 88x304 would count some 110.
  * The U-Net that train.py builds has one residual block a level on the way down and a transformer at the bottom. The
    earlier one has two blocks and linear attention at each level and costs more: benchmarks/earlier_unet.py has it, and
    benchmarks/speed.py compares with that.
  * Its samples are drawn and its masks resized as ours are: none of the earlier data pipeline's faults is rebuilt.
  * The first estimate of self-conditioning is computed for a batch as a whole, or not at all, half the time.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

with cli.imports():
    from torch import Tensor

    from model import ModelConfig, Pix2SeqD
    from model.network.encoder import Features

STEPS = 100  # of denoising, each frame
BATCH = 2

# Seconds that the original was measured at, on another machine of two cores: encoder, one step, a frame, and the
# fastest and slowest training step of batch 2.
ORIGINAL = {"encoder": 1.24, "step": 0.58, "frame": 59.0, "training": (11.0, 15.0)}

CONFIG = ModelConfig(
    image_size=(352, 1216), mask_size=(88, 304), code_bits=(8, 8, 8), scale=1.0, loss="mse", self_conditioning=True,
    history_offsets=(-5, -4, -3, -2, -1), backbone="resnet50", backbone_norm="frozen_batch",
    encoder_dim=384, encoder_depth=10, encoder_heads=8, map_channels=256,
    dim=32, patch=1, multipliers=(1, 2, 4, 8), denoiser_depth=3, transformer_dim=256, transformer_heads=8,
)  # fmt: skip

OPTIONS = {
    "flags": [
        cli.Option("image_size", CONFIG.image_size, "height and width of the image", nargs=2),
        cli.Option("mask_size", CONFIG.mask_size, "height and width of the mask", nargs=2),
    ]
}


class EarlierDesign(Pix2SeqD):
    """Any configuration, without the once-a-frame precomputation: what depends on the conditions alone - their part of
    the first convolution, the keys and values of cross-attention - is computed again in each step. The same weights
    give the same output as a Pix2SeqD's."""

    def condition(self, features: Features, history: Tensor) -> tuple[Features, Tensor]:
        return features, history

    def predict(self, x: Tensor, t: Tensor, condition, x0_previous: Tensor | None = None, grid=None) -> Tensor:
        return super().predict(x, t, super().condition(*condition), x0_previous, grid)

    def forward(self, image, x, t, history, self_condition: Tensor | None = None, realign=None, grid=None):
        """As Pix2SeqD's, but without the first estimate where no sample of the batch is given it."""
        if self_condition is not None and not self_condition.any():
            self_condition = None
        return super().forward(image, x, t, history, self_condition, realign, grid)


def flags(image_size, mask_size) -> list[str]:
    """The configuration as flags of train.py and pretrain.py, from scratch."""
    config = dataclasses.replace(CONFIG, image_size=tuple(image_size), mask_size=tuple(mask_size))
    words = ["--preset", "small", "--backbone_weights", "none", "--instance_weight", "0"]
    for name, value in config.to_dict().items():
        if name in ("backbone_norm", "tracked"):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    print(*flags(args.image_size, args.mask_size))


if __name__ == "__main__":
    cli.run(main)
