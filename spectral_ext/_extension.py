"""Loads the compiled ops, or says why that fails: what was built, against what, and what is here."""

from __future__ import annotations

import torch

try:
    import spectral_ext._C as compiled
except ImportError as error:
    try:
        from spectral_ext._build_info import BUILD
    except ImportError:
        raise ImportError(
            "spectral_ext is not compiled: run `pip install --no-build-isolation .` "
            "(or `make build` in a clone) with the torch that you use installed"
        ) from error
    raise ImportError(
        f"spectral_ext was built for torch {BUILD['torch']} with CUDA {BUILD['cuda']} and Python {BUILD['python']}; "
        f"this is torch {torch.__version__} with CUDA {torch.version.cuda}. Rebuild it: "
        f"`pip install --no-build-isolation --force-reinstall --no-deps .` ({error})"
    ) from error

compiled.check_simd_environment()

__all__ = ["compiled"]
