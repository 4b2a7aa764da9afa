"""Rules by operation; see :mod:`.registry` for what a rule is."""

from spectral_ext.curvature.rules import convolution, elementwise, linear, normalization, selection, softmax, structure
from spectral_ext.curvature.rules.generic import GENERIC
from spectral_ext.curvature.rules.registry import RULES, Operation, Push, Rule, operands
from spectral_ext.curvature.rules.structure import CONSTANT

__all__ = ["CONSTANT", "GENERIC", "RULES", "Operation", "Push", "Rule", "operands"]
_TABLES = (convolution, elementwise, linear, normalization, selection, softmax, structure)
