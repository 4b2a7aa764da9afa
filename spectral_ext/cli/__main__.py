"""``python -m spectral_ext.cli``."""

from . import main

raise SystemExit(main())
