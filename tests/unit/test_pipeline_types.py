"""The types of a pipeline's commands: they are redis-py's, and cost nothing at run time."""

import ast

import pipeline_stub
from redis.asyncio.client import Pipeline

from aioredis_monitored import MonitoredRedisPipeline


def test_stub_is_what_its_generator_writes():
    expected = pipeline_stub.stub()
    assert expected == pipeline_stub.STUB.read_text("utf-8"), "redis-py's signatures have changed: nox -s stubs"


def test_stub_has_every_command_but_those_that_the_pipeline_defines():
    classes = {
        node.name: node for node in ast.parse(pipeline_stub.STUB.read_text("utf-8")).body if hasattr(node, "name")
    }
    names = {node.name for node in classes["PipelineCommands"].body}

    assert {"get", "incr", "hset", "xadd", "zadd", "eval", "publish", "execute_command"} <= names
    assert [] == [name for name in names if not callable(getattr(Pipeline, name))]
    assert {"publish"} == {name for name in names - {"execute_command"} if name in vars(MonitoredRedisPipeline)}


def test_pipeline_commands_are_redispy_methods_at_run_time():
    assert (MonitoredRedisPipeline.get, MonitoredRedisPipeline.incr) == (Pipeline.get, Pipeline.incr)
    assert Pipeline in MonitoredRedisPipeline.__bases__
