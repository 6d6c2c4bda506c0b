"""Which packets of a video need not be decoded in full: those that no row shows and no other frame needs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nextvlad.video.timeline import middle_of

if TYPE_CHECKING:
    from av import Packet

CODECS = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video")
"""Whose decoders heed the request at once. libdav1d's do later, for other frames."""

_DOUBT_SECONDS = 1e-3  # where it is a matter of rounding which frame is shown, both are decoded
_DEPTH = 20
"""Packets looked ahead: more than the 16 by which codecs reorder frames."""


class Lookahead:
    """Delays packets until it is known whether their frame can be the one of a row.

    A row shows the last frame that is not after its middle. So a frame is of no row if another one is
    later than it and not after the next middle; if no other frame is predicted from it either, the
    decoder may leave it out, which it does on request and which is most of the work on many films.

    Args:
        zero_seconds: the timestamp of the clip's second 0.
        rate_hz: rows a second.
    """

    def __init__(self, zero_seconds: float, rate_hz: float) -> None:
        self.zero_seconds = zero_seconds
        self.rate_hz = rate_hz
        self._waiting: deque[tuple[Packet[Any], float | None]] = deque()

    def add(self, packet: Packet[Any]) -> Iterator[tuple[Packet[Any], bool]]:
        """The next packet; gives (packet, whether its own frame is wanted) of those that are decided."""
        seconds = None
        if packet.pts is not None and packet.time_base is not None:
            seconds = float(packet.pts * packet.time_base) - self.zero_seconds
        self._waiting.append((packet, seconds))
        while len(self._waiting) > _DEPTH:
            yield self._next()

    def finish(self) -> Iterator[tuple[Packet[Any], bool]]:
        """Those that are left."""
        while self._waiting:
            yield self._next()

    def _next(self) -> tuple[Packet[Any], bool]:
        packet, seconds = self._waiting.popleft()
        return packet, seconds is None or not self._is_passed(seconds)

    def _is_passed(self, seconds: float) -> bool:
        """Whether a later frame is still not after the first middle from here."""
        row = max(0, math.ceil((seconds - _DOUBT_SECONDS) * self.rate_hz - 0.5))
        last = middle_of(row, self.rate_hz) - _DOUBT_SECONDS
        return any(later is not None and seconds < later <= last for _, later in self._waiting)
