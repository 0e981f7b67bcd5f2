"""Calls, servers and failures in the terms of the semantic conventions: names of spans, attributes, ``error.type``."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple, Self, cast

from opentelemetry.trace import SpanKind
from redis import exceptions
from redis.asyncio import Connection, ConnectionPool, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from aioredis_monitored._commands.table import (
    MAX_WORD_LENGTH,
    PLACEHOLDER,
    PUBLISHING,
    TABLE,
    argument_text,
    channel_of,
    escape_surrogates,
    operation_name,
    stored_procedure,
)
from aioredis_monitored._commands.traits import polls_for_data
from aioredis_monitored._redispy.located import LocatedConnection
from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.direct import Series
from aioredis_monitored._telemetry.guard import CardinalityLimit, guarded
from aioredis_monitored._telemetry.query_text import KEY_AND_VALUES, query_text, text_of_key_and_values
from aioredis_monitored.config.addresses import address_text
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.errors import MonitoredRedisError, cause_of

_DEFAULT_PORT = 6379
# Of commands of modules, and of mistyped ones.
_MAX_UNKNOWN_COMMANDS = 200
# Of the same call on different servers; more than clusters have. Addresses come and go for as long as a process lives.
_MAX_SERVED = 100
_MAX_BATCH_TEXTS = 100
_MAX_BATCH_TEXT_LENGTH = 4096
_MAX_KEY_LENGTH = 1024
_MAX_CHANNEL_LENGTH = 256
_ADDRESS = (semconv.SERVER_ADDRESS, semconv.SERVER_PORT)
# The attributes of a message that points have.
_LOW_CARDINALITY = (
    semconv.MESSAGING_SYSTEM,
    semconv.MESSAGING_OPERATION_NAME,
    semconv.MESSAGING_DESTINATION_TEMPLATE,
)


class Server(NamedTuple):
    """The server as it was configured.

    Attributes:
        attributes: What spans and points say about it.
        target: What names of spans end with; ``None`` if it is unknown, or a Unix socket.
    """

    attributes: dict[str, Any]
    target: str | None


def server_of(pool: ConnectionPool) -> Server:
    """Return the server that a pool connects to, as far as the pool says so without connecting; raise nothing.

    A pool on Sentinel does not know its server yet, and a pool may be of any class.
    """
    with guarded:
        return _server_of(pool)
    return Server({semconv.DB_SYSTEM_NAME: semconv.DB_SYSTEM_REDIS, semconv.DB_NAMESPACE: "0"}, None)


def _server_of(pool: ConnectionPool) -> Server:
    arguments: Any = getattr(pool, "connection_kwargs", None)
    if not isinstance(arguments, Mapping):
        arguments = {}
    attributes: dict[str, Any] = {
        semconv.DB_SYSTEM_NAME: semconv.DB_SYSTEM_REDIS,
        semconv.DB_NAMESPACE: str(arguments.get("db") or 0),
    }
    if isinstance(pool, SentinelConnectionPool):
        return Server(attributes, None)
    made_by: Any = getattr(pool, "connection_class", None)
    while isinstance(made_by, partial):
        arguments, made_by = {**made_by.keywords, **arguments}, made_by.func
    # A factory may make connections of any class: only the arguments say more.
    kind = made_by if isinstance(made_by, type) else object
    if issubclass(kind, UnixDomainSocketConnection) or (kind is object and arguments.get("path")):
        attributes[semconv.SERVER_ADDRESS] = str(arguments.get("path", ""))
        attributes[semconv.NETWORK_TRANSPORT] = semconv.TRANSPORT_UNIX
        return Server(attributes, None)
    if not issubclass(kind, Connection) and not (kind is object and arguments.get("host")):
        return Server(attributes, None)
    attributes[semconv.NETWORK_TRANSPORT] = semconv.TRANSPORT_TCP
    if issubclass(kind, LocatedConnection):
        return Server(attributes, None)
    address, target = _address_of(str(arguments.get("host") or "localhost"), port_of(arguments.get("port")))
    return Server(attributes | address, target)


def port_of(given: Any) -> int:
    """Return the port that a pool or a connection was given; the default port if it is no number."""
    try:
        return int(given)
    except (OverflowError, TypeError, ValueError):
        # Connecting reports a port that cannot be used.
        return _DEFAULT_PORT


def server_at(host: str, port: int) -> Server:
    """Return the server at an address that a call has found out."""
    return Server(*_address_of(host, port))


def _address_of(host: str, port: int) -> tuple[dict[str, Any], str]:
    address: dict[str, Any] = {semconv.SERVER_ADDRESS: host}
    if port != _DEFAULT_PORT:
        address[semconv.SERVER_PORT] = port
    return address, address_text(host, port)


@dataclass(frozen=True, slots=True)  # its attributes are read faster than those of a NamedTuple
class CallSpec:
    """What calls that look alike have in common; they differ in their query text.

    Attributes:
        span_name: The name of the span.
        span_attributes: The attributes of the span.
        point_attributes: The attributes of the point.
        query_text_of: Returns the query text for the arguments of the command, or the commands of the batch.
        kind: The kind of the span.
        always_recorded: Whether the call gets a span whatever its outcome and its parent.
        is_included: Whether the options about names of commands allow a span.
        is_point: Whether the call is a point of ``db.client.operation.duration``.
        polls_for_data: Whether consumers call it over and over while there is nothing to consume.
        lacks_server: Whether the server is known only once the call is routed or connected (see ``served_by``).
        bare_name: The name of the span without the server, if it is to end with that; ``None`` if it is not.
        served: The same spec with the servers that calls had, by target.
        series: The points of calls with this spec, by how they failed.
    """

    span_name: str
    span_attributes: dict[str, Any]
    point_attributes: dict[str, Any]
    query_text_of: Callable[[Sequence[Any]], str] = query_text
    kind: SpanKind = SpanKind.CLIENT
    always_recorded: bool = True
    is_included: bool = True
    is_point: bool = True
    polls_for_data: bool = False
    lacks_server: bool = False
    bare_name: str | None = None
    served: dict[str | None, Self] = field(default_factory=dict, init=False, compare=False, repr=False)
    series: dict["Failure | None", Series] = field(default_factory=dict, init=False, compare=False, repr=False)

    def with_template(self, template: str) -> Self:
        """Return the spec with the template of its keys."""
        added = {semconv_ext.KEY_TEMPLATE: template}
        return replace(
            self, span_attributes=self.span_attributes | added, point_attributes=self.point_attributes | added
        )

    def served_by(self, server: Server) -> Self:
        """Return the spec with its server, which was unknown before the call was routed (Cluster), or connected.

        It takes the place of the server of an attempt before; one without an address stands for several.
        """
        served = self.served.get(server.target)
        if served is None:
            address, name = _address_in(server.attributes), self.span_name
            if self.bare_name is not None:
                name = self.bare_name if server.target is None else f"{self.bare_name} {server.target}"
            if len(self.served) >= _MAX_SERVED:
                self.served.clear()
            served = self.served[server.target] = replace(
                self,
                span_name=name,
                span_attributes=_without_address(self.span_attributes) | address,
                point_attributes=_without_address(self.point_attributes) | address,
            )
            object.__setattr__(served, "served", self.served)
        return served

    def as_part(self, part: Self) -> Self:
        """Return the spec of an operation with the server of a part of it."""
        address = part.address()
        if not address or address == self.address():
            return self
        return replace(self, span_attributes=_without_address(self.span_attributes) | address)

    def address(self) -> dict[str, Any]:
        """Return the attributes of the server; empty if it is unknown."""
        return _address_in(self.span_attributes)

    def with_span_attributes(self, added: dict[str, Any]) -> Self:
        """Return the spec with further attributes of the span."""
        return replace(self, span_attributes=self.span_attributes | added)


def _address_in(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: attributes[name] for name in _ADDRESS if name in attributes}


def _without_address(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _ADDRESS}


class MessagingSpec(NamedTuple):
    """What an operation does with messages (messaging-spans.md).

    Attributes:
        name: The name of the operation.
        operation_type: The type of the operation: send, receive, settle.
        queue: The queue.
        names_span: Whether the span has the name of the operation, or that of the command.
    """

    name: str
    operation_type: str
    queue: str
    names_span: bool


class SpanNamer:
    """Describes calls on one server in the conventions' terms.

    Args:
        server: The server.
        options: What the application has chosen.

    Attributes:
        server: The server.
        query_text: Returns the query text of a command.
    """

    def __init__(self, server: Server, options: TelemetryOptions) -> None:
        self.server = server
        self._options = options
        self._unknown_commands = CardinalityLimit(_MAX_UNKNOWN_COMMANDS)
        hides = not options.show_keys or options.key_template is not None
        self.query_text = (
            partial(query_text, key_text=self.key_text, shows_fields=options.show_keys) if hides else query_text
        )

    def includes(self, operations: Collection[str]) -> bool:
        """Return whether the options about names allow a span for a call of these commands."""
        names = [operation.upper() for operation in operations]
        included = self._options.include_commands is None or any(
            _is_listed(name, self._options.include_commands) for name in names
        )
        return included and not (names and all(_is_listed(name, self._options.exclude_commands) for name in names))

    @property
    def has_filters(self) -> bool:
        """Whether options exclude calls by more than the names of their commands."""
        return self._options.require_parent or self._options.slow_only is not None or self._options.keep is not None

    def name_for(self, attributes: Mapping[str, Any], name: str) -> str:
        """Return the name of a span, chosen by the application or else by the conventions.

        Args:
            attributes: The attributes of the span.
            name: The name by the conventions.
        """
        if self._options.span_name is None:
            return name
        with guarded:
            # A copy, because many calls share the attributes.
            return escape_surrogates(str.__getitem__(self._options.span_name(dict(attributes)), slice(None))) or name
        return name

    def key_text(self, key: object) -> str:
        """Return what the query text shows in place of a key if keys are hidden or have templates."""
        return self.template_of(key) or PLACEHOLDER if self._options.show_keys else PLACEHOLDER

    def template_of(self, key: object) -> str | None:
        """Return the template of a key, where the application has a ``key_template``; ``None`` if that raises."""
        make = cast("Callable[[str], str]", self._options.key_template)
        with guarded:
            return escape_surrogates(str.__getitem__(make(argument_text(key, _MAX_KEY_LENGTH)), slice(MAX_WORD_LENGTH)))
        return None

    def destination_of(self, channel: object) -> tuple[dict[str, str], str | None]:
        """Return the attributes for a channel and what names of spans show: its template, or else the channel itself.

        By the conventions, a span's name contains no destination's name if there is a template; here the attributes do
        not contain it either, as the query text contains no keys then.
        """
        if not self._options.show_keys:
            return {}, None
        if self._options.key_template is not None:
            template = self.template_of(channel)
            return ({}, None) if template is None else ({semconv.MESSAGING_DESTINATION_TEMPLATE: template}, template)
        name = argument_text(channel, _MAX_CHANNEL_LENGTH)
        if not name.isprintable():
            name = name.encode("unicode_escape").decode()[:_MAX_CHANNEL_LENGTH]
        return {semconv.MESSAGING_DESTINATION_NAME: name}, name

    def command(self, args: Sequence[Any], summary: str | None = None) -> CallSpec:
        """Return the spec of one command.

        Args:
            args: Its arguments.
            summary: The name that the application has given it, if it has.
        """
        operation, procedure = operation_name(args), stored_procedure(args)
        spec = self._spec(self._capped(operation), summary=summary, stored_procedure=procedure)
        # For the plain name alone: redis-py accepts names that contain a key.
        if self.query_text is query_text and args and type(args[0]) is str and args[0] in KEY_AND_VALUES:
            spec = replace(spec, query_text_of=text_of_key_and_values)
        spec = self._with_inclusion(replace(spec, polls_for_data=polls_for_data(args)), [operation])
        return self.publication(spec, args, summary) if operation.upper() in PUBLISHING else spec

    def publication(self, spec: CallSpec, args: Sequence[Any], summary: str | None = None) -> CallSpec:
        """Return the spec of a command that publishes: a call whose span is also about a message (messaging-spans.md).

        Args:
            spec: The spec without the channel.
            args: The command.
            summary: The name of a batch that has no other command.
        """
        channel = channel_of(args)
        if channel is None:
            return spec
        name, attributes = self._messaging(semconv_ext.OPERATION_PUBLISH, semconv.OPERATION_TYPE_SEND, channel)
        attributes = spec.span_attributes | attributes
        name = self.name_for(attributes, summary or name)
        return replace(spec, span_name=name, span_attributes=attributes, kind=SpanKind.PRODUCER)

    def messaging(self, args: Sequence[Any], messaging: MessagingSpec) -> CallSpec:
        """Return the spec of a command that sends, receives or settles messages.

        A span whose context the messages carry is a producer's (messaging-spans.md, "Span kind"), and has the name of
        the operation.
        """
        spec = self.command(args)
        name, attributes = self._messaging(messaging.name, messaging.operation_type, messaging.queue)
        if not messaging.names_span:
            return spec.with_span_attributes(attributes)
        attributes = spec.span_attributes | attributes
        is_sent = messaging.operation_type == semconv.OPERATION_TYPE_SEND
        kind = SpanKind.PRODUCER if is_sent else SpanKind.CLIENT
        name = self.name_for(attributes, name)
        return replace(spec, span_name=name, span_attributes=attributes, kind=kind, bare_name=None)

    def message_attributes(self, messaging: MessagingSpec) -> dict[str, Any]:
        """Return the attributes of the points of such an operation."""
        _, attributes = self._messaging(messaging.name, messaging.operation_type, messaging.queue)
        return self._address() | attributes

    def processing(self, channel: object, *, of_queue: bool) -> CallSpec:
        """Return the spec of processing a message (messaging-spans.md), which is no call to the server.

        Args:
            channel: Where the message came from.
            of_queue: Whether the channel is a queue: points have its name, as an application has few queues.
        """
        name, attributes = self._messaging(semconv_ext.OPERATION_PROCESS, semconv.OPERATION_TYPE_PROCESS, channel)
        server = self._address()
        few = (*_LOW_CARDINALITY, semconv.MESSAGING_DESTINATION_NAME) if of_queue else _LOW_CARDINALITY
        point_attributes = {key: attributes[key] for key in few if key in attributes}
        name = self.name_for(server | attributes, name)
        return CallSpec(name, server | attributes, server | point_attributes, kind=SpanKind.CONSUMER)

    def _address(self) -> dict[str, Any]:
        return _address_in(self.server.attributes)

    def _messaging(self, operation: str, operation_type: str, channel: object) -> tuple[str, dict[str, Any]]:
        """Return the name of a span about a message, and its attributes."""
        destination, target = self.destination_of(channel)
        attributes: dict[str, Any] = {
            semconv.MESSAGING_SYSTEM: semconv_ext.MESSAGING_SYSTEM_REDIS,
            semconv.MESSAGING_OPERATION_NAME: operation,
            semconv.MESSAGING_OPERATION_TYPE: operation_type,
            **destination,
        }
        target = target or self.server.target
        return f"{operation} {target}" if target else operation, attributes

    def batch(self, kind: str, batch: Sequence[Sequence[Any]], summary: str | None) -> CallSpec:
        """Return the spec of a batch; a batch of one command is that command (redis.md).

        Args:
            kind: ``MULTI`` or ``PIPELINE``.
            batch: The commands.
            summary: The name that the application has given it, if it has.
        """
        if len(batch) == 1:
            return replace(self.command(batch[0], summary), query_text_of=self.batch_text)
        names = {operation_name(args) for args in batch}
        operation = f"{kind} {self._capped(next(iter(names)))}" if len(names) == 1 else kind
        spec = self._spec(operation, batch_size=len(batch), summary=summary)
        return self._with_inclusion(replace(spec, query_text_of=self.batch_text), names)

    def _with_inclusion(self, spec: CallSpec, operations: Collection[str]) -> CallSpec:
        is_included = self.includes(operations)
        always_recorded = is_included and not spec.polls_for_data and not self.has_filters
        return replace(spec, is_included=is_included, always_recorded=always_recorded)

    def batch_text(self, batch: Sequence[Sequence[Any]]) -> str:
        """Return commands in Redis CLI syntax with ``?`` for values; those beyond the maximum length are not read."""
        texts: list[str] = []
        room = _MAX_BATCH_TEXT_LENGTH
        for args in batch[:_MAX_BATCH_TEXTS]:
            texts.append(self.query_text(args))
            room -= len(texts[-1])
            if room < 0:
                break
        if len(texts) == len(batch) and len(set(texts)) == 1:
            return texts[0]
        if len(texts) < len(batch):
            texts.append("…")
        return "; ".join(texts)

    def _capped(self, operation: str) -> str:
        return operation if operation.upper() in TABLE else self._unknown_commands.cap(operation)

    def _spec(
        self,
        operation: str,
        *,
        batch_size: int | None = None,
        summary: str | None = None,
        stored_procedure: str | None = None,
    ) -> CallSpec:
        """Return the spec of a call by the conventions for Redis.

        The name of the span is the summary, or the operation and its target (database-spans.md, "Name"; redis.md leaves
        out the database).
        """
        named = {semconv.DB_OPERATION_NAME: operation}
        if summary is not None:
            named[semconv.DB_QUERY_SUMMARY] = summary
        span_attributes = {**self.server.attributes, **named}
        if batch_size is not None:
            span_attributes[semconv.DB_OPERATION_BATCH_SIZE] = batch_size
        if stored_procedure is not None:
            span_attributes[semconv.DB_STORED_PROCEDURE_NAME] = stored_procedure
        target = stored_procedure or self.server.target
        point_attributes = {**self.server.attributes, **named}
        point_attributes.pop(semconv.NETWORK_TRANSPORT, None)
        name = summary or (f"{operation} {target}" if target else operation)
        chosen = self.name_for(span_attributes, name)
        # The application has seen no server either: a name of its own stays as it is.
        lacks_target = target is None and summary is None and chosen == name
        return CallSpec(
            chosen,
            span_attributes,
            point_attributes,
            self.query_text,
            lacks_server=semconv.SERVER_ADDRESS not in self.server.attributes,
            bare_name=chosen if lacks_target else None,
        )


def _is_listed(name: str, names: Collection[str]) -> bool:
    return name in names or name.partition(" ")[0] in names


_ERROR_PREFIX: Final = re.compile(r"[A-Z][A-Z0-9_]{0,31}(?= |$)")


class Failure(NamedTuple):
    """How a call failed.

    Attributes:
        error_type: The ``error.type``.
        status_code: The prefix of the server's error reply; ``None`` if the error is no reply.
        is_error: Whether the span's status is an error; a cancellation is none.
    """

    error_type: str
    status_code: str | None
    is_error: bool

    def attributes(self) -> dict[str, str]:
        """Return the attributes that the span and the point of a failed call have in common."""
        attributes = {semconv.ERROR_TYPE: self.error_type}
        if self.status_code is not None:
            attributes[semconv.DB_RESPONSE_STATUS_CODE] = self.status_code
        return attributes


def failure_of(error: BaseException) -> Failure | None:
    """Classify an exception; ``None`` means that it is no failure.

    ``error.type`` is the prefix of Redis's error reply (``WRONGTYPE``), or else the class with its module, as the
    SDK writes ``exception.type``: ``redis.exceptions.ConnectionError`` is not the builtin ``ConnectionError``.
    A cancellation has a type but is no error. A ``WatchError`` is the normal outcome of a lost race in optimistic
    locking, unless redis-py raises it in place of a broken connection's error.
    """
    if isinstance(error, exceptions.WatchError):
        broken = cause_of(error)
        return failure_of(broken) if isinstance(broken, exceptions.ConnectionError | exceptions.TimeoutError) else None
    code = _status_code(error)
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return Failure(code or name, code, isinstance(error, Exception))


def _status_code(error: BaseException) -> str | None:
    if isinstance(error, MonitoredRedisError):
        # No server has sent it: its first word is no prefix.
        return None
    # An application's error class may not call its base's constructor, or have an attribute of this name.
    code = getattr(error, "status_code", None) if isinstance(error, exceptions.RedisError) else None
    if code is None and isinstance(error, exceptions.ResponseError) and error.args:
        # redis-py removes the prefixes that it has a class for; the text begins with all others.
        code = error.args[0]
    match = _ERROR_PREFIX.match(code) if isinstance(code, str) else None
    return None if match is None else match[0]
