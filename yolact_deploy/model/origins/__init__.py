"""Where checkpoints come from: other implementations of YOLACT, told by the names of their tensors.

Each origin is a file with an `ORIGIN`; a new one is a file and a line in :data:`ORIGINS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from yolact_deploy.model.origins import mmdetection, yolact_edge, yolact_minimal
from yolact_deploy.model.origins.origin import Origin

ORIGINS: tuple[Origin, ...] = (mmdetection.ORIGIN, yolact_edge.ORIGIN, yolact_minimal.ORIGIN)

#: what the names of every network begin with after those of the modules that wrap it: the original's and others'
NETWORK_NAMES = r"(?:prediction_layers\.0\.|prediction_layers\.coef_layer\.|bbox_head\.conv_coeff\.)"


def find_origin(names: Iterable[str]) -> Origin | None:
    """The origin of a network with these tensors; None for the original's and for what is no YOLACT."""
    known = set(names)
    return next((origin for origin in ORIGINS if known.issuperset(origin.markers)), None)
