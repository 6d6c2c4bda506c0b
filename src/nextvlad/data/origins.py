"""What data says of how its features were made, from the first record of each file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from nextvlad.data.paddle_pickle import is_pickle, read_pickle
from nextvlad.data.sources import expand
from nextvlad.data.tfrecord import read_records
from nextvlad.data.video_record import parse_video_record
from nextvlad.errors import RecordError
from nextvlad.provenance import Expected, Provenance, of_file, of_record

_THREADS = 8
_BLOCK_BYTES = 1 << 16  # one record is wanted, not a megabyte of them


def origin_of(data: Sequence[str]) -> tuple[Provenance | None, str]:
    """Of the features of the first file that has a record, and that file; None: nothing is known of them.

    Raises:
        UsageError: no such data.
    """
    files = expand(data)
    for path in files:
        token = _first_token(path)
        if token is not None:
            return of_file(token, path), path
    return None, files[0]


def check_origins(data: Sequence[str], expected: Expected) -> None:
    """Looks at each file before the work begins; the other records are looked at as they are read.

    Raises:
        DataError: a file whose features are not as expected, with both sides.
        UsageError: no such data.
    """
    files = expand(data)
    with ThreadPoolExecutor(_THREADS) as pool:
        seen: set[bytes] = set()
        for path, token in zip(files, pool.map(_first_token, files), strict=True):
            if token is not None and token not in seen:
                expected.check(token, path)
                seen.add(token)


def _first_token(path: str) -> bytes | None:
    """Of the first sound record; None where there is none, or looking would take it away (a pipe).

    Damage is for those to tell who read the file.
    """
    if not os.path.isfile(path):
        return None
    if is_pickle(path):
        for _, record in read_pickle(path, max_frames=1, streams=(), on_damage=_ignore):
            return of_record(record.context)
        return None
    for payload, _ in read_records(path, on_damage=_ignore, block_bytes=_BLOCK_BYTES):
        try:
            return of_record(parse_video_record(payload, streams=()).context)
        except RecordError:
            continue
    return None


def _ignore(error: RecordError) -> None:
    del error
