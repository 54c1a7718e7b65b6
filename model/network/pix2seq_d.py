"""Pix2Seq-D: encoder and denoiser together (arXiv 2210.06366)."""

import torch
from torch import Tensor, nn

from model.diffusion.bits import bits_to_codes, codes_to_labels, expected_bits, labels_to_bits
from model.diffusion.schedule import add_noise
from model.network.config import NUM_CLASSES, ModelConfig
from model.network.encoder import Features, ImageEncoder
from model.network.published import PublishedUNet, initialize
from model.network.unet import PIXEL_DIM, Condition, Grid, Modulation, TransUNet


class Pix2SeqD(nn.Module):
    """Encoder and denoiser. The network predicts; noise, scaling of time and loss are in model/diffusion/loss.py."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        self.encoder = ImageEncoder(
            c.backbone, c.backbone_norm, c.encoder_dim, c.encoder_depth, c.encoder_heads, c.map_channels,
            c.map_stride, PIXEL_DIM if c.detail else 0, c.dropout, c.published,
        )  # fmt: skip
        self.denoiser = (PublishedUNet if c.published else TransUNet)(
            bits=c.bits,
            out_channels=sum(c.code_sizes) if c.loss == "softmax" else c.bits,
            history_masks=len(c.history_offsets),
            map_channels=c.map_channels,
            context_dim=c.encoder_dim,
            dim=c.dim,
            multipliers=c.multipliers,
            depth=c.denoiser_depth,
            transformer_dim=c.transformer_dim,
            heads=c.transformer_heads,
            self_conditioning=c.self_conditioning,
            patch=c.patch,
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
        x0_previous: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """The network's output for noisy bits x (B, bits, h, w) at times t (B,): (B, codes or bits, h, w) in the type
        that the network computes in, or only the part of it on a grid of rows and columns."""
        if self.config.normalize_input:
            x = x / x.float().std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3).to(x.dtype)
        if self.config.self_conditioning and x0_previous is None:
            x0_previous = torch.zeros_like(x)
        return self.denoiser(x, t, condition, x0_previous, grid)

    def forward(
        self,
        image: Tensor,
        x: Tensor,
        t: Tensor,
        history: Tensor,
        self_condition: Tensor | None = None,
        realign: tuple[Tensor, Tensor, Tensor] | None = None,
        grid: Grid | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """The training path, whole: encode, condition, predict. Returns float32.

        self_condition: bool (B,), which samples are given their own first estimate (Bit Diffusion, section 2.3).
        realign: bool (B,), times (B,), noise (B, bits, h, w): which samples are denoised from their own estimate,
        noised again to an earlier time (self-aligned denoising; DDP, arXiv 2303.17559, section 3.3).
        grid: answer only for these rows and columns. key: of the encoder's dropout (`encode`).
        """
        condition = self.condition(self.encode(image, x.shape[-2:], key), history)
        if realign is not None:
            chosen, t_next, noise = realign
            with torch.no_grad():
                x0 = self.estimate(self.predict(x, t, condition))
            x = torch.where(chosen[:, None, None, None], add_noise(x0, noise, t_next), x)
            t = torch.where(chosen, t_next, t)
        x0_previous = None
        if self_condition is not None:
            with torch.no_grad():
                x0_previous = self.estimate(self.predict(x, t, condition))
            x0_previous = x0_previous * self_condition[:, None, None, None]
        return self.predict(x, t, condition, x0_previous, grid).float()

    def estimate(self, output: Tensor) -> Tensor:
        """The network's output -> the estimate of x0, analog bits, float32 (B, bits, h, w) in [-b, +b]."""
        c = self.config
        if c.loss == "softmax":
            return expected_bits(output, c.code_sizes, c.code_bits, c.scale)
        return output.float().clamp(-c.scale, c.scale)

    def answer(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output -> label maps: semantic code 0..19 and slot 0..K-1, int64 (B, h, w).

        The likeliest code among those that exist: void is never an answer where it carried no loss.
        """
        c = self.config
        if c.loss == "mse":
            semantic, slot = codes_to_labels(bits_to_codes(output, c.code_bits), c.code_bits)
            return semantic.clamp(max=NUM_CLASSES), slot
        parts = output.split(c.code_sizes, dim=1)
        semantic = likeliest(parts[0][:, 1:]) + 1
        return codes_to_labels([semantic, *(likeliest(p) for p in parts[1:])], c.code_bits)

    def history_bits(self, semantic: Tensor, slot: Tensor, semantic_known: Tensor, slot_known: Tensor) -> Tensor:
        """History label maps (B, T, h, w) -> analog bits (B, T * bits, h, w), 0.0 where unknown or absent."""
        maps = (m.flatten(0, 1) for m in (semantic, slot, semantic_known, slot_known))
        bits = labels_to_bits(*maps, self.config.code_bits, self.config.scale)  # (B T, bits, h, w)
        return bits.unflatten(0, semantic.shape[:2]).flatten(1, 2)


def likeliest(logits: Tensor) -> Tensor:
    """Code of the largest logit: (B, N, h, w) -> int64 (B, h, w). argmax itself is 3 times slower on channels-last."""
    return logits.max(dim=1).indices
