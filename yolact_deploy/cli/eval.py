"""COCO box and mask AP of one model, or of a file of COCO results."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.dataset_options import add_dataset_arguments, open_dataset

if TYPE_CHECKING:
    from yolact_deploy.evaluation.accuracy import Accuracy
    from yolact_deploy.evaluation.bootstrap import Interval
    from yolact_deploy.evaluation.engines import EngineSource
    from yolact_deploy.evaluation.evaluate import EvalTime
    from yolact_deploy.evaluation.matches import Matches

HELP = "COCO box and mask AP of one model"

_EPILOG = """\
examples:
  yolact-deploy eval --weights yolact_base_54_800000.pth --coco coco/
  yolact-deploy eval --engine yolact_base.onnx@openvino --annotations instances_val2017.json --images-dir val2017/
  yolact-deploy eval --results detections.json --annotations instances_val2017.json --json
  yolact-deploy eval --weights yolact_base_54_800000.pth --coco coco/ --cache eager.jsonl
  yolact-deploy eval --engine yolact_base.onnx --coco coco/ --cache onnx.jsonl --resume --reference eager.jsonl

Figures are COCO's own (matched by pycocotools, or all by faster-coco-eval), x 100 in the table and 0..1 in JSON. Of
--results, all images of the annotations count, also those without results, unless --image-ids names some.

--cache keeps the detections of each image as soon as they are there. When the run was interrupted, the same command
with --resume goes on where it stopped; when it was not, --resume scores what is in the file without running the model.

--reference gives the difference in AP to another model's detections (its --cache file, or its COCO results) with a 95 %
interval: a paired bootstrap over the images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--engine", metavar="SPEC", help="model to run: FILE[@BACKEND...]")
    what.add_argument("--weights", metavar="W", help="checkpoint (or name of official weights) to run in PyTorch")
    what.add_argument("--results", metavar="FILE", help="COCO results to score; only --annotations is needed, too")
    parser.add_argument("--config", metavar="NAME", help="configuration of --weights; by default told from the tensors")
    parser.add_argument("--size", type=int, metavar="S", help="input side of --weights; by default the configuration's")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--cache", metavar="FILE", help="keep the detections in this file, image by image")
    parser.add_argument("--resume", action="store_true", help="go on with the --cache file of an earlier run")
    parser.add_argument("--save-results", metavar="FILE", help="write the model's COCO results")
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument(
        "--evaluator",
        choices=("pycocotools", "faster-coco-eval"),  # accuracy.EVALUATORS, not imported for the help
        default="pycocotools",
        help="what scores: pycocotools, or the faster faster-coco-eval, which keeps all detections in memory",
    )
    scoring.add_argument("--per-class", action="store_true", help="also show the AP of each class that is there")
    scoring.add_argument("--image-ids", metavar="ID,...", help="of --results, score these images only")
    scoring.add_argument("--reference", metavar="FILE", help="detections or COCO results to compare the AP with")
    scoring.add_argument("--samples", type=int, default=1000, metavar="N", help="draws of the bootstrap (1000)")
    scoring.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import InputError

    if args.resume and not args.cache:
        raise InputError("--resume goes on with a file of detections: name it with --cache FILE")
    if args.reference and args.evaluator != "pycocotools":
        raise InputError(f"{args.evaluator} does not tell what --reference needs: leave --evaluator out")
    if args.samples < 2:
        raise InputError(f"--samples: expected 2 or more, got {args.samples}")
    name, accuracy, time, difference = _score_file(args) if args.results else _score_model(args)
    if args.json:
        more = {
            "evaluator": args.evaluator,
            "time": time.to_json() if time else None,
            "reference": args.reference,
            "difference": {kind: interval.to_json() for kind, interval in difference.items()} if difference else None,
        }
        print_json({"model": name, **accuracy.to_json(), **more})
    elif not args.quiet:
        _print(args, name, accuracy, time, difference)
    return 0


_Scored = tuple[str, "Accuracy", "EvalTime | None", "dict[str, Interval]"]


# -- a file of results ----------------------------------------------------------------------------------------------


def _score_file(args: argparse.Namespace) -> _Scored:
    from pathlib import Path

    from yolact_deploy.datasets.annotations import read_annotations
    from yolact_deploy.errors import InputError
    from yolact_deploy.evaluation.accuracy import score_results

    if not args.annotations:
        raise InputError("--results needs the ground truth: give --annotations FILE")
    for option in ("images", "images_dir", "coco", "save_results", "cache"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} has no use with --results: leave it out")
    ids = _image_ids(args.image_ids)
    accuracy = score_results(args.annotations, args.results, ids, args.evaluator)
    difference = {}
    if args.reference:
        from yolact_deploy.evaluation.bootstrap import read_matches

        content = read_annotations(args.annotations)
        chosen = [image["id"] for image in content["images"]] if ids is None else ids
        difference = _differences(args, content, chosen, read_matches(args.results, content, chosen))
    return Path(args.results).name, accuracy, None, difference


def _image_ids(text: str | None) -> list[int] | None:
    from yolact_deploy.errors import InputError

    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--image-ids: expected numbers with commas between, got {text!r}") from None


# -- a model --------------------------------------------------------------------------------------------------------


