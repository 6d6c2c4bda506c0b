"""`nextvlad extract`: videos and their labels become frame features, in YouTube-8M's TFRecord files.

video_files, extract_labels -> extract_clips -> extract_splits -> extract_plan: which clips go where
extract_decoding (processes) -> extract_embedding (this process) -> extract_store: shards -> extract_report
"""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nextvlad.data.file_processes import num_processors
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import DataError, UsageError
from nextvlad.extract_clips import Draft, Found, all_files, match_rows, with_ids
from nextvlad.extract_decoding import Decoders, Event, Job, decode
from nextvlad.extract_embedding import embed_all
from nextvlad.extract_labels import LabelOptions, read_table
from nextvlad.extract_outcome import Outcome
from nextvlad.extract_plan import SPLITS, Clip, Plan
from nextvlad.extract_report import report, tell_of_labels, tell_of_replaced, write_index
from nextvlad.extract_splits import SplitOptions, with_splits
from nextvlad.extract_store import FAILURES, Store
from nextvlad.progress import ProgressBar, counted, say
from nextvlad.provenance import Provenance, StreamProvenance
from nextvlad.video.extractor import Extractor, ExtractorOptions
from nextvlad.video.files import pyav
from nextvlad.video_files import VideoFile, expand_videos, shown


def extract(
    videos: Sequence[str],
    out: Path,
    options: ExtractorOptions | None = None,
    *,
    labels: LabelOptions | None = None,
    splits: SplitOptions | None = None,
    videos_per_shard: int = 256,
    workers: int | None = None,
    threads: int | None = None,
) -> dict[str, Outcome]:
    """`nextvlad extract`: fills a folder, prints what became of the videos.

    A run that was stopped, in whatever way, goes on when it is started again in the same way: what is done is
    not done again, what could not be read is tried once more, and what was replaced since is extracted anew.

    Args:
        videos: files, folders (at any depth), globs or .list files.
        out: the folder; made if it is not there.
        options: how features are made.
        labels: where labels come from; None: there are none.
        splits: how clips are dealt out to train, valid and test where no label says it.
        videos_per_shard: clips a file of records has at most.
        workers: processes that decode; 0 decodes in this one; None: half of the processors, or all but one
            where the backbone is on a GPU.
        threads: of the backbone; None: the processors that `workers` leaves, at least one.

    Returns:
        By video id, what became of each clip.

    Raises:
        UsageError: no such videos, labels that do not fit them, a folder that holds something else.
        DataError: not one of the clips could be read.
        OutputError: a file cannot be written. What was done before any of these stays.
    """
    labels, splits = labels or LabelOptions(), splits or SplitOptions()
    if videos_per_shard < 1:
        raise UsageError(f"--videos-per-shard: got {videos_per_shard}, wanted 1 or more.")
    options = options or ExtractorOptions()
    workers, threads = share_processors(workers, threads, on_cpu=options.device == "cpu")
    pyav()
    files = expand_videos(videos)
    found, drafts = find_clips(files, videos, labels, splits)
    names = _names(drafts, found, labels.vocabulary)
    tell_of_labels(drafts)
    extractor = Extractor(options)
    provenance = provenance_of(extractor)
    plan = Plan(_clips(drafts, names, videos_per_shard), names, provenance)
    start = time.monotonic()
    with Store(os.fspath(out), plan, labels.vocabulary) as store:
        tell_of_replaced(store)
        try:
            with _backbone_threads(threads):
                _work(store, extractor, workers)
        finally:
            write_index(store, found, drafts)
    report(store, time.monotonic() - start)
    outcomes = {clip.video_id: store.outcomes[number] for number, clip in enumerate(plan.clips)}
    if all(outcome.failure is not None for outcome in outcomes.values()):
        raise DataError(
            f"{out}: not one of {len(outcomes):,} clips could be read; {FAILURES} there says why."
        )
    return outcomes


