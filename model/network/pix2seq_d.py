"""Pix2Seq-D: encoder and denoiser together (arXiv 2210.06366)."""

from torch import Tensor, nn

from model.network.config import ModelConfig
from model.network.encoder import Features, ImageEncoder
from model.network.published import PublishedEncoder, PublishedUNet, initialize
from model.network.unet import Grid, TransUNet


class Pix2SeqD(nn.Module):
    """Encoder and denoiser. The network predicts; noise and loss are in model/diffusion/."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        self.encoder = (PublishedEncoder if c.published else ImageEncoder)(c)
        self.denoiser = (PublishedUNet if c.published else TransUNet)(c)
        if c.published:
            initialize(self)

    def encode(self, image: Tensor, mask_size: tuple[int, int] | None = None, key: Tensor | None = None) -> Features:
        """image: float (B, 3, H, W) in [0, 1] -> features for a mask of mask_size, by default the configuration's.
        key: int64 (B,), what each sample's dropout is drawn from; None for none."""
        return self.encoder(image, mask_size or self.config.mask_size, key)

    def forward(
        self, image: Tensor, x: Tensor, t: Tensor, history: Tensor, grid: Grid | None = None, key: Tensor | None = None
    ) -> Tensor:
        """The training path, whole: encode, condition, predict. Returns float32 logits.

        grid: answer only for these rows and columns. key: of the encoder's dropout (`encode`).
        """
        condition = self.denoiser.condition(self.encode(image, x.shape[-2:], key), history)
        return self.denoiser(x, t, condition, grid).float()
