"""The findings of `nextvlad check` for people: tables, histograms, and what to do next.

All of it is made from the same dictionary that `--json` writes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nextvlad.progress import counted

_LISTED = 20
_LISTED_DUPLICATES = 5
_BINS = 15
_BAR_WIDTH = 18
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MANY = 0.01  # the share of videos above which something is worth a remark

_Findings = dict[str, Any]


def print_report(found: _Findings, *, vocabulary: str | None = None, console: Console | None = None) -> None:
    """Prints `nextvlad.check.findings`; to standard output if not told otherwise.

    Args:
        found: the findings.
        vocabulary: the file the class names came from.
        console: where to.
    """
    if console is None:
        if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal has no letters for
            sys.stdout.reconfigure(errors="replace")
        console = Console(highlight=False)
    bars = not console.options.ascii_only
    for part in _parts(found, vocabulary, bars):
        console.print(part)
    for line in _lists(found):
        console.print(line, markup=False, soft_wrap=True)
    notes = list(remarks(found))
    if notes:
        table = Table.grid(padding=(0, 1))
        for note in notes:
            table.add_row("  -", Text(note))
        console.print(Group(Text("Worth knowing", style="bold"), table, ""))
    console.print(Text(verdict(found), style="bold green" if found["sound"] else "bold red"))


def _parts(found: _Findings, vocabulary: str | None, bars: bool) -> Iterator[RenderableType]:
    yield _heading("Data", _overview(found))
    if found["streams"]:
        yield _heading("Streams", _streams(found))
    if found["labels"]["num_distinct"]:
        yield _heading("Labels", _labels(found["labels"], vocabulary))
        extremes = [_extremes(found["labels"], which) for which in ("commonest", "rarest")]
        yield Padding(Columns(extremes, padding=(1, 4)), (1, 0, 0, 2), expand=False)
    histograms = [
        histogram(f"frames of {name} a video", stream["frames"]["histogram"], bars)
        for name, stream in found["streams"].items()
    ]
    if found["labels"]["num_distinct"]:
        histograms.append(histogram("labels a video", found["labels"]["a_video"]["histogram"], bars))
    if histograms:
        yield Padding(Columns(histograms, padding=(1, 3)), (1, 0, 1, 2), expand=False)


def _heading(title: str, content: RenderableType) -> RenderableType:
    return Padding(
        Group(Text(title, style="bold"), Padding(content, (0, 0, 0, 2), expand=False)),
        (1, 0, 0, 0),
        expand=False,
    )


def _pairs(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _overview(found: _Findings) -> Table:
    empty = f", {found['num_empty_files']:,} of them empty" if found["num_empty_files"] else ""
    rows = [
        ("files", f"{found['num_files']:,}{empty}"),
        ("size", size_words(found["num_bytes"])),
        ("videos", f"{found['num_videos']:,}"),
        ("without frames", f"{found['num_without_frames']:,}"),
        ("without labels", f"{found['labels']['num_without']:,}"),
        ("streams of unequal length", f"{found['num_unequal_streams']:,}"),
        ("ids that several videos have", f"{found['num_duplicate_ids']:,}"),
        ("damaged records", f"{found['num_damaged']:,}"),
    ]
    if found["context"]:
        rows.append(("other context features", ", ".join(found["context"])))
    return _pairs(rows)


def _streams(found: _Findings) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("stream", overflow="fold")
    table.add_column("a frame")
    for name in ("videos", "min", "median", "mean", "p95", "max", "over 300"):
        table.add_column(name, justify="right")
    for name, stream in found["streams"].items():
        frames = stream["frames"]
        numbers = [f"{frames[key]:,}" for key in ("min", "median")]
        numbers += [f"{frames['mean']:,.1f}", f"{frames['p95']:,}", f"{frames['max']:,}"]
        table.add_row(
            Text(name),
            Text("\n".join(f"{form['size']:,} {form['dtype']}" for form in stream["sizes"][:4]) or "-"),
            f"{stream['num_videos']:,}",
            *numbers,
            f"{frames['num_over_300']:,}",
        )
    return table


def _labels(labels: _Findings, vocabulary: str | None) -> Table:
    a_video = labels["a_video"]
    rows = [
        ("different labels", f"{labels['num_distinct']:,}"),
        ("largest label", f"{labels['largest']:,}"),
        ("labels a video", f"min {a_video['min']:,}, mean {a_video['mean']:.2f}, max {a_video['max']:,}"),
    ]
    if vocabulary is not None:
        rows += [
            ("classes in the vocabulary", f"{labels['num_classes']:,}  ({os.path.basename(vocabulary)})"),
            ("of them never seen here", f"{labels['num_never']:,}"),
        ]
    return _pairs(rows)


def _extremes(labels: _Findings, which: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(f"{which} labels", min_width=16)
    table.add_column("videos", justify="right")
    for row in labels[which]:
        name = f"{row['label']} {row['name']}" if row["name"] else str(row["label"])
        table.add_row(Text(name, overflow="ellipsis", no_wrap=True), f"{row['num_videos']:,}")
    return table


def histogram(title: str, counts: dict[str, int], bars: bool = True) -> Table:
    """Value -> videos as a table of at most 15 rows with bars.

    Args:
        title: of the table.
        counts: not empty.
        bars: draw with block characters; False: with #.
    """
    rows = bins({int(value): videos for value, videos in counts.items()})
    total, most = sum(counts.values()), max(videos for *_, videos in rows)
    table = Table.grid(padding=(0, 1))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    for justify in ("right", "left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for first, last, videos in rows:
        span = f"{first:,}" if first == last else f"{first:,}-{last:,}"
        bar = Text(_bar(videos / most, bars).ljust(_BAR_WIDTH), style="cyan")
        table.add_row(span, bar, f"{videos:,}", Text(f"{videos / total:6.1%}", style="dim"))
    return table


def bins(counts: dict[int, int]) -> list[tuple[int, int, int]]:
    """(first value, last value, videos) of equal steps of 1, 2, 5, 10, 20, 50, ... values.

    >>> bins({1: 3, 2: 1, 30: 2})
    [(0, 4, 4), (5, 9, 0), (10, 14, 0), (15, 19, 0), (20, 24, 0), (25, 29, 0), (30, 34, 2)]
    """
    low, high = min(counts), max(counts)
    step, factors = 1, (2.0, 2.5, 2.0)
    turn = 0
    while high // step - low // step >= _BINS:
        step, turn = int(step * factors[turn % 3]), turn + 1
    rows = [0] * (high // step - low // step + 1)
    for value, videos in counts.items():
        rows[value // step - low // step] += videos
    starts = range(low // step * step, high + 1, step)
    return [(start, start + step - 1, videos) for start, videos in zip(starts, rows, strict=True)]


def _bar(share: float, blocks: bool) -> str:
    """At least a sliver for what is not nothing."""
    if not blocks:
        return "#" * (max(1, round(share * _BAR_WIDTH)) if share else 0)
    whole, eighths = divmod(max(1, round(share * _BAR_WIDTH * 8)) if share else 0, 8)
    return "█" * whole + _EIGHTHS[eighths].strip()


def _lists(found: _Findings) -> Iterator[str | Text]:
    """Damage and repeated ids, one a line and never folded, as a script would want them."""
    if found["num_damaged"]:
        yield Text("Damaged records", style="bold")
        for item in found["damaged"][:_LISTED]:
            video = f" (video {item['video_id']})" if item["video_id"] else ""
            yield f"  {_place(item)}{video}: {item['reason']}"
        if found["num_damaged"] > _LISTED:
            yield f"  ... and {found['num_damaged'] - _LISTED:,} more; --json FILE lists them."
        yield ""
    if found["num_duplicate_ids"]:
        yield Text("Ids that several videos have", style="bold")
        for item in found["duplicate_ids"][:_LISTED_DUPLICATES]:
            more = "; ..." if item["num_videos"] > len(item["places"]) else ""
            places = "; ".join(_place(place) for place in item["places"])
            yield f"  {item['video_id']}: {item['num_videos']:,} videos: {places}{more}"
        if found["num_duplicate_ids"] > _LISTED_DUPLICATES:
            yield f"  ... and {found['num_duplicate_ids'] - _LISTED_DUPLICATES:,} more ids."
        yield ""


def _place(item: _Findings) -> str:
    return f"{item['file']}, byte {item['offset']}, record {item['record']}"


def remarks(found: _Findings) -> Iterator[str]:
    """What is no damage, but should be known before a training."""
    videos, labels = found["num_videos"], found["labels"]
    if not videos:
        return
    if not found["streams"]:
        yield (
            "No feature streams: these are no frame features. Training wants one list of frames a stream, "
            "or a video-level vector called mean_..."
        )
    for name, stream in found["streams"].items():
        yield from _stream_remarks(name, stream, videos)
    if found["streams"] and found["num_without_frames"]:
        yield f"{counted(found['num_without_frames'], 'video')} without any frames: nothing to learn from."
    if labels["num_without"] == videos:
        yield "No labels at all: good for `nextvlad predict` only."
    elif labels["num_without"] > _MANY * videos:
        yield f"{_share(labels['num_without'], videos)} of the videos have no labels."
    if labels["num_never"]:
        yield (
            f"{labels['num_never']:,} of the {labels['num_classes']:,} classes have no video here: they "
            "cannot be learnt from this data alone."
        )
    if found["num_duplicates"]:
        yield (
            f"{counted(found['num_duplicates'], 'video')} repeat the id of another: fine if meant, but never "
            "between "
            "training and validation data."
        )


def _stream_remarks(name: str, stream: _Findings, videos: int) -> Iterator[str]:
    usual, *others = stream["sizes"] or [None]
    for other in others[:3]:
        yield (
            f"Stream {name}: {counted(other['num_videos'], 'video')} with {other['size']:,} {other['dtype']} "
            "values a "
            f"frame instead of {usual['size']:,} {usual['dtype']}, the first in {_place(other['first'])}. "
            "One model cannot take both."
        )
    lacking = videos - stream["num_videos"] + stream["num_without_frames"]
    if lacking:
        yield f"Stream {name} has no frames in {counted(lacking, 'video')} ({_share(lacking, videos)})."
    over = stream["frames"]["num_over_300"]
    if over:
        yield (
            f"Stream {name}: {counted(over, 'video')} with over 300 frames, of which the first 300 are used "
            "(--data.max-frames)."
        )


def verdict(found: _Findings) -> str:
    """The last line: sound, or what to do next."""
    damaged, outside = found["num_damaged"], found["num_outside_vocabulary"]
    if not damaged and not found["num_videos"]:
        return "Sound, but empty: there is not one video in it."
    if not damaged:
        checksums = "every checksum is right"
        if found["num_pickles"]:
            every = found["num_pickles"] == found["num_files"]
            checksums = "pickles have no checksums" if every else f"{checksums} (pickles have none)"
        return f"Sound: all {found['num_videos']:,} records are whole, {checksums}."
    count = f"Damaged: {damaged:,} {'record' if damaged == 1 else 'records'}"
    where = f"{found['num_damaged_files']:,} of {found['num_files']:,} files"
    todo = []
    if damaged > outside:
        todo.append("Fetch or write the damaged files again.")
    if outside:
        todo.append(f"Give the vocabulary that belongs to the labels ({outside:,} outside of it).")
    return (
        f"{count} in {where}; {found['num_videos']:,} are sound. {' '.join(todo)} Until then, "
        "--data.skip-damaged trains without the damaged records."
    )


def size_words(num_bytes: int) -> str:
    """Bytes for people.

    >>> size_words(33_612_875), size_words(12)
    ('33.6 MB', '12 bytes')
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"
