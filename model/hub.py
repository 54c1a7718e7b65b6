"""How a predictor is loaded and saved: checkpoints, and folders as on the Hugging Face hub with weights as safetensors,
the configuration as JSON and a model card.

`HubMixin` gives them to VideoPredictor. Unlike huggingface_hub's defaults, nothing is loaded that does not fit to the
last tensor and setting, and nothing that needs pickle.
"""

import dataclasses
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model

from data.labels import CLASSES_FILE, DEFAULT_SPACE, label_space_of
from model import checkpoint as checkpoints
from model.checkpoint import CheckpointError
from model.network.pix2seq_d import Pix2SeqD
from model.stream.config import StreamConfig
from model.stream.loading import build, config_of, label_space_in, model_for, recommended

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TEMPLATE = """---
{{ card_data }}
---
# {{ title }}

Pix2Seq-D for video panoptic segmentation: a diffusion model over the bits of panoptic masks ({{ parameters }} M
parameters, frames fitted into {{ size }} pixels). Every pixel of a frame gets a class; things with tracks, as persons
and cars, get ids that stay theirs from frame to frame.

```python
from model import VideoPredictor

predictor = VideoPredictor.from_pretrained("{{ repository }}")
for frame in frames:  # uint8 arrays (H, W, 3) or PIL images
    panoptic = predictor(frame)  # .semantic, .track, .segments
```

## Data

{{ data }}

## Licence

{{ licence }}

## Figures, in percent

{{ figures }}

## Limits

{{ limits }}

Method: Chen et al., "A Generalist Framework for Panoptic Segmentation of Images and Videos", arXiv 2210.06366.
"""
LIMITS = (
    "Street scenes seen from a car. Other cameras, weather and places than those of the training data lower the "
    "quality; small and far objects are missed. Not for decisions about people's safety, nor for identifying anyone."
)


@dataclass(frozen=True)
class Card:
    """What a model card says beside what the model itself tells.

    figures: name -> fraction of one, or the JSON that evaluate.py writes; license: of the weights, which is the data's
    where that forbids more, as an identifier of the hub (`mit`, `cc-by-nc-sa-3.0`); "other": not
    stated, so the terms of the training data hold.
    """

    data: str = "Not stated."
    license: str = "other"
    figures: dict[str, Any] = field(default_factory=dict)
    limits: str = LIMITS
    title: str = "Pix2Seq-D, video panoptic segmentation"


def model_card(model: Pix2SeqD, card: Card, repository: str) -> ModelCard:
    metadata = ModelCardData(
        license=card.license,
        library_name="pytorch",
        pipeline_tag="image-segmentation",
        tags=["video-panoptic-segmentation", "diffusion", "pix2seq-d"],
    )
    return ModelCard.from_template(
        metadata,
        template_str=TEMPLATE,
        title=card.title,
        repository=repository,
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
        size=" x ".join(map(str, model.config.image_size)),
        data=card.data,
        licence="The terms of the training data." if card.license == "other" else f"The weights: {card.license}.",
        figures=_table(card.figures),
        limits=card.limits,
    )


