"""The three sizes of a Pix2SeqD. Their training is in RECIPE, in pretrain.py and train.py."""

from model.network.config import ModelConfig

# For a CPU: the mask at three quarters of the image, in patches.
TINY = ModelConfig(
    image_size=(256, 512), mask_size=(192, 384), code_bits=(5, 6), scale=0.125, backbone="cspnet",
    encoder_dim=192, encoder_depth=3, encoder_heads=4, map_channels=64,
    patch=6, pixel_dim=48, dim=80, multipliers=(1, 2), denoiser_depth=2, transformer_dim=192, transformer_heads=4,
)  # fmt: skip
# For one GPU of 24 GB: the mask at half of the image's sides, in patches.
SMALL = ModelConfig(
    image_size=(384, 1248), mask_size=(192, 624), code_bits=(5, 7), scale=0.1, encoder_dim=256, encoder_depth=4,
    map_channels=128, patch=4, dim=128, multipliers=(1, 2, 2), denoiser_depth=4, transformer_dim=256,
)  # fmt: skip
# As published, but for what docs/departures.md lists.
BASE = ModelConfig(
    image_size=(384, 1248), mask_size=(192, 624), scale=0.1, encoder_heads=16, dropout=0.1, published=True
)
PRESETS = {"tiny": TINY, "small": SMALL, "base": BASE}
