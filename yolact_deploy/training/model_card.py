"""A model card beside the weights of a training: what they were trained on, how well they do, and on what terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import write_bytes
from yolact_deploy.config import size_text
from yolact_deploy.datasets.annotations import read_coco
from yolact_deploy.datasets.dataset_file import DatasetSpec
from yolact_deploy.training.recipe import Recipe
from yolact_deploy.training.trainer import Outcome
from yolact_deploy.untrusted import printable
from yolact_deploy.version import __version__

NAME = "model_card.md"
_MOST_CLASSES = 100
_MISSING = "not stated in the annotations: find it out before you pass the weights on"


def write_model_card(
    folder: Path, spec: DatasetSpec, recipe: Recipe, outcome: Outcome, initial: str, facts: Mapping[str, Any]
) -> Path:
    """Write the card; every figure in it comes from this training.

    Args:
        initial: where the initial weights are from
        facts: seconds, device and processes of the training
    """
    lines = [
        f"# {recipe.config.name}: {len(spec.names)} classes",
        "",
        f"Instance segmentation by YOLACT ({recipe.config.backbone}, input {size_text(recipe.config.image_size)}), "
        f"trained with yolact-deploy {__version__}, recipe `{recipe.name}`.",
        "",
        "## Data",
        "",
        f"`{printable(spec.path.name)}`",
        "",
        "| split | images | objects | crowds |",
        "| --- | --- | --- | --- |",
    ]
    licenses: Counter[str] = Counter()
    for name, split in spec.splits.items():
        content = read_coco(split.annotations)
        known = [a for a in content["annotations"] if a.get("category_id") in spec.category_ids]
        crowds = sum(bool(a.get("iscrowd")) for a in known)
        lines.append(f"| {name} | {len(content['images'])} | {len(known) - crowds} | {crowds} |")
        licenses += _licenses(content)
    lines += ["", f"Classes: {_listed(spec.names)}", "", "License of the pictures:", ""]
    lines += [f"- {name}: {count} pictures" for name, count in licenses.most_common()] or [f"- {_MISSING}"]
    lines += ["", "## Training", "", f"- initial weights: {printable(initial)}",
              f"- {outcome.step} iterations of {recipe.batch} images, {outcome.skipped} skipped",
              f"- {facts['seconds']:.0f} s in this run on {facts['device']}, {facts['processes']} process(es)", "",
              "## Figures", "", *_figures(outcome), "",
              "## License of the weights", "",
              "Not stated here: it depends on the data and on the initial weights. Add it.", ""]  # fmt: skip
    write_bytes(folder / NAME, "\n".join(lines).encode())
    return folder / NAME


def _licenses(content: Mapping[str, Any]) -> Counter[str]:
    """How many pictures have which license, by the fields ``licenses`` and ``license`` of COCO."""
    listed = content.get("licenses")
    records = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    names = {one["id"]: f"{one.get('name', '')} {one.get('url', '')}".strip() for one in records if "id" in one}
    given = [record.get("license") for record in content["images"] if isinstance(record, dict)]
    return Counter(printable(names[value]) for value in given if isinstance(value, int) and names.get(value))


def _listed(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
    return ", ".join(map(printable, names[:_MOST_CLASSES])) + more


def _figures(outcome: Outcome) -> list[str]:
    if outcome.accuracy is None:
        return ["Not evaluated: the dataset has no split `val`."]
    rows = ["COCO average precision on `val`, `last.safetensors`:", "", "| | AP | AP50 | AP75 |",
            "| --- | --- | --- | --- |"]  # fmt: skip
    for kind, figures in (("box", outcome.accuracy.box), ("mask", outcome.accuracy.mask)):
        if figures is not None:
            rows.append(f"| {kind} | " + " | ".join(map(_percent, (figures.ap, figures.ap50, figures.ap75))) + " |")
    if outcome.best is not None:
        rows += ["", f"Best mask AP of all evaluations, `best.safetensors`: {_percent(outcome.best)}"]
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
