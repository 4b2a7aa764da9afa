"""The paper measured again, and the optimizer question: one small file per table, figure or appendix.

``python -m experiments list`` shows the experiments, ``python -m experiments run NAME`` runs one, and
``python -m experiments report`` writes RESULTS.md and the figures from the journal. The sweep of optimizers is
``python -m experiments.sweep``.
"""
