"""Tables of text, narrow enough for 120 columns, to print or to put into HTML; those of accuracy and agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from yolact_deploy.evaluation.accuracy import Accuracy, AveragePrecision
    from yolact_deploy.evaluation.agreement import Agreement

T = TypeVar("T")


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(cls, title: str, items: Iterable[T], columns: Mapping[str, Callable[[T], object]]) -> Table:
        """A row for each item; each column has a function from item to cell, None gives an empty cell."""
        rows = [["" if (cell := of(item)) is None else str(cell) for of in columns.values()] for item in items]
        return cls(title, tuple(columns), rows)

    def markdown(self) -> str:
        """The table in GitHub's Markdown, without its title."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def accuracy_table(scored: Sequence[tuple[str, Accuracy]]) -> Table:
    """COCO AP x 100 of boxes and masks; S, M, L are the masks' by object size."""
    columns = ("engine", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75", "S", "M", "L")
    rows = [(name, *_figures(accuracy.box)[:3], *_figures(accuracy.mask)) for name, accuracy in scored]
    return Table(f"Accuracy: COCO AP x 100 on {scored[0][1].images} images; S, M, L of masks", columns, rows)


def _figures(ap: AveragePrecision | None) -> tuple[str, ...]:
    if ap is None:
        return ("",) * 6
    return tuple(percent(value) for value in (ap.ap, ap.ap50, ap.ap75, ap.small, ap.medium, ap.large))


def agreement_tables(reference: str, compared: Sequence[tuple[str, Agreement]]) -> list[Table]:
    """Two tables: which detections agree, and how exactly."""
    first = compared[0][1]
    which = Table(
        f"Agreement with {reference}: its {first.reference_detections} detections above {first.score_threshold:g} on "
        f"{first.images} images",
        ("engine", "box AP", "mask AP", "matched %", "IoU>=.9 %", "agreed %", "missed", "extra", "flips"),
        [
            (
                name,
                *map(percent, (a.box_ap, a.mask_ap, a.matched_share, a.matched_share_90, a.agreed_share)),
                *map(str, (a.missed, a.extra, a.label_flips)),
            )
            for name, a in compared
        ],
    )
    how = Table(
        "Of the matched detections",
        ("engine", "box IoU", "least", "mask IoU", "least", "score diff", "most"),
        [
            (
                name,
                *map(_fraction, (a.mean_box_iou, a.min_box_iou, a.mean_mask_iou, a.min_mask_iou)),
                *map(_fraction, (a.mean_score_difference, a.max_score_difference)),
            )
            for name, a in compared
        ],
    )
    return [which, how]


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
