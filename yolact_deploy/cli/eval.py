"""Measure the COCO box and mask AP of one model, or of a file of COCO results."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from yolact_deploy.cli.eval_report import MOST_REPORTED, ReportJob, check_report, pictures_of_results
from yolact_deploy.cli.options import part_options
from yolact_deploy.cli.options.dataset_options import add_dataset_arguments, open_dataset
from yolact_deploy.cli.options.parsing import seed
from yolact_deploy.cli.options.selection_options import add_nms_arguments, nms_settings
from yolact_deploy.cli.options.size_options import add_size_arguments, size_options
from yolact_deploy.cli.options.slice_options import add_slice_arguments, slicing
from yolact_deploy.console import print_text
from yolact_deploy.vocabulary import EVALUATORS

if TYPE_CHECKING:
    from yolact_deploy.datasets.image_sets import CocoImages
    from yolact_deploy.evaluation.accuracy import Accuracy
    from yolact_deploy.evaluation.bootstrap import Interval
    from yolact_deploy.evaluation.engines import EngineSource
    from yolact_deploy.evaluation.evaluate import EvalTime, Evaluation

_EPILOG = """\
examples:
  yolact-deploy eval --weights yolact_base_54_800000.pth --coco coco/
  yolact-deploy eval --engine yolact_base.onnx@openvino --annotations instances_val2017.json --images-dir val2017/
  yolact-deploy eval --results detections.json --annotations instances_val2017.json --json
  yolact-deploy eval --engine yolact_base.onnx --coco coco/ --report eval.html
  yolact-deploy eval --weights yolact_base_54_800000.pth --coco coco/ --cache eager.jsonl
  yolact-deploy eval --engine yolact_base.onnx --coco coco/ --cache onnx.jsonl --resume --reference eager.jsonl

The figures are COCO's own (matched by pycocotools or computed by faster-coco-eval): x 100 in the table, 0..1 in JSON.
With --results, all images of the annotations count, including those without results, unless --image-ids selects some.

--cache saves the detections of each image as soon as they are computed. If the run was interrupted, the same command
with --resume continues where it stopped; if the file is complete, --resume scores it without running the model.

--reference reports the difference in AP to another model's detections (its --cache file or its COCO results) with a
95 % interval: a paired bootstrap over the images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--engine", metavar="SPEC", help="model to run: FILE[@BACKEND...]")
    what.add_argument("--weights", metavar="W", help="checkpoint (or name of official weights) to run in PyTorch")
    what.add_argument("--results", metavar="FILE", help="COCO results to score; requires only annotations")
    parser.add_argument(
        "--config", metavar="NAME", help="configuration of --weights: name or JSON file (default: inferred)"
    )
    add_size_arguments(parser, of="the input of --weights")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    add_nms_arguments(parser, max_detections=False)
    add_slice_arguments(parser)
    parser.add_argument("--cache", metavar="FILE", help="save the detections to this file, image by image")
    parser.add_argument("--resume", action="store_true", help="continue with the --cache file of an earlier run")
    parser.add_argument("--save-results", metavar="FILE", help="write the model's COCO results")
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument(
        "--evaluator",
        choices=EVALUATORS,
        default="pycocotools",
        help="scorer: pycocotools, or faster-coco-eval, which is faster but keeps all detections in memory",
    )
    scoring.add_argument("--per-class", action="store_true", help="also show the AP of each class with ground truth")
    scoring.add_argument("--image-ids", metavar="ID,...", help="with --results: score only these images")
    scoring.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="detections of an image that a model reports (default: as exported); with --results, those per image and "
        "class that count (default 100, as COCO's; a model's own limit if that is higher)",
    )
    scoring.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page: AP, errors by kind, confusions, the best score thresholds, the worst pictures",
    )
    scoring.add_argument("--reference", metavar="FILE", help="detections or COCO results to compare the AP with")
    scoring.add_argument("--samples", type=int, default=1000, metavar="N", help="bootstrap draws (default 1000)")
    scoring.add_argument("--seed", type=seed, default=0, help="seed of the bootstrap (default 0)")
    part_options.add_arguments(
        parser,
        workers="run N networks at once, each in a process with one thread or with --threads (default: for many images "
        "on a CPU one for each core, up to 8 and as many as fit into memory; else 1)",
        ray="run the images of --engine on a Ray cluster, by default one on this machine",
        shards="run only part I of N of the images; 'merge' puts the --save-results together",
    )
    add_dataset_arguments(parser)


