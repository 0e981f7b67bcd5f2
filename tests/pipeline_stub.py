"""Write ``client/pipeline_commands.pyi``, the types of a pipeline's commands, from redis-py's signatures.

redis-py gives each command two signatures; the one for asyncio's clients returns an awaitable of the reply.
"""

import ast
import builtins
import collections.abc
import inspect
import sys
import textwrap
from collections import defaultdict
from functools import cache, reduce
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from redis.asyncio.client import Pipeline

import aioredis_monitored

STUB = Path(aioredis_monitored.__file__).parent / "client" / "pipeline_commands.pyi"

_WIDTH = 120
# The limit of a line in a class.
_LIMIT = _WIDTH - 4
# Type arguments for types that have none in redis-py.
_ANY = {"Callable": "[..., Any]", "dict": "[Any, Any]", "list": "[Any]", "tuple": "[Any, ...]", "type": "[Any]"}
_IMPORTED = {
    ("collections.abc", "Generator"),
    ("typing", "Any"),
    ("typing", "Generic"),
    ("typing", "TypeVar"),
    ("typing", "type_check_only"),
    ("aioredis_monitored._redispy.overrides", "TypedPipeline"),
    ("aioredis_monitored.client.pipeline", "MonitoredRedisPipeline"),
}
_OURS = "aioredis_monitored"
_DISAGREEING = "  # type: ignore[override]  # redis-py's own bases disagree"
_HIDDEN = "  # type: ignore[override]  # for redis-py, every client gets the reply itself"
_TEXT = '''\
# "nox -s stubs" writes this file from redis-py's signatures.
# ruff: noqa: A002, PYI021, PYI030 - names and unions are redis-py's

{imports}

_ReplyT_co = TypeVar("_ReplyT_co", covariant=True)

class PipelineCommands(TypedPipeline):
    def execute_command(self, *args: Any, **options: Any) -> PipelineCommand[Any]: ...{disagreeing}
{methods}

@type_check_only
class PipelineCommand(MonitoredRedisPipeline, Generic[_ReplyT_co]):
    """What a command of a pipeline returns.

    It is the pipeline, for the next command of a chain. Awaited between ``watch`` and ``multi``, where a command runs
    immediately, it is the reply.
    """

    def __await__(self) -> Generator[Any, Any, _ReplyT_co]: ...
'''


def stub():
    """Return the text of the stub for the installed redis-py."""
    commands, imported = _commands(), set(_IMPORTED)
    methods = [
        _method(name, command, _Annotations(command.module, commands.keys(), imported))
        for name, command in sorted(commands.items())
    ]
    return _TEXT.format(disagreeing=_DISAGREEING, imports=_import_lines(imported), methods="\n".join(methods))


class _Command(NamedTuple):
    """A command as redis-py defines it.

    Attributes:
        module: The name of the module.
        signature: The signature for asyncio's clients.
        is_hidden: Whether an earlier signature, which returns the reply itself, matches asyncio's clients, too.
    """

    module: str
    signature: ast.FunctionDef
    is_hidden: bool


def _commands():
    """Return the commands by the names of their methods."""
    found = {}
    for cls in Pipeline.__mro__:
        commands = _commands_of(cls) if cls.__module__.startswith("redis.commands.") else {}
        for name, method in vars(cls).items():
            # An alias of a method, such as incr for incrby, has no separate signature.
            found.setdefault(name, commands.get(getattr(method, "__name__", name)))
    return {name: command for name, command in found.items() if command is not None}


def _commands_of(cls):
    (definition,) = (each for each in _parsed(cls.__module__) if getattr(each, "name", None) == cls.__name__)
    found = defaultdict(dict)
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(each) == "overload" for each in node.decorator_list):
            of_self = node.args.args[0].annotation
            found[node.name][of_self and ast.unparse(of_self)] = node
    return {
        name: _Command(cls.__module__, signatures["AsyncClientProtocol"], is_hidden=None in signatures)
        for name, signatures in found.items()
        if "AsyncClientProtocol" in signatures
    }


@cache
def _parsed(module):
    return ast.parse(inspect.getsource(sys.modules[module])).body


