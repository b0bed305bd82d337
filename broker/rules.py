"""What pydantic found wrong, in the words of those who wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

TEXT_ERRORS = {"string_pattern_mismatch", "string_too_short", "string_too_long", "string_type"}
NAME = 'letters, digits, "-" and "_", first a letter or digit, at most 128'
_RULES = {
    "missing": "is required",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be an object, NAME: VALUE",
    "model_type": "must be an object, NAME: VALUE",
}


def most_telling(error: ValidationError) -> ErrorDetails:
    """A field that does not exist goes before others: it often explains one that is missing."""
    found = error.errors(include_url=False)
    return next((one for one in found if one["type"] == "extra_forbidden"), found[0])


def rule(one: ErrorDetails) -> str:
    """What the value has to be."""
    said = _RULES.get(one["type"]) or one["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    least, most = one.get("ctx", {}).get("min_length"), one.get("ctx", {}).get("max_length")
    if one["type"] == "too_short":
        return f"must have at least {least}"
    return f"must have at most {most}" if one["type"] == "too_long" else said


def no_such_field(name: str, fields: Sequence[str]) -> str:
    """With the field that was likely meant, and all there are."""
    near = get_close_matches(name, fields, 1)
    meant = f'; did you mean "{near[0]}"?' if near else ";"
    return f"no such field{meant} {'T' if near else 't'}he fields are {', '.join(fields)}"
