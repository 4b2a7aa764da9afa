"""Spectral curvature of neural networks: Kronecker factors, directional curvature, the Spectral Newton optimizer.

The names below are the public face; each module's own functions stand beside them. They are loaded at first use, so
that `import spectral_ext` costs no more than torch.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from spectral_ext._figures import register
from spectral_ext._version import __version__

with contextlib.suppress(ImportError):  # without the compiled part, the first use of an op says why
    import spectral_ext._extension  # noqa: F401  (registers torch.ops.spectral_ext.*)

if TYPE_CHECKING:
    from spectral_ext.curvature import directional_curvature as directional_curvature
    from spectral_ext.factors import KroneckerAccumulator as KroneckerAccumulator
    from spectral_ext.factors import top_eigenpairs as top_eigenpairs
    from spectral_ext.landscape import Landscape as Landscape
    from spectral_ext.landscape.measure import measure as measure
    from spectral_ext.ops.input_factor import input_factor as input_factor
    from spectral_ext.ops.output_factor import output_factor as output_factor
    from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients as rayleigh_quotients
    from spectral_ext.ops.spectral_newton import SpectralMap as SpectralMap
    from spectral_ext.ops.spectral_newton import polar as polar
    from spectral_ext.ops.spectral_newton import spectral_map as spectral_map
    from spectral_ext.ops.spectral_newton import spectral_newton as spectral_newton
    from spectral_ext.optim import ScalarSpectralAdam as ScalarSpectralAdam
    from spectral_ext.optim import SpectralNewton as SpectralNewton
    from spectral_ext.spectra import effective_rank as effective_rank
    from spectral_ext.spectra import fit_alpha as fit_alpha
    from spectral_ext.spectra import fit_gamma as fit_gamma
    from spectral_ext.spectra import fit_rank_models as fit_rank_models
    from spectral_ext.spectra import fit_s as fit_s
    from spectral_ext.spectra import participation_ratio as participation_ratio
    from spectral_ext.spectra import zeta_bound as zeta_bound
    from spectral_ext.tracker import LandscapeTracker as LandscapeTracker

_HOME = {
    "curvature": ["directional_curvature"],
    "spectra": [
        "effective_rank",
        "fit_alpha",
        "fit_gamma",
        "fit_rank_models",
        "fit_s",
        "participation_ratio",
        "zeta_bound",
    ],
    "factors": ["KroneckerAccumulator", "top_eigenpairs"],
    "landscape": ["Landscape", "measure"],
    "ops": [
        "SpectralMap",
        "input_factor",
        "output_factor",
        "polar",
        "rayleigh_quotients",
        "spectral_map",
        "spectral_newton",
    ],
    "optim": ["ScalarSpectralAdam", "SpectralNewton"],
    "tracker": ["LandscapeTracker"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"spectral_ext.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'spectral_ext' has no attribute {name!r}")


def _draw(function: str) -> Any:
    """A drawing function of ``spectral_ext.plots``, imported when it is called."""
    return lambda *arguments, **options: getattr(importlib.import_module("spectral_ext.plots"), function)(
        *arguments, **options
    )


register("landscape", _draw("plot"))
register("track", _draw("plot_track"))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
