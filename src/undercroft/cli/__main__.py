"""``python -m undercroft.cli``."""

from __future__ import annotations

import sys

from undercroft.cli.main import main

sys.exit(main())
