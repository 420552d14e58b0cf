"""Check that a network can memorize sixteen photographs.

    python -m yolact_deploy.benchmarks.scenarios.sixteen_photographs --coco coco/ -o result.json

Selects the first images of a COCO file, by image id, that can be learned at this size (a few objects, none of them
tiny, no crowds), trains the recipe `sixteen_images` on them, and scores the weights on the same images: in eager
PyTorch and as an exported ONNX file. Exit code 1 if the mask AP50 is below the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import write_json
from yolact_deploy.benchmarks.command import command_parser, run_command, work_folder
from yolact_deploy.console import console_progress
from yolact_deploy.datasets.image_sets import CocoImages, open_images
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation.evaluate import evaluate
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.loading import load
from yolact_deploy.machine.environment import environment
from yolact_deploy.progress import Progress
from yolact_deploy.training.fit import fit
from yolact_deploy.training.overrides import override
from yolact_deploy.training.recipes import get_recipe

IMAGES = 16
MOST_OBJECTS = 8
#: square root of the area of the smallest object, in image pixels
LEAST_SIDE = 24.0
LEAST_MASK_AP50 = 0.80


def choose(content: Mapping[str, Any], present: Sequence[int], count: int = IMAGES) -> list[int]:
    """Ids of the first images with 1 to `MOST_OBJECTS` objects, all of at least `LEAST_SIDE`, and no crowd.

    Args:
        content: of a COCO instances file
        present: ids of the images whose files exist

    Raises:
        DatasetError: there are fewer such images.
    """
    of_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [number for number in sorted(present) if _is_learnable(of_image.get(number, []))]
    if len(chosen) < count:
        raise DatasetError(
            f"only {len(chosen)} of {len(present)} images have 1 to {MOST_OBJECTS} objects, none smaller than "
            f"{LEAST_SIDE:g} pixels and no crowd: give a set with {count} of them"
        )
    return chosen[:count]


def _is_learnable(annotations: Sequence[Mapping[str, Any]]) -> bool:
    return 1 <= len(annotations) <= MOST_OBJECTS and all(
        not a["iscrowd"] and a["area"] >= LEAST_SIDE**2 for a in annotations
    )


def write_subset(images: CocoImages, chosen: Sequence[int], folder: Path) -> Path:
    """A dataset file of the chosen images, for both training and validation; the image files stay where they are."""
    assert images.content is not None
    inside = set(chosen)
    content = {
        "images": [image for image in images.content["images"] if image["id"] in inside],
        "annotations": [a for a in images.content["annotations"] if a["image_id"] in inside],
        "categories": images.content["categories"],
    }
    write_json(folder / "instances.json", content)
    split = {"annotations": "instances.json", "images": str(images.paths[0].parent.resolve())}
    spec = folder / "sixteen.yaml"
    spec.write_text(json.dumps({"train": split, "val": split}), encoding="utf-8")  # JSON is YAML
    return spec


def run(
    images: CocoImages, weights: str | None, work: Path, settings: Sequence[str], *, progress: Progress
) -> dict[str, Any]:
    """Choose, train, export and score; a JSON-ready result."""
    if images.content is None:
        raise DatasetError("these images have no annotations: give a COCO folder")
    recipe = override(get_recipe("sixteen_images"), settings)
    chosen = choose(images.content, images.image_ids)
    data = write_subset(images, chosen, work)
    trained = fit(recipe, data, work / "run", weights=weights, workers=1, progress=progress)
    checkpoint = work / "run" / "last.safetensors"
    scores = {}
    subset = open_images(annotations=work / "instances.json", images_dir=images.paths[0].parent)
    for name, model in (("eager", checkpoint), ("onnx fp16", _exported(checkpoint, work))):
        with load(str(model), score_threshold=0.0, lazy_masks=False) as predictor:
            scores[name] = evaluate(predictor, subset, progress=progress).accuracy.to_json()
    licenses = {image["id"]: image.get("license") for image in images.content["images"]}
    return {
        "images": [{"id": number, "license": licenses[number]} for number in chosen],
        "objects": sum(a["image_id"] in set(chosen) for a in images.content["annotations"]),
        "initial_weights": weights or recipe.weights,
        "recipe": recipe.to_json(),
        "training_seconds": round(trained.seconds, 1),
        "scores": scores,
        "environment": environment(),
    }


def _exported(checkpoint: Path, work: Path) -> Path:
    """The FP16 ONNX file of a checkpoint."""
    target = work / "model.onnx"
    export_model(checkpoint, target, ExportSpec(precision="fp16"))
    return target


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("scenarios.sixteen_photographs", __doc__)
    parser.add_argument("--coco", metavar="DIR", required=True, help="COCO folder")
    parser.add_argument("--annotations", metavar="FILE", help="annotation file, if the folder has several")
    parser.add_argument("--weights", help="initial weights, as for train (default: those of the recipe)")
    parser.add_argument("--work", metavar="DIR", help="folder for data and run (default: a temporary one)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="as for train")
    return run_command(parser, argv, _measure, problems=_problems)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    images = open_images(coco=args.coco, annotations=args.annotations)
    with work_folder(args.work) as work:
        return run(images, args.weights, work, args.settings, progress=console_progress(args.quiet))


def _problems(result: dict[str, Any]) -> list[str]:
    scores = {name: score["mask"]["ap50"] or 0.0 for name, score in result["scores"].items()}
    return [
        f"mask AP50 of {name} is {ap50:.3f}, expected at least {LEAST_MASK_AP50:g}"
        for name, ap50 in scores.items()
        if ap50 < LEAST_MASK_AP50
    ]


if __name__ == "__main__":
    sys.exit(main())
