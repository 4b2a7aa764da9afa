"""``python -m spectral_ext.cli``."""

from spectral_ext.cli import main

raise SystemExit(main())
