"""Appendix K: VGG-16's winners by epoch; the table of Figure 6, whose claims stand there."""

from experiments.claims import Claim, Table
from experiments.paper import figure_6
from experiments.studies import Laboratory

TITLE = "Appendix K: VGG-16's spectral trajectory"


def tables(lab: Laboratory) -> list[Table]:
    return figure_6.tables(lab)


def claims(lab: Laboratory) -> list[Claim]:
    return []
