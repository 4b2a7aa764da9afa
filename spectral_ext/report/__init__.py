"""Reports that people read: one self-contained HTML page, the comparison of two landscapes, and the terminal."""

from spectral_ext.report.compare import Pair, compare, print_comparison, write_comparison
from spectral_ext.report.headline import advice, sentences
from spectral_ext.report.page import Moments, Section, render, training_section, write_report
from spectral_ext.report.terminal import print_findings, print_landscape

__all__ = [
    "Moments",
    "Pair",
    "Section",
    "advice",
    "compare",
    "print_comparison",
    "print_findings",
    "print_landscape",
    "render",
    "sentences",
    "training_section",
    "write_comparison",
    "write_report",
]
