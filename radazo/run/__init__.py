"""Runs: `minimize`, checkpoints, and loops of your own with `ask` and `tell`."""

from radazo.run.ask_tell import Queries, QueryId, ask, tell
from radazo.run.checkpointing import Checkpoints, open_checkpoints
from radazo.run.minimize import MinimizeResult, minimize

__all__ = ["Checkpoints", "MinimizeResult", "Queries", "QueryId"]
__all__ += ["ask", "minimize", "open_checkpoints", "tell"]
