"""What a call, its server and its failure mean in the terms of the semantic conventions."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple, Self

from opentelemetry.trace import SpanKind
from redis.asyncio import Connection, ConnectionPool, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError, WatchError  # noqa: A004

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
from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.guard import CardinalityLimit, log_error
from aioredis_monitored._telemetry.query_text import KEY_AND_VALUES, query_text, text_of_key_and_values
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.errors import cause_of

_DEFAULT_PORT = 6379
# Commands of modules, and mistakes.
_MAX_UNKNOWN_COMMANDS = 200
_MAX_TEXTS = 100
_MAX_BATCH_TEXT_LENGTH = 4096
_MAX_KEY_LENGTH = 1024
_MAX_CHANNEL_LENGTH = 256
_ADDRESS = (semconv.SERVER_ADDRESS, semconv.SERVER_PORT)
# Of a message's attributes, those that points may have.
_LOW_CARDINALITY = (
    semconv.MESSAGING_SYSTEM,
    semconv.MESSAGING_OPERATION_NAME,
    semconv.MESSAGING_DESTINATION_TEMPLATE,
)


class Server(NamedTuple):
    """The server as it was configured; the name of a span needs ``target``."""

    attributes: dict[str, Any]
    target: str | None


def server_of(pool: ConnectionPool) -> Server:
    """The server that a pool connects to, without connecting: a Sentinel-made pool cannot tell it yet.

    As far as that can be found out: a pool may be of any make. It raises nothing.
    """
    try:
        return _server_of(pool)
    except Exception as trouble:  # noqa: BLE001 - a call matters more than its record
        log_error(trouble)
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
    # What a factory makes, its arguments alone can say.
    kind = made_by if isinstance(made_by, type) else object
    if issubclass(kind, UnixDomainSocketConnection) or (kind is object and arguments.get("path")):
        attributes[semconv.SERVER_ADDRESS] = str(arguments.get("path", ""))
        attributes[semconv.NETWORK_TRANSPORT] = semconv.TRANSPORT_UNIX
        return Server(attributes, None)
    if not issubclass(kind, Connection) and not (kind is object and arguments.get("host")):
        return Server(attributes, None)
    attributes[semconv.NETWORK_TRANSPORT] = semconv.TRANSPORT_TCP
    address, target = _address_of(str(arguments.get("host") or "localhost"), port_of(arguments.get("port")))
    return Server(attributes | address, target)


def port_of(given: Any) -> int:
    """The port that a pool or a connection has been given, which may be of any kind; the default one if it is none."""
    try:
        return int(given)
    except (OverflowError, TypeError, ValueError):
        # There is none, or connecting says what is wrong with it.
        return _DEFAULT_PORT


def _address_of(host: str, port: int) -> tuple[dict[str, Any], str]:
    address: dict[str, Any] = {semconv.SERVER_ADDRESS: host}
    if port != _DEFAULT_PORT:
        address[semconv.SERVER_PORT] = port
    return address, f"{host}:{port}"


@dataclass(frozen=True, slots=True)  # whose attributes are read faster than a tuple's names
class CallSpec:
    """What calls that look alike have in common: the name of their span, its attributes, and those of their points.

    What tells them apart is their query text: that of the arguments of a command, or of the commands of a batch.

    Attributes:
        text_of: Writes the query text.
        kind: Of the span.
        is_sure: Whether it gets a span, whatever its outcome and its parent.
        is_wanted: Whether it gets a span, as far as the names of its commands tell.
        is_measured: Whether it is a point of ``db.client.operation.duration``.
        awaits_data: Whether consumers call it over and over while there is nothing to consume.
        lacks_target: Whether its name is to end with the server, once that is known.
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
    lacks_target: bool = False

    def with_template(self, template: str) -> Self:
        """The same with what its keys have in common."""
        added = {semconv_ext.KEY_TEMPLATE: template}
        return replace(
            self, span_attributes=self.span_attributes | added, point_attributes=self.point_attributes | added
        )

    def served_by(self, host: str, port: int) -> Self:
        """The same with a server that was not known before, as a Sentinel tells it last."""
        address, target = _address_of(host, port)
        return replace(
            self,
            span_name=f"{self.span_name} {target}" if self.lacks_target else self.span_name,
            span_attributes=self.span_attributes | address,
            point_attributes=self.point_attributes | address,
        )

    def address(self) -> dict[str, Any]:
        """The server, as far as it is known."""
        return {key: self.span_attributes[key] for key in _ADDRESS if key in self.span_attributes}

    def with_span_attributes(self, added: dict[str, Any]) -> Self:
        """The same with further attributes of the span."""
        return replace(self, span_attributes=self.span_attributes | added)


