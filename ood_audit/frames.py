"""Results that are tables: as Arrow, pandas and Polars, and as a small HTML table in a notebook."""

from abc import ABC, abstractmethod
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING

from ood_audit.errors import UsageError
from ood_audit.text import printable

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

_SHOWN = 10  # rows in a notebook


class Tabular(ABC):
    """A result with one row for each image or finding."""

    @abstractmethod
    def to_arrow(self) -> "pa.Table":
        """All rows as an Arrow table."""

    def to_pandas(self) -> "pd.DataFrame":
        """All rows as a pandas data frame.

        Raises:
            UsageError: pandas is not installed.

        """
        _require("pandas")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "pl.DataFrame":
        """All rows as a Polars data frame.

        Raises:
            UsageError: Polars is not installed.

        """
        _require("polars")
        import polars as pl

        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table is one
        return frame

    def _shown_columns(self) -> tuple[str, ...]:
        """The columns of the HTML table."""
        return tuple(self.to_arrow().column_names)

    def _repr_html_(self) -> str:
        """The first rows as an HTML table, with all text escaped."""
        table = self.to_arrow()
        names = [name for name in self._shown_columns() if name in table.column_names]
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(row[name]))}</td>" for name in names) + "</tr>"
            for row in table.select(names).slice(0, _SHOWN).to_pylist()
        )
        more = f"<p>and {len(table) - _SHOWN:,} more rows</p>" if len(table) > _SHOWN else ""
        title = escape(printable(repr(self)))
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _require(name: str) -> None:
    try:
        import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed; install it with `pip install {name}`, or use to_arrow()") from error
