"""What the models of a job are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def _text(value: object) -> object:
    """Numbers and booleans of a JSON or YAML file are welcome where a string is wanted."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str, BeforeValidator(_text)]


class Frozen(BaseModel):
    """A record that takes no field it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class OrText(Frozen):
    """One for which a string may stand; its schema says so."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        whole = handler.resolve_ref_schema(handler(core))
        about: dict[str, Any] = {key: whole.pop(key) for key in ("title", "description") if key in whole}
        return {**about, "anyOf": [{"type": "string"}, whole]}