def share_processors(workers: int | None, threads: int | None, *, on_cpu: bool = True) -> tuple[int, int]:
    """How many processes decode, and how many threads the backbone has.

    Half of the processors each; where the backbone is on a GPU, it gets one.

    Raises:
        UsageError: less than 0 and 1.
    """
    processors = num_processors()
    if workers is None:
        taken = threads or (-(-processors // 2) if on_cpu else 1)
        workers = max(1, processors - taken)
    if threads is None:
        threads = max(1, processors - workers)
    if workers < 0 or threads < 1:
        raise UsageError(f"--workers {workers} --threads {threads}: wanted 0 or more and 1 or more.")
    return workers, threads


def provenance_of(extractor: Extractor) -> Provenance:
    """How its features are made."""
    return Provenance({name: StreamProvenance(**values) for name, values in extractor.describe().items()})


def find_clips(
    files: Sequence[VideoFile], given: Sequence[str], labels: LabelOptions, splits: SplitOptions
) -> tuple[Found, list[Draft]]:
    """The clips with labels and splits; tells of what does not come together.

    Args:
        files: the videos.
        given: what the user named, which led to them.
        labels: where labels come from.
        splits: where splits come from.

    Raises:
        UsageError: labels that do not fit the videos.
    """
    if labels.tables:
        rows = []
        for table in labels.tables:
            of_table, unused = read_table(
                table, split_column=labels.split_column, group_column=labels.group_column
            )
            rows += of_table
            if unused:
                say(f"{table}: columns that are not used: {', '.join(unused)}.")
        found = match_rows(files, rows)
    else:
        found = all_files(files, folders_are_labels=labels.from_folders, given=given)
    labelled = bool(labels.tables) or labels.from_folders
    drafts, how = with_splits(with_ids(found.drafts), splits, labelled=labelled)
    counts = Counter(draft.split for draft in drafts)
    shown_counts = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if counts[split])
    say(f"{counted(len(drafts), 'clip')} of {counted(len(files), 'file')}: {shown_counts} ({how}).")
    missing = [f"{row.where}: {shown(row.video)}" for row in found.missing]
    without = [shown(file.path) for file in found.without_labels]
    for items, what, why in (
        (missing, "row", "whose video is not there"),
        (without, "video", "without labels"),
    ):
        if items:
            say(f"{counted(len(items), what)} {why}, left out. First: {'; '.join(items[:3])}")
    if found.num_joined:
        say(f"{counted(found.num_joined, 'clip')} with several rows, whose labels are joined.")
    return found, drafts


def _names(drafts: Sequence[Draft], found: Found, vocabulary: Path | None) -> tuple[str, ...]:
    """The class names, in order; also those of which no video is there, so that indices do not hang on it."""
    if vocabulary is None:
        lists = [*(draft.labels for draft in drafts), *(row.labels for row in found.missing)]
        return tuple(sorted({label for labels in lists for label in labels}))
    names = tuple(unicodedata.normalize("NFC", name) for name in Vocabulary.load(vocabulary).names)
    known = set(names)
    for draft in drafts:
        unknown = next((label for label in draft.labels if label not in known), None)
        if unknown is not None:
            raise UsageError(
                f"{draft.where}: label {unknown!r} is not in {vocabulary}. Correct it, or leave out "
                "--vocabulary."
            )
    return names


def _clips(drafts: Sequence[Draft], names: tuple[str, ...], videos_per_shard: int) -> tuple[Clip, ...]:
    """The clips of the plan: split by split, and labelled ones in an order that mixes the labels."""
    index = {name: number for number, name in reversed(list(enumerate(names)))}
    clips = []
    for split in SPLITS:
        chosen = [draft for draft in drafts if draft.split == split]
        if any(draft.labels for draft in chosen):
            chosen.sort(key=lambda draft: hashlib.sha256(draft.video_id.encode()).digest())
        for number, draft in enumerate(chosen):
            clips.append(
                Clip(
                    path=draft.file.path,
                    video_id=draft.video_id,
                    labels=tuple(sorted(index[label] for label in draft.labels)),
                    shard=f"{split}-{number // videos_per_shard:05d}",
                    start_seconds=draft.start_seconds,
                    end_seconds=draft.end_seconds,
                )
            )
    return tuple(clips)


@contextmanager
def _backbone_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work(store: Store, extractor: Extractor, workers: int) -> None:
    """Extracts what is not done yet."""
    jobs = [
        Job(number, clip.path, clip.start_seconds, clip.end_seconds)
        for number, clip in enumerate(store.plan.clips)
        if number not in store.before
    ]
    if not jobs:
        return
    num_failed = 0
    with (
        _decoding(jobs, extractor, workers) as events,
        ProgressBar("Extracting", total=len(store.plan.clips), unit="videos", done=len(store.before)) as bar,
    ):
        for features in embed_all(events, extractor):
            store.add(features)
            num_failed += features.failure is not None
            bar.advance(1, f"{num_failed:,} failed" if num_failed else "")


@contextmanager
def _decoding(jobs: Sequence[Job], extractor: Extractor, workers: int) -> Iterator[Iterator[Event]]:
    if workers == 0:
        yield (event for job in jobs for event in decode(job, extractor.read_options))
        return
    with Decoders(jobs, replace(extractor.read_options, threads=1), workers) as decoders:
        yield iter(decoders)