class _Scored(NamedTuple):
    name: str
    accuracy: Accuracy
    time: EvalTime | None
    difference: dict[str, Interval]  #: empty without --reference


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.cli.schemas import EVAL
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import InputError

    if args.resume and not args.cache:
        raise InputError("--resume continues a file of detections: name it with --cache FILE")
    if args.reference and args.evaluator != "pycocotools":
        raise InputError(f"--reference does not work with --evaluator {args.evaluator}: leave --evaluator out")
    if args.max_detections is not None and args.max_detections < 1:
        raise InputError(f"--max-detections: expected 1 or more, got {args.max_detections}")
    if args.samples < 2:
        raise InputError(f"--samples: expected 2 or more, got {args.samples}")
    check_report(args)
    scored = _score_file(args) if args.results else _score_model(args)
    if args.json:
        difference = {kind: interval.to_json() for kind, interval in scored.difference.items()}
        more = {
            "evaluator": args.evaluator,
            "time": scored.time.to_json() if scored.time else None,
            "reference": args.reference,
            "difference": difference or None,
        }
        print_json({"schema": EVAL, "model": scored.name, **scored.accuracy.to_json(), **more})
    elif not args.quiet:
        _print(args, scored)
        if args.report:
            print_text(f"wrote {args.report}")
    return 0


#: options that have no effect with --results
_OF_MODEL = ("images", "images_dir", "save_results", "cache", "workers", "shards", "ray", "top_k", "nms_iou", "slice",
             "match_classes")  # fmt: skip


def _score_file(args: argparse.Namespace) -> _Scored:
    from pathlib import Path

    from yolact_deploy.datasets.coco_results import read_results
    from yolact_deploy.datasets.image_sets import open_truth
    from yolact_deploy.errors import InputError
    from yolact_deploy.evaluation.accuracy import accuracy
    from yolact_deploy.evaluation.bootstrap import differences, read_matches
    from yolact_deploy.evaluation.coco_rules import COCO_LIMIT

    for option in _OF_MODEL:
        used = option == "images_dir" and args.report
        if getattr(args, option) is not None and not used:
            name = {"images": "limit"}.get(option, option.replace("_", "-"))
            raise InputError(f"--{name} has no effect with --results: leave it out")
    truth = open_truth(coco=args.coco, annotations=args.annotations, lenient=args.lenient)
    truth = truth.select(_image_ids(args.image_ids))
    truth.require_objects()
    content, ids = truth.content, truth.image_ids
    assert content is not None  # open_truth reads it
    limit = COCO_LIMIT if args.max_detections is None else args.max_detections
    results = read_results(args.results, content)
    scored = accuracy(content, results, ids, args.evaluator, max_detections=limit)
    difference = {}
    if args.reference:
        matches = read_matches(args.results, content, ids, limit)
        difference = differences(
            args.reference, matches, content, ids, samples=args.samples, seed=args.seed, max_detections=limit
        )
    if args.report:
        _report_file(args, truth, results, scored, limit)
    return _Scored(Path(args.results).name, scored, None, difference)


def _report_file(
    args: argparse.Namespace, truth: CocoImages, results: Sequence[dict[str, Any]], scored: Accuracy, limit: int
) -> None:
    from pathlib import Path

    from yolact_deploy.evaluation.accuracy import by_image, result_kinds
    from yolact_deploy.evaluation.bootstrap import read_matches

    pictures = pictures_of_results(args)
    job = ReportJob(args.report, truth, result_kinds(results), limit)
    for of_image in by_image(results).values():
        job.add(of_image)
    assert truth.content is not None
    matches = read_matches(args.results, truth.content, truth.image_ids, limit)
    job.write(Path(args.results).name, scored, matches, pictures)