def _score_model(args: argparse.Namespace) -> _Scored:
    from yolact_deploy.datasets.coco_results import results_file
    from yolact_deploy.errors import InputError
    from yolact_deploy.evaluation.evaluate import evaluate

    if args.image_ids is not None:
        raise InputError("--image-ids is for --results: choose a model's images with --images N")
    source, choice = _source(args)
    images = open_dataset(args)
    with contextlib.ExitStack() as stack:
        cache = None
        if args.cache:
            from yolact_deploy.evaluation.detection_cache import DetectionCache
            from yolact_deploy.evaluation.evaluate import cache_key

            key = cache_key(source, choice, images)
            cache = stack.enter_context(DetectionCache(args.cache, key, images.image_ids, resume=args.resume))
            stack.enter_context(_tell_where_to_go_on(args))
        save = stack.enter_context(results_file(args.save_results)) if args.save_results else None
        done = evaluate(source, images, evaluator=args.evaluator, cache=cache, on_results=save, progress=args.progress)
    assert images.content is not None  # evaluate refuses such images
    difference = _differences(args, images.content, images.image_ids, done.matches)
    return source.name, done.accuracy, done.time, difference


def _source(args: argparse.Namespace) -> tuple[EngineSource, dict[str, Any]]:
    """The model, and what is chosen of it beside the file."""
    from yolact_deploy.errors import InputError, import_optional
    from yolact_deploy.evaluation.engines import EngineSource
    from yolact_deploy.loading import ModelSpec

    options: dict[str, Any] = {"threads": args.threads}
    model = args.engine
    if args.weights:
        import_optional("torch", "train", "The eager model")
        from yolact_deploy.model.pretrained import resolve_weights

        model = str(resolve_weights(args.weights))
        options |= {"backend": "torch", "config": args.config, "image_size": args.size}
    elif args.config or args.size:
        raise InputError("--config and --size are of the eager model: give --weights instead of --engine")
    source = EngineSource.from_spec(model, **options)
    return source, {**options, "spec": ModelSpec.parse(model).spelling()[len(str(source.path)) :]}


@contextlib.contextmanager
def _tell_where_to_go_on(args: argparse.Namespace) -> Iterator[None]:
    import sys

    try:
        yield
    except KeyboardInterrupt:
        if not args.quiet:
            print(f"what was found is in {args.cache}: the same command with --resume goes on", file=sys.stderr)
        raise


# -- the reference --------------------------------------------------------------------------------------------------


def _differences(
    args: argparse.Namespace, content: Any, image_ids: Sequence[int], matches: dict[str, Matches]
) -> dict[str, Interval]:
    """AP minus that of --reference, of "box" and "mask" where both have them; empty without one."""
    if not args.reference:
        return {}
    from yolact_deploy.errors import InputError
    from yolact_deploy.evaluation.bootstrap import PairedBootstrap, read_matches

    reference = read_matches(args.reference, content, image_ids)
    both = [kind for kind in matches if kind in reference]
    if not both:
        raise InputError(f"{args.reference} has neither boxes nor masks in common with what is scored")
    return {
        kind: PairedBootstrap(reference[kind], samples=args.samples, seed=args.seed).difference(matches[kind])
        for kind in both
    }


# -- what is printed ------------------------------------------------------------------------------------------------


def _print(
    args: argparse.Namespace, name: str, accuracy: Accuracy, time: EvalTime | None, difference: dict[str, Interval]
) -> None:
    from yolact_deploy.benchmarks.tables import accuracy_table
    from yolact_deploy.console import print_table

    table = accuracy_table([(name, accuracy)])
    print_table(table.columns, table.rows, title=table.title)
    if args.per_class:
        print_table(("class", "box AP", "mask AP"), _class_rows(accuracy), title="AP x 100 of each class")
    for kind, interval in difference.items():
        print(_sentence(kind, args.reference, interval))
    if time:
        print(_time_line(time))  # no title: the table is narrow
        print_table(("stage", "s", "%"), _time_rows(time))
        if time.outside_network is not None:
            print(f"Outside {time.network_stage}: {100 * time.outside_network:.1f} % of the time")


def _class_rows(accuracy: Accuracy) -> Iterator[tuple[str, str, str]]:
    """Of the classes that have ground truth."""
    per_class = [figures.per_class if figures else {} for figures in (accuracy.box, accuracy.mask)]
    for name in per_class[0] or per_class[1]:
        box, mask = (kind.get(name) for kind in per_class)
        if box is not None or mask is not None:
            yield name, _percent(box), _percent(mask)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _sentence(kind: str, reference: str, interval: Interval) -> str:
    """
    >>> from yolact_deploy.evaluation.bootstrap import Interval
    >>> _sentence("mask", "a.jsonl", Interval(-0.002, -0.002, -0.005, 0.001, 72, 1000, 0))
    'mask AP: -0.20 points against a.jsonl, 95 % interval -0.50 to +0.10 (1000 draws of 72 images): no difference shown'
    """
    low, high = 100 * interval.low, 100 * interval.high
    verdict = "differs" if interval.excludes_zero else "no difference shown"
    return (
        f"{kind} AP: {100 * interval.difference:+.2f} points against {reference}, "
        f"95 % interval {low:+.2f} to {high:+.2f} ({interval.samples} draws of {interval.images} images): {verdict}"
    )


def _time_line(time: EvalTime) -> str:
    what = [f"{time.ran} images run"] if time.ran else []
    what += [f"{time.stored} read"] if time.stored else []
    loading = f", after {time.load_s:.1f} s of loading" if time.ran else ""
    return f"Time: {' and '.join(what)} in {time.whole_s:.1f} s{loading}"


def _time_rows(time: EvalTime) -> Iterator[tuple[str, str, str]]:
    for stage, seconds in {**time.stages_s, "rest": time.unaccounted_s}.items():
        yield stage, f"{seconds:.2f}", f"{100 * seconds / time.whole_s:.1f}"
