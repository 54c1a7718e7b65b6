"""Pix2Seq-D: encoder and denoiser together (arXiv 2210.06366)."""

from torch import Tensor, nn

from model.network.config import ModelConfig
from model.network.encoder import Features, ImageEncoder
from model.network.published import PublishedEncoder, PublishedUNet, initialize
from model.network.unet import Condition, Grid, Modulation, TransUNet


class Pix2SeqD(nn.Module):
    """Encoder and denoiser. The network predicts; noise and loss are in model/diffusion/."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        self.encoder = (PublishedEncoder if c.published else ImageEncoder)(
            c.backbone, c.backbone_norm, c.encoder_dim, c.encoder_depth, c.encoder_heads, c.map_channels,
            c.map_stride, c.pixel_dim if c.detail else 0, c.dropout,
        )  # fmt: skip
        self.denoiser = (PublishedUNet if c.published else TransUNet)(
            bits=c.bits,
            out_channels=sum(c.code_sizes),
            history_masks=len(c.history_offsets),
            map_channels=c.map_channels,
            context_dim=c.encoder_dim,
            dim=c.dim,
            multipliers=c.multipliers,
            depth=c.denoiser_depth,
            transformer_dim=c.transformer_dim,
            heads=c.transformer_heads,
            patch=c.patch,
            pixel_dim=c.pixel_dim,
            located=c.located,
        )
        if c.published:
            initialize(self)

    def compile_parts(self) -> None:
        """Compile encoder and denoiser in place: the keys of the state dict stay as they are."""
        self.encoder.compile()
        self.denoiser.compile()

    def encode(self, image: Tensor, mask_size: tuple[int, int] | None = None, key: Tensor | None = None) -> Features:
        """image: float (B, 3, H, W) in [0, 1] -> features for a mask of mask_size, by default the configuration's.
        key: int64 (B,), what each sample's dropout is drawn from; None for none."""
        height, width = mask_size or self.config.mask_size
        return self.encoder(image, (height // self.config.patch, width // self.config.patch), (height, width), key)

    def condition(self, features: Features, history: Tensor | None) -> Condition:
        """history: analog bits (B, T * bits, h, w), oldest first, zeros where unknown; None: none at all."""
        return self.denoiser.condition(features, history)

    def modulation(self, t: Tensor) -> Modulation:
        """What the denoiser makes of times t (N,), to be given to `predict` step by step."""
        return self.denoiser.modulation(t)

    def predict(
        self,
        x: Tensor,
        t: Tensor | Modulation,
        condition: Condition,
        grid: Grid | None = None,
    ) -> Tensor:
        """The network's output for noisy bits x (B, bits, h, w) at times t (B,): logits (B, codes, h, w) in the
        type that the network computes in, or only the part of them on a grid of rows and columns."""
        return self.denoiser(x, t, condition, grid)

    def forward(
        self,
        image: Tensor,
        x: Tensor,
        t: Tensor,
        history: Tensor,
        grid: Grid | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """The training path, whole: encode, condition, predict. Returns float32 logits.

        grid: answer only for these rows and columns. key: of the encoder's dropout (`encode`).
        """
        condition = self.condition(self.encode(image, x.shape[-2:], key), history)
        return self.predict(x, t, condition, grid).float()
