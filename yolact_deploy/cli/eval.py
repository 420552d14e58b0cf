"""COCO box and mask AP of one model, or of a file of COCO results."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.datasets import add_dataset_arguments, open_dataset

if TYPE_CHECKING:
    from yolact_deploy.benchmarks.accuracy import Accuracy

HELP = "COCO box and mask AP of one model"

_EPILOG = """\
examples:
  yolact-deploy eval --weights yolact_base_54_800000.pth --coco coco/
  yolact-deploy eval --engine yolact_base.onnx@openvino --annotations instances_val2017.json --images-dir val2017/
  yolact-deploy eval --results detections.json --annotations instances_val2017.json --json

Figures are COCO's own (pycocotools), x 100 in the table and 0..1 in JSON. Of --results, all images of the annotations
count, also those without results."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--engine", metavar="SPEC", help="model to run: FILE[@BACKEND...]")
    what.add_argument("--weights", metavar="W", help="checkpoint (or name of official weights) to run in PyTorch")
    what.add_argument("--results", metavar="FILE", help="COCO results to score; only --annotations is needed, too")
    parser.add_argument("--config", metavar="NAME", help="configuration of --weights; by default told from the tensors")
    parser.add_argument("--size", type=int, metavar="S", help="input side of --weights; by default the configuration's")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--save-results", metavar="FILE", help="write the model's COCO results")
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.console import print_json, print_table

    name, accuracy = _score_file(args) if args.results else _score_model(args)
    if args.json:
        print_json({"model": name, **accuracy.to_json()})
    else:
        from yolact_deploy.benchmarks.tables import accuracy_table

        table = accuracy_table([(name, accuracy)])
        print_table(table.columns, table.rows, title=table.title)
    return 0


def _score_file(args: argparse.Namespace) -> tuple[str, Accuracy]:
    from pathlib import Path

    from yolact_deploy.benchmarks.accuracy import score_results
    from yolact_deploy.errors import InputError

    if not args.annotations:
        raise InputError("--results needs the ground truth: give --annotations FILE")
    for option in ("images", "images_dir", "coco", "save_results"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} has no use with --results: leave it out")
    return Path(args.results).name, score_results(args.annotations, args.results)


def _score_model(args: argparse.Namespace) -> tuple[str, Accuracy]:
    from yolact_deploy.artifact import write_json
    from yolact_deploy.benchmarks.engines import EngineSource
    from yolact_deploy.benchmarks.evaluate import evaluate
    from yolact_deploy.errors import InputError, import_optional

    options: dict[str, Any] = {"threads": args.threads}
    model = args.engine
    if args.weights:
        import_optional("torch", "train", "The eager model")
        from yolact_deploy.training.pretrained import resolve_weights

        model = str(resolve_weights(args.weights))
        options |= {"backend": "torch", "config": args.config, "image_size": args.size}
    elif args.config or args.size:
        raise InputError("--config and --size are of the eager model: give --weights instead of --engine")
    images = open_dataset(args)
    source = EngineSource.from_spec(model, **options)
    with source.load() as predictor:
        accuracy, results = evaluate(predictor, images, quiet=args.quiet)
    if args.save_results:
        write_json(args.save_results, results)
    return source.name, accuracy
