"""``python -m spectral_ext``: the command line, as ``spectral-ext``."""

from spectral_ext.cli import main

raise SystemExit(main())
