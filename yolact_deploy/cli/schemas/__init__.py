"""The JSON that ``predict``, ``eval``, ``doctor`` and ``inspect`` print or write, and its JSON Schemas.

Each object names its schema in ``schema``, and the file ``NAME.schema.json`` in this folder documents it. The schemas
are derived from :mod:`~yolact_deploy.cli.schemas.output_types`. A schema that was released stays as it is: what is
added or changed gets the next version. This command, which needs msgspec, writes the files:

    python -m yolact_deploy.cli.schemas
"""

from __future__ import annotations

from typing import Final

PREDICT: Final = "predict-v1"
RAY: Final = "predict-ray-v1"
DETECTIONS: Final = "detections-v1"
EVAL: Final = "eval-v1"
DOCTOR: Final = "doctor-v1"
INSPECT: Final = "inspect-v1"
