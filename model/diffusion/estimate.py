"""From the network's output to its estimate of x0, in analog bits."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.diffusion.bits import bit_table

# The estimate is a tenth of a denoising step where it is done in whole maps on a CPU:
CACHED = 2**20  # logits at a time, so that a CPU keeps them in its cache
COLUMNS = 16  # a product with fewer columns, or with no whole number of registers, is 3 times slower
LIMIT = 80.0  # of a logit: sums of e^80 and of e^-80 are still numbers in bfloat16 and float32


def expected_bits(logits: Tensor, sizes: Sequence[int], code_bits: Sequence[int], scale: float) -> Tensor:
    """The estimate of x0: the probability-weighted mean of the codes' bits (Pix2Seq-D, "Training Algorithm").

    logits: (B, sum of sizes, h, w), for each code its values 0..size-1, at most 2^bits. Logits are clamped to -80..80.
    Returns float (B, sum of bits, h, w) in [-scale, +scale]; for bfloat16 logits within 1 percent of the scale.
    """
    batch, codes, h, w = logits.shape
    if logits.dtype == torch.float16:  # whose largest number is e^11
        logits = logits.float()
    rows = logits.permute(0, 2, 3, 1).reshape(-1, codes)  # (N, codes), a view where the layout is channels-last
    # One product for both sums of the softmax: a column for each bit of its code's values, signed, and one plain
    bits = sum(code_bits)
    signed = [bit_table(n, logits.device)[:size] for size, n in zip(sizes, code_bits, strict=True)]
    columns = torch.cat([torch.block_diag(*signed), torch.block_diag(*map(torch.ones_like, signed))], dim=1)
    table = F.pad(columns, (0, -2 * bits % COLUMNS)).to(rows.dtype)
    pieces = rows.split(max(1, CACHED // codes)) if logits.device.type == "cpu" else [rows]
    estimates = []
    kind = logits.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext():
        for piece in pieces:
            sums = (piece.clamp(-LIMIT, LIMIT).exp_() @ table).float()
            estimates.append(sums[:, :bits] / sums[:, bits : 2 * bits])
    estimate = torch.cat(estimates).mul_(scale)  # (N, sum of bits)
    return estimate.view(batch, h, w, -1).permute(0, 3, 1, 2)
