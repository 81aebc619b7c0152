"""Pools: evaluate a function in workers that may fail."""

from radazo.pool.pool import EvaluationPool, PoolStats, evaluation_pool

__all__ = ["EvaluationPool", "PoolStats", "evaluation_pool"]
