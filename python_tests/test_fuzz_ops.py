"""A bounded run of `python -m tools.fuzz_ops`: random geometries of every op against an independent reference."""

import sys

from tools.fuzz_ops import fuzz


def test_random_geometries():
    totals = fuzz(300, seed=11, out=sys.stdout)
    assert totals["wrong"] == 0
    assert totals["right"] > 200
