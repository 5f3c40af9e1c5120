"""Variant of the published OpenAPI document for fuzzing, which accepts exactly what the edge accepts.

Request bodies and queries are more lenient than a document for people and generators should be: they accept
null, strings for numbers and vice versa, and short names of enum values. In turn, schemas shared by requests
and responses are open in the document, because responses may gain fields, while unknown fields of a request
are rejected.
"""

from __future__ import annotations

import re
from typing import Any

Schema = dict[str, Any]

SCHEMAS = "#/components/schemas/"
#: String form of an integer.
WHOLE = {"type": "string", "pattern": "^-?[0-9]{1,20}$"}


def fuzzing_schema(document: Schema, tenant: str) -> Schema:
    """Return the document with request bodies exactly as strict as the edge; modifies `document`.

    Undocumented statuses are errors. The tenant is fixed, as most calls would otherwise have no effect.
    Streaming operations are left out.
    """
    schemas = document["components"]["schemas"]
    for name in list(schemas):
        schemas[f"Accepted{name}"] = _accepted(schemas[name], schemas)
    for path, operations in list(document["paths"].items()):
        for operation in operations.values():
            del operation["responses"]["default"]
            for parameter in operation["parameters"]:
                if parameter["name"] == "tenant":
                    parameter["schema"] = {"type": "string", "enum": [tenant]}
                elif parameter["in"] == "query":
                    parameter["schema"] = _accepted(parameter["schema"], schemas)
            if "requestBody" in operation:
                (content,) = operation["requestBody"]["content"].values()
                content["schema"] = _accepted(content["schema"], schemas)
        if "text/event-stream" in str(operations):
            del document["paths"][path]
    return document


def _accepted(schema: Schema, schemas: Schema) -> Schema:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(SCHEMAS)
        if "enum" not in schemas[name]:
            return {"$ref": f"{SCHEMAS}Accepted{name}"}
        schema = schemas[name]
    short = re.findall(r"in requests also `(\w+)`", schema.get("description", ""))
    schema = {key: value for key, value in schema.items() if key != "description"}
    if "enum" in schema:
        return {"anyOf": [schema | {"enum": schema["enum"] + short}, {"type": "integer"}, WHOLE]}
    if schema["type"] == "integer" or schema.get("format", "").endswith("int64"):
        return {"anyOf": [schema, {"type": "integer"}, WHOLE]}
    if schema["type"] == "array":
        schema["items"] = _accepted(schema["items"], schemas)
    if "properties" in schema:
        schema["additionalProperties"] = False
        required = schema.get("required", ())
        for name, inner in schema["properties"].items():
            accepted = _accepted(inner, schemas)
            schema["properties"] = schema["properties"] | {
                name: accepted if name in required else {"anyOf": [accepted, {"type": "null"}]}
            }
    return schema