def _image_ids(text: str | None) -> list[int] | None:
    from yolact_deploy.errors import InputError
    from yolact_deploy.untrusted import shown

    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--image-ids: expected numbers separated by commas, got {shown(text)}") from None


def _score_model(args: argparse.Namespace) -> _Scored:
    from yolact_deploy.datasets.coco_results import results_file
    from yolact_deploy.evaluation.detection_cache import DetectionCache
    from yolact_deploy.evaluation.evaluate import cache_key, evaluate

    _check_model_options(args)
    source, choice = _source(args)
    images = _shard(args, open_dataset(args))
    if args.ray is not None:
        return _score_on_ray(args, source, images)
    if not args.save_results:
        images.require_objects()
    with contextlib.ExitStack() as stack:
        cache = None
        if args.cache:
            key = cache_key(source, choice, images)
            cache = stack.enter_context(DetectionCache(args.cache, key, images.image_ids, resume=args.resume))
            stack.enter_context(_resume_hint(args))
        save = stack.enter_context(results_file(args.save_results)) if args.save_results else None
        report = ReportJob(args.report, images, ("bbox", "segm"), MOST_REPORTED) if args.report else None
        done = evaluate(
            source,
            images,
            evaluator=args.evaluator,
            cache=cache,
            on_results=_both(save, report),
            workers=_workers(args, source, len(images) - (cache.stored if cache else 0)),
            progress=args.progress,
        )
    if report is not None:
        report.write(source.name, done.accuracy, done.matches, images)
    difference = _differences(args, images, done) if args.reference else {}
    return _Scored(source.name, done.accuracy, done.time, difference)


def _both(
    save: Callable[[Sequence[dict[str, Any]]], None] | None, report: ReportJob | None
) -> Callable[[Sequence[dict[str, Any]]], None] | None:
    """What takes the results of each image."""
    takers = [taker for taker in (save, report.add if report else None) if taker is not None]

    def take(results: Sequence[dict[str, Any]]) -> None:
        for taker in takers:
            taker(results)

    return take if takers else None


def _differences(args: argparse.Namespace, images: CocoImages, done: Evaluation) -> dict[str, Interval]:
    """Differences to the reference, with their confidence intervals."""
    from yolact_deploy.evaluation.bootstrap import differences

    assert images.content is not None  # evaluate refuses images without annotations
    return differences(
        args.reference,
        done.matches,
        images.content,
        images.image_ids,
        samples=args.samples,
        seed=args.seed,
        max_detections=done.accuracy.max_detections,
    )


def _check_model_options(args: argparse.Namespace) -> None:
    from yolact_deploy.errors import InputError

    if args.image_ids is not None:
        raise InputError("--image-ids requires --results: limit a model's images with --limit N")


def _score_on_ray(args: argparse.Namespace, source: EngineSource, images: CocoImages) -> _Scored:
    from yolact_deploy.errors import InputError
    from yolact_deploy.scale.evaluation_ray import accuracy_on_ray

    for option in ("cache", "reference", "save_results", "weights", "shards", "slice"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} does not work with --ray: leave it out")
    images.require_objects()
    options = {"threads": args.threads, "score_threshold": 0.0, "lazy_masks": False, **nms_settings(args)}
    figures = accuracy_on_ray(
        args.ray or None, args.engine, options, images, evaluator=args.evaluator, workers=args.workers,
        progress=args.progress,
    )  # fmt: skip
    return _Scored(source.name, figures, None, {})


def _shard(args: argparse.Namespace, images: CocoImages) -> CocoImages:
    """The images of --shards."""
    import dataclasses

    from yolact_deploy.datasets.shard import Shard
    from yolact_deploy.errors import InputError

    if args.shards is None:
        return images
    if not args.save_results or args.reference:
        raise InputError("--shards requires --save-results and excludes --reference: score what 'merge' writes")
    return dataclasses.replace(images, images=tuple(Shard.parse(args.shards).some_of(images.images)))


def _workers(args: argparse.Namespace, source: EngineSource, images: int) -> int:
    workers = part_options.checked_workers(args)
    return source.workers(images) if workers is None else min(workers, max(1, images))


