"""The client, and what it makes: pipelines, locks, scripts, subscriptions."""

from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.client.cluster import MonitoredRedisCluster
from aioredis_monitored.client.pipeline import MonitoredRedisPipeline
from aioredis_monitored.client.pubsub import MonitoredPubSub

__all__ = ["MonitoredPubSub", "MonitoredRedisCluster", "MonitoredRedisConnection", "MonitoredRedisPipeline"]
