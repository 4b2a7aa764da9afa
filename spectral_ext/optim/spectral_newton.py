"""SpectralNewton: T(σ; α, d) = σ/(σ^α + d) on the singular values of every weight's momentum, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.optim import adamw, checkpoint, settings
from spectral_ext.optim.gradients import any_nonfinite, has_nonfinite, nonfinite_names, settle
from spectral_ext.optim.groups import WHOLE, expand
from spectral_ext.optim.landscape import keyed, measured_alphas, row_of
from spectral_ext.optim.layout import Layout
from spectral_ext.optim.matrix_step import matrix_step, new_state
from spectral_ext.optim.names import aliases, check_patterns, layers_in, names_in
from spectral_ext.optim.parameters import parameter_groups
from spectral_ext.optim.update_scale import UpdateScale

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
PerParameter = float | list[float] | Mapping[str, float]


class NonFiniteGradientError(RuntimeError):
    """A gradient holds NaN or infinity; the message names the parameters."""


class SpectralNewton(torch.optim.Optimizer):
    """Spectral Newton, §7.3, for matrices and AdamW for everything else.

    For a weight W with gradient g, read as a matrix (m, n) (convolutions flattened; see ``batch_dims`` and ``split``)::

        M ← μ M + (1 − μ) g        momentum_mode "ema";   M ← μ M + g   for "sum"
        D = M, or with nesterov    (1 − μ) g + μ M  ("ema"),   g + μ M  ("sum")
        W ← (1 − lr·weight_decay) W − lr · c · U diag(σ_k/(σ_k^α + d)) Vᵀ,     D = U diag(σ) Vᵀ

    with the factor c of ``update_scale``. The default settings were the best of the sweep in
    ``experiments/train_optimizers.py``; with them the update does not depend on the scale of the loss, and the best
    learning rate was four to eight times AdamW's. A matrix whose gradient is zero is not moved, whatever its momentum
    (an expert without a token: T(D) would carry it on at full speed); weight decay still applies.

    Args:
        params: a model (its parameters are sorted by ``parameter_groups``: linear layers and convolutions are matrices;
            embeddings, norms, biases, depthwise convolutions and the output head go to AdamW), or tensors, named
            tensors or param groups as in ``torch.optim``, where nothing is known of the modules: ``use_adamw`` decides;
            where it is None, parameters of fewer than ``batch_dims`` + 2 dimensions go to AdamW, and a group of both
            kinds becomes two, matrices first.
        lr: learning rate, a float or a one-element tensor (needed to change it under ``torch.compile`` or in a CUDA
            graph; the groups share it, and to move them apart ``adamw_lr`` takes a tensor of its own).
        alpha: curvature exponent, in (0, 6]: a number, a list with one entry a matrix parameter, a mapping from shell
            patterns of parameter or layer names (the first that fits; ``*`` last), or ``"landscape"``, which takes
            ``landscape``. A pattern that fits no name is an error.
        damping: d > 0; a number, list or mapping as ``alpha``.
        damping_mode: the unit of d: ``absolute`` (d, as in the paper), ``spectral`` (d·σ_max^α) or ``rms`` (d·(mean
            σ²)^{α/2}); also a list or mapping.
        momentum: μ in [0, 1).
        momentum_mode: ``ema`` or ``sum``. The scale of T(G) depends on it where ``damping_mode`` is ``absolute``.
        nesterov: look one step ahead.
        weight_decay: decoupled, for all groups; ``adamw_weight_decay`` overrides it for AdamW's.
        update_scale: the factor c. ``match_rms_adamw``: the update's root mean square is 0.2. ``spectral``: the largest
            value of T, in closed form, becomes √max(1, m/n). None: 1. Or a callable from T(G), (…, m, n), to c, a
            number or a tensor (…, 1, 1); it is saved with the state, so it should have a name in a module.
        batch_dims: leading dimensions that count matrices: 1 for experts (E, m, n). A number, list or mapping.
        split: fused matrices along ``split_dim``: a count (3 for query, key and value), a tuple of sizes, or list or
            mapping of those. A mapping of ``split`` or ``batch_dims`` leaves what ``parameter_groups`` found of the
            parameters that it does not name.
        split_dim: 0 for rows (``nn.Linear``), 1 for columns (weights stored as (in, out)).
        use_adamw: True or False puts all parameters of a group with AdamW or with the matrices.
        adamw_lr: AdamW's learning rate, ``lr`` if None; a group that AdamW has to itself may also set ``lr``. The same
            holds for ``adamw_weight_decay``.
        adamw_betas: AdamW's β₁ and β₂.
        adamw_eps: AdamW's ε.
        adamw_weight_decay: AdamW's weight decay, ``weight_decay`` if None.
        maximize: ascend.
        capturable: safe in a CUDA graph: no synchronisation; needs ``nonfinite="skip"``.
        nonfinite: ``raise`` NonFiniteGradientError, naming the parameters, before anything is changed; or ``skip`` the
            step.
        solver, tolerance: of ``spectral_ext.ops.spectral_newton``; ``tolerance`` is the relative error allowed in
            T(D), None asks for the accuracy of the dtype, at up to three times the cost.
        landscape: a mapping from layer name to α: numbers, or the rows of a Landscape. Prefixes of wrappers (DDP's
            ``module``, compilation's ``_orig_mod``) do not count, on either side. Rows of layers that AdamW takes or
            that are frozen are not used; a row that names nothing in the model is an error.
        default_alpha: α of matrices that the landscape lacks or has no fit for; without it they are an error.
        process_group: replicas (DDP): each rank updates its share of the matrices, balanced by cost, and all ranks
            gather the results. All ranks must hold the same parameters and gradients. DTensors (FSDP2, tensor
            parallelism) need no setting. Copies and pickles of the optimizer have none.

    State: ``momentum_buffer`` of each matrix (if momentum is not 0), ``step``, ``exp_avg``, ``exp_avg_sq`` of the
    others, there from construction on, so that a fresh optimizer and a trained one have the same checkpoint layout.

    Raises:
        ValueError, TypeError: a setting out of range or of another optimizer (``betas``), an empty group, a pattern or
            a row of the landscape that names nothing, a complex parameter or a sparse gradient, parameters of one group
            on several devices, parameters flattened by FSDP1. The message names the parameter.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2e-2,
        alpha: PerParameter | str = 2.0,
        damping: PerParameter = 0.1,
        damping_mode: str | list[str] | Mapping[str, str] = "rms",
        momentum: float = 0.95,
        *,
        momentum_mode: str = "ema",
        nesterov: bool = True,
        weight_decay: float = 0.01,
        update_scale: UpdateScale = "match_rms_adamw",
        batch_dims: int | list[int] | Mapping[str, int] = 0,
        split: Any = 1,
        split_dim: int | list[int] | Mapping[str, int] = 0,
        use_adamw: bool | None = None,
        adamw_lr: float | Tensor | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float | None = None,
        maximize: bool = False,
        capturable: bool = False,
        nonfinite: str = "raise",
        solver: str = "auto",
        tolerance: float | None = 1e-3,
        landscape: Mapping[str, Any] | None = None,
        default_alpha: float | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        if nonfinite not in settings.NONFINITE:
            raise ValueError(f"nonfinite must be one of {settings.NONFINITE}, not {nonfinite!r}")
        if capturable and nonfinite == "raise":
            raise ValueError('capturable=True cannot raise without a synchronisation: pass nonfinite="skip"')
        if (isinstance(alpha, str) and alpha == "landscape") != (landscape is not None):
            raise ValueError('alpha="landscape" and landscape= go together: pass both')
        if process_group is not None and not isinstance(process_group, torch.distributed.ProcessGroup):
            raise TypeError(f"process_group must be a torch.distributed.ProcessGroup, not {process_group!r}")
        if isinstance(params, (set, frozenset)):
            raise TypeError("params is a set, whose order changes between runs: pass a list")
        self.process_group = process_group
        model = params if isinstance(params, nn.Module) else None
        known = None if model is None else [*layers_in(model), *names_in(model)]
        self._landscape = None if landscape is None else keyed(landscape, known)
        self._skipped = {
            alias: why for name, why in getattr(landscape, "skipped", {}).items() for alias in aliases(name)
        }
        self._default_alpha = default_alpha
        defaults = dict(
            lr=lr, alpha=alpha, damping=damping, damping_mode=damping_mode, momentum=momentum,
            momentum_mode=momentum_mode, nesterov=nesterov, weight_decay=weight_decay, update_scale=update_scale,
            batch_dims=batch_dims, split=split, split_dim=split_dim, use_adamw=use_adamw, adamw_lr=adamw_lr,
            adamw_betas=adamw_betas, adamw_eps=adamw_eps, adamw_weight_decay=adamw_weight_decay, maximize=maximize,
            capturable=capturable, nonfinite=nonfinite, solver=solver, tolerance=tolerance,
        )  # fmt: skip
        if model is not None:
            params = parameter_groups(model)
            for key in ("split", "batch_dims"):
                if not isinstance(defaults[key], Mapping) and defaults[key] != getattr(Layout, key):
                    params[0][key] = defaults[key]
        super().__init__(params, defaults)  # type: ignore[arg-type]
        self._check_names(model)

    def _check_names(self, model: nn.Module | None) -> None:
        """Raise ValueError for patterns that fit nothing, and for a landscape of which no layer was used."""
        names = [name for i, group in enumerate(self.param_groups) for name in settings.names_of(group, i)]
        known = names
        if model is not None:
            # The second name of a tied matrix would pass here and then not be found.
            matrices = {id(p) for group in self.param_groups if not group["use_adamw"] for p in group["params"]}
            every = model.named_parameters(remove_duplicate=False)
            known = names + [name for name, p in every if id(p) not in matrices]
        for key in settings.PER_PARAMETER:
            if isinstance(self.defaults[key], Mapping):
                check_patterns(key, self.defaults[key], known)
        if self._landscape and model is None and all(row_of(self._landscape, name) is None for name in names):
            raise ValueError(
                f"the landscape has no layer of these parameters: it has {', '.join(list(self._landscape)[:4])}, …, "
                f"they are {', '.join(names[:4])}, …"
            )

    @classmethod
    def from_landscape(
        cls,
        model: nn.Module,
        landscape: Mapping[str, Any],
        lr: float | Tensor = 2e-2,
        *,
        measured: bool = False,
        default_alpha: float | None = None,
        **options: Any,
    ) -> SpectralNewton:
        """SpectralNewton over a model with the measured curvature exponent of each layer.

        Args:
            model: any module; its parameters are sorted as by ``SpectralNewton(model)``.
            landscape: layer name → α: numbers, or rows as of a Landscape.
            measured: take the fitted α of each row, ``row.alpha.value``, as it is, instead of
                ``row.recommendation.alpha``, which snaps to theory's 1 and 2 inside the interval and falls back to 2
                where the fit is weak.
            lr, default_alpha, options: of ``SpectralNewton``.

        Raises:
            KeyError: a matrix's layer is not in the landscape and there is no ``default_alpha``.
            ValueError: a measured α is outside (0, 6], or a row names nothing in the model.
        """
        landscape = measured_alphas(landscape) if measured else landscape
        return cls(model, lr, "landscape", landscape=landscape, default_alpha=default_alpha, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: its settings are checked, its state is made, and a group of both kinds is split in two."""
        number = len(self.param_groups)
        naming = (self._landscape, self._skipped, self._default_alpha)
        try:
            for group, _ in list(expand(param_group, self.defaults, number, *naming)):
                super().add_param_group(group)
        except BaseException:
            del self.param_groups[number:]
            raise
        for group in self.param_groups[number:]:
            for parameter in group["params"]:
                self._ensure_state(parameter, group)

    def _ensure_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter; what it lacks is made: of a new group, or where a scheduler began momentum."""
        state = self.state[parameter]
        if group["use_adamw"]:
            if "exp_avg" not in state:
                state |= adamw.new_state(parameter, group)
        elif group["momentum"] and "momentum_buffer" not in state:
            state |= new_state(parameter, group)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave: settings of the groups and state; ``capturable`` and ``nonfinite`` stay.

        Raises:
            ValueError: the state is another optimizer's, or has other groups or shapes; nothing has changed.
        """
        try:
            super().load_state_dict(state_dict)
        except ValueError:
            checkpoint.check_groups(state_dict["param_groups"])
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        checkpoint.check_groups(state["param_groups"])
        checkpoint.check_shapes(state["param_groups"], state["state"])
        super().__setstate__(state)
        for name in ("process_group", "_landscape", "_default_alpha"):
            self.__dict__.setdefault(name, None)
        self.__dict__.setdefault("_skipped", {})
        checkpoint.follow(self.param_groups, self.state, {key: self.defaults[key] for key in WHOLE})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; ``closure`` re-evaluates the model and its value is returned.

        Raises:
            NonFiniteGradientError: with ``nonfinite="raise"``; nothing has changed.
            TypeError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        active = []
        for number, group in enumerate(self.param_groups):
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                settle(group, number)
                active.append((number, group, parameters))
        found_inf = None
        if self.defaults["capturable"]:
            found_inf = any_nonfinite([p for *_, parameters in active for p in parameters])
        elif self._has_nonfinite(active):
            return loss
        for number, group, parameters in active:
            states = [self._ensure_state(p, group) for p in parameters]
            if group["use_adamw"]:
                adamw.step(parameters, states, group, found_inf)
            else:
                matrix_step(parameters, states, group, number, found_inf, self.process_group)
        return loss

    @torch.compiler.disable
    def _has_nonfinite(self, active: list[tuple[int, dict[str, Any], list[Tensor]]]) -> bool:
        """Whether a gradient anywhere is not finite; raises if asked to."""
        found = has_nonfinite([p for *_, parameters in active for p in parameters])
        if found and self.defaults["nonfinite"] == "raise":
            raise NonFiniteGradientError(
                f"the gradient of {nonfinite_names(self.param_groups)} is not finite; nothing was changed. "
                'nonfinite="skip" skips such steps; with AMP, step through torch.amp.GradScaler'
            )
        return found
