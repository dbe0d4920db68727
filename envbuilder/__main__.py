from __future__ import annotations

import sys

from envbuilder.cli import main

sys.exit(main())
