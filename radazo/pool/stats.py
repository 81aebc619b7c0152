"""What a pool has spent, and what came of it."""

from typing import NamedTuple


class PoolStats(NamedTuple):
    """Exact counts of a pool, from its beginning.

      calls = values + invalid + exceptions + timeouts + lost + under_way

    Attributes:
      calls: Calls of the function that have begun: what a paid service would bill.
      values: Calls that returned a real number, infinite ones too.
      invalid: Calls that returned NaN or something else.
      exceptions: Calls that raised.
      timeouts: Calls that took longer than `timeout`, whatever became of them.
      lost: Calls that had begun when their worker was killed.
      under_way: Calls of which nothing is known yet.
      retries: Those of `calls` that repeat another.
      queries: Queries taken.
      cached: Queries that share the call of another query of the same point.
      failed: Queries whose last call had no answer and was not repeated.
      last_failure: What the last call without a value said, or "".
    """

    calls: int
    values: int
    invalid: int
    exceptions: int
    timeouts: int
    lost: int
    under_way: int
    retries: int
    queries: int
    cached: int
    failed: int
    last_failure: str
