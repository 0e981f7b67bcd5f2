"""A message queue on a Redis list."""

from aioredis_monitored.queue.queue import MessageQueue

__all__ = ["MessageQueue"]
