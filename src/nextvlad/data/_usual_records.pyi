"""Records of the usual layout, many in one call: compiled from the C in `nextvlad/data/compiled`.

`Plan` is (((name, values a frame), ...), max_frames, num_classes, origin): at most 8 streams; `num_classes` 0
leaves labels out; `origin` is the provenance that every record must have, b"" for none, None for any.

`rooms` has, for each stream, contiguous memory for [frames, values a frame] uint8. `counts`
[videos, streams + 1] int64 takes the frames of each stream and the number of labels of each video, `labels`
int64 the labels of all, one video's behind the other's. They are filled from their beginning.

ValueError, TypeError: arguments that are not like that.
"""

from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]  # contiguous
_Bytes = _Array | bytes

Plan = tuple[tuple[tuple[bytes, int], ...], int, int, bytes | None]

def pack(
    data: _Bytes,
    plan: Plan,
    first: int,
    every: int,
    rooms: tuple[_Array, ...],
    counts: _Array,
    labels: _Array,
    /,
) -> tuple[int, int, int, list[str]]:
    """Copy the frames of usual records into a batch, until `counts` is full or a record is not for this.

    Records `first`, `first + every`, ... of the data are taken; of the others the checksums are verified.

    Returns:
        Records passed; their bytes; bytes of the next record if it is not all there, else 0; ids of
        those taken.
    """

def find(data: _Bytes, plan: Plan, first: int, every: int, spans: _Array, /) -> tuple[int, int, int, int]:
    """Where usual records are: `spans` [videos, 3] int64 takes number, first byte and size of each payload.

    Returns:
        As `pack`, but for the number of those taken in the end.
    """

def pack_payload(
    payload: _Bytes, plan: Plan, rooms: tuple[_Array, ...], counts: _Array, labels: _Array, /
) -> str | None:
    """Copy the frames of one record into a batch; its id, or None if it is unusual or has no room."""

def crc32c(data: _Bytes, by_table: bool, /) -> int:
    """The checksum without TFRecord's mask, for tests; by tables as where no processor helps."""
