"""What makes `Detections` a plain value, checked for whichever backend they come from."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from yolact_deploy.detections import Detections
from yolact_deploy.runtime.predictor import Predictor


def outlive(make: Callable[[], Predictor], picture: Any) -> Detections:
    """Detections in a picture, of a model that is closed and gone before anyone asks for their masks."""
    model = make()
    detections = model(picture)
    assert isinstance(detections, Detections)
    backend = weakref.ref(model.backend)
    model.close()
    del model
    gc.collect()
    assert backend() is None, gc.get_referrers(backend())
    return detections


def check_plain_value(detections: Detections) -> None:
    """A pickle and a copy are equal, before and after the masks are pasted, and a pickle does not grow with use."""
    assert len(detections) > 0, "the test would show nothing"
    fresh = pickle.dumps(detections)
    copies = [round_trip(detections), copy.deepcopy(detections), copy.copy(detections)]
    assert detections.masks.any()
    assert len(pickle.dumps(detections)) == len(fresh), "masks that were pasted are not stored a second time"
    for other in (*copies, round_trip(detections), copy.deepcopy(detections)):
        check_equal(other, detections)
        assert other != other[::2][:-1]
    one = detections[-1]
    check_equal(round_trip(one), one)
    if len(detections) > 3:
        assert len(pickle.dumps(one)) < len(fresh), "a part does not carry the masks of the whole"


def round_trip(detections: Detections) -> Detections:
    copied = pickle.loads(pickle.dumps(detections))  # noqa: S301  # our own bytes
    assert isinstance(copied, Detections)
    return copied


def check_equal(ours: Detections, theirs: Detections) -> None:
    assert ours is not theirs
    assert ours == theirs
    for name in ("boxes", "scores", "labels"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)
    assert (ours.mask_scores is None) == (theirs.mask_scores is None)
    np.testing.assert_array_equal(ours.masks, theirs.masks)
    assert ours.to_json() == theirs.to_json()


def through_another_process(detections: list[Detections]) -> list[tuple[Detections, Any]]:
    """Each as a new process gives it back, and the masks that the process sees."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_seen, detections))


def _seen(detections: Detections) -> tuple[Detections, Any]:
    return detections, detections.packed_masks()


def check_another_process(detections: list[Detections]) -> None:
    for ours, (back, masks) in zip(detections, through_another_process(detections), strict=True):
        check_equal(back, ours)
        np.testing.assert_array_equal(masks, ours.packed_masks())
