"""`nextvlad convert`: PaddleVideo's pickles to TFRecord files and back, nothing lost."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

from nextvlad.convert_manifest import MANIFEST, Manifest, Plan, Source, check_same
from nextvlad.data.conversion import Converted, Kind, Target, convert_file
from nextvlad.data.file_processes import each_file
from nextvlad.data.paddle_pickle import is_pickle
from nextvlad.data.sources import expand
from nextvlad.data.window import SKIP, Compression
from nextvlad.errors import OutputError, UsageError
from nextvlad.progress import ProgressBar

_KINDS: dict[Kind, str] = {"tfrecord": "TFRecord", "pickle": "PaddleVideo pickle"}
_ENDINGS = (".gz", ".zlib", ".tfrecord", ".tfrecords", ".tfr", ".pkl", ".pickle")
_MEGABYTE = 1_000_000
_LISTED = 20  # damaged records that are printed


def convert(
    data: Sequence[str],
    out: Path,
    *,
    to: Kind | None = None,
    videos_per_file: int | None = None,
    workers: int | None = None,
    skip_damaged: bool = False,
    compression: Compression | None = None,
) -> list[Converted]:
    """`nextvlad convert`: writes into a folder, prints the closing count.

    A conversion that was stopped goes on when it is started again in the same way: sources that are done
    are not read again.

    Args:
        data: files, folders, globs or .list files.
        out: the folder; made if it is not there.
        to: kind of the files to make; None: the other kind than the sources'.
        videos_per_file: None makes one file of each source, named like it; else numbered files of at most
            so many videos.
        workers: processes, each with one source at a time; as `each_file`.
        skip_damaged: leave damaged records out and list them, instead of stopping.
        compression: "gzip" or "zlib", of TFRecord files.

    Returns:
        What became of each source, in order.

    Raises:
        UsageError: no such data; sources of both kinds without `to`; `out` holds another conversion, or
            files that would be overwritten.
        RecordError: a damaged record. OutputError: a file cannot be written. WorkerError: a process died.
        What was finished before any of these stays.
    """
    if videos_per_file is not None and videos_per_file < 1:
        raise UsageError(f"videos-per-file: got {videos_per_file}, wanted 1 or more.")
    if compression is not None and to == "pickle":
        raise UsageError("compression: PaddleVideo reads no compressed pickles; leave it out.")
    given = expand(data)
    folder = os.fspath(out)
    with Manifest(folder) as manifest:
        sources = [path for path in given if not _made_here(path, manifest)]
        if not sources:
            raise UsageError(
                f"{folder}: all of the data given was made by this conversion; nothing to convert."
            )
        target = Target(to or _other_kind(sources), videos_per_file, compression)
        if compression is not None and target.to == "pickle":
            raise UsageError("compression: PaddleVideo reads no compressed pickles; leave it out.")
        plan = Plan(target, _identities(sources), _stems(sources))
        if manifest.plan is None:
            _check_free(folder, plan, sources)
            manifest.begin(plan)
        else:
            check_same(folder, manifest.plan, plan)
        before = {number for number in manifest.done if _is_done(manifest, number, skip_damaged)}
        start = time.monotonic()
        with _tidy(folder, plan, before, manifest):
            _work(manifest, plan, sources, before, workers, skip_damaged)
        results = [manifest.done[number] for number in range(len(sources))]
        _report(results, plan, folder, before, time.monotonic() - start)
        return results


def _work(
    manifest: Manifest,
    plan: Plan,
    sources: list[str],
    before: set[int],
    workers: int | None,
    skip_damaged: bool,
) -> None:
    """Converts what is not done yet."""
    todo = [(number, path) for number, path in enumerate(sources) if number not in before]
    total = sum(plan.sources[number].num_bytes for number, _ in todo)
    finished = len(before)
    rest = 0  # bytes that do not make a whole megabyte yet
    work = partial(
        convert_file, folder=manifest.folder, stems=plan.stems, target=plan.target, skip_damaged=skip_damaged
    )
    with ProgressBar("Converting", total=math.ceil(total / _MEGABYTE), unit="MB") as bar:

        def on_bytes(count: int) -> None:
            nonlocal rest
            megabytes, rest = divmod(rest + count, _MEGABYTE)
            bar.advance(megabytes, f"{finished}/{len(sources)} files")

        # Closed at once after an error or Ctrl-C: no process may write when its remains are removed.
        with closing(each_file(todo, work, workers=workers, on_bytes=on_bytes)) as results:
            for done in results:
                manifest.add(done)
                finished += 1


@contextmanager
def _tidy(folder: str, plan: Plan, before: set[int], manifest: Manifest) -> Iterator[None]:
    """Removes what is not whole: of an earlier run before, of this one after, however it ends."""
    keep = {name for number in before for name, _ in manifest.done[number].outputs}
    try:
        for name in os.listdir(folder):
            if name not in keep and plan.makes(name):
                os.unlink(os.path.join(folder, name))
        _remove_partial(folder, plan)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be cleared of unfinished files ({error.strerror}).") from error
    try:
        yield
    finally:
        with suppress(OSError):
            _remove_partial(folder, plan)


def _remove_partial(folder: str, plan: Plan) -> None:
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(".partial") and plan.makes(name[1:].rsplit(".", 2)[0]):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def _made_here(path: str, manifest: Manifest) -> bool:
    """Is this a file that the conversion itself has made, where `out` is also a folder of sources?"""
    here, name = os.path.split(os.path.abspath(path))
    if os.path.realpath(here) != os.path.realpath(manifest.folder):
        return False
    return name == MANIFEST or (manifest.plan is not None and manifest.plan.makes(name))


def _other_kind(sources: list[str]) -> Kind:
    first: dict[bool, str] = {}
    for path in sources:
        first.setdefault(is_pickle(path), path)
    if len(first) > 1:
        raise UsageError(
            f"both pickles ({first[True]}) and TFRecord files ({first[False]}) are given; say with --to what "
            "all of them shall become."
        )
    return "tfrecord" if True in first else "pickle"


def _identities(sources: list[str]) -> tuple[Source, ...]:
    names = _names(sources)
    found = []
    for path, name in zip(sources, names, strict=True):
        try:
            info = os.stat(path)
        except OSError as error:
            raise UsageError(f"{path}: cannot be looked at ({error.strerror or error}).") from error
        found.append(Source(name, info.st_size, info.st_mtime_ns))
    return tuple(found)


def _names(sources: list[str]) -> list[str]:
    """The path of each source from the folder that they share."""
    paths = [os.path.abspath(path) for path in sources]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def _stems(sources: list[str]) -> tuple[str, ...]:
    """A name for what becomes of each source: its own, with its folders before it where two are alike."""
    own = [_stem(os.path.basename(path)) for path in sources]
    alike = Counter(stem.casefold() for stem in own)
    stems: list[str] = []
    taken: set[str] = set()
    for stem, name in zip(own, _names(sources), strict=True):
        if alike[stem.casefold()] > 1:
            stem = _stem(name.replace(os.sep, "-"))
        unique, number = stem, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{stem}-{number}"
        taken.add(unique.casefold())
        stems.append(unique)
    return tuple(stems)


def _stem(name: str) -> str:
    """A file name without what tells its kind; never hidden."""
    for _ in range(2):
        ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), "")
        name = name[: len(name) - len(ending)]
    return name.lstrip(".") or "data"


def _check_free(folder: str, plan: Plan, sources: list[str]) -> None:
    """Refuses to overwrite, above all a source."""
    given = {os.path.realpath(path): path for path in sources}
    for name in sorted(os.listdir(folder)):
        if plan.makes(name):
            path = os.path.join(folder, name)
            if os.path.realpath(path) in given:
                raise UsageError(
                    f"{given[os.path.realpath(path)]}: would be overwritten by what becomes of it. Give "
                    "another --out."
                )
            raise UsageError(f"{path}: is there already. Remove it, or give another --out.")


def _is_done(manifest: Manifest, number: int, skip_damaged: bool) -> bool:
    """Are all files of this source there, and as they should be?"""
    done = manifest.done[number]
    if done.num_damaged and not skip_damaged:
        return False
    for name, size in done.outputs:
        try:
            if os.path.getsize(os.path.join(manifest.folder, name)) != size:
                return False
        except OSError:
            return False
    return True


def _report(results: list[Converted], plan: Plan, folder: str, before: set[int], seconds: float) -> None:
    """The closing count, to standard output."""
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal has no letters for
        sys.stdout.reconfigure(errors="replace")
    new = [done for done in results if done.number not in before]
    num_files = sum(len(done.outputs) for done in results)
    written = sum(size for done in results for _, size in done.outputs)
    rate = f", {sum(done.num_videos for done in new) / max(seconds, 1e-9):,.0f} videos/s" if new else ""
    already = f", {len(before):,} of them before" if before else ""
    print(f"{folder}: {num_files:,} {_KINDS[plan.target.to]} file{'s' if num_files != 1 else ''}")
    print(f"  sources  {len(results):,} read{already}")
    print(
        f"  videos   {sum(done.num_videos for done in results):,} read, and counted again in what was written"
    )
    print(f"  frames   {sum(done.num_frames for done in results):,}")
    print(f"  bytes    {sum(done.num_bytes for done in results):,} read, {written:,} written")
    print(f"  time     {seconds:.1f} s{rate}")
    num_damaged = sum(done.num_damaged for done in results)
    if num_damaged:
        print(f"  damaged  {num_damaged:,} left out")
        messages = [message for done in results for message in done.damage]
        for message in messages[:_LISTED]:
            print(f"    {message.replace(SKIP, '')}")
        if num_damaged > _LISTED:
            print(f"    and {num_damaged - _LISTED:,} more; `nextvlad check` lists them all")
