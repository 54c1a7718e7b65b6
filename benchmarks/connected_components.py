"""The reference that costs nothing: the same weights' semantic map, components as instances, overlap as tracking.

    python benchmarks/connected_components.py --checkpoint results/pretrained/model-tiny.pt \
        --input_folder FRAMES --output_folder results/runs/components
    python evaluate.py --predictions results/runs/components --ground_truth FRAMES

Each frame's classes come from one denoising step without history; the 4-connected components of each class with tracks
are its instances; an instance takes the id of the last frame's instance of its class that it overlaps most. The
diffusion's own ids earn their place where they beat this.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

with cli.imports():
    import numpy as np
    import torch
    from torch.nn import functional as F
    from tqdm import tqdm

    from data.io.inputs import find_sequences
    from data.labels import DataError, write_panoptic
    from model import VideoPredictor
    from model.stream.resize import fit_frame, nearest

OPTIONS = {
    "files": [
        cli.Option("input_folder", Path("data/input"), "folder of frames"),
        cli.Option("output_folder", Path("results/runs/components"), "folder for the predictions"),
        cli.Option("checkpoint", Path("results/pretrained/model-tiny.pt"), "weights"),
        cli.Option("min_area", 4, "components of fewer mask pixels have no id of their own"),
        cli.Option("device", "cpu", "where to compute", ("cpu", "cuda")),
    ]
}


def components(mask: np.ndarray) -> np.ndarray:
    """4-connected components of a bool mask (h, w): int (h, w), 0 outside, a number of its own for each inside.

    Each pixel takes the largest number of its neighbours until nothing changes.
    """
    inside = torch.from_numpy(mask)[None, None]
    labels = torch.arange(1, mask.size + 1, dtype=torch.float32).view(1, 1, *mask.shape) * inside
    while True:
        spread = torch.maximum(
            F.max_pool2d(labels, (3, 1), stride=1, padding=(1, 0)),
            F.max_pool2d(labels, (1, 3), stride=1, padding=(0, 1)),
        )
        spread = spread * inside
        if torch.equal(spread, labels):
            return labels[0, 0].long().numpy()
        labels = spread


class Tracker:
    """Ids by overlap with the frame before, each id to one instance, the largest overlap first."""

    def __init__(self):
        self.before: np.ndarray | None = None  # (h, w) id * 32 + class of the last frame, 0 elsewhere
        self.next_id = 1

    def __call__(self, semantic: np.ndarray, tracked: tuple[int, ...], min_area: int) -> np.ndarray:
        """semantic: trainIds (h, w). Returns ids int32 (h, w)."""
        instances: list[tuple[int, np.ndarray]] = []
        for c in tracked:
            labels = components(semantic == c)
            numbers, areas = np.unique(labels[labels > 0], return_counts=True)
            instances += [(c, labels == n) for n in numbers[areas >= min_area]]
        overlaps = []
        for i, (c, mask) in enumerate(instances):
            if self.before is not None:
                keys, counts = np.unique(self.before[mask], return_counts=True)
                overlaps += [
                    (n, i, key // 32) for key, n in zip(keys.tolist(), counts.tolist(), strict=True) if key % 32 == c
                ]
        ids: dict[int, int] = {}
        for _, i, track in sorted(overlaps, reverse=True):
            if i not in ids and track not in ids.values():
                ids[i] = track
        result, self.before = np.zeros(semantic.shape, np.int32), np.zeros(semantic.shape, np.int64)
        for i, (c, mask) in enumerate(instances):
            if i not in ids:
                ids[i], self.next_id = self.next_id, self.next_id + 1
            result[mask] = ids[i]
            self.before[mask] = ids[i] * 32 + c
        return result


@torch.inference_mode()
def semantic_map(predictor: VideoPredictor, image: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """trainIds uint8 (h, w) of a frame uint8 (H, W, 3): one denoising step from noise, no history."""
    model, device = predictor.model, predictor.device
    image_size, mask_size = predictor.sizes(image)
    x = torch.randn(1, model.config.bits, *mask_size, generator=generator).to(device)
    frame = fit_frame(image, image_size)[None].to(device).float() / 255
    with torch.autocast(device.type, predictor.dtype, enabled=predictor.dtype is not None):
        history = torch.zeros(1, model.config.bits * len(model.config.history_offsets), *mask_size, device=device)
        condition = model.condition(model.encode(frame, mask_size), history)
        semantic, _ = model.answer(model.predict(x, torch.ones(1, device=device), condition))
    return (semantic[0] - 1).cpu().numpy().astype(np.uint8)


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    predictor = VideoPredictor.from_checkpoint(args.checkpoint, device=args.device)
    generator = torch.Generator().manual_seed(42)
    for sequence in find_sequences(args.input_folder):
        tracker = Tracker()
        for frame, image in tqdm(sequence.read(), desc=sequence.name, total=len(sequence.frames or ()) or None):
            if isinstance(image, DataError):
                raise image
            semantic = semantic_map(predictor, image, generator)
            track = tracker(semantic, predictor.model.config.tracked, args.min_area)
            size = image.shape[:2]
            write_panoptic(args.output_folder / frame.output, nearest(semantic, size), nearest(track, size))


if __name__ == "__main__":
    cli.run(main)
