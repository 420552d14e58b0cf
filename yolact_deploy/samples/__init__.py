"""Data in the package: annotated pictures, on which exports are checked, and weights.

`NUCLEI_MODEL` finds cell nuclei in microscopy pictures, and six annotated ones come with it; `DEMO_MODEL` was trained
on generated shapes. Their recipes are `nuclei` and `shapes_demo`. Both started from `MOBILENET_V2`, an 8-bit backbone
trained on ImageNet. Three COCO images serve every other model. ATTRIBUTION.md states origins and licenses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent

ANNOTATIONS = _FOLDER / "instances_samples.json"
IMAGES = _FOLDER / "images"
DEMO_MODEL = _FOLDER / "shapes_demo.safetensors"
NUCLEI_MODEL = _FOLDER / "nuclei.safetensors"
MOBILENET_V2 = _FOLDER / "mobilenet_v2_imagenet_int8.npz"
#: the models that come with the package; the first is the one that commands take if none is named
MODELS = (NUCLEI_MODEL, DEMO_MODEL)


@dataclass(frozen=True)
class AnnotatedImages:
    """Pictures of the package, their annotations in COCO's form, and the classes annotated."""

    images: Path
    annotations: Path

    def paths(self) -> list[Path]:
        return sorted((*self.images.glob("*.jpg"), *self.images.glob("*.png")))


COCO = AnnotatedImages(IMAGES, ANNOTATIONS)
NUCLEI = AnnotatedImages(_FOLDER / "nuclei" / "images", _FOLDER / "nuclei" / "instances.json")


def annotated_images(class_names: Sequence[str] = ()) -> AnnotatedImages:
    """The pictures of the package that suit a model of these classes."""
    return NUCLEI if tuple(class_names) == ("nucleus",) else COCO


def sample_images(class_names: Sequence[str] = ()) -> list[Path]:
    """Paths of the pictures that suit a model of these classes; without classes, of the three COCO images."""
    return annotated_images(class_names).paths()