class MessagingSpec(NamedTuple):
    """What an operation on messages is (messaging-spans.md).

    Attributes:
        name: Of the operation.
        kind: Of the operation.
        queue: Where the messages are.
        renames: Whether its span is called by it, or by its command.
    """

    name: str
    kind: str
    queue: str
    names_span: bool


class SpanNamer:
    """Puts calls on one server into the conventions' terms.

    Args:
        server: The server.
        options: What users have chosen.

    Attributes:
        query_text: Writes the query text of a command.
    """

    def __init__(self, server: Server, options: TelemetryOptions) -> None:
        self.server = server
        self._options = options
        self._unknown = CardinalityLimit(_MAX_UNKNOWN_COMMANDS)
        hides = not options.show_keys or options.key_template is not None
        self.query_text = (
            partial(query_text, key_text=self.key_text, shows_fields=options.show_keys) if hides else query_text
        )

    def includes(self, operations: Collection[str]) -> bool:
        """Whether calls of these commands get spans, as far as their names tell."""
        names = [operation.upper() for operation in operations]
        included = self._options.include_commands is None or any(
            _is_listed(name, self._options.include_commands) for name in names
        )
        return included and not (names and all(_is_listed(name, self._options.exclude_commands) for name in names))

    @property
    def has_filters(self) -> bool:
        """Whether not every call whose names are wanted gets a span."""
        return self._options.require_parent or self._options.slow_only is not None

    def span_name(self, attributes: Mapping[str, Any], name: str) -> str:
        """The name of a span with these attributes, which is that one by the conventions."""
        if self._options.span_name is None:
            return name
        try:
            # A copy, because its attributes are those of many calls.
            return escape_surrogates(str.__getitem__(self._options.span_name(dict(attributes)), slice(None))) or name
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)
            return name

    def key_text(self, key: object) -> str:
        """What the query text shows in place of a key."""
        return self.template_of(key) or PLACEHOLDER if self._options.show_keys else PLACEHOLDER

    def template_of(self, key: object) -> str | None:
        """What the template function makes of a key; ``None`` if there is none, or if it fails."""
        if self._options.key_template is None:
            return None
        try:
            return escape_surrogates(
                str.__getitem__(self._options.key_template(argument_text(key, _MAX_KEY_LENGTH)), slice(MAX_WORD_LENGTH))
            )
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)
            return None

    def destination_of(self, channel: object) -> tuple[dict[str, str], str | None]:
        """What spans tell of a channel, and what their names show of it: its template, or else the channel itself.

        By the conventions, a destination's name has no place in a span's name if there is a template; here it has none
        in the attributes either, as keys have none in the query text.
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
        """One command."""
        operation, procedure = operation_name(args), stored_procedure(args)
        call = self._spec(self._capped(operation), summary=summary, stored_procedure=procedure)
        # Only of the plain name: redis-py takes a key out of one that holds it.
        if self.query_text is query_text and args and type(args[0]) is str and args[0] in KEY_AND_VALUES:
            call = replace(call, query_text_of=text_of_key_and_values)
        call = self._with_inclusion(replace(call, polls_for_data=polls_for_data(args)), [operation])
        return self.publication(call, args, summary) if operation.upper() in PUBLISHING else call

    def publication(self, call: CallSpec, args: Sequence[Any], summary: str | None = None) -> CallSpec:
        """A command that publishes: a call as any other, whose span is about a message too (messaging-spans.md).

        Args:
            call: What it is without its channel.
            args: The command.
            summary: What a batch is called that has no other command.
        """
        channel = channel_of(args)
        if channel is None:
            return call
        name, attributes = self._messaging(semconv_ext.OPERATION_PUBLISH, semconv.OPERATION_TYPE_SEND, channel)
        attributes = call.span_attributes | attributes
        name = self.span_name(attributes, summary or name)
        return replace(call, span_name=name, span_attributes=attributes, kind=SpanKind.PRODUCER)

    def messaging(self, args: Sequence[Any], about: MessagingSpec) -> CallSpec:
        """A command by which messages are sent, received or settled.

        A producer's is what carries its context along (messaging-spans.md, "Span kind"), as its name then tells.
        """
        call = self.command(args)
        name, attributes = self._messaging(about.name, about.kind, about.queue)
        if not about.names_span:
            return call.with_span_attributes(attributes)
        attributes = call.span_attributes | attributes
        kind = SpanKind.PRODUCER if about.kind == semconv.OPERATION_TYPE_SEND else SpanKind.CLIENT
        name = self.span_name(attributes, name)
        return replace(call, span_name=name, span_attributes=attributes, kind=kind, lacks_target=False)

    def message_attributes(self, about: MessagingSpec) -> dict[str, Any]:
        """What the points of such an operation have in common."""
        _, attributes = self._messaging(about.name, about.kind, about.queue)
        return self._address() | attributes

    def processing(self, channel: object, *, of_queue: bool) -> CallSpec:
        """What is done with a message (messaging-spans.md), which is no call to the server.

        Args:
            channel: Where it came from.
            of_queue: Whether there are few of these; any other channel's name would be a time series.
        """
        name, attributes = self._messaging(semconv_ext.OPERATION_PROCESS, semconv.OPERATION_TYPE_PROCESS, channel)
        server = self._address()
        few = (*_LOW_CARDINALITY, semconv.MESSAGING_DESTINATION_NAME) if of_queue else _LOW_CARDINALITY
        of_points = {key: attributes[key] for key in few if key in attributes}
        name = self.span_name(server | attributes, name)
        return CallSpec(name, server | attributes, server | of_points, kind=SpanKind.CONSUMER)

    def _address(self) -> dict[str, Any]:
        return {key: self.server.attributes[key] for key in _ADDRESS if key in self.server.attributes}

    def _messaging(self, name: str, kind: str, channel: object) -> tuple[str, dict[str, Any]]:
        """The name of a span about a message, and its attributes."""
        destination, target = self.destination_of(channel)
        attributes: dict[str, Any] = {
            semconv.MESSAGING_SYSTEM: semconv_ext.MESSAGING_SYSTEM_REDIS,
            semconv.MESSAGING_OPERATION_NAME: name,
            semconv.MESSAGING_OPERATION_TYPE: kind,
            **destination,
        }
        target = target or self.server.target
        return f"{name} {target}" if target else name, attributes

    def batch(self, kind: str, batch: Sequence[Sequence[Any]], summary: str | None) -> CallSpec:
        """A batch, ``kind`` being ``MULTI`` or ``PIPELINE``; a batch of one command is that command (redis.md)."""
        if len(batch) == 1:
            return replace(self.command(batch[0], summary), query_text_of=self.batch_text)
        names = {operation_name(args) for args in batch}
        operation = f"{kind} {self._capped(next(iter(names)))}" if len(names) == 1 else kind
        call = self._spec(operation, batch_size=len(batch), summary=summary)
        return self._with_inclusion(replace(call, query_text_of=self.batch_text), names)

    def _with_inclusion(self, call: CallSpec, operations: Collection[str]) -> CallSpec:
        is_wanted = self.includes(operations)
        is_sure = is_wanted and not call.polls_for_data and not self.has_filters
        return replace(call, is_included=is_wanted, always_recorded=is_sure)

    def batch_text(self, batch: Sequence[Sequence[Any]]) -> str:
        """Commands in Redis CLI syntax, keys kept and values replaced; cut before it is built, not after."""
        texts: list[str] = []
        room = _MAX_BATCH_TEXT_LENGTH
        for args in batch[:_MAX_TEXTS]:
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
        return operation if operation.upper() in TABLE else self._unknown.cap(operation)

    def _spec(
        self,
        operation: str,
        *,
        batch_size: int | None = None,
        summary: str | None = None,
        stored_procedure: str | None = None,
    ) -> CallSpec:
        """A call by the conventions for Redis.

        The name of the span is the summary, or the operation and what it goes to (database-spans.md, "Name"; redis.md
        leaves out the database).
        """
        given = {semconv.DB_OPERATION_NAME: operation}
        if summary is not None:
            given[semconv.DB_QUERY_SUMMARY] = summary
        span_attributes = {**self.server.attributes, **given}
        if batch_size is not None:
            span_attributes[semconv.DB_OPERATION_BATCH_SIZE] = batch_size
        if stored_procedure is not None:
            span_attributes[semconv.DB_STORED_PROCEDURE_NAME] = stored_procedure
        target = stored_procedure or self.server.target
        point_attributes = {**self.server.attributes, **given}
        point_attributes.pop(semconv.NETWORK_TRANSPORT, None)
        name = summary or (f"{operation} {target}" if target else operation)
        chosen = self.span_name(span_attributes, name)
        is_bare = chosen == name and summary is None and target is None
        return CallSpec(chosen, span_attributes, point_attributes, self.query_text, lacks_target=is_bare)


def _is_listed(name: str, names: Collection[str]) -> bool:
    return name in names or name.partition(" ")[0] in names


_ERROR_PREFIX: Final = re.compile(r"[A-Z][A-Z0-9_]{0,31}(?= |$)")


class Failure(NamedTuple):
    """How a call failed: ``error.type``, and the prefix of the server's error reply if there was one."""

    error_type: str
    status_code: str | None
    is_error: bool

    def attributes(self) -> dict[str, str]:
        """What a span and a point of a failed call have in common."""
        attributes = {semconv.ERROR_TYPE: self.error_type}
        if self.status_code is not None:
            attributes[semconv.DB_RESPONSE_STATUS_CODE] = self.status_code
        return attributes


def failure_of(error: BaseException) -> Failure | None:
    """Classify an exception; ``None`` means that it is no failure.

    ``error.type`` is the prefix of Redis's error reply (``WRONGTYPE``), or else the class with its module, as the
    SDK writes ``exception.type``: ``redis.exceptions.ConnectionError`` is not the builtin ``ConnectionError``.
    A cancellation gives a type but is no error; a ``WatchError`` is the answer that optimistic locking asks for, unless
    redis-py raises it in place of a broken connection's error.
    """
    if isinstance(error, WatchError):
        broken = cause_of(error)
        return failure_of(broken) if isinstance(broken, ConnectionError | TimeoutError) else None
    code = _status_code(error)
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return Failure(code or name, code, isinstance(error, Exception))


def _status_code(error: BaseException) -> str | None:
    # Error classes of an application may have forgotten their base's constructor, or have something else by this name.
    code = getattr(error, "status_code", None) if isinstance(error, RedisError) else None
    if code is None and isinstance(error, ResponseError) and error.args:
        # redis-py strips and keeps only the prefixes it has a class for; all others still lead the text.
        code = error.args[0]
    match = _ERROR_PREFIX.match(code) if isinstance(code, str) else None
    return None if match is None else match[0]
