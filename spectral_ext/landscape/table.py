"""The landscape: a mapping from layer name to row, with the layers left out and how it was measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spectral_ext._figures import draw
from spectral_ext.landscape.columns import COLUMNS, Column, summary, terminal_columns
from spectral_ext.landscape.coverage import coverage_line
from spectral_ext.landscape.documents import encode_landscape, load_document, save_document
from spectral_ext.landscape.files import write_atomically
from spectral_ext.landscape.row import LayerLandscape

TERMINAL_LAYERS = 200
"""A table in the terminal shows at most so many layers and says how many it leaves out."""


class Landscape(Mapping[str, LayerLandscape]):
    """One row per layer, keyed by name, in order of definition.

    Attributes:
        skipped: module name to the reason why it is not measured.
        meta: how it was measured: versions, device, dtype, samples, top_k, seed, mode of the batch norms, scale,
            seconds per stage, and ``notes`` that hold for all rows.
    """

    def __init__(
        self,
        rows: Mapping[str, LayerLandscape],
        skipped: Mapping[str, str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self._rows = dict(rows)
        self.skipped = dict(skipped or {})
        self.meta = dict(meta or {})

    def __getitem__(self, name: str) -> LayerLandscape:
        try:
            return self._rows[name]
        except KeyError:
            why = self.skipped.get(name)
            detail = f"{name!r} was not measured: {why}" if why else f"no layer {name!r}; there are {self._names()}"
            raise KeyError(detail) from None

    def _names(self, limit: int = 20) -> str:
        names = list(self._rows)
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        return ", ".join(names[:limit]) + more if names else "none"

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def to_frame(self) -> Any:
        """A pandas DataFrame: one row per layer, indexed by name, one column per entry of ``columns.COLUMNS``.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "Landscape.to_frame needs pandas: pip install pandas, or spectral-ext[frame]; "
                "Landscape.to_csv needs nothing"
            ) from error
        frame = pandas.DataFrame([summary(row) for row in self.values()], columns=["name", *_keys()])
        return frame.set_index("name")

    def to_csv(self, path: str | Path | None = None) -> str:
        """The same table as comma-separated text, without pandas; with ``path`` it is also written there.

        Floats have all their digits; what could not be measured is ``nan`` or empty.

        Raises:
            OSError: ``path`` cannot be written.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["name", *_keys()])
        writer.writerows(summary(row).values() for row in self.values())
        if path is not None:
            write_atomically(path, buffer.getvalue())
        return buffer.getvalue()

    def save(self, folder: str | Path) -> Path:
        """Write ``landscape.json`` into ``folder`` (made if need be) and return its path.

        Raises:
            OSError: the folder cannot be written to; a file that was there is as before.
        """
        return save_document(encode_landscape(self), folder)

    @classmethod
    def load(cls, path: str | Path) -> Landscape:
        """Read a folder that ``save`` wrote, or the file in it.

        Raises:
            FileNotFoundError: there is no landscape.
            LandscapeFileError: the file is truncated, edited, of another version, or holds rows that do not fit
                together. The message names the file, the place and the remedy.
        """
        return cls(*load_document(path))

    def plot(self, folder: str | Path | None = None, **options: Any) -> Any:
        """The figures of the paper for this landscape; see ``spectral_ext.plots.plot``."""
        return draw("landscape", self, folder, **options)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield rich_table(self, terminal_columns(self.values()))
        yield from remarks(self)

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        shown = list(self.values())[:TERMINAL_LAYERS]
        Console(file=buffer, width=table_width(shown, terminal_columns(shown)), no_color=True).print(self)
        return buffer.getvalue().rstrip()

    def __repr__(self) -> str:
        return f"<Landscape of {len(self)} layers, {len(self.skipped)} modules skipped>"


def _keys() -> list[str]:
    return [column.key for column in COLUMNS]


def rich_table(landscape: Landscape, columns: Sequence[Column]) -> Any:
    """The measured layers, up to ``TERMINAL_LAYERS`` of them, as a ``rich`` table of these columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Spectral landscape of {len(landscape)} layers", title_justify="left", header_style="bold")
    table.add_column("layer", no_wrap=True, overflow="ellipsis")
    for column in columns:
        table.add_column(column.symbol, justify="right" if column.numeric else "left", no_wrap=True)
    for row in list(landscape.values())[:TERMINAL_LAYERS]:
        if not row.empty_reason:
            cells = [column.cell(row) for column in columns]
            table.add_row(
                Text(layer_label(row)), *(Text(cell.text, style="dim italic" if cell.doubt else "") for cell in cells)
            )
    return table


def table_width(rows: Sequence[LayerLandscape], columns: Sequence[Column]) -> int:
    """Width of ``rich_table`` with every cell on one line."""
    from rich.cells import cell_len

    rows = [row for row in rows if not row.empty_reason]
    widths = [max([len("layer"), *(cell_len(layer_label(row)) for row in rows)])]
    for column in columns:
        widths.append(max([cell_len(column.symbol), *(cell_len(column.cell(row).text) for row in rows)]))
    return sum(widths) + 3 * len(widths) + 1


def layer_label(row: LayerLandscape, limit: int = 60) -> str:
    """The layer's name for one line of a table: control characters replaced, the front of a long name cut."""
    name = "".join(c if c.isprintable() else "�" for c in row.name) or "(model)"
    return name if len(name) <= limit else "…" + name[-(limit - 1) :]


def remarks(landscape: Landscape) -> list[Any]:
    """What the table in the terminal leaves out, one line each."""
    from rich.text import Text

    lines = []
    rows = list(landscape.values())
    if len(rows) > TERMINAL_LAYERS:
        further = len(rows) - TERMINAL_LAYERS
        lines.append(f"{further} further layers are not shown here: to_csv, the page's folder and the JSON hold them.")
    for row in [row for row in rows[:TERMINAL_LAYERS] if row.empty_reason]:
        lines.append(f"{layer_label(row)}: not measured, {row.empty_reason}.")
    if "coverage" in landscape.meta:
        lines.append(coverage_line(landscape.meta["coverage"]))
    if landscape.skipped:
        lines.append(f"{len(landscape.skipped)} modules are not measured; landscape.skipped and the page say why.")
    return [Text(line, style="dim") for line in lines]
