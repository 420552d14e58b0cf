"""How the annotations of the NumPy core are checked while testing; see conftest.py."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

#: the NumPy core, whose annotations give dtypes and shapes
MODULES = ("mask_forms", "mask_iou", "paste", "postprocess", "preprocess", "priors")

#: an int passes for a float, as for mypy
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
