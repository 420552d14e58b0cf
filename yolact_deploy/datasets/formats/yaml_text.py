"""YAML of other people, within limits of time and memory."""

from __future__ import annotations

import os
from typing import Any

from yolact_deploy.errors import DatasetError, import_optional

#: an alias in a dataset file saves a word; many are a way to fill the memory
_MOST_ALIASES = 20
_MOST_BRACKETS = 500
#: of PyYAML; all but the first are raised for tags on values that do not fit them, such as "!!bool x" or "!!int ''"
_ERRORS = (ValueError, OverflowError, RecursionError, KeyError, IndexError, AttributeError, TypeError)


def parse_yaml(text: str, path: str | os.PathLike[str]) -> Any:
    """The content of a small YAML file.

    Args:
        path: of the file, for errors

    Raises:
        DatasetError: not YAML, or more aliases or nested values than anybody would write.
        MissingDependencyError: PyYAML is not installed.
    """
    yaml = import_optional("yaml", extra="train", purpose="reading a dataset file")
    brackets = text.count("[") + text.count("{")
    if brackets > _MOST_BRACKETS:  # the time to read nested ones grows with the square of their number
        raise DatasetError(
            f"{path} is not valid YAML of a dataset: {brackets} opening brackets, more than {_MOST_BRACKETS}"
        )
    try:
        aliases = sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        if aliases > _MOST_ALIASES:
            raise DatasetError(f"{path} has {aliases} aliases (*name), more than {_MOST_ALIASES}: write them out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, *_ERRORS) as error:
        raise DatasetError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
