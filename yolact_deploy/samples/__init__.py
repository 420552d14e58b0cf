"""Three COCO images with their annotations: what an export is checked on, and what the demo shows.

Images 196393 and 234748 are CC BY 2.0, 565248 is CC BY-SA 2.0 (see ATTRIBUTION.md); annotations CC BY 4.0.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

ANNOTATIONS = _FOLDER / "instances_samples.json"
IMAGES = _FOLDER / "images"


def sample_images() -> list[Path]:
    """Paths of the sample images."""
    return sorted(IMAGES.glob("*.jpg"))
