from __future__ import annotations

import sys

from envbuilder.cli import program

sys.exit(program())
