"""Hands finished spans and points to the OpenTelemetry SDK: past its public way where that changes nothing that shows.

The API records a span and a point in some 30 µs, nine tenths of which build what is thrown away: a span that can be
altered, its locks and lists; of each point, a copy of its attributes, its hash and its measurement. This room builds
what the SDK's own processors and aggregations get in the end, and gives it to them. It is the only one that knows the
SDK's insides, and it uses them only if they are those that it knows (``sdk``). Everything else goes the public way
(``public``), so that another version of the SDK costs speed, and never a signal.
"""

from aioredis_monitored._telemetry.direct.binding import Recording, bind
from aioredis_monitored._telemetry.direct.public import Exemplary, PublicPoints, PublicSpans, Series, end_span

__all__ = ["Exemplary", "PublicPoints", "PublicSpans", "Recording", "Series", "bind", "end_span"]