def _source(args: argparse.Namespace) -> tuple[EngineSource, dict[str, Any]]:
    """The model, and the options it is loaded with."""
    from yolact_deploy.errors import InputError, import_optional
    from yolact_deploy.evaluation.engines import EngineSource
    from yolact_deploy.loading import ModelSpec

    given = {name: value for name, value in nms_settings(args).items() if value is not None}
    options: dict[str, Any] = {"threads": args.threads, **given}
    tiles = slicing(args)
    model = args.engine
    if args.weights:
        import_optional("torch", "train", "The eager model")
        from yolact_deploy.samples.pretrained import resolve_weights

        model = str(resolve_weights(args.weights))
        options |= {"backend": "torch", "config": args.config, "image_size": None, **size_options(args)}
    elif args.config or size_options(args):
        raise InputError("--fit, --priors, --config and --size require --weights: give it instead of --engine")
    source = EngineSource.from_spec(model, slicing=tiles, **options)
    if tiles is not None:
        options["slicing"] = tiles.describe()
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}  # as in JSON
    return source, {**known, "spec": ModelSpec.parse(model).spelling()[len(str(source.path)) :]}


@contextlib.contextmanager
def _resume_hint(args: argparse.Namespace) -> Iterator[None]:
    import sys

    try:
        yield
    except KeyboardInterrupt:
        if not args.quiet:
            print_text(
                f"the detections so far are in {args.cache}: run the same command with --resume to continue",
                file=sys.stderr,
            )
        raise


# -- tables ---------------------------------------------------------------------------------------------------------


def _print(args: argparse.Namespace, scored: _Scored) -> None:
    from yolact_deploy.benchmarks.tables import accuracy_table
    from yolact_deploy.console import print_table

    table = accuracy_table([(scored.name, scored.accuracy)])
    print_table(table.columns, table.rows, title=table.title)
    title = "AP x 100 at each IoU threshold, and AR"
    print_table(("", "all", *_ious(), "AR"), _iou_rows(scored.accuracy), title=title)
    if args.per_class:
        print_table(("class", "box AP", "mask AP"), _class_rows(scored.accuracy), title="AP x 100 of each class")
    for kind, interval in scored.difference.items():
        print_text(_sentence(kind, args.reference, interval))
    if scored.time:
        print_text(_time_line(scored.time))  # no title: the table is narrow
        print_table(("stage", "s" if scored.time.workers == 1 else "s of all processes", "%"), _time_rows(scored.time))
        if scored.time.outside_network is not None:
            print_text(f"Outside {scored.time.network_stage}: {100 * scored.time.outside_network:.1f} % of the time")


def _ious() -> list[str]:
    """Columns of the IoU thresholds: .50 to .95."""
    return [f".{percent}" for percent in range(50, 100, 5)]


def _iou_rows(accuracy: Accuracy) -> Iterator[tuple[str, ...]]:
    """Thresholds with one decimal, so that all fit 80 columns."""
    for name, figures in (("box", accuracy.box), ("mask", accuracy.mask)):
        if figures is not None:
            each = ("" if value is None else f"{100 * value:.1f}" for value in figures.per_iou.values())
            yield name, _percent(figures.ap), *each, _percent(figures.ar)


def _class_rows(accuracy: Accuracy) -> Iterator[tuple[str, str, str]]:
    """Only classes with ground truth."""
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
    counts = [f"{time.ran} images run"] if time.ran else []
    counts += [f"{time.stored} read"] if time.stored else []
    loading = f", after {time.load_s:.1f} s of loading" if time.ran else ""
    several = f" by {time.workers} networks at once" if time.workers > 1 else ""
    return f"Time: {' and '.join(counts)} in {time.whole_s:.1f} s{several}{loading}"


def _time_rows(time: EvalTime) -> Iterator[tuple[str, str, str]]:
    for stage, seconds in {**time.stages_s, "rest": time.unaccounted_s}.items():
        yield stage, f"{seconds:.2f}", f"{100 * seconds / time.processes_s:.1f}"
