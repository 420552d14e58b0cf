"""How the annotations of the NumPy core are checked while testing; see conftest.py."""

from __future__ import annotations

import inspect
import sys

from beartype import BeartypeConf, beartype

#: the NumPy core, whose annotations give dtypes and shapes
MODULES = ("mask_forms", "mask_iou", "paste", "postprocess", "preprocess", "priors")

#: an int passes for a float, as for mypy
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))


def leave_inner_functions_to_mypy() -> None:
    """Stop checking private functions, and methods of private classes, whose annotations give no shapes.

    Some are called for each mask of each picture, where checking takes far longer than computing.
    """
    for module in (sys.modules.get(f"yolact_deploy.{name}") for name in MODULES):
        if module is None:
            continue
        private = {name: value for name, value in vars(module).items() if name.startswith("_")}
        for owner in (module, *filter(inspect.isclass, private.values())):
            for name, value in dict(private if owner is module else vars(owner)).items():
                shapes = any(
                    '"' in str(each) or "'" in str(each) for each in getattr(value, "__annotations__", {}).values()
                )
                if inspect.isfunction(value) and value.__module__ == module.__name__ and not shapes:
                    setattr(owner, name, inspect.unwrap(value))
