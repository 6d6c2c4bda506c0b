"""PaddleVideo's data pickles, to and from `VideoRecord`.

Its `tf2pkl.py` makes of each TFRecord file a pickled list of dictionaries:

    video    the id                       feature  [T, 1024] uint8, our stream rgb
    label    list of class indices        audio    [T, 128] uint8
    nframes  rows of both that count: there may be more

under Python 2 with bytes as keys, under Python 3 with str; files to infer on have no label. Streams of
other names and context features, which PaddleVideo does not know, go along as dictionaries under the keys
`streams` and `context`, and the context key of the id, where it is not "id", as `id_key`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nextvlad.data import safe_pickle
from nextvlad.data.pickle_opcodes import array, integer, items, scalar, string
from nextvlad.data.protobuf import Values
from nextvlad.data.safe_pickle import as_text
from nextvlad.data.tfrecord import begins_with_record
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import RecordError, RecordPlace, UsageError
from nextvlad.files import NewFile

_Path = str | os.PathLike[str]
_OnDamage = Callable[[RecordError], None]

_STREAMS = {"feature": "rgb", "audio": "audio"}  # their name -> ours
_KEYS = {stream: key for key, stream in _STREAMS.items()}
_OWN_KEYS = {"video", "label", "nframes", "streams", "context", "id_key", *_STREAMS}
_DTYPES = ("uint8", "float32", "int64")

# Protocol 2 to 5 with an opcode that may come first; a list or dictionary of protocol 0 or 1; a function.
_BEGINNING = re.compile(
    rb"\x80[\x02-\x05][\]}(c)\x95\x8c\x8eNKMJXUCB]|\([ld]p\d|\(l[(.]|\][qr(.}\]]|\}[qr(.]|c[\w.]+\n\w+\n",
    re.DOTALL,
)
_FRAME = b"\x95"


def is_pickle(path: _Path) -> bool:
    """Does the file's content begin as a pickle does? False for a TFRecord file, and what cannot be read.

    A TFRecord file whose length field looks like a pickle is told by its checksum.
    """
    if not os.path.isfile(path):  # a pipe would lose its first bytes
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if _BEGINNING.match(head) is None or begins_with_record(head):
        return False
    # The length of a damaged TFRecord is told by its zeros, which no pickle begins with.
    if head[2:3] == _FRAME:
        return int.from_bytes(head[3:11], "little") <= size
    return head[:1] != b"\x80" or head[4:8] != bytes(4)


def read_pickle(
    path: _Path,
    *,
    first: int = 0,
    max_frames: int | None = None,
    streams: Collection[str] | None = None,
    on_damage: _OnDamage | None = None,
) -> Iterator[tuple[RecordPlace, VideoRecord]]:
    """Yield the videos of one file and their places, in the memory of one. The arrays are the caller's own.

    A place's `offset` is the byte at which the file begins with that video. Keys that are not PaddleVideo's
    are kept too: [T, D] arrays as streams, numbers, strings and lists of either as context; others are
    left out.

    Args:
        path: a regular file.
        first: number of the record to begin with.
        max_frames: keep the first so many frames of each stream; None keeps all that `nframes` counts.
        streams: names to read (`rgb` for PaddleVideo's `feature`); None reads all.
        on_damage: called with each error instead of raising it. A video that is not as it should be is
            then left out; where the pickle itself is damaged, the file ends.

    Raises:
        RecordError: a damaged pickle, one that asks for anything but plain data and arrays (nothing is
            ever run), a record that is not as above.
        UsageError: the file is missing, no regular file, or may not be read; `max_frames` below 1.
    """
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"max_frames: got {max_frames}, wanted 1 or more.")
    found = safe_pickle.stream(path, first=first)
    name = os.fspath(path)
    while True:
        try:
            item = next(found, None)
            if item is None:
                return
            place = RecordPlace(name, item.offset, item.number)
            record = _record(item.value, place, max_frames, streams)
            del item  # two records at a time otherwise
        except RecordError as error:
            if on_damage is None:
                raise
            on_damage(error)
            if error.framing_lost:
                return
            continue
        yield place, record
        del record


def count_pickle(path: _Path, *, on_damage: _OnDamage | None = None) -> int:
    """Number of records of one file; arrays are stepped over, and damaged records may be among them.

    Args:
        path: a regular file.
        on_damage: called instead of raising; the count then ends where the pickle is damaged.

    Raises:
        RecordError, UsageError: as `read_pickle`.
    """
    number = 0
    try:
        for number in safe_pickle.count(path):  # noqa: B007
            pass
    except RecordError as error:
        if on_damage is None:
            raise
        on_damage(error)
    return number


class PickleWriter:
    """Writes one pickle that PaddleVideo reads, record by record; a context manager.

    It is written as Python 2 and its NumPy would have (protocol 2, names as bytes), since both of
    PaddleVideo's readers want that: `cPickle.load(f)` and `pickle.load(f, encoding="bytes")` of Python 3.
    `label` is always there, empty for a video without labels: the reader for training needs it, the one
    to infer with does not look. `nframes` is the length of the longest stream. PaddleVideo needs the
    streams rgb and audio; a video that lacks one is written without it, which only this package reads.

    The records go to a hidden file beside `path`, renamed when the block ends without an exception
    and removed otherwise, so `path` is always whole or untouched.

    Args:
        path: the file to make; its folder must exist.

    Raises:
        OutputError: the file cannot be written.
        UsageError: a record that cannot be pickled: a stream of 2 GiB or more, of another type.
    """

    def __init__(self, path: _Path) -> None:
        self._file = NewFile(path)

    def __enter__(self) -> Self:
        self._file.__enter__()
        self._file.write(b"\x80\x02]")
        return self

    def write(self, record: VideoRecord) -> None:
        """Append one video."""
        try:
            parts = _record_opcodes(record)
        except (TypeError, OverflowError, UnicodeEncodeError) as error:
            raise UsageError(f"video {record.video_id!r} cannot be written as a record: {error}.") from error
        for part in parts:
            self._file.write(part)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.write(b".")
        except BaseException as failure:
            self._file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._file.__exit__(kind, error, trace)


# Reading


def _record(
    value: Any, place: RecordPlace, max_frames: int | None, wanted: Collection[str] | None
) -> VideoRecord:
    """One dictionary of the list as a record."""
    if not isinstance(value, dict):
        raise RecordError(
            f"a {type(value).__name__}, wanted a dictionary with video, feature, audio, nframes and label: "
            "a list of those is what PaddleVideo's tf2pkl.py writes. Is this another pickle?",
            place,
        )
    entries = {as_text(key): content for key, content in value.items()}
    video_id = as_text(entries.get("video"))
    if video_id is None:
        found = _names(entries) or "none"
        raise RecordError(f"no video id: wanted a text under the key video; the keys are {found}.", place)
    try:
        arrays = _arrays(entries)
        num_frames = _num_frames(entries)
        rows = min((count for count in (num_frames, max_frames) if count is not None), default=None)
        streams = {
            name: _frames(name, rows_of, rows)
            for name, rows_of in arrays.items()
            if wanted is None or name in wanted
        }
        record = VideoRecord(video_id, _labels(entries), streams, _context(entries, arrays), tuple(arrays))
        id_key = as_text(entries.get("id_key"))
        if id_key:
            record.id_key = id_key
        return record
    except RecordError as error:
        raise error.at(RecordPlace(place.path, place.offset, place.number, video_id)) from None


def _arrays(entries: dict[str | None, Any]) -> dict[str, Any]:
    """What stands for frames, under our names, unchecked."""
    more = entries.get("streams")
    if "feature" not in entries and not isinstance(more, dict):
        raise RecordError(
            f"no frames: wanted an array under the key feature; the keys are {_names(entries)}."
        )
    arrays = {ours: entries[theirs] for theirs, ours in _STREAMS.items() if theirs in entries}
    if isinstance(more, dict):
        arrays |= {as_text(name) or str(name): content for name, content in more.items()}
    for key, content in entries.items():
        if key is not None and key not in _OWN_KEYS and isinstance(content, np.ndarray) and content.ndim == 2:
            arrays.setdefault(key, content)
    return arrays


def _num_frames(entries: dict[str | None, Any]) -> int | None:
    """`nframes`; None where it is not given."""
    if "nframes" not in entries:
        return None
    value = entries["nframes"]
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if type(value) is not int or value < 0:
        raise RecordError(f"nframes is {_shown(value)}, wanted a whole number of 0 or more.")
    return value


def _frames(name: str, content: Any, rows: int | None) -> NDArray[Any]:
    """The rows of a stream that count, in memory of their own."""
    if not isinstance(content, np.ndarray) or content.ndim != 2:
        got = (
            f"of shape {list(content.shape)}"
            if isinstance(content, np.ndarray)
            else f"a {type(content).__name__}"
        )
        raise RecordError(f"stream {name} is {got}, wanted an array [frames, values].")
    if content.dtype.name not in _DTYPES:
        raise RecordError(f"stream {name} is {content.dtype}, wanted {', '.join(_DTYPES)}.")
    return np.array(content[:rows], order="C")


def _labels(entries: dict[str | None, Any]) -> NDArray[np.int64]:
    values = entries.get("label")
    if values is None:
        return np.empty(0, np.int64)
    if isinstance(values, np.ndarray) and values.ndim <= 1:
        values = values.tolist()
    if type(values) is int:
        values = [values]
    if not isinstance(values, list | tuple) or not all(
        type(value) is int and value < 1 << 63 for value in values
    ):
        raise RecordError(f"label is {_shown(values)}, wanted a list of class indices.")
    return np.array(values, np.int64)


def _context(entries: dict[str | None, Any], arrays: dict[str, Any]) -> dict[str, Values]:
    """The other features: those of the key `context`, and other keys that can be such."""
    more = entries.get("context")
    given = {as_text(key): content for key, content in more.items()} if isinstance(more, dict) else {}
    for key, content in entries.items():
        if key not in _OWN_KEYS and key not in arrays:
            given.setdefault(key, content)
    found = {key: _values(content) for key, content in given.items() if key is not None}
    return {key: values for key, values in found.items() if values is not None}


def _values(content: Any) -> Values | None:
    """A list of ints, of floats or of bytes; None for what is neither."""
    if isinstance(content, np.ndarray) and content.ndim <= 1:
        content = np.atleast_1d(content).tolist()
    values = list(content) if isinstance(content, list | tuple) else [content]
    if all(isinstance(value, str | bytes) for value in values):
        return [value.encode() if isinstance(value, str) else bytes(value) for value in values]
    if all(type(value) is int and -(1 << 63) <= value < 1 << 63 for value in values):
        return values
    if all(type(value) in (int, float) for value in values):
        return [float(value) for value in values]
    return None


def _names(entries: dict[str | None, Any]) -> str:
    """The first keys for a message."""
    more = ", ..." if len(entries) > 12 else ""
    return ", ".join(str(key)[:60] for key in list(entries)[:12]) + more


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = f"an array of shape {list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Writing


def _record_opcodes(record: VideoRecord) -> list[bytes]:
    """The whole record, and its addition to the list."""
    others = {name: frames for name, frames in record.streams.items() if name not in _KEYS}
    num_frames = max((len(frames) for frames in record.streams.values()), default=0)
    parts = [b"}("]
    for name, frames in record.streams.items():
        if name in _KEYS:
            parts += [string(_KEYS[name].encode()), *array(frames)]
    parts += [string(b"label"), items([integer(int(label)) for label in record.labels])]
    parts += [string(b"nframes"), integer(num_frames), string(b"video"), string(record.video_id.encode())]
    if others or "rgb" not in record.streams:
        parts += [string(b"streams"), b"}("]
        for name, frames in others.items():
            parts += [string(name.encode()), *array(frames)]
        parts.append(b"u")
    if record.context:
        parts += [string(b"context"), b"}("]
        for name, values in record.context.items():
            parts += [string(name.encode()), items([scalar(value) for value in values])]
        parts.append(b"u")
    if record.id_key != "id":
        parts += [string(b"id_key"), string(record.id_key.encode())]
    return [*parts, b"ua"]
