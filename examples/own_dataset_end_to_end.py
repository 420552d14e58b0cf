"""Your own dataset, from annotations to detections: check, train, export, predict.

    python examples/own_dataset_end_to_end.py my_dataset.yaml --set iterations=2000
    python examples/own_dataset_end_to_end.py                     (generates a dataset of shapes)

A dataset is a YAML file or a COCO folder; docs/training.md describes both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2

import yolact_deploy
from yolact_deploy.cli import main as command_line


def run(*command: str | Path) -> None:
    """Run a yolact-deploy command as you would type it, in this process; stop if it fails."""
    words = [str(word) for word in command]
    print(f"\n$ yolact-deploy {' '.join(words)}", flush=True)
    if status := command_line.main(words):
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", nargs="?", type=Path, help="dataset file or COCO folder (default: generate one)")
    parser.add_argument("--picture", type=Path, help="picture to predict on (default: one of the generated ones)")
    parser.add_argument("--recipe", default="shapes_demo", help="starting point; 'train --recipe list' shows them all")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/own"), metavar="DIR")
    arguments = parser.parse_args()

    data, output = arguments.data, arguments.output
    if data is None:
        run("data", "shapes", "-o", output / "shapes", "--train", "200", "--val", "20")
        data = output / "shapes" / "shapes.yaml"
    run("data", "check", data, "--deep")
    settings = [argument for setting in arguments.settings for argument in ("--set", setting)]
    run("train", "--recipe", arguments.recipe, "--data", data, "-o", output / "training", *settings)
    run("export", "--weights", output / "training" / "last.safetensors", "-o", output / "model", "--engine", "none")

    picture = arguments.picture or next((output / "shapes").rglob("val_*.png"), None)
    if picture is not None:
        with yolact_deploy.load(output / "model.onnx") as model:
            detections = model(picture)
        overlay = detections.draw(cv2.imread(str(picture)))
        cv2.imwrite(str(output / "detections.png"), overlay)
        print(f"{len(detections)} detections in {picture} -> {output / 'detections.png'}")


if __name__ == "__main__":
    main()
