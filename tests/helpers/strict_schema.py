"""JSON Schemas without room for what they do not document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.cli import schemas

FOLDER = Path(schemas.__file__).parent


def schema_of(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.schema.json").read_text())


def assert_fits(value: dict[str, Any], name: str) -> None:
    """The JSON output of a command fits its schema and has no key that the schema does not document."""
    jsonschema: Any = pytest.importorskip("jsonschema")
    assert value["schema"] == name
    jsonschema.Draft202012Validator(strict(schema_of(name))).validate(value)


def strict(schema: Any) -> Any:
    """The schema with every key forbidden that it does not document."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    if "properties" in closed and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
