"""JSON Schemas without room for what they do not document."""

from __future__ import annotations

from typing import Any


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
