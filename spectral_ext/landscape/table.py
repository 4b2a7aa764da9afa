"""The landscape: a mapping from layer name to row, with the layers left out and how it was measured."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spectral_ext.landscape.row import LayerLandscape


class Landscape(Mapping[str, LayerLandscape]):
    """One row a layer, keyed by name, in order of definition.

    Attributes:
        skipped: module name to the reason why it is not measured.
        meta: how it was measured: versions, device, dtype, samples, top_k, seed, mode of the batch norms, scale,
            seconds a stage, and ``notes`` that hold for all rows.
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
            detail = (
                f"{name!r} was not measured: {why}" if why else f"no layer {name!r}; there are {', '.join(self._rows)}"
            )
            raise KeyError(detail) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a layer, indexed by name.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Landscape.to_frame needs pandas: pip install pandas, or spectral-ext[frame]") from error
        frame = pandas.DataFrame([summary(row) for row in self.values()], columns=list(_columns()))
        return frame.set_index("name")

    def save(self, folder: str | Path) -> Path:
        """Write ``landscape.json`` into ``folder`` (made if need be) and return its path."""
        from spectral_ext.landscape.storage import save

        return save(self, folder)

    @classmethod
    def load(cls, path: str | Path) -> Landscape:
        """Read a folder that ``save`` wrote, or the file in it.

        Raises:
            FileNotFoundError: there is no landscape.
            LandscapeFileError: truncated, edited, or of another version.
        """
        from spectral_ext.landscape.storage import load

        return load(path)

    def plot(self, folder: str | Path | None = None, **options: Any) -> Any:
        """The figures of the paper for this landscape; see ``spectral_ext.plots.plot``."""
        from spectral_ext.plots import plot

        return plot(self, folder, **options)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield _table(self)
        if self.skipped:
            yield f"{len(self.skipped)} modules not measured (landscape.skipped says why)"

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        Console(file=buffer, width=165 + max(map(len, self), default=0), no_color=True).print(self)
        return buffer.getvalue().rstrip()

    def __repr__(self) -> str:
        return f"<Landscape of {len(self)} layers, {len(self.skipped)} modules skipped>"


def summary(row: LayerLandscape) -> dict[str, Any]:
    """The row as scalars: one value and, for α, γ and s, the interval."""
    flat: dict[str, Any] = {
        "name": row.name,
        "kind": row.kind,
        "m": row.shape[0],
        "n": row.shape[1],
        "depth": row.depth,
        "directions": row.top_k,
        "negative": row.negative,
    }
    for name in ("alpha", "gamma", "s"):
        fit = getattr(row, name)
        flat |= {
            name: fit.value,
            f"{name}_low": fit.interval[0],
            f"{name}_high": fit.interval[1],
            f"{name}_r2": fit.r2,
        }
    flat |= {
        "beta": row.beta.value,
        "phi": row.phi.value,
        "chi_slope": row.chi_slope.value,
        "alpha_gamma": row.alpha_gamma,
        "transfer_error": row.transfer.relative_error,
        "rank_model": row.rank_models.best,
        "factor_match": row.factor_match,
        "predicted_law": row.predicted_law,
        "pr_curvature": row.pr_curvature,
        "pr_gradient": row.pr_gradient,
        "zeta_bound": row.zeta_bound,
        "rank_bound": row.rank_bound,
        "effective_rank_delta": row.effective_rank_delta.entropy,
        "effective_rank_A": row.effective_rank_A.entropy,
        "concentration": _median(row.arrays.concentration),
        "chi": _median(row.arrays.chi),
        "gauss_newton_share": _share(row),
        "spectrum_ks": row.prediction.ks if row.prediction else float("nan"),
        "alpha_weight": row.weight.alpha_weight.value if row.weight else float("nan"),
        "s_weight": row.weight.s_weight.value if row.weight else float("nan"),
        "r2_h_sigma2": row.r2_h_sigma2,
        "r2_gn_sigma2": row.r2_gn_sigma2,
        "r2_h_gn": row.r2_h_gn,
        "log_correlation": row.log_correlation,
        "recommended_alpha": row.recommendation.alpha if row.recommendation else float("nan"),
        "kronecker": row.recommendation.kronecker if row.recommendation else "",
        "recommended_rank": row.recommendation.rank if row.recommendation else 0,
        "method": row.method,
        "empty_reason": row.empty_reason,
        "notes": "; ".join(row.notes),
    }
    return flat


def _columns() -> tuple[str, ...]:
    return tuple(summary(LayerLandscape("", "", (0, 0), 0)))


def _median(values: Any) -> float:
    import numpy as np

    return float(np.median(values)) if len(values) else float("nan")


def _share(row: LayerLandscape) -> float:
    """Σ|GN part| over Σ|GN part| + Σ|residual parts|."""
    import numpy as np

    gauss_newton = np.abs(row.arrays.h_gauss_newton).sum()
    if not len(row.arrays.h_gauss_newton):
        return float("nan")
    total = gauss_newton + sum(np.abs(part).sum() for part in row.arrays.h_residual.values())
    return float(gauss_newton / total) if total > 0 else float("nan")


def _table(landscape: Landscape) -> Any:
    from rich.table import Table

    table = Table(title=f"Spectral landscape of {len(landscape)} layers")
    for heading, justify in (
        ("layer", "left"), ("kind", "left"), ("shape", "right"), ("α", "right"), ("R²", "right"), ("β", "right"),
        ("φ", "right"), ("γ", "right"), ("s", "right"), ("αγ", "right"), ("law in rank", "left"), ("PR h", "right"),
        ("PR G", "right"), ("SoP/PoS", "right"), ("h ≤ 0", "right"), ("T(σ; α)", "right"), ("Kronecker", "left"),
    ):  # fmt: skip
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in landscape.values():
        if row.empty_reason:
            table.add_row(
                row.name,
                row.kind,
                f"{row.shape[0]}×{row.shape[1]}",
                f"– {row.empty_reason}",
            )
            continue
        advice = row.recommendation
        table.add_row(
            row.name,
            row.kind,
            f"{row.shape[0]}×{row.shape[1]}",
            _with_interval(row),
            *(
                _number(v)
                for v in (
                    row.alpha.r2,
                    row.beta.value,
                    row.phi.value,
                    row.gamma.value,
                    row.s.value,
                )
            ),
            _number(row.alpha_gamma),
            row.rank_models.best.replace("_", " ") or "–",
            _number(row.pr_curvature),
            _number(row.pr_gradient),
            _number(_median(row.arrays.concentration)),
            str(row.negative),
            _number(advice.alpha) if advice else "–",
            advice.kronecker if advice else "–",
        )
    return table


def _with_interval(row: LayerLandscape) -> str:
    if not row.alpha.ok:
        return "–"
    half = (row.alpha.interval[1] - row.alpha.interval[0]) / 2
    return f"{row.alpha.value:.2f} ± {half:.2f}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else "–"
