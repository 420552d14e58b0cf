"""Energy of one model running alone, measured with the meters of :mod:`yolact_deploy.machine.energy`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.errors import InputError
from yolact_deploy.machine.energy import Energy, EnergyMeter
from yolact_deploy.machine.sysfiles import ROOT
from yolact_deploy.runtime.predictor import Predictor


def measure_energy(
    predictor: Predictor,
    images: Sequence[Path],
    *,
    seconds: float = 10.0,
    root: Path = ROOT,
    nvml: Any = None,
) -> Energy:
    """Energy of one model that runs over the images again and again for a number of seconds.

    It must run alone: the energy of models that take turns cannot be separated. Without a meter nothing runs.

    Raises:
        InputError: no images, or an image that cannot be read.
    """
    if not images:
        raise InputError("nothing to measure: give at least one image")
    count = 0
    with EnergyMeter(root=root, nvml=nvml) as meter:
        end = time.perf_counter() + seconds
        for image in itertools.cycle(images) if meter.works else ():
            predictor(image)
            count += 1
            if time.perf_counter() >= end:
                break
    return meter.energy(count)
