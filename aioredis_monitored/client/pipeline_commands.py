"""The commands of a pipeline, which are redis-py's; their types are in the stub beside this file."""

from aioredis_monitored._redispy.overrides import TypedPipeline as PipelineCommands

__all__ = ["PipelineCommands"]
