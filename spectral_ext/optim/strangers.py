"""Parameters of the model that are in no group of the optimizer though they have a gradient: they would not move, and
nothing would say so."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor, nn

EVERY = 50
"""Steps between two looks at the whole model; what is likely is looked at in every step."""


class Strangers:
    """Looks for such parameters of a model, which is not kept alive; without a model there are none."""

    def __init__(self, model: nn.Module | None) -> None:
        self.model = weakref.ref(model) if model is not None else lambda: None
        frozen = [] if model is None else [p for p in model.parameters() if not p.requires_grad]
        self._frozen = [weakref.ref(p) for p in frozen]
        self._steps, self._with_gradient = 0, -1

    def notice(self, parameters: Sequence[Tensor]) -> str:
        """What to warn of in a step of ``parameters``, "" if nothing.

        Raises:
            RuntimeError: none of them has a gradient, and the model has other ones in their place.
        """
        model, count = self.model(), sum(p.grad is not None for p in parameters)
        thawed = any((p := reference()) is not None and p.grad is not None for reference in self._frozen)
        due = thawed or count != self._with_gradient or self._steps % EVERY == 0
        self._steps, self._with_gradient = self._steps + 1, count
        if model is None or not due:
            return ""
        inside = {id(p) for p in parameters}
        names = [name for name, p in model.named_parameters() if p.grad is not None and id(p) not in inside]
        if not names:
            return ""
        listed = ", ".join(map(repr, names[:4])) + (", …" if len(names) > 4 else "")
        if not count:
            raise RuntimeError(
                f"no parameter of the optimizer has a gradient, while {listed} of the model, which is not in it, has: "
                "the parameters were replaced after the optimizer was made (fully_shard, a new layer). Make the "
                "optimizer afterwards"
            )
        return (
            f"{listed}: has a gradient but is in no group of the optimizer, so it does not move. It was unfrozen or "
            'added after the optimizer was made: optimizer.add_param_group({"params": [parameter]}) adds it'
        )
