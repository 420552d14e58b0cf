"""Converts detections that the original YOLACT wrote for its web viewer to COCO results.

    python -m yolact_deploy.datasets.yolact_dets yolact_base.json --annotations instances_val2017.json -o results.json

A dump of ``eval.py --web_det_path`` is ``{"info", "images": [{"image_id", "dets": [{"score", "bbox" [x, y, w, h],
"category" name, "mask" RLE}]}]}``. Only images that the annotations list are kept. The last line of output is the
command that scores them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from yolact_deploy.datasets.annotations import read_annotations
from yolact_deploy.datasets.coco_results import Result, check_results, results_file
from yolact_deploy.errors import DatasetError, YolactDeployError
from yolact_deploy.untrusted import read_json, shown


def convert(dump: Any, content: Mapping[str, Any], source: str) -> tuple[list[Result], list[int]]:
    """COCO results of a dump, and the ids of all its images, both limited to the images in ``content``.

    Args:
        content: the checked content of a COCO instances file
        source: name of the dump in errors

    Raises:
        DatasetError: not such a dump, other classes, or no image of the annotations.
    """
    categories = {category["name"]: category["id"] for category in content["categories"]}
    known = {image["id"] for image in content["images"]}
    try:
        images = [image for image in dump["images"] if image["image_id"] in known]
        results = [
            {"image_id": image["image_id"], "category_id": categories[det["category"]], "bbox": det["bbox"]}
            | {"score": det["score"], "segmentation": det["mask"]}
            for image in images
            for det in image["dets"]
        ]
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"{source} is not a dump of YOLACT's detections for these classes "
            f"({type(error).__name__}: {shown(error.args[0])}): "
            "give a file that eval.py --web_det_path wrote, and annotations of the same classes"
        ) from error
    if not images:
        raise DatasetError(
            f"{source} has none of the {len(known)} images of the annotations: give the annotations of its images"
        )
    check_results(results, content, source)
    return results, sorted(image["image_id"] for image in images)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("dump", metavar="DUMP", help="file of detections")
    parser.add_argument("--annotations", metavar="FILE", required=True, help="COCO instances file")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="COCO results to write")
    args = parser.parse_args(argv)
    try:
        dump = read_json(args.dump, "dump of detections", DatasetError)
        results, ids = convert(dump, read_annotations(args.annotations), args.dump)
        with results_file(args.output) as append:
            append(results)
    except YolactDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(results)} detections of {len(ids)} of the {len(dump['images'])} images", file=sys.stderr)
    listed = ",".join(map(str, ids))
    scored = ["eval", "--results", args.output, "--annotations", args.annotations, "--image-ids", listed]
    print(shlex.join(["yolact-deploy", *scored]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
