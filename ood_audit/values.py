"""Types of what comes from outside, whose shape is known only where it is read."""

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]  # what a JSON or YAML file holds; its reader says what must be in it
Row: TypeAlias = dict[str, Any]  # a row of a table by its columns, whose types are in `store/schema.py`
RowValues: TypeAlias = tuple[Any, ...]  # the values of a row in the order of the columns that were asked for
