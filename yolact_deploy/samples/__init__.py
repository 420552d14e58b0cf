"""Data in the package: three COCO images with annotations, on which exports are checked, and weights.

`DEMO_MODEL` was trained on generated shapes (see `training/recipes/shapes_demo.py`), starting from `MOBILENET_V2`, an
8-bit backbone trained on ImageNet. ATTRIBUTION.md states the origin and license of each file.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

ANNOTATIONS = _FOLDER / "instances_samples.json"
IMAGES = _FOLDER / "images"
DEMO_MODEL = _FOLDER / "shapes_demo.safetensors"
MOBILENET_V2 = _FOLDER / "mobilenet_v2_imagenet_int8.npz"


def sample_images() -> list[Path]:
    """Paths of the sample images."""
    return sorted(IMAGES.glob("*.jpg"))