def _method(name, command, annotations):
    """Return the text of a method, formatted as by ruff."""
    arguments, reply = command.signature.args, command.signature.returns
    assert not arguments.posonlyargs
    assert ast.unparse(reply.value) == "Awaitable"
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults
    parameters = ["self", *map(annotations.parameter, arguments.args[1:], defaults[1:])]
    if arguments.vararg:
        parameters.append(f"*{annotations.parameter(arguments.vararg)}")
    elif arguments.kwonlyargs:
        parameters.append("*")
    parameters += map(annotations.parameter, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        parameters.append(f"**{annotations.parameter(arguments.kwarg)}")

    start, joined = f"def {name}(", ", ".join(parameters)
    end = f") -> PipelineCommand[{annotations.text(reply.slice)}]: ..."
    lines = [f"{start}{joined}{end}"]
    if command.is_hidden or len(lines[0]) > _LIMIT:
        inner = [joined] if len(joined) <= _LIMIT - 4 else [f"{each}," for each in parameters]
        lines = [start + (_HIDDEN if command.is_hidden else ""), *(f"    {each}" for each in inner), end]
    return textwrap.indent("\n".join(lines), "    ")


class _Annotations(ast.NodeTransformer):
    """Completes the annotations of one of redis-py's modules, and collects the imports that they need."""

    def __init__(self, module, methods, imported):
        self._module, self._methods, self._imported = module, methods, imported
        self._origins = {
            alias.name: node.module
            for node in _parsed(module)
            if isinstance(node, ast.ImportFrom) and not node.level
            for alias in node.names
        }

    def parameter(self, argument, default=None):
        text = f"{argument.arg}: {'Any' if argument.annotation is None else self.text(argument.annotation)}"
        if default is None:
            return text
        return f"{text} = {_unparse(default) if isinstance(default, ast.Constant | ast.UnaryOp) else '...'}"

    def text(self, annotation):
        # A copy, as an alias shares the node.
        return _unparse(self.visit(ast.parse(ast.unparse(annotation), mode="eval").body))

    def visit_Subscript(self, node):
        name = node.value.id
        if name in {"Optional", "Union"}:
            members = [self.visit(each) for each in getattr(node.slice, "elts", [node.slice])]
            members += [ast.Constant(None)] * (name == "Optional")
            return reduce(lambda left, right: ast.BinOp(left, ast.BitOr(), right), members)
        if name != "Literal":
            node.slice = self.visit(node.slice)
        node.value = self._reference(name)
        return node

    def visit_Name(self, node):
        reference = self._reference(node.id)
        arguments = _ANY.get(_today(node.id), "")
        return ast.parse(f"{ast.unparse(reference)}{arguments}", mode="eval").body

    def visit_Attribute(self, node):
        self._imported.add((node.value.id, node.attr))
        return ast.Name(node.attr)

    def _reference(self, name):
        name = _today(name)
        if not hasattr(builtins, name):
            origin = self._origins.get(name, self._module)
            if origin == "typing" and hasattr(collections.abc, name):
                origin = "collections.abc"
            self._imported.add((origin, name))
        elif name in self._methods:
            # In the class, the bare name is the method's.
            self._imported.add(("", "builtins"))
            return ast.Attribute(ast.Name("builtins"), name)
        return ast.Name(name)


def _today(name):
    """Return the built-in type that replaces one of typing's, or the name itself."""
    return name.lower() if isinstance(getattr(builtins, name.lower(), None), type) else name


def _unparse(node):
    return ast.unparse(node).replace("'", '"')


def _import_lines(imported):
    """Return import statements in ruff's order; names of redis-py's and ours come from their defining modules."""
    sections = defaultdict(list)
    for module, group in groupby(sorted(imported), itemgetter(0)):
        names = sorted((name for _, name in group), key=lambda name: (name.islower(), name.lower()))
        section = next((i for i, root in ((2, _OURS), (1, "redis")) if module.split(".")[0] == root), 0)
        if module:
            line = f"from {module} import {', '.join(names)}"
            if len(line) > _WIDTH:
                line = "\n".join((f"from {module} import (", *(f"    {name}," for name in names), ")"))
            sections[section].append(line)
        else:
            sections[section] += [f"import {name}" for name in names]
    return "\n\n".join("\n".join(sections[section]) for section in sorted(sections))


if __name__ == "__main__":
    STUB.write_text(stub(), "utf-8")
