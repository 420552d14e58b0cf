"""Models to measure, before they are loaded, and a check that two loaded ones can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import sha256_file
from yolact_deploy.config import Size, YolactConfig
from yolact_deploy.datasets.class_names import other_names
from yolact_deploy.errors import InputError
from yolact_deploy.loading import ModelSpec, load
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.predictor_pool import worker_count
from yolact_deploy.runtime.slicing import Slicing
from yolact_deploy.untrusted import shown
from yolact_deploy.vocabulary import CHECKPOINT_SUFFIXES

#: row name of the model that --weights names
EAGER = "eager"


@dataclass(frozen=True)
class EngineSource:
    """A model to measure, not loaded yet.

    Attributes:
        name: what tables call it: the file or folder as it was named, without those above it, and the backend
        load: returns a predictor with ``score_threshold=0`` and ``lazy_masks=False``
        file_bytes: size of the model's files
        weights_sha256: of a checkpoint file; empty for other files, whose metadata has it
        path: the model's file
        spec: how the file is run; None where ``load`` is made otherwise
        slicing: the tiles that pictures are cut into, if any
    """

    name: str
    load: Callable[..., Predictor]
    file_bytes: int = 0
    weights_sha256: str = ""
    path: Path | None = None
    spec: ModelSpec | None = None
    slicing: Slicing | None = None

    def workers(self, pictures: int) -> int:
        """How many predictors of this model, each with a core, are worth their start for a number of pictures."""
        if self.spec is None or self.spec.compile or self.spec.url:
            return 1
        return worker_count(pictures, threads=self.spec.threads, on_gpu=self.spec.on_gpu, model_bytes=self.file_bytes)

    @classmethod
    def from_spec(
        cls,
        text: str,
        name: str | None = None,
        *,
        config: YolactConfig | str | None = None,
        image_size: Size | None = None,
        fit: str | None = None,
        priors: str | None = None,
        max_detections: int | None = None,
        top_k: int | None = None,
        nms_iou: float | None = None,
        slicing: Slicing | None = None,
        **options: Any,
    ) -> EngineSource:
        """From ``FILE[@BACKEND...]``, arguments of :func:`~yolact_deploy.loading.load` and fields of `ModelSpec`.

        Raises:
            InputError: there is no such file, or the specification is invalid.
            BackendError: an engine, and no GPU is here.
        """
        parsed = ModelSpec.parse(text)
        spec = parsed.updated(**options)
        spec.check_file()
        spec.check_gpu()
        named, at, choice = text.rpartition("@") if parsed.backend else (text, "", "")
        checkpoint = spec.path.suffix.lower() in CHECKPOINT_SUFFIXES
        network: dict[str, Any] = {"config": config, "image_size": image_size, "fit": fit, "priors": priors}
        network |= {"max_detections": max_detections, "top_k": top_k, "nms_iou": nms_iou, "slicing": slicing}
        return cls(
            name or Path(named).name + at + choice,
            partial(load, spec, score_threshold=0.0, lazy_masks=False, **network),
            sum(file.stat().st_size for file in spec.files if file.is_file()),
            sha256_file(spec.path) if checkpoint else "",
            None if spec.url else spec.path,
            spec,
            slicing,
        )


def told_apart(sources: Sequence[EngineSource]) -> list[EngineSource]:
    """The models, of which those of the same name get the name of the folder they are in as well."""
    names = Counter(source.name for source in sources)
    return [replace(s, name=_with_folder(s)) if names[s.name] > 1 else s for s in sources]


def _with_folder(source: EngineSource) -> str:
    if source.path is None:
        return source.name
    is_folder = not source.name.startswith(source.path.name)
    folder = (source.path.parent if is_folder else source.path).parent.name
    return f"{folder}/{source.name}" if folder else source.name


def check_same_classes(reference_name: str, reference: Predictor, name: str, other: Predictor) -> None:
    """Raise :class:`InputError` unless two models have the same classes in the same order.

    Names may be spelled differently, and a model may have none.
    """
    a, b = reference.config, other.config
    first, second = (dict(enumerate(config.class_names)) for config in (a, b))
    differing = other_names(first, second)
    if differing or a.category_ids != b.category_ids:
        differ = f"{shown(differing[0].first)} and {shown(differing[0].second)}" if differing else ""
        raise InputError(
            f"{name} has {b.num_classes} classes and {reference_name} has {a.num_classes}"
            + (f" (the first that differ: {differ})" if differ else " or other category ids")
            + ": only models with the same classes can be compared"
        )
