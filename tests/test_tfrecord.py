from __future__ import annotations

import gzip
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvlad.data import tfrecord, window
from nextvlad.data.tfrecord import RecordWriter, count_records, masked_crc, read_records
from nextvlad.errors import OutputError, RecordError, RecordPlace, UsageError

PAYLOADS = [b"first", b"", b"x" * 5000, bytes(range(256)) * 3, b"last"]


def framed(*payloads: bytes) -> bytes:
    parts = []
    for payload in payloads:
        size = struct.pack("<Q", len(payload))
        parts += [size, struct.pack("<I", masked_crc(size)), payload, struct.pack("<I", masked_crc(payload))]
    return b"".join(parts)


def pack(data: bytes, compression: str | None) -> bytes:
    return {None: bytes, "gzip": gzip.compress, "zlib": zlib.compress}[compression](data)


def contents(path: Path | str, **options: object) -> list[bytes]:
    return [bytes(record.payload) for record in read_records(path, **options)]  # type: ignore[arg-type]


def read_all(path: Path) -> tuple[list[bytes], list[RecordError]]:
    errors: list[RecordError] = []
    return contents(path, on_damage=errors.append), errors


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers so small that records straddle and outgrow them."""
    monkeypatch.setattr(tfrecord, "_BLOCK", 32)
    monkeypatch.setattr(tfrecord, "_COUNT_BLOCK", 16)
    monkeypatch.setattr(window, "_PAGE", 8)
    monkeypatch.setattr(window, "_AHEAD", 5)


@pytest.mark.parametrize("compression", [None, "gzip", "zlib"])
def test_what_is_written_is_read(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tfrecord"
    with RecordWriter(path, compression) as writer:  # type: ignore[arg-type]
        for payload in PAYLOADS:
            writer.write(payload)
    assert contents(path) == PAYLOADS
    assert count_records(path) == len(PAYLOADS)
    assert (
        pack(path.read_bytes(), None)[:2]
        == {None: b"\x05\0", "gzip": b"\x1f\x8b", "zlib": b"\x78\x9c"}[compression]
    )
    assert os.listdir(tmp_path) == ["a.tfrecord"]


def test_written_bytes_are_the_format(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a") as writer:
        writer.write(b"123456789")
    length = struct.pack("<Q", 9)
    expected = length + struct.pack("<I", masked_crc(length)) + b"123456789" + struct.pack("<I", 0xC78AB0E5)
    assert (tmp_path / "a").read_bytes() == expected


@pytest.mark.parametrize("compression", [None, "gzip", "zlib"])
@pytest.mark.usefixtures("small_buffers")
def test_records_larger_than_the_buffer(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a"
    path.write_bytes(pack(framed(*PAYLOADS), compression))
    assert contents(path) == PAYLOADS
    assert count_records(path) == len(PAYLOADS)


@pytest.mark.parametrize("compression", [None, "gzip", "zlib"])
def test_places_and_resuming(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a"
    path.write_bytes(pack(framed(*PAYLOADS), compression))
    places = [record.place for record in read_records(path)]
    assert places[:3] == [
        RecordPlace(str(path), 0, 0),
        RecordPlace(str(path), 21, 1),
        RecordPlace(str(path), 37, 2),
    ]
    for number, place in enumerate(places):
        rest = [(record.place, bytes(record.payload)) for record in read_records(path, start=place)]
        assert rest == list(zip(places, PAYLOADS, strict=True))[number:]
    end = RecordPlace(str(path), len(framed(*PAYLOADS)), len(PAYLOADS))
    assert contents(path, start=end) == []
    with pytest.raises(RecordError, match="ends before this place, where reading was to go on") as caught:
        contents(path, start=RecordPlace(str(path), 10**6, 7))
    assert caught.value.framing_lost


def test_payload_is_a_read_only_view(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(framed(b"abc"))
    payload = next(read_records(tmp_path / "a")).payload
    assert payload.dtype == np.uint8
    assert not payload.flags.writeable
    assert not payload.flags.owndata


@pytest.mark.parametrize("data", [b"", gzip.compress(b"", mtime=0), zlib.compress(b"")])
def test_empty_files_are_valid(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert contents(tmp_path / "a") == []
    assert count_records(tmp_path / "a") == 0


def test_several_gzip_members_and_padding(tmp_path: Path) -> None:
    data = gzip.compress(framed(b"one")) + gzip.compress(framed(b"two")) + bytes(1000)
    (tmp_path / "a").write_bytes(data)
    assert contents(tmp_path / "a") == [b"one", b"two"]


def test_a_valid_plain_header_wins_over_a_gzip_magic(tmp_path: Path) -> None:
    payload = bytes(0x8B1F)
    (tmp_path / "a").write_bytes(framed(payload))
    assert (tmp_path / "a").read_bytes()[:2] == b"\x1f\x8b"
    assert contents(tmp_path / "a") == [payload]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_pipes(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(pack(framed(*PAYLOADS), compression),))
    writer.start()
    assert contents(path) == PAYLOADS
    writer.join()


def test_damaged_payload(tmp_path: Path) -> None:
    data = bytearray(framed(b"one", b"two", b"three"))
    data[19 + 12] ^= 1
    path = tmp_path / "train0042.tfrecord"
    path.write_bytes(data)
    found, wanted = masked_crc(bytes(data[31:34])), masked_crc(b"two")
    with pytest.raises(RecordError) as caught:
        contents(path)
    assert str(caught.value) == (
        f"{path}, byte 19, record 1: payload CRC {found:08x}, the header says {wanted:08x}. "
        "The file is damaged; fetch it again or pass --data.skip-damaged."
    )
    assert not caught.value.framing_lost
    payloads, errors = read_all(path)
    assert payloads == [b"one", b"three"]
    assert [str(error) for error in errors] == [str(caught.value)]


def test_damaged_length(tmp_path: Path) -> None:
    data = bytearray(framed(b"one", b"two", b"three"))
    data[19] ^= 1
    (tmp_path / "a").write_bytes(data)
    payloads, (error,) = read_all(tmp_path / "a")
    assert payloads == [b"one"]
    assert "byte 19, record 1: length CRC" in str(error)
    assert "Not read: the last 40 bytes" in str(error)
    assert error.framing_lost
    with pytest.raises(RecordError, match="length CRC"):
        contents(tmp_path / "a")
    with pytest.raises(RecordError, match="length CRC"):
        count_records(tmp_path / "a")
    assert count_records(tmp_path / "a", on_damage=lambda error: None) == 1


def test_damaged_first_length_is_told_from_another_format(tmp_path: Path) -> None:
    data = bytearray(framed(b"one", b"two", b"three"))
    data[8] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(RecordError, match="byte 0, record 0: length CRC"):
        contents(tmp_path / "a")


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (
            24,
            "byte 19, record 1: the file ends 5 bytes into a record header of 12 bytes. .*the last 5 bytes",
        ),
        (
            33,
            "byte 19, record 1: the file ends inside this record, whose payload should .*last 14 bytes",
        ),
    ],
)
def test_truncated(tmp_path: Path, cut: int, message: str) -> None:
    (tmp_path / "a").write_bytes(framed(b"one", b"two", b"three")[:cut])
    payloads, (error,) = read_all(tmp_path / "a")
    assert payloads == [b"one"]
    assert error.framing_lost
    with pytest.raises(RecordError, match=message):
        contents(tmp_path / "a")
    with pytest.raises(RecordError, match=message):
        count_records(tmp_path / "a")


def test_a_file_that_gets_shorter_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(framed(*[b"x" * 84] * 100))
    records = read_records(path, block_bytes=100)
    assert next(records).place.number == 0
    os.truncate(path, 5000)  # between two records
    with pytest.raises(RecordError, match=r"record 50: the file ends here, 5000 bytes before") as caught:
        list(records)
    assert caught.value.framing_lost


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_lying_length_takes_no_memory(tmp_path: Path, compression: str | None) -> None:
    size = struct.pack("<Q", 1 << 61)
    data = framed(b"one") + size + struct.pack("<I", masked_crc(size)) + bytes(100)
    (tmp_path / "a").write_bytes(pack(data, compression))
    payloads, (error,) = read_all(tmp_path / "a")
    assert payloads == [b"one"]
    assert f"payload should have {1 << 61} bytes" in str(error)


@pytest.mark.parametrize("compression", ["gzip", "zlib"])
def test_damaged_compressed_data(tmp_path: Path, compression: str) -> None:
    noise = [np.random.default_rng(seed).bytes(50_000) for seed in range(8)]
    data = bytearray(pack(framed(*noise), compression))
    path = tmp_path / "a"
    path.write_bytes(data[: len(data) // 2])
    payloads, (error,) = read_all(path)
    assert payloads == noise[: len(payloads)]
    assert len(payloads) >= 3
    assert "the compressed data ends too early: the file is truncated" in str(error)
    assert error.framing_lost
    assert error.place is not None
    assert error.place.number == len(payloads)
    data[200_000:200_100] = bytes(100)
    path.write_bytes(data)
    payloads, errors = read_all(path)
    assert errors
    assert all(payload in noise for payload in payloads)
    data[2:12] = b"\xff" * 10
    path.write_bytes(data)
    with pytest.raises(RecordError, match="compressed data is damaged"):
        contents(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"# Golden numbers\n", "it begins with b'# Golden num"),
        (b"hello", "it begins with b'hello'"),
        (b"<!DOCTYPE html><html>", "a web page, perhaps a server's error message"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x80\x02}q\x00(U\x05video", "a Python pickle"),
        (
            gzip.compress(b"a text file, compressed", mtime=0),
            "once decompressed it begins with b'a text file,",
        ),
    ],
)
def test_not_a_tfrecord(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(
        RecordError, match=r"not a TFRecord file: .*check the path and that the download"
    ) as caught:
        contents(tmp_path / "a")
    assert words in str(caught.value)
    assert caught.value.framing_lost
    with pytest.raises(RecordError, match="not a TFRecord file"):
        count_records(tmp_path / "a")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such file"):
        contents(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is a directory, wanted a file"):
        contents(tmp_path)
    (tmp_path / "a").touch(mode=0)
    if os.geteuid() != 0:
        with pytest.raises(UsageError, match="cannot be opened"):
            contents(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match="cannot be opened"):
        contents(tmp_path / "loop")


def test_an_error_of_the_callback_comes_out(tmp_path: Path) -> None:
    data = bytearray(framed(b"one", b"two"))
    data[13] ^= 1
    (tmp_path / "a").write_bytes(data)
    calls = []

    def refuse(error: RecordError) -> None:
        calls.append(error)
        raise error

    with pytest.raises(RecordError, match="payload CRC"):
        contents(tmp_path / "a", on_damage=refuse)
    assert len(calls) == 1


@settings(max_examples=60, deadline=None)
@given(payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=4), data=st.data())
def test_every_flipped_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], data: st.DataObject
) -> None:
    whole = framed(*payloads)
    position = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
    with pytest.raises(RecordError):
        contents(path)
    kept, _ = read_all(path)
    assert len(kept) < len(payloads)
    remaining = iter(payloads)
    assert all(payload in remaining for payload in kept)  # in order, nothing made up


@pytest.mark.parametrize("compression", [None, "gzip", "zlib"])
def test_every_cut_is_found(tmp_path: Path, compression: str | None) -> None:
    payloads = [b"one", b"", b"a longer third record"]
    whole = pack(framed(*payloads), compression)
    boundaries = {0} if compression else {0, 19, 35, len(framed(*payloads))}
    for cut in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:cut])
        if cut in boundaries:  # between two records: nothing in the format tells
            assert read_all(tmp_path / "a")[1] == []
        else:
            with pytest.raises(RecordError):
                contents(tmp_path / "a")


@pytest.mark.parametrize("compression", ["gzip", "zlib"])
def test_every_flipped_bit_of_a_compressed_file_is_found_or_harmless(
    tmp_path: Path, compression: str
) -> None:
    payloads = [b"one", b"another record"]
    whole = pack(framed(*payloads), compression)
    for position in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            (tmp_path / "a").write_bytes(changed)
            found, errors = read_all(tmp_path / "a")
            assert errors or found == payloads  # gzip's header has bytes without meaning, such as the time


def test_writer_leaves_nothing_after_an_exception(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def interrupted() -> None:
        with RecordWriter(tmp_path / "a") as writer:
            writer.write(b"one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_writer_errors(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"nowhere/a: cannot be written \(No such file"),
        RecordWriter(tmp_path / "nowhere" / "a"),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written"), RecordWriter(tmp_path / "folder"):
        pass
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(UsageError, match="outside of the `with"):
        RecordWriter(tmp_path / "b").write(b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("size", [10, 100_000])
def test_disk_full(tmp_path: Path, size: int) -> None:
    writer = RecordWriter(tmp_path / "a")
    (tmp_path / f".a.{os.getpid()}.partial").symlink_to("/dev/full")
    with (
        pytest.raises(OutputError, match=r"a: cannot be written \(No space left on device\). Free space"),
        writer,
    ):
        writer.write(bytes(size))
    assert os.listdir(tmp_path) == []


def test_golden_files(golden: Path) -> None:
    folder = golden / "yt8m"
    assert count_records(folder / "train0000.tfrecord") == 20
    assert contents(folder / "empty.tfrecord") == []
    payloads, (error,) = read_all(folder / "broken_data_crc.tfrecord")
    assert len(payloads) == 3
    assert "byte 23486, record 1: payload CRC" in str(error)
