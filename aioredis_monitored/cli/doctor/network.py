"""Whether a place is reached: its name, its port, its certificate."""

import asyncio
import os
import ssl
import time
from typing import Any, Final

from redis.asyncio import SSLConnection

from aioredis_monitored._redispy.connections import with_shared_context
from aioredis_monitored.cli.doctor.subject import Place, Subject
from aioredis_monitored.cli.findings import Finding, fault, ok, warning
from aioredis_monitored.config.addresses import is_ip_address
from aioredis_monitored.pool.names import addresses_of

_DAY_SECONDS: Final = 86_400
_MIN_DAYS: Final = 14
# What OpenSSL finds wrong with a certificate, and what to do (https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/).
_CERTIFICATE_PROBLEMS: Final = {
    9: "set the clocks of both machines: the server's certificate is not valid yet",
    10: "renew the server's certificate, and check the clock of this machine",
    18: "name the server's certificate in ssl_ca_certs: it is its own authority",
    19: "name the server's authority in ssl_ca_certs: the system does not know it",
    20: "name the server's authority in ssl_ca_certs: the system does not know it",
    21: "have the server send its whole chain of certificates, or name its authority in ssl_ca_certs",
    62: "use a host name that the server's certificate is for",
    64: "use a host name that the server's certificate is for, instead of an IP address",
}
_NO_TLS: Final = "use a redis:// URL if the server has no TLS, or the port where it has"


async def check_name(subject: Subject, place: Place) -> list[Finding]:
    """Resolve the name of the host."""
    if place.port is None:
        return []
    if is_ip_address(place.host):
        place.addresses = [place.host]
        return [ok("dns", f"{place.host} is an address")]
    try:
        async with asyncio.timeout(subject.patience):
            found = await addresses_of(place.host, place.port)
    except OSError as error:  # also TimeoutError
        advice = f"correct the host in {subject.settings.variable('url')}, or the DNS"
        return [fault("dns", f"{place.host} has no address: {_reason(subject, error)}", advice)]
    place.addresses = [address for address, _ in found]
    return [ok("dns", f"{place.host} is {', '.join(place.addresses)}")]


async def check_port(subject: Subject, place: Place) -> list[Finding]:
    """Connect to each address, or to the Unix socket."""
    if place.port is None:
        problem = await _try(subject, asyncio.open_unix_connection(place.host))
        if problem:
            return [fault("socket", f"{place}: {problem}", "start the server, or correct the path and its permissions")]
        return [ok("socket", f"{place} is open")]
    attempts = [_try(subject, asyncio.open_connection(each, place.port)) for each in place.addresses]
    outcomes = dict(zip(place.addresses, await asyncio.gather(*attempts), strict=True))
    place.addresses = [address for address, problem in outcomes.items() if not problem]
    make = warning if place.addresses else fault
    advice = "start the server, correct the port, or open it in firewalls and network policies"
    found = [
        make("tcp", f"{place}{_at(place, address)}: {problem}", advice)
        for address, problem in outcomes.items()
        if problem
    ]
    return found + [ok("tcp", f"{place}{_at(place, address)} is open") for address in place.addresses]


def _at(place: Place, address: str) -> str:
    return "" if address == place.host else f" at {address}"


async def check_certificate(subject: Subject, place: Place) -> list[Finding]:
    """Make a TLS handshake as the client makes it, and look when the certificate expires."""
    if not subject.settings.config.tls or place.port is None:
        return []
    try:
        async with asyncio.timeout(subject.patience):
            version, certificate = await _handshake(subject, place)
    except ssl.SSLCertVerificationError as error:
        advice = _CERTIFICATE_PROBLEMS.get(error.verify_code, "replace the server's certificate")
        return [fault("tls", f"the certificate of {place} is refused: {error.verify_message}", advice)]
    except OSError as error:  # also those of TLS, and TimeoutError
        return [fault("tls", f"no TLS with {place}: {_reason(subject, error)}", _NO_TLS)]
    if "notAfter" not in certificate:
        advice = "leave out ssl_cert_reqs, and name the server's authority in ssl_ca_certs"
        return [warning("tls", f"{version}, and anyone can pose as {place}: no certificate is verified", advice)]
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / _DAY_SECONDS
    text = f"{version} with {place}; its certificate expires in {days:.0f} days"
    return [ok("tls", text) if days >= _MIN_DAYS else warning("tls", text, "renew the server's certificate")]


async def _handshake(subject: Subject, place: Place) -> tuple[str, dict[str, Any]]:
    """Return the version of TLS, and the certificate, which is empty if it is not verified."""
    arguments = {name: value for name, value in subject.pool.connection_kwargs.items() if name.startswith("ssl_")}
    connection: Any = with_shared_context(SSLConnection(**arguments))
    _, writer = await asyncio.open_connection(
        place.addresses[0], place.port, ssl=connection.ssl_context.get(), server_hostname=place.host
    )
    try:
        return writer.get_extra_info("ssl_object").version(), writer.get_extra_info("peercert") or {}
    finally:
        writer.transport.abort()


async def _try(subject: Subject, connecting: Any) -> str:
    """Connect, and close; return why that fails, or nothing."""
    try:
        async with asyncio.timeout(subject.patience):
            _, writer = await connecting
    except OSError as error:  # also TimeoutError
        return _reason(subject, error)
    writer.transport.abort()
    return ""


def _reason(subject: Subject, error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no answer in {subject.patience:.1f} s"
    if not isinstance(error, ssl.SSLError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error).partition("] ")[2] or str(error) or "it ends the connection"
