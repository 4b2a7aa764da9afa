"""SpectralNewton: T(σ; α, d) = σ/(σ^α + d) on the singular values of every weight's momentum, AdamW for the rest.

Longer than 350 lines: a third is the documentation of the settings, which belong to one class.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.ops.spectral_newton import SpectralMap
from spectral_ext.optim import settings
from spectral_ext.optim.checkpoint import CheckpointedOptimizer
from spectral_ext.optim.gradients import agree, check_gradients, nonfinite_names, redistribute_gradients
from spectral_ext.optim.groups import check_names, name_alike, resolve_group, with_known_names
from spectral_ext.optim.landscape import keyed, measured_alphas, new_values
from spectral_ext.optim.matrix_step import Transform
from spectral_ext.optim.names import aliases, layers_in, names_in
from spectral_ext.optim.parameters import Route, groups_of, routes_of
from spectral_ext.optim.routing import Routing, routing_of
from spectral_ext.optim.state import current_state
from spectral_ext.optim.step import group_step
from spectral_ext.optim.strangers import Strangers
from spectral_ext.optim.transfer import Transfer, check_transfer, map_of, transfer_setting
from spectral_ext.optim.update_scale import UpdateScale

log = logging.getLogger(__name__)
NOT_CHECKED = ("params", "param_names", "rounding_step")
"""What of a group is no setting."""
Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
PerParameter = float | list[float] | Mapping[str, float]
Rate = float | Tensor | Mapping[str, float]


class NonFiniteGradientError(RuntimeError):
    """A gradient holds NaN or infinity; the message names the parameters."""


class SpectralNewton(CheckpointedOptimizer):
    """Spectral Newton, §7.3, for matrices and AdamW for everything else.

    For a weight W with gradient g, read as a matrix (m, n) (convolutions flattened; see ``batch_dims`` and ``split``)::

        M ← μ M + (1 − μ) g        momentum_mode "ema";   M ← μ M + g   for "sum"
        D = M, or with nesterov    (1 − μ) g + μ M  ("ema"),   g + μ M  ("sum")
        W ← (1 − lr·weight_decay) W − lr · c · U diag(σ_k/(σ_k^α + d)) Vᵀ,     D = U diag(σ) Vᵀ

    with the factor c of ``update_scale``. With the default settings the update does not depend on the scale of the
    loss. A matrix whose gradient is zero is not moved, whatever its momentum (an expert without a token, the queries of
    a fused weight: T(D) would carry it on at full speed); weight decay still applies.

    Args:
        params: a model (its parameters are sorted by ``parameter_groups``; ``routing()`` shows how), or tensors, named
            tensors or param groups as in ``torch.optim``, where nothing is known of the modules: ``use_adamw`` decides;
            where it is None, AdamW takes parameters of fewer than ``batch_dims`` + 2 dimensions and, by name,
            embeddings (``*embed*.weight``, ``wte``, ``wpe``) and ``lm_head``. A group of both kinds becomes two,
            matrices first.
        lr: learning rate: a float, a one-element tensor (needed to change it in a CUDA graph; the groups share it, and
            to move them apart ``adamw_lr`` takes a tensor of its own), or a mapping from shell patterns of parameter or
            layer names to rates (the first that fits; ``*`` last), for which groups are cut by rate.
        alpha: curvature exponent, in (0, 6]: a number, a list with one entry per matrix parameter, a mapping as ``lr``,
            or ``"landscape"``, which takes ``landscape``. A pattern that fits no name is an error.
        damping: d > 0; a number, list or mapping.
        damping_mode: the unit of d, as in ``spectral_ext.ops.spectral_newton``; also a list or mapping.
        momentum: μ in [0, 1).
        transfer: another map of the singular values in place of T, for which α and d have no meaning: a
            ``SpectralMap``, the name of one ("polar" is Muon's), or a callable. It is saved by name and parameters, a
            callable by name alone; a state with another one is refused.
        momentum_mode: ``ema`` or ``sum``. The scale of T(D) depends on it where ``damping_mode`` is ``absolute``.
        nesterov: look one step ahead.
        weight_decay: decoupled, for all groups; ``adamw_weight_decay`` overrides it for AdamW's. Mappings as ``lr``.
        update_scale: the factor c. ``match_rms_adamw``: the spectral norm of the update becomes 0.2·√max(m, n), as
            Muon's of that name. ``spectral``: √max(1, m/n). None: 1. Or a callable from T(D), (…, m, n), to c, a number
            or a tensor (…, 1, 1); it is saved with the state, so it should have a name in a module.
        heads: with a model, patterns of the output heads, which AdamW takes; () for none. None looks for them, and
            warns where it has to guess.
        batch_dims: leading dimensions that count matrices: 1 for experts (E, m, n). A number, list or mapping.
        split: fused matrices along ``split_dim``: a count (3 for query, key and value), a tuple of sizes, or list or
            mapping of those. A mapping of ``split``, ``split_dim`` or ``batch_dims`` leaves what is known of the model
            for the parameters that it does not name.
        split_dim: 0 for rows (``nn.Linear``), 1 for columns (weights stored as (in, out)).
        use_adamw: True or False puts all parameters of a group with AdamW or with the matrices.
        adamw_lr: AdamW's learning rate, ``lr`` if None; a group that AdamW has to itself may also set ``lr``. A mapping
            (``{"*.bias": 1e-3, "lm_head": 5e-4}``) leaves ``lr`` to the names that it does not fit. The same holds for
            ``adamw_weight_decay``.
        adamw_betas: AdamW's β₁ and β₂.
        adamw_eps: AdamW's ε.
        adamw_weight_decay: AdamW's weight decay, ``weight_decay`` if None.
        low_precision: how weights of 16 bits are written; their moments are float32 in any case. None rounds to
            nearest, which loses small updates. ``stochastic_rounding``: the expected weight is exact; the noise depends
            on ``rounding_seed``, the step and the parameter alone. ``compensated``: what rounding cuts off is kept in
            16 bits beside the weight (Kahan).
        rounding_seed: an integer.
        maximize: ascend.
        capturable: safe in a CUDA graph: no synchronisation; needs ``nonfinite="skip"``, and refuses solvers that wait
            for the device.
        nonfinite: ``raise`` NonFiniteGradientError, naming the parameters, before anything is changed; or ``skip`` the
            step: ``skipped_steps`` counts, and the first one warns.
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
    others, ``compensation`` of compensated weights. It is made in the first step with a gradient and follows device,
    dtype and placement of its parameter.

    Raises:
        ValueError, TypeError: a setting out of range or of another optimizer (``betas``), an empty group, a pattern or
            a row of the landscape that names nothing, a complex parameter or a sparse gradient, parameters of one group
            on several devices, parameters flattened by FSDP1. The message names the parameter.

    Warns:
        UserWarning: which layer is the head is a guess; parameters without names are embeddings for all that is known;
            a parameter of the model has a gradient and is in no group.
    """

    def _begin_process(self, process_group: torch.distributed.ProcessGroup | None = None) -> None:
        """What belongs to this process and object, and goes into no copy, pickle or state."""
        self.process_group = process_group
        self._landscape: Mapping[str, Any] | None = None
        self._default_alpha: float | None = None
        self._skipped: Mapping[str, str] = {}
        self._strangers = Strangers(None)
        self._routes: Mapping[str, Route] = {}
        self._reasons: dict[str, str] = {}
        self._callables: dict[str, SpectralMap] = {}
        self._transforms: dict[int, tuple[str, Transform | None]] = {}
        self._warned: set[str] = set()
        self._skipped_steps: int | Tensor = 0

    def __init__(
        self,
        params: Params,
        lr: Rate = 3e-2,
        alpha: PerParameter | str = 2.0,
        damping: PerParameter = 0.1,
        damping_mode: str | list[str] | Mapping[str, str] = "rms",
        momentum: float = 0.95,
        *,
        transfer: Transfer = None,
        momentum_mode: str = "ema",
        nesterov: bool = True,
        weight_decay: Rate = 0.01,
        update_scale: UpdateScale = "match_rms_adamw",
        heads: str | Iterable[str] | None = None,
        batch_dims: int | list[int] | Mapping[str, int] = 0,
        split: Any = 1,
        split_dim: int | list[int] | Mapping[str, int] = 0,
        use_adamw: bool | None = None,
        adamw_lr: Rate | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: Rate | None = None,
        low_precision: str | None = None,
        rounding_seed: int = 0,
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
        model = params if isinstance(params, nn.Module) else None
        if heads is not None and model is None:
            raise ValueError("heads= needs the model: pass it, or heads= to parameter_groups")
        self._begin_process(process_group)
        known = None if model is None else [*layers_in(model), *names_in(model)]
        self._landscape = None if landscape is None else keyed(landscape, known)
        self._skipped = {
            alias: why for name, why in getattr(landscape, "skipped", {}).items() for alias in aliases(name)
        }
        self._default_alpha = default_alpha
        defaults = dict(
            lr=lr, alpha=alpha, damping=damping, damping_mode=damping_mode, momentum=momentum,
            transfer=transfer_setting(transfer, self._callables), momentum_mode=momentum_mode, nesterov=nesterov,
            weight_decay=weight_decay, update_scale=update_scale,
            batch_dims=batch_dims, split=split, split_dim=split_dim, use_adamw=use_adamw, adamw_lr=adamw_lr,
            adamw_betas=adamw_betas, adamw_eps=adamw_eps, adamw_weight_decay=adamw_weight_decay,
            low_precision=low_precision, rounding_seed=rounding_seed, rounding_step=0, maximize=maximize,
            capturable=capturable, nonfinite=nonfinite, solver=solver, tolerance=tolerance,
        )  # fmt: skip
        if model is not None:
            self._strangers, self._routes = Strangers(model), routes_of(model, heads=heads)
            params = groups_of(model, self._routes)
        super().__init__(params, defaults)  # type: ignore[arg-type]
        self._warn(check_names(self.param_groups, defaults, model, self._landscape))

    def _names(self) -> list[list[str]]:
        """The parameters' names, group by group."""
        return [settings.names_of(group, number) for number, group in enumerate(self.param_groups)]

    def _warn(self, text: str) -> None:
        """Warn once of a text."""
        if text and text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, UserWarning, stacklevel=4)

    @classmethod
    def from_landscape(
        cls,
        model: nn.Module,
        landscape: Mapping[str, Any],
        lr: Rate = 3e-2,
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
        """Add a group: its settings are checked, and a group of both kinds or of several rates is cut.

        Parameters of the model that the optimizer was made with need no names, and are sorted as the model's were.
        """
        number = len(self.param_groups)
        given = dict(param_group) | {"params": with_known_names(param_group["params"], self._strangers.model())}
        if "transfer" in given:
            given["transfer"] = transfer_setting(given["transfer"], self._callables)
        known = (self._landscape, self._skipped, self._default_alpha, self._routes)
        reasons: dict[str, str] = {}
        try:
            for group, why in list(resolve_group(given, self.defaults, number, *known)):
                name_alike(group, list(why), self.param_groups)
                super().add_param_group(group)
                reasons |= why
        except BaseException:
            del self.param_groups[number:]
            raise
        self._reasons |= reasons

    def routing(self) -> Routing:
        """Which parameter goes where, and why: a list of lines, which ``print`` shows as a table.

        Of a model that the optimizer was made with, parameters that are in no group are listed too.
        """
        model = self._strangers.model()
        inside = {id(p) for group in self.param_groups for p in group["params"]}
        every = {} if model is None else dict(model.named_parameters())
        return routing_of(
            self.param_groups, self._reasons, {name: p for name, p in every.items() if id(p) not in inside}
        )

    def set_exponents(
        self, exponents: Mapping[str, Any], *, hysteresis: float = 0.25
    ) -> dict[str, tuple[float, float]]:
        """Give matrices new α, as ``LandscapeTracker(optimizer=…)`` does while the model trains.

        Args:
            exponents: layer or parameter name → α: numbers, or the rows of a Landscape. Matrices without a row, or with
                one that has no fit (NaN), keep their α; rows of layers that AdamW takes are not used.
            hysteresis: a matrix keeps its α where the new one differs by this or less, so that noise of the measurement
                changes nothing.

        Returns:
            What changed, parameter name → (α before, α after). It is also logged, and saved with the state: α is a
            setting of the groups.

        Raises:
            ValueError: a new α is outside (0, 6], a row names nothing that the optimizer or its model has; nothing has
                changed.
        """
        return self._set("alpha", exponents, "exponents", hysteresis)

    def set_dampings(
        self, dampings: Mapping[str, float], *, hysteresis: float = 0.25
    ) -> dict[str, tuple[float, float]]:
        """Give matrices a new d, as ``set_exponents`` gives them α. A matrix keeps its d where the natural logarithms
        of the two differ by ``hysteresis`` or less: by default, where one is no more than 28 % above the other.
        """
        return self._set("damping", dampings, "dampings", hysteresis)

    def set_transfer(self, transfer: Transfer) -> bool:
        """Give all matrices another map of the singular values, None for T; whether it is another than before.

        Raises:
            TypeError, ValueError: ``transfer`` is no map; nothing has changed.
        """
        setting = transfer_setting(transfer, self._callables)
        check_transfer(setting, "all matrices")
        groups = [group for group in self.param_groups if not group["use_adamw"] and group["transfer"] != setting]
        for group in groups:
            log.info("transfer: %s → %s", group["transfer"], setting)
            group["transfer"] = setting
        return bool(groups)

    def _set(self, key: str, values: Mapping[str, Any], what: str, hysteresis: float) -> dict[str, tuple[float, float]]:
        model = self._strangers.model()
        known = [name for own in self._names() for name in own]
        if model is not None:
            known += [*layers_in(model), *names_in(model)]
        columns, changes = new_values(key, self.param_groups, self._names(), keyed(values, known, what), hysteresis)
        for group, column in zip(self.param_groups, columns):
            if column is not None:
                group[key] = column[0] if len(set(column)) == 1 else column
        for name, (before, after) in changes.items():
            log.info("%s of %s: %.3g → %.3g", key, name, before, after)
        return changes

    @property
    def skipped_steps(self) -> int:
        """The steps that ``nonfinite="skip"`` left out so far, in this process."""
        return int(self._skipped_steps)

    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; ``closure`` re-evaluates the model and its value is returned.

        Raises:
            NonFiniteGradientError: with ``nonfinite="raise"``.
            ValueError, TypeError: a setting edited in ``param_groups`` is out of range; a gradient is sparse.
            RuntimeError: with ``process_group``, a gradient is there on some ranks only.
            In all of these nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        transforms = [self._transform(number, group) for number, group in enumerate(self.param_groups)]
        parameters = [p for group in self.param_groups for p in group["params"]]
        names = [name for own in self._names() for name in own]
        check_gradients(parameters, names)
        flag = agree(parameters, names, self.process_group, self.defaults["capturable"])
        self._warn(self._strangers.notice(parameters))
        if flag is None or (not self.defaults["capturable"] and self._skips(bool(flag))):
            return loss
        found_inf = flag if self.defaults["capturable"] else None
        if found_inf is not None:
            self._skipped_steps = self._skipped_steps + found_inf
        redistribute_gradients(parameters)
        every = iter(names)
        states = [
            {
                i: current_state(self.state[p], p, group, name)
                for i, (p, name) in enumerate(zip(group["params"], every))
                if p.grad is not None
            }
            for group in self.param_groups
        ]
        for number, (group, own, transform) in enumerate(zip(self.param_groups, states, transforms)):
            if own:
                group_step(group, number, own, transform, found_inf, self.process_group)
                group["rounding_step"] += group["low_precision"] == "stochastic_rounding"
        return loss

    def _transform(self, number: int, group: dict[str, Any]) -> Transform | None:
        """The map of a group, None of AdamW's, made anew where a setting or a shape has changed, which is checked."""
        values = [id(v) if isinstance(v, Tensor) else v for k, v in group.items() if k not in NOT_CHECKED]
        now = repr((values, [(id(p), p.shape) for p in group["params"]]))
        kept = self._transforms.get(number)
        if kept is None or kept[0] != now or isinstance(group["lr"], Tensor):
            settings.check(group, settings.names_of(group, number))
            chosen = None if group["use_adamw"] else Transform(group, map_of(group["transfer"], self._callables))
            kept = self._transforms[number] = (now, chosen)
        return kept[1]

    def _skips(self, found: bool) -> bool:
        """Whether the step is left out for a gradient that is not finite; raises if asked to."""
        if not found:
            return False
        if self.defaults["nonfinite"] == "raise":
            raise NonFiniteGradientError(
                f"the gradient of {nonfinite_names(self.param_groups)} is not finite; nothing was changed. "
                'nonfinite="skip" skips such steps; with AMP, step through torch.amp.GradScaler'
            )
        if not self._skipped_steps:
            self._warn(
                f"the gradient of {nonfinite_names(self.param_groups)} is not finite: this step is skipped, as all "
                "such steps will be; optimizer.skipped_steps counts them"
            )
        self._skipped_steps = self._skipped_steps + 1
        return True
