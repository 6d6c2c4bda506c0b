"""What a user sees of an extraction: remarks before it, index.csv and failures.csv, and the closing count."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nextvlad.extract_clips import Draft, Found
from nextvlad.extract_plan import SPLITS
from nextvlad.extract_store import FAILURES, INDEX, Store
from nextvlad.files import NewFile
from nextvlad.progress import counted, say
from nextvlad.provenance import StreamProvenance
from nextvlad.video_files import shown

_LISTED = 20  # failures and the like that are printed
_INDEX_COLUMNS = ("video_id", "path", "split", "shard", "status", "labels", "start_seconds", "end_seconds")


def tell_of_labels(drafts: Sequence[Draft]) -> None:
    """Labels that a model can be tested on, but not learn; and those that may be meant as one."""
    labels = {label for draft in drafts for label in draft.labels}
    trained = {label for draft in drafts if draft.split == "train" for label in draft.labels}
    others = sorted(labels - trained)
    by_letters: dict[str, list[str]] = {}
    for label in sorted(labels):
        by_letters.setdefault(" ".join(label.casefold().split()), []).append(label)
    alike = [" and ".join(map(repr, group)) for group in by_letters.values() if len(group) > 1]
    if alike:
        say(
            "Labels that differ in letter case or spaces alone, taken for different ones: "
            f"{', '.join(alike[:5])}"
        )
    if trained and others:
        say(f"{counted(len(others), 'label')} with no video in train: {', '.join(others[:5])}")


def tell_of_replaced(store: Store) -> None:
    """Clips that an earlier run has done, of files that are others now."""
    paths = [store.plan.clips[number].path for number in sorted(store.replaced)]
    if paths:
        say(
            f"{counted(len(paths), 'clip')} whose file was replaced since, by its size or time; "
            f"extracted anew. First: {'; '.join(map(shown, paths[:3]))}"
        )


def write_index(store: Store, found: Found, drafts: Sequence[Draft]) -> None:
    """What became of each file, also of those that no clip was made of; and the failures alone."""
    by_id = {draft.video_id: draft for draft in drafts}
    streams = sorted(store.plan.provenance.streams, reverse=True)
    rows: list[list[object]] = []
    failures: list[list[object]] = []
    for number, clip in enumerate(store.plan.clips):
        outcome = store.outcomes.get(number)
        status = "not yet" if outcome is None else "failed" if outcome.failure is not None else "done"
        message = (outcome.failure or "; ".join(outcome.notes)) if outcome else ""
        begin = [clip.start_seconds, clip.end_seconds]
        labels = ";".join(by_id[clip.video_id].labels)
        counts = [outcome.num_rows.get(name) if outcome else None for name in streams]
        shard = clip.shard if status == "done" else ""
        rows.append([clip.video_id, clip.path, clip.split, shard, status, labels, *begin, *counts, message])
        if status == "failed":
            failures.append([clip.path, clip.video_id, message])
    nothing = [None] * (2 + len(streams))
    rows += [["", file.path, "", "", "no labels", "", *nothing, ""] for file in found.without_labels]
    rows += [
        [
            row.video_id or "",
            row.video,
            row.split or "",
            "",
            "missing",
            ";".join(row.labels),
            *nothing,
            row.where,
        ]
        for row in found.missing
    ]
    columns = [*_INDEX_COLUMNS, *(f"{name}_rows" for name in streams), "message"]
    _write_table(os.path.join(store.folder, INDEX), columns, rows)
    path = Path(store.folder, FAILURES)
    if failures:
        _write_table(str(path), ["path", "video_id", "reason"], failures)
    else:
        path.unlink(missing_ok=True)


def report(store: Store, seconds: float) -> None:
    """The closing count, to standard output.

    Args:
        store: what was done.
        seconds: that it took.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal has no letters for
        sys.stdout.reconfigure(errors="replace")
    outcomes = store.outcomes.values()
    done = [outcome for outcome in outcomes if outcome.failure is None]
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    new = len(outcomes) - len(store.before)
    shards = store.shards()
    print(f"{store.folder}: {counted(len(shards), 'file')} of records")
    for split in SPLITS:
        of_split = [size for name, size in shards.items() if name.rpartition("-")[0] == split]
        if of_split:
            videos, size = (sum(column) for column in zip(*of_split, strict=True))
            print(f"  {split:8s} {counted(videos, 'video')}, {size:,} bytes")
    if store.plan.names:
        print(f"  labels   {len(store.plan.names):,} in vocabulary.csv")
    before = f", {len(store.before):,} of them before" if store.before else ""
    print(f"  videos   {len(done):,} done{before}")
    rows = Counter[str]()
    for outcome in done:
        rows.update(outcome.num_rows)
    for name, stream in sorted(store.plan.provenance.streams.items(), reverse=True):
        size = stream.size if isinstance(stream, StreamProvenance) else 0
        print(f"  {name:8s} {rows[name]:,} rows of {size:,}")
    print(f"  time     {seconds:.1f} s" + (f", {new / max(seconds, 1e-9):.2g} videos/s" if new else ""))
    noted = Counter(note for outcome in done for note in outcome.notes)
    for note, count in noted.most_common(_LISTED):
        print(f"  note     {counted(count, 'video')}: {note}")
    if failed:
        print(f"  failed   {len(failed):,}, listed in {FAILURES}; the same command tries them again")
        for outcome in failed[:_LISTED]:
            print(f"    {shown(outcome.failure or '')}")
        if len(failed) > _LISTED:
            print(f"    and {len(failed) - _LISTED:,} more")


def _write_table(path: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV file, written aside and renamed.

    Raises:
        OutputError: it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([shown(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    with NewFile(path) as file:
        file.write(text.getvalue().encode())
