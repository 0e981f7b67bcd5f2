"""The options of a pool: what each of them accepts, as text or typed, and what becomes of it."""

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aioredis_monitored.timespan import parse_timespan

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Option(NamedTuple):
    """How an option is read.

    Attributes:
        convert: Turns a value, never blank, into what redis-py expects; raises LookupError, OSError or ValueError,
            whose message must not be shown: the value may be a password that was pasted in the wrong place.
        expected: What may be shown instead, after "must be".
    """

    convert: Callable[[object], Any]
    expected: str

    def read(self, value: object) -> Any:
        """What redis-py expects for ``value``.

        Raises:
            ValueError: The value cannot be meant; the text does not repeat it.
        """
        try:
            return self.convert(value)
        except (LookupError, OSError, ValueError):
            raise ValueError(f"must be {self.expected}") from None


def _whole_number(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]+\s*", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError


def _positive(read: Callable[[object], float]) -> Callable[[object], float]:
    def read_positive(value: object) -> float:
        if not (number := read(value)):
            raise ValueError
        return number

    return read_positive


def _protocol(value: object) -> int:
    return {2: 2, 3: 3}[_whole_number(value)]


def _boolean(value: object) -> bool:
    return value if isinstance(value, bool) else _BOOLEANS[_text(value).strip().lower()]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - the reader's contract
    # What os.environ could not decode could not be sent either; the error of the attempt would quote it.
    value.encode()
    return value


def _client_name(value: object) -> str:
    if re.fullmatch("[!-~]+", name := _text(value)):
        return name
    raise ValueError


def _file(value: object) -> str:
    if Path(path := str(value)).is_file():
        return path
    raise ValueError


def _authorities(value: object) -> str:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path := _file(value))
    return path


def _tls_version(value: object) -> ssl.TLSVersion:
    if isinstance(value, ssl.TLSVersion):
        return value
    # Not only text: unquoted, 1.2 is a number in JSON and YAML.
    return _TLS_VERSIONS[str(value).strip().lower().removeprefix("tlsv")]


def _cert_reqs(value: object) -> ssl.VerifyMode:
    if isinstance(value, ssl.VerifyMode):
        return value
    return _CERT_REQS[_text(value).strip().lower().removeprefix("cert_")]


def _password(path: object) -> str:
    # Not as text: that would take other things than line ends for line ends.
    password = Path(str(path)).read_bytes().decode().rstrip("\r\n")
    if not password or password.startswith("\ufeff") or "\0" in password:
        # An editor or a converter has left them there: no user has typed such a password.
        raise ValueError
    return password


def _password_file(value: object) -> str:
    _password(value)
    return str(value)


_TIMESPAN = "a timespan such as '200 milliseconds' (us, ms, s, m, h or d; seconds without a unit)"
_DURATION = Option(parse_timespan, _TIMESPAN)
_POSITIVE_DURATION = Option(_positive(parse_timespan), f"{_TIMESPAN} and more than 0")
_SWITCH = Option(_boolean, "true or false")
_TEXT = Option(_text, "text")
_FILE = Option(_file, "the path of an existing file")

# What is in a password file; of the option itself, the value is the path.
PASSWORD = Option(_password, "the path of a readable file that holds a password, in UTF-8 without BOM and NUL")

OPTIONS = {
    "username": _TEXT,
    "password": _TEXT,
    "password_file": Option(_password_file, PASSWORD.expected),
    "db": Option(_whole_number, "a whole number, 0 or more"),
    "max_connections": Option(_positive(_whole_number), "a whole number, 1 or more"),
    "timeout": _DURATION,
    "multiplex": _SWITCH,
    "retries": Option(_whole_number, "a whole number, 0 or more"),
    "retry_backoff": _POSITIVE_DURATION,
    "socket_timeout": _POSITIVE_DURATION,
    "socket_connect_timeout": _POSITIVE_DURATION,
    "health_check_interval": _DURATION,
    "socket_keepalive": _SWITCH,
    "client_info": _SWITCH,
    "client_name": Option(_client_name, "printable ASCII without spaces"),
    "protocol": Option(_protocol, "2 or 3"),
    "decode_responses": _SWITCH,
    "ssl_ca_certs": Option(_authorities, "the path of a PEM file of certificates"),
    "ssl_certfile": _FILE,
    "ssl_keyfile": _FILE,
    "ssl_cert_reqs": Option(_cert_reqs, "required, optional or none"),
    "ssl_check_hostname": _SWITCH,
    "ssl_min_version": Option(_tls_version, "TLSv1.2 or TLSv1.3"),
}
