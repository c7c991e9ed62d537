"""Writes relay/values.schema.json: the chart's own values from values.schema.yaml, `config` from the relay's settings.

    python helm/schema.py [--check]

`config` is taken from the model that the relay itself loads, so the two cannot drift: a new setting is in the schema
after the next run, and the test of `--check` fails until then. Durations and sizes get the forms that the relay reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from relay import config
from relay.config import streams, units

HERE = Path(__file__).resolve().parent
SCHEMA = HERE / "relay" / "values.schema.json"
SOURCE = HERE / "values.schema.yaml"

Schema = dict[str, Any]

# Helm reads patterns as Go does, without look-ahead: "not zero" has to be spelled out.
_UNIT = r"\s*(ms|s|m|h|d)$"
_ANY_DURATION = r"^[0-9]+(\.[0-9]+)?" + _UNIT
_SOME_DURATION = r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)" + _UNIT
_SIZE = r"^[0-9]*[1-9][0-9]*\s*([KMG]iB|[KM]?B)?$"

# YAML reads `off` without quotes as false.
_OFF = [units.OFF, False]

_FORMS: dict[object, Schema] = {
    units.to_seconds: {"x-duration": True},
    units.to_seconds_or_never: {"x-duration": True, "x-never": True},
    units.check_address: {"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):[0-9]{1,5}$"},
    units.to_bytes_or_auto: {
        "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE}, {"enum": [units.AUTO]}]
    },
    units.to_bytes: {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE}]},
}


class _AsWritten(GenerateJsonSchema):
    """What a settings file may hold, rather than what becomes of it."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        function = schema["function"]["function"]
        form = _FORMS.get(function)
        if form is not None:
            return dict(form)
        inner = super().function_before_schema(schema)
        if function is units.to_workers:
            return {"anyOf": [inner, {"enum": [units.AUTO]}]}
        if function is units.off_to_none:
            return {"anyOf": [*inner["anyOf"], {"enum": _OFF}]}
        if function is units.off_to_word:
            return {"enum": [*inner["enum"], False]} if "enum" in inner else {"anyOf": [inner, {"enum": [False]}]}
        if function is streams.to_attaching:
            return {"enum": [*inner["enum"], True, False]}
        return inner

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        form = _FORMS.get(schema["function"]["function"])
        return dict(form) if form is not None else super().function_after_schema(schema)


def generate() -> str:
    source = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    definitions = {name: _read(part) for name, part in source["$defs"].items()}
    settings = config.Settings.model_json_schema(
        ref_template="#/definitions/{model}", schema_generator=_AsWritten, mode="validation"
    )
    definitions |= {name: _tidy(part) for name, part in settings.pop("$defs").items()}
    values = _read(source["values"])
    values["properties"]["config"] = _tidy(settings)
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the relay's chart",
        **values,
        "definitions": dict(sorted(definitions.items())),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _read(part: Any) -> Schema:
    """The short form of values.schema.yaml as JSON Schema."""
    if isinstance(part, str):
        return {"$ref": f"#/definitions/{part}"}
    if isinstance(part, list):
        return {"type": "array", "items": _read(part[0]) | {"required": list(part[0])}}
    if {"type", "enum", "anyOf"} & part.keys() and not isinstance(part.get("type"), dict):
        return dict(part)
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _read(value) for key, value in part.items()},
    }


def _tidy(part: Any) -> Any:
    """Without titles and defaults, which Helm does not read; durations in their own form."""
    if isinstance(part, list):
        return [_tidy(item) for item in part]
    if not isinstance(part, dict):
        return part
    if "x-duration" in part:
        return _duration(part)
    tidy = {key: _tidy(value) for key, value in part.items() if key not in ("title", "default", "gt", "ge", "format")}
    if "properties" in part:
        tidy["properties"] = {name: _tidy(value) for name, value in part["properties"].items()}
    return tidy


def _duration(part: Schema) -> Schema:
    above_zero = part.get("gt") == 0 or part.get("exclusiveMinimum") == 0
    bound = {"exclusiveMinimum": 0} if above_zero else {"minimum": 0}
    forms: list[Schema] = [
        {"type": "number", **bound},
        {"type": "string", "pattern": _SOME_DURATION if above_zero else _ANY_DURATION},
    ]
    words: list[Any] = ([] if above_zero else ["0"]) + (["never", *_OFF] if "x-never" in part else [])
    if words:
        forms.append({"enum": words})
    told = {"description": part["description"]} if "description" in part else {}
    return {**told, "anyOf": forms}


def main() -> int:
    wanted = generate()
    if "--check" in sys.argv[1:]:
        if SCHEMA.read_text(encoding="utf-8") != wanted:
            print("helm/relay/values.schema.json is not what the settings say; run: python helm/schema.py")
            return 1
        return 0
    SCHEMA.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
