"""The published OpenAPI document as a fuzzer needs it: all that is taken, and nothing more.

Canonical protobuf JSON takes more than a document for people and generators should show: null, numbers as
strings and the other way round. And the parts that requests share with answers are left open there, as
answers may grow, though what a request says must be known.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

SCHEMAS = "#/components/schemas/"
#: What stands for a whole number.
WHOLE = {"type": "string", "pattern": "^-?[0-9]{1,20}$"}


def fuzzing_schema(document: Schema, tenant: str) -> Schema:
    """The document, with request bodies as strict and as lenient as the edge is; changes `document`.

    Statuses that are not named are refused, and so is every tenant but one, as most calls would come to
    nothing. What streams is left out.
    """
    schemas = document["components"]["schemas"]
    for name in list(schemas):
        schemas[f"Taken{name}"] = _taken(schemas[name], schemas)
    for path, operations in list(document["paths"].items()):
        for operation in operations.values():
            del operation["responses"]["default"]
            for parameter in operation["parameters"]:
                if parameter["name"] == "tenant":
                    parameter["schema"] = {"type": "string", "enum": [tenant]}
                elif parameter["in"] == "query":
                    parameter["schema"] = _taken(parameter["schema"], schemas)
            if "requestBody" in operation:
                (content,) = operation["requestBody"]["content"].values()
                content["schema"] = _taken(content["schema"], schemas)
        if "text/event-stream" in str(operations):
            del document["paths"][path]
    return document


def _taken(schema: Schema, schemas: Schema) -> Schema:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(SCHEMAS)
        if "enum" not in schemas[name]:
            return {"$ref": f"{SCHEMAS}Taken{name}"}
        schema = schemas[name]
    schema = {key: value for key, value in schema.items() if key != "description"}
    if "enum" in schema:
        return {"anyOf": [schema, {"type": "integer"}, WHOLE]}
    if schema["type"] == "integer" or schema.get("format", "").endswith("int64"):
        return {"anyOf": [schema, {"type": "integer"}, WHOLE]}
    if schema["type"] == "array":
        schema["items"] = _taken(schema["items"], schemas)
    if "properties" in schema:
        schema["additionalProperties"] = False
        required = schema.get("required", ())
        for name, inner in schema["properties"].items():
            taken = _taken(inner, schemas)
            schema["properties"] = schema["properties"] | {
                name: taken if name in required else {"anyOf": [taken, {"type": "null"}]}
            }
    return schema
