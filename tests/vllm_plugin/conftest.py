"""The plugin is a package of its own in this repository; the tests import it from its folder."""

import sys
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[2] / "plugins" / "vllm"
sys.path.insert(0, str(PLUGIN))
