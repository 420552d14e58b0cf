"""Merge the results of several jobs, each of which has run a shard of the pictures, into one file.

FILE is COCO results, as eval --save-results and predict --format coco write them, or the list of pictures beside those.
A picture in two files, or a shard that is missing among names like part-2-of-8.json, is an error.
"""

from __future__ import annotations

import argparse

from yolact_deploy.console import print_text

_EXAMPLES = """examples:
  yolact-deploy eval --engine m.onnx --data coco/ --shards 1/4 --save-results part-1-of-4.json      one of four jobs
  yolact-deploy merge part-*-of-4.json -o all.json
  yolact-deploy eval --results all.json --data coco/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("files", metavar="FILE", nargs="+", help="results of one job")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.artifact import write_json
    from yolact_deploy.console import print_json
    from yolact_deploy.datasets.merge_results import merge_results

    merged = merge_results(args.files)
    write_json(args.output, merged)
    results = isinstance(merged, list)
    count = len(merged) if isinstance(merged, list) else len(merged["images"])
    what = "detections" if results else "pictures"
    if args.json:
        print_json({"output": args.output, what: count, "files": len(args.files)})
    elif not args.quiet:
        print_text(f"wrote {count} {what} of {len(args.files)} files to {args.output}")
    return 0
