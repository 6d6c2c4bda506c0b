"""What was judged of a data set's segments, without the frames: to count them, and to score lists of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from nextvlad.data.segments import rated_segments
from nextvlad.data.sources import expand, read_file
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import RecordError


def read_ratings(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    on_damage: Callable[[RecordError], None] | None = None,
) -> Iterator[list[VideoRecord]]:
    """Yield the rated segments of every video, in order, without frames; an empty list where none is rated.

    Args:
        data: as `nextvlad.data.sources.expand`.
        on_damage: called with each error; the damaged record is left out. None: the error is raised.

    Raises:
        RecordError: a damaged record, or damaged ratings, with the place.
        UsageError: no such data.
    """
    for path in expand(data):
        for place, record in read_file(path, streams=(), on_damage=on_damage):
            try:
                segments = rated_segments(record)
            except RecordError as error:
                if on_damage is None:
                    raise error.at(place) from None
                on_damage(error.at(place))
                continue
            yield segments


def count_segments(
    data: Sequence[str],
    *,
    on_damage: Callable[[RecordError], None] | None = None,
    on_video: Callable[[], None] = lambda: None,
) -> int:
    """Rated segments of all videos; reads every record. `on_video` is called after each. Errors as above."""
    total = 0
    for segments in read_ratings(data, on_damage=on_damage):
        total += len(segments)
        on_video()
    return total