class HubMixin:
    """The loading and saving of VideoPredictor. The class needs `model`, `only_infers`, and to be built as
    `cls(model, **options)`."""

    model: Pix2SeqD
    only_infers: bool

    @classmethod
    def from_checkpoint(cls, path: str | Path, **options: Any) -> Self:
        """The averaged weights of a checkpoint file, or of the newest in a results folder. Raises CheckpointError.

        options: of the constructor, or fields of StreamConfig, which replace what the checkpoint recommends.
        """
        path = Path(path)
        if path.is_dir():
            path = path / checkpoints.LATEST
        stored = checkpoints.load(path)
        model = build(stored, path)
        options.setdefault("space", label_space_in(stored, path))
        return cls._recommending(model, stored, path, options)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """A predictor from a checkpoint file, a folder (of `save_pretrained`, or a run's with model-latest.pt), or a
        model on the hub, `owner/name`. options: as of `from_checkpoint`. Raises CheckpointError where it cannot be
        used.
        """
        folder = Path(source)
        if folder.is_file() or (folder.is_dir() and not (folder / WEIGHTS).exists()):
            return cls.from_checkpoint(folder, **options)
        if not folder.is_dir():
            places = {"revision": revision, "token": token, "cache_dir": cache_dir}
            try:
                files = [WEIGHTS, CONFIG, CLASSES_FILE]
                folder = Path(
                    snapshot_download(str(source), **places, local_files_only=local_files_only, allow_patterns=files)
                )
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                reason = str(error).strip().splitlines()[0]
                raise CheckpointError(
                    f"{source} is no file and no folder, and cannot be had from the Hugging Face hub ({reason})"
                ) from None
        try:
            config = json.loads((folder / CONFIG).read_text())
            sampling = config.pop("sampling", {})
        except (OSError, ValueError, AttributeError, TypeError):
            raise CheckpointError(f"{source} has no {CONFIG}: it is no model of this program") from None
        try:
            weights = load_file(folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / WEIGHTS} is missing or damaged ({error})") from None
        model = model_for(config_of({"config": config}, folder / CONFIG), weights, source)
        checkpoints.load_weights(model, weights, source)
        options.setdefault("space", label_space_of(folder) or DEFAULT_SPACE)
        return cls._recommending(model, {"sampling": sampling}, folder / CONFIG, options)

    @classmethod
    def _recommending(cls, model: Pix2SeqD, stored: dict[str, Any], source: Path, options: dict[str, Any]) -> Self:
        """The predictor that samples as a file recommends, where the options name nothing else."""
        fields = {f.name for f in dataclasses.fields(StreamConfig)}
        sampling = recommended(stored, source) | {k: options.pop(k) for k in fields & options.keys()}
        options.setdefault("config", StreamConfig(**sampling))
        return cls(model, **options)

    def save_pretrained(self, folder: str | Path, card: Card | None = None, repository: str = "owner/name") -> None:
        """Write model.safetensors, config.json and the model card README.md, which is kept where there is one already.

        repository: the hub's id of the model, for the card's example. Raises CheckpointError for a folder of a
        training run, whose config.json would be lost, and after `only_infer`, which changes the weights.
        """
        folder = Path(folder)
        self._check_whole()
        if (folder / "log.jsonl").exists() or any(folder.glob("model-*.pt")):
            raise CheckpointError(f"{folder} is the folder of a training run: save to another one")
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / WEIGHTS))
        (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
        config = self.model.config.to_dict() | {"sampling": dataclasses.asdict(self.config)}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if not (folder / "README.md").exists():
            model_card(self.model, card or Card(), repository).save(folder / "README.md")
        if self.space != DEFAULT_SPACE:
            (folder / CLASSES_FILE).write_text(json.dumps(self.space.to_dict(), indent=1) + "\n")

    def push_to_hub(
        self,
        repository: str,
        card: Card | None = None,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload model",
    ) -> str:
        """Upload what `save_pretrained` writes to a model repository on the hub, which is made where it is missing.

        Returns the address of the commit. Raises huggingface_hub's errors where the hub refuses, CheckpointError after
        `only_infer`.
        """
        self._check_whole()
        api = HfApi(token=token)
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card, repository)
            return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))

    def _check_whole(self) -> None:
        if self.only_infers:
            raise CheckpointError("only_infer has changed the weights: load the checkpoint anew to save it")


def _table(figures: dict[str, Any]) -> str:
    """Figures in percent as a table of Markdown."""
    if "stq" in figures:  # as evaluate.py writes them
        stq, vpq, pq, miou = (figures[name] for name in ("stq", "vpq", "pq", "miou"))
        figures = {k: stq[k] for k in ("STQ", "AQ", "SQ")}
        figures |= {"VPQ": vpq["VPQ"]["all"], "PQ": pq["All"]["PQ"], "mIoU": miou["mIoU"]}
    known = {name: value for name, value in figures.items() if value is not None}
    if not known:
        return "None stated."
    rows = (known, ["---"] * len(known), [f"{100 * value:.1f}" for value in known.values()])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
