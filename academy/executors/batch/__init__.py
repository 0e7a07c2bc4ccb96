"""Batch jobs for agents, without workers in between."""

from academy.executors.batch.executor import BatchExecutor
from academy.executors.batch.listing import ListedTask

__all__ = ["BatchExecutor", "ListedTask"]
