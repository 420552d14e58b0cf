"""JSON Schemas of types, with descriptions from their docstrings; needs msgspec."""

from __future__ import annotations

import re
from typing import Any

from yolact_deploy.errors import import_optional


def described_schema(of: type, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """JSON Schema (2020-12) of a dataclass or TypedDict and of all types in it.

    Args:
        leave_out: attributes that are not stored
    """
    msgspec = import_optional("msgspec", "bench", "Deriving a JSON Schema")
    (top,), components = msgspec.json.schema_components((of,), ref_template="#/$defs/{name}")
    for component in components.values():
        words, _, attributes = component.pop("description", "").partition("\n\nAttributes:\n")
        if words:
            component["description"] = " ".join(words.split())
        for names, text in re.findall(r"^    (\w[\w, ]*): (.+(?:\n     .+)*)", attributes, re.MULTILINE):
            for name in component["properties"].keys() & names.split(", "):
                component["properties"][name]["description"] = " ".join(text.split())
    whole = components.pop(top["$ref"].removeprefix("#/$defs/"))
    for name in leave_out:
        del whole["properties"][name]
    if "schema" not in whole["required"]:
        whole["required"].insert(0, "schema")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": components}
