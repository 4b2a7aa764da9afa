"""Whether a block adds its input to its output, seen in autograd's graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_LIMIT = 20_000
"""Nodes looked at before the search gives up: a block whose graph is larger counts as one without a skip."""
_PRODUCTS = ("MulBackward", "DivBackward", "BmmBackward", "MmBackward", "AddmmBackward", "ConvolutionBackward")


def has_skip(block_input: Tensor | None, block_output: Tensor) -> bool:
    """Whether y = x + f(x), perhaps followed by an activation, a norm or dropout: Proposition 5 is about such blocks.

    A skip is a path from the block's output back to its input that passes an addition, no weight matrix, and no product
    of two tensors that need a gradient (a gate is no skip). A projected shortcut, which has a weight of its own, is
    not counted, nor is a skip from an input that needs no gradient. A weight that needs no gradient is not seen.
    """
    if block_input is None or not block_input.requires_grad or block_output.grad_fn is None:
        return False
    goal: Any = block_input.grad_fn
    seen: set[tuple[Any, bool]] = set()
    todo: list[tuple[Any, bool]] = [(block_output.grad_fn, False)]
    while todo and len(seen) < _LIMIT:
        node, added = todo.pop()
        if node is None or (node, added) in seen:
            continue
        seen.add((node, added))
        if node is goal or (goal is None and getattr(node, "variable", None) is block_input):
            if added:
                return True
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        if any(_is_matrix(child, block_input) for child in children):
            continue
        if len(children) > 1 and node.name().startswith(_PRODUCTS):
            continue
        added = added or (len(children) > 1 and node.name().startswith("AddBackward"))
        todo += [(child, added) for child in children]
    return False


def _is_matrix(node: Any, block_input: Tensor) -> bool:
    """Whether the node is a parameter with two or more dimensions, or its transpose; the block's input is none."""
    variable = getattr(node, "variable", None)
    if variable is not None:
        return variable is not block_input and variable.dim() >= 2
    children = node.next_functions
    return node.name().startswith("TBackward") and len(children) == 1 and _is_matrix(children[0][0], block_input)
