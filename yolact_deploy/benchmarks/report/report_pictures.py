"""Pictures of the HTML report: the images on which the models disagree most, the reference beside each other model."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.measure import WorstPicture
from yolact_deploy.benchmarks.report.report_html import name as broken
from yolact_deploy.benchmarks.report.report_html import text
from yolact_deploy.detections import Detections
from yolact_deploy.preprocess import read_image

PICTURE_WIDTH = 480
_JPEG_QUALITY = 80
#: budget for all pictures in the file; the rest of it takes about 100 kB
PICTURE_BYTES = 2_400_000
#: class names in a caption
_NAMED = 6


def picture_parts(pictures: Sequence[WorstPicture], reference: str) -> Iterator[str]:
    """The detections of each model, drawn over the worst images, as long as there is room."""
    room = PICTURE_BYTES
    for worst in pictures:
        figures = list(_figures(worst, reference))
        room -= sum(len(figure) for figure in figures)
        if room < 0:
            yield '<p class="note">Further pictures were left out to keep this file small.</p>'
            return
        yield f"<h3>{text(worst.path.name)}</h3>"
        yield f'<div class="pictures">\n{"".join(figures)}</div>'


def drawn_figure(picture: NDArray[np.uint8], drawn: NDArray[np.uint8], title: str, caption: str, alt: str) -> str:
    """A drawn picture, small enough for the page, under its title and caption."""
    height, width = _shown_size(picture)
    data = base64.b64encode(_jpeg(drawn)).decode("ascii")
    return (
        f'<figure><img alt="{text(alt)}" width="{width}" height="{height}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption><b>{broken(title)}</b> {text(caption)}</figcaption></figure>\n"
    )


def _figures(worst: WorstPicture, reference: str) -> Iterator[str]:
    picture = read_image(worst.path)
    for name, detections in worst.detections.items():
        caption = f"{len(detections)} detection{'s' * (len(detections) != 1)}"
        if errors := worst.errors.engines.get(name):
            flips = f"of another class than {reference}"
            counts = ((errors.missed, "missed"), (errors.extra, "extra"), (errors.label_flips, flips))
            wrong = ", ".join(f"{count} {word}" for count, word in counts if count)
            caption += f": {wrong or 'none missed, none extra'}{_differences(worst.detections[reference], detections)}"
        alt = f"{worst.path.name}, with what {name} detects: {counted(detections.names)}"
        yield drawn_figure(picture, detections.draw(picture), name, caption, alt)


def _differences(reference: Detections, detections: Detections) -> str:
    """Classes that one side has more of; empty if both have the same number of each."""
    expected, actual = Counter(reference.names), Counter(detections.names)
    fewer, more = (expected - actual).elements(), (actual - expected).elements()
    parts = [f"{word} {counted(list(names))}" for word, names in (("without", fewer), ("with", more))]
    parts = [part for part in parts if not part.endswith(_NOTHING)]
    return f" ({', '.join(parts)})" if parts else ""


_NOTHING = "nothing"


def counted(names: Sequence[str]) -> str:
    """For example "2 dog, 1 cat"."""
    counts = Counter(names).most_common()
    words = [f"{count} {name}" for name, count in counts[:_NAMED]]
    return ", ".join(words + ["..."] * (len(counts) > _NAMED)) or _NOTHING


def _shown_size(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width in the report: at most :data:`PICTURE_WIDTH` wide and twice as high."""
    height, width = picture.shape[:2]
    scale = min(1.0, PICTURE_WIDTH / width, 2 * PICTURE_WIDTH / height)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    height, width = _shown_size(picture)
    if (height, width) != picture.shape[:2]:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
