"""Run a folder of pictures through a model in batches and write COCO results.

    python examples/batch_of_a_folder.py yolact.onnx photos/ results.json

For real batches export the model with `--batch 1:8:16`; otherwise each picture is a batch of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yolact_deploy

PICTURES_PER_CALL = 16
SUFFIXES = {".jpg", ".jpeg", ".png"}


def coco_results(model: yolact_deploy.Predictor, pictures: list[Path]) -> Iterator[dict[str, Any]]:
    """COCO results of all pictures; `image_id` is the picture's position in the list, from 1."""
    for first in range(0, len(pictures), PICTURES_PER_CALL):
        # A list gives a list. The predictor splits it into batches of the size that the model supports.
        results = model(pictures[first : first + PICTURES_PER_CALL])
        for image_id, detections in enumerate(results, start=first + 1):
            yield from detections.to_coco(image_id, model.config.category_ids)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="ONNX file, engine or checkpoint")
    parser.add_argument("folder", type=Path, help="folder of pictures")
    parser.add_argument("output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()

    pictures = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in SUFFIXES)
    with yolact_deploy.load(arguments.model) as model:
        results = list(coco_results(model, pictures))
    arguments.output.write_text(json.dumps(results), encoding="utf-8")
    print(f"{len(results)} detections in {len(pictures)} pictures -> {arguments.output}")


if __name__ == "__main__":
    main()
