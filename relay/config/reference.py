"""The settings reference, a Markdown table: `python -m relay.config.reference` prints it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from relay.config.auth import KeySettings
from relay.config.settings import Settings
from relay.config.units import off_to_none
from relay.config.upstreams import UpstreamSettings


def reference() -> str:
    """The settings reference as a Markdown table."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for path, field in settings_of(Settings, ""):
        rows.append(f"| `{path}` | {_default(field)} | {field.description} |")
    return "\n".join(rows)


def settings_of(model: type[BaseModel], prefix: str) -> Any:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{name}.")
        elif name == "keys":
            yield from settings_of(KeySettings, f"{prefix}keys[].")
        else:
            yield f"{prefix}{field.alias or name}", field
            if name == "upstreams":
                yield from settings_of(UpstreamSettings, "upstreams[].")


def _default(field: FieldInfo) -> str:
    default: object = field.default
    if field.is_required():
        return "required"
    if default is None and any(getattr(part, "func", None) is off_to_none for part in field.metadata):
        return "`off`"
    if default is None or default == [] or default == "":
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if default == float("inf"):
        return "`off`"
    if isinstance(default, float):
        return f"`{default:g}s`"
    if isinstance(default, int) and default >= 1024**2 and default % 1024**2 == 0:
        return f"`{default // 1024**2}MiB`"
    if isinstance(default, list):
        return f"`[{', '.join(str(item) for item in default)}]`"
    return f"`{default}`"


if __name__ == "__main__":
    print(reference())
