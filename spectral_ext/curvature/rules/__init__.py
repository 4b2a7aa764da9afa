"""Rules by operation; see :mod:`.registry` for what a rule is."""

from . import convolution, elementwise, linear, normalization, selection, softmax, structure
from .generic import GENERIC
from .registry import RULES, Operation, Push, Rule, operands
from .structure import CONSTANT

__all__ = ["CONSTANT", "GENERIC", "RULES", "Operation", "Push", "Rule", "operands"]
_TABLES = (convolution, elementwise, linear, normalization, selection, softmax, structure)
