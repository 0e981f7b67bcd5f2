"""The readers of options: each turns a value, as text or already typed, into what redis-py expects.

A reader raises LookupError, OSError or ValueError for a value that cannot be used. The text of its error is never
shown, because the value may be a password that was pasted in the wrong place.
"""

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args

AwsService = Literal["elasticache", "elasticache-serverless", "memorydb"]
ReadFrom = Literal["primary", "replica"]

MIN_SHARE = 0.000_001
# The credentials that have a name, and the package that each needs.
NAMED_CREDENTIALS = {"aws": "botocore", "entra": "redis_entraid"}

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_PROTOCOLS = {2: 2, 3: 3}
_AWS_SERVICES: dict[str, AwsService] = {each: each for each in get_args(AwsService)}
_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_READ_FROM: dict[str, ReadFrom] = {each: each for each in get_args(ReadFrom)}


def text(value: object) -> str:
    """Read text that can be sent to a server."""
    if not isinstance(value, str):
        raise TypeError
    # A lone surrogate, for a byte that os.environ could not decode, cannot be sent; the error would quote the text.
    value.encode()
    return value


def client_name(value: object) -> str:
    """Read a name that ``CLIENT SETNAME`` accepts."""
    if re.fullmatch("[!-~]+", name := text(value)):
        return name
    raise ValueError


def boolean(value: object) -> bool:
    """Read a truth value: ``true``, ``yes``, ``on`` or ``1``, or their opposites, in any case."""
    return value if isinstance(value, bool) else _BOOLEANS[text(value).strip().lower()]


def whole_number(value: object) -> int:
    """Read a whole number, 0 or more."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]+\s*", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError


def share(value: object) -> float:
    """Read a share, 0 or from ``MIN_SHARE`` to 1."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and is_share(number := float(value)):
        return number
    raise ValueError


def is_share(number: float) -> bool:
    """Return whether a number is a share that options accept."""
    return number == 0 or MIN_SHARE <= number <= 1


def command_names(value: object) -> frozenset[str]:
    """Read names of commands: a collection, or text in which commas join them."""
    given: Any = value.split(",") if isinstance(value, str) else value
    names = frozenset(command_name(text(name)) for name in given)
    if not names or "" in names:
        raise ValueError
    return names


def command_name(name: str) -> str:
    """Return the name of a command as options have it: in capitals, its words divided by one space."""
    return " ".join(name.upper().split())


def positive(read: Callable[[object], float]) -> Callable[[object], float]:
    """Return a reader that refuses 0, and reads everything else with ``read``."""

    def read_positive(value: object) -> float:
        if not (number := read(value)):
            raise ValueError
        return number

    return read_positive


def protocol(value: object) -> int:
    """Read a version of RESP."""
    return _PROTOCOLS[whole_number(value)]


def read_from(value: object) -> ReadFrom:
    """Read which servers of a topology answer what only reads."""
    return _READ_FROM[text(value).strip().lower()]


def credentials(value: object) -> str:
    """Read a name of ``NAMED_CREDENTIALS``, or a factory as ``module:name``."""
    name = text(value).strip()
    if name in NAMED_CREDENTIALS or re.fullmatch(rf"{_DOTTED}:{_DOTTED}", name):
        return name
    raise ValueError


def aws_name(value: object) -> str:
    """Read the name of a region or a cache, which have no capitals."""
    if re.fullmatch("[a-z][a-z0-9]*(-[a-z0-9]+)*", name := text(value).strip()):
        return name
    raise ValueError


def aws_service(value: object) -> AwsService:
    """Read what a cache of AWS is."""
    return _AWS_SERVICES[text(value).strip().lower()]


def cert_reqs(value: object) -> ssl.VerifyMode:
    """Read what the server has to prove with a certificate."""
    if isinstance(value, ssl.VerifyMode):
        return value
    return _CERT_REQS[text(value).strip().lower().removeprefix("cert_")]


def tls_version(value: object) -> ssl.TLSVersion:
    """Read a version of TLS."""
    if isinstance(value, ssl.TLSVersion):
        return value
    # Not only text: unquoted, 1.2 is a number in JSON and YAML.
    return _TLS_VERSIONS[str(value).strip().lower().removeprefix("tlsv")]


class CheckedPath(str):
    """The path of a file that has been checked; readers do not check it again.

    A copy by ``copy`` or ``pickle`` is plain text, and is checked where it is used.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class AuthoritiesPath(CheckedPath):
    """The path of a PEM file from which certificates have been loaded."""

    __slots__ = ()


class PasswordPath(CheckedPath):
    """The path of a password file, and the password that it had when it was read.

    Args:
        path: The path.
        password: The password; neither the text nor copies contain it.
    """

    __slots__ = ("password",)

    password: str

    def __new__(cls, path: str, password: str) -> Self:
        """Make the text of the path and attach the password."""
        self = super().__new__(cls, path)
        self.password = password
        return self


def file(value: object) -> CheckedPath:
    """Read the path of an existing file."""
    if isinstance(value, CheckedPath):
        return value
    if Path(path := str(value)).is_file():
        return CheckedPath(path)
    raise ValueError


def authorities(value: object) -> AuthoritiesPath:
    """Read the path of a PEM file, loading its certificates."""
    if isinstance(value, AuthoritiesPath):
        return value
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path := file(value))
    return AuthoritiesPath(path)


def password_file(value: object) -> PasswordPath:
    """Read the path of a password file, and the file."""
    return value if isinstance(value, PasswordPath) else PasswordPath(str(value), password_in(value))


def password_in(path: object) -> str:
    """Read the password in a file."""
    # As bytes: in text mode, Python takes more characters than line feeds for line ends.
    password = Path(str(path)).read_bytes().decode().rstrip("\r\n")
    if not password or password.startswith("\ufeff") or "\0" in password:
        # An editor or a converter adds a BOM or NUL: no user types such a password.
        raise ValueError
    return password
