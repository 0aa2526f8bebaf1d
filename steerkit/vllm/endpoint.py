"""`GET /v1/steerkit` beside vLLM's own endpoints: what the server can be asked for.

vLLM adds routes of plugins that its variable `VLLM_PLUGINS` names, and of no others. The route
only reads, and stands behind the server's API key as everything below `/v1` does.
"""

from typing import Any

from steerkit.errors import SteerkitError
from steerkit.vllm.listing import listing
from steerkit.vllm.registrations import artefacts

ROUTE = "/v1/steerkit"


class Endpoint:
    """What the entry point `vllm.endpoint_plugins` names; vLLM makes one and calls it."""

    name = "steerkit"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._config: Any = None

    def attach_router(self, app: Any) -> None:
        """Add the route to vLLM's application."""
        app.get(ROUTE)(self.listing)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Take the configuration of the engine behind the server."""
        self._config = getattr(engine_client, "vllm_config", None)

    def listing(self) -> dict[str, Any]:
        """Names, what they do, strengths in force, the default, and what is refused."""
        if self._config is None:
            return {**listing(artefacts()), "refusal": ""}
        from steerkit.vllm.admission import info_of, refusal

        reason, info = refusal(self._config), None
        try:
            info = None if reason else info_of(self._config)
        except SteerkitError as error:
            reason = str(error)
        return {**listing(artefacts(), info), "refusal": reason}
