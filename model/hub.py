"""Predictors from and to the Hugging Face hub: weights as safetensors, the configuration as JSON, and a model card.

`HubMixin` gives VideoPredictor its `from_pretrained`, `save_pretrained` and `push_to_hub`. Unlike huggingface_hub's
defaults, nothing is loaded that does not fit to the last tensor and setting, and nothing that needs pickle.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from data.labels import CLASSES_FILE, DEFAULT_SPACE, LabelSpace, label_space_of, read_label_space
from model import checkpoint as checkpoints
from model.checkpoint import CheckpointError
from model.network.config import ConfigError, ModelConfig
from model.network.pix2seq_d import Pix2SeqD

WEIGHTS = "model.safetensors"
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
    where that forbids more, as an identifier of the hub (`mit`, `cc-by-nc-sa-3.0`).
    """

    data: str = "Not stated."
    license: str = "mit"
    figures: dict[str, Any] = field(default_factory=dict)
    limits: str = LIMITS
    title: str = "Pix2Seq-D, video panoptic segmentation"


class HubModel(Pix2SeqD, PyTorchModelHubMixin):
    """A Pix2SeqD that is configured by plain values, as the hub stores them."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(ModelConfig.from_dict(config))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any) -> "HubModel":
        if config is None:
            raise CheckpointError(f"{model_id} has no config.json: it is no model of this program")
        places = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            path = hf_hub_download(model_id, WEIGHTS, **{name: options[name] for name in places})
        try:
            weights = load_file(path)
            with torch.device("meta"):  # nothing is allocated before the sizes fit
                own = cls(config=config).state_dict()
            checkpoints.check_shapes(own, weights, model_id)
            model = cls(config=config)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{model_id}: config.json is of no model of this program ({error})") from None
        except (SafetensorError, FileNotFoundError) as error:
            raise CheckpointError(f"{path} is missing or damaged ({error})") from None
        checkpoints.load_weights(model, weights, model_id)
        return model

    @classmethod
    def of(cls, model: Pix2SeqD) -> "HubModel":
        """The same model, its weights shared."""
        with torch.device("meta"):
            wrapped = cls(config=model.config.to_dict())
        wrapped.load_state_dict(model.state_dict(), assign=True)
        return wrapped

    def generate_model_card(self, card: Card, repository: str) -> ModelCard:
        metadata = ModelCardData(
            license=card.license,
            library_name="pytorch",
            pipeline_tag="image-segmentation",
            tags=["video-panoptic-segmentation", "diffusion", "pix2seq-d", "pytorch_model_hub_mixin"],
        )
        return ModelCard.from_template(
            metadata,
            template_str=TEMPLATE,
            title=card.title,
            repository=repository,
            parameters=f"{sum(p.numel() for p in self.parameters()) / 1e6:.1f}",
            size=" x ".join(map(str, self.config.image_size)),
            data=card.data,
            licence=f"The weights: {card.license}.",
            figures=_table(card.figures),
            limits=card.limits,
        )


class HubMixin:
    """What VideoPredictor has of the hub. The class needs `model` and to be built as `cls(model, **options)`."""

    model: Pix2SeqD

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
        model on the hub, `owner/name`. options: of VideoPredictor. Raises CheckpointError where it cannot be used.
        """
        path = Path(source)
        if path.is_file():
            return cls.from_checkpoint(path, **options)
        if path.is_dir() and not (path / WEIGHTS).exists():
            return cls.from_checkpoint(path / checkpoints.LATEST, **options)
        places = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        try:
            model = HubModel.from_pretrained(str(source), **places)
            options.setdefault("space", _label_space(source, places))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{source} is no file and no folder, and cannot be had from the Hugging Face hub ({reason})"
            ) from None
        return cls(model, **options)

    def save_pretrained(self, folder: str | Path, card: Card | None = None, repository: str = "owner/name") -> None:
        """Write model.safetensors, config.json and the model card README.md, which is kept where there is one already.

        repository: the hub's id of the model, for the card's example. Raises CheckpointError for a folder of a
        training run, whose config.json would be lost.
        """
        folder = Path(folder)
        if (folder / "log.jsonl").exists() or any(folder.glob("model-*.pt")):
            raise CheckpointError(f"{folder} is the folder of a training run: save to another one")
        words = {"card": card or Card(), "repository": repository}
        HubModel.of(self.model).save_pretrained(folder, model_card_kwargs=words)
        (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
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

        Returns the address of the commit. Raises huggingface_hub's errors where the hub refuses.
        """
        api = HfApi(token=token)
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card, repository)
            return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))


def _label_space(source: str | Path, places: dict[str, Any]) -> LabelSpace:
    """The classes beside a model: of its classes.json, else the default ones."""
    if Path(source).is_dir():
        return label_space_of(source) or DEFAULT_SPACE
    try:
        return read_label_space(hf_hub_download(str(source), CLASSES_FILE, **places))
    except EntryNotFoundError:
        return DEFAULT_SPACE


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
