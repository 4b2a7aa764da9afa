"""One file per table, figure and appendix of the paper, and per question that it leaves open.

Each module has ``TITLE``, ``claims(lab)`` and ``tables(lab)``, and where there is a figure ``draw(lab)``; ``lab`` is a
``studies.Laboratory``, which runs what the journal does not hold yet.
"""

EXPERIMENTS = (
    "table_1",
    "table_2",
    "table_3",
    "figure_1",
    "figure_2",
    "figure_3",
    "figure_4",
    "figure_5",
    "figure_6",
    "appendix_a",
    "appendix_b",
    "appendix_c",
    "appendix_d",
    "appendix_e",
    "appendix_f",
    "appendix_g",
    "appendix_h",
    "appendix_i",
    "appendix_j",
    "appendix_k",
    "appendix_l",
    "appendix_m",
    "signal",
    "sample_size",
    "layer_norm",
    "mechanisms",
    "phase_transition",
    "weight_tail",
)
