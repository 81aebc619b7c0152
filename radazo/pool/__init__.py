"""Pools: evaluate a function in workers that may fail."""

from radazo.pool.pool import EvaluationPool, evaluation_pool
from radazo.pool.scheduler import PoolStats

__all__ = ["EvaluationPool", "PoolStats", "evaluation_pool"]
