"""Web server: an OpenAI-compatible API, and a page that shows how text is drafted.

It needs the extra ``server`` (FastAPI, uvicorn and prometheus-client).
"""

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"the server needs {error.name}: install the extra with pip install 'eaglerl[server]'"
    ) from error

from eaglerl.server.app import create_app
from eaglerl.server.modes import Mode, Modes, auto_mode, standard_modes
from eaglerl.server.run import run_server
from eaglerl.server.service import Limits, Service
from eaglerl.server.trained_policies import find_policies

__all__ = [
    "Limits",
    "Mode",
    "Modes",
    "Service",
    "auto_mode",
    "create_app",
    "find_policies",
    "run_server",
    "standard_modes",
]
