"""Ids <-> analog bits: the representation that the diffusion works in (pure functions).

Bit Diffusion (Chen et al., arXiv 2208.04202, section 2.1) writes an integer as its binary digits and treats each digit
as a real number, -b for 0 and +b for 1. Pix2Seq-D (arXiv 2210.06366, section 3.1) does so for the panoptic mask: one
code for the semantic class and one for the instance slot of each pixel. `code_bits` says how many bits each code has.
The first code is the semantic one; the others together are the slot, most significant first: with (8, 8, 8) they are
the two bytes of an id, as in the RGB of a panoptic PNG.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Of the estimate, which is a tenth of a denoising step where it is done in whole maps on a CPU:
CACHED = 2**20  # logits at a time, so that a CPU keeps them in its cache
COLUMNS = 16  # a product with fewer columns, or with no whole number of registers, is 3 times slower
LIMIT = 80.0  # of a logit: sums of e^80 and of e^-80 are still numbers in bfloat16 and float32


def bit_table(bits: int, device: torch.device | None = None) -> Tensor:
    """All codes of `bits` bits as rows of -1 and +1, most significant bit first: float (2^bits, bits)."""
    shifts = torch.arange(bits - 1, -1, -1, device=device)
    codes = torch.arange(2**bits, device=device)
    return ((codes[:, None] >> shifts) & 1).float() * 2 - 1


def number_of_slots(code_bits: Sequence[int]) -> int:
    """How many values the instance slot can have, 0 = none among them."""
    return 2 ** sum(code_bits[1:])


def labels_to_codes(semantic: Tensor, slot: Tensor, code_bits: Sequence[int]) -> list[Tensor]:
    """The integer codes of a label map: semantic and slot, integers (B, ...) -> one int64 (B, ...) for each code."""
    slot = slot.long()
    digits, remaining = [], sum(code_bits[1:])
    for bits in code_bits[1:]:
        remaining -= bits
        digits.append((slot >> remaining) & (2**bits - 1))
    return [semantic.long(), *digits]


def codes_to_labels(codes: Sequence[Tensor], code_bits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Inverse of `labels_to_codes`: one integer tensor for each code -> semantic, slot int64."""
    slot = torch.zeros_like(codes[1])
    for digit, bits in zip(codes[1:], code_bits[1:], strict=True):
        slot = (slot << bits) | digit
    return codes[0], slot


def codes_to_bits(codes: Sequence[Tensor], code_bits: Sequence[int], scale: float) -> Tensor:
    """Integer codes, each (B, h, w), to analog bits float (B, sum of bits, h, w) in {-scale, +scale}."""
    planes = []
    for code, bits in zip(codes, code_bits, strict=True):
        for shift in range(bits - 1, -1, -1):
            planes.append((code >> shift) & 1)
    return (torch.stack(planes, dim=1).float() * 2 - 1) * scale


def bits_to_codes(analog: Tensor, code_bits: Sequence[int]) -> list[Tensor]:
    """Analog bits (B, sum of bits, h, w) to the nearest codes: each bit by its sign, int64 (B, h, w) for each code."""
    codes = []
    for part in analog.split(tuple(code_bits), dim=1):
        code = torch.zeros_like(part[:, 0], dtype=torch.long)
        for plane in (part > 0).long().unbind(dim=1):
            code = (code << 1) | plane
        codes.append(code)
    return codes


def labels_to_bits(
    semantic: Tensor,
    slot: Tensor,
    semantic_known: Tensor,
    slot_known: Tensor,
    code_bits: Sequence[int],
    scale: float,
) -> Tensor:
    """Label maps to analog bits; the bits of a code that is unknown at a pixel are 0.0 there, which no mask is.

    semantic, slot: integers (B, h, w); semantic_known, slot_known: bool (B, h, w).
    Returns float (B, sum of bits, h, w) in {-scale, 0, +scale}.
    """
    # Looked up in a table with a last row of zeros: 2 times faster than arithmetic on planes, and channels last.
    planes = []
    knowns = [semantic_known] + [slot_known] * (len(code_bits) - 1)
    for code, known, bits in zip(labels_to_codes(semantic, slot, code_bits), knowns, code_bits, strict=True):
        table = torch.cat([bit_table(bits, code.device) * scale, torch.zeros(1, bits, device=code.device)])
        planes.append(F.embedding(torch.where(known, code, 2**bits), table))  # (B, h, w, bits)
    return torch.cat(planes, dim=-1).movedim(-1, 1)


def expected_bits(logits: Tensor, sizes: Sequence[int], code_bits: Sequence[int], scale: float) -> Tensor:
    """Logits over the codes to the expectation of their bits: the estimate of x0.

    logits: (B, sum of sizes, h, w), for each code its values 0..size-1, at most 2^bits; beyond -80 and 80 they count as
    these. Returns float (B, sum of bits, h, w) in [-scale, +scale], to 1 percent of the scale for logits in bfloat16
    (Pix2Seq-D, section 3.2: softmax cross-entropy loss; the estimate is the probability-weighted mean of the codes).
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
