"""The folder that `nextvlad extract` fills: what is done of it, and its shards, each whole or not there.

    train-00000.tfrecord ...      shards, once all of their clips were tried
    vocabulary.csv                class names
    provenance.json               how the features were made
    index.csv                     what became of each clip
    failures.csv                  those that could not be read, if any
    .nextvlad-extract.jsonl       the plan, then one line a clip or shard that is done
    .nextvlad-extract/            clips that wait for their shard, a file each

A clip is written, then noted; a shard is written of its clips in the order of the plan, then noted, then the
clips are removed. So a run that is killed between any two of these goes on without doing a clip twice, and
its shards do not depend on the order in which clips were finished. A shard with a clip whose file was
replaced since is first of all taken apart again into the other clips, so that what is outdated is in none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from nextvlad.data.tfrecord import RecordWriter, count_records, read_records
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import ConfigError, DataError, OutputError, UsageError
from nextvlad.extract_embedding import Features
from nextvlad.extract_outcome import Outcome, size_and_time
from nextvlad.extract_plan import SPLITS, Clip, Plan, check_same, from_json, to_json
from nextvlad.files import NewFile, why
from nextvlad.journal import ADVICE, Journal
from nextvlad.provenance import CONTEXT_KEY, SIDECAR

JOURNAL = ".nextvlad-extract.jsonl"
INDEX, FAILURES, VOCABULARY = "index.csv", "failures.csv", "vocabulary.csv"
_TABLES = (INDEX, FAILURES, VOCABULARY, SIDECAR)
_PARTS = ".nextvlad-extract"
_SUFFIX = ".tfrecord"


class Store:
    """The folder, for one process; a context manager.

    Args:
        folder: made if it is not there.
        plan: what it is to hold.
        vocabulary: the user's file of class names, which may lie in the folder under the name of ours; None:
            there is none.

    Attributes:
        outcomes: number of a clip -> what became of it, in this run or before.
        before: numbers of the clips that an earlier run has done.
        replaced: those that it had done, but of files that were replaced since; they are to be done again.

    Raises:
        UsageError: it holds something else, or another process is at work in it.
        OutputError: it cannot be written. DataError: its journal is damaged.
    """

    def __init__(self, folder: str, plan: Plan, vocabulary: Path | None = None) -> None:
        self.folder, self.plan = folder, plan
        self.outcomes: dict[int, Outcome] = {}
        self.before: set[int] = set()
        self.replaced: set[int] = set()
        self._given_vocabulary = vocabulary
        self._shards: dict[str, list[int]] = {}  # that are written: the numbers of the clips in each
        self._unsettled: dict[str, set[int]] = {}
        self._journal = Journal(folder, JOURNAL, "extraction")

    def __enter__(self) -> Self:
        self._journal.__enter__()
        try:
            if self._journal.lines:
                self._go_on()
            else:
                self._begin()
            self._make_parts_folder()
            self._take_out_replaced()
            self._tidy()
            for shard, numbers in self.plan.by_shard.items():
                self._unsettled[shard] = set(numbers) - self.before
                self._build_if_due(shard)
        except BaseException as error:
            self._journal.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # not empty while clips wait
            os.rmdir(self._path(_PARTS))
        self._journal.__exit__(kind, error, trace)

    def add(self, features: Features) -> None:
        """Keeps what became of a clip; writes its shard if it was the last of it."""
        clip = self.plan.clips[features.number]
        if features.failure is None:
            with RecordWriter(self._part(features.number)) as writer:
                writer.write(serialize_video_record(self._record(clip, features)))
        num_bytes, mtime_ns = size_and_time(clip.path)
        outcome = Outcome(
            clip=features.number,
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            num_rows={name: len(values) for name, values in features.streams.items()},
            seconds=features.seconds,
            notes=features.notes,
            failure=features.failure,
        )
        self._journal.add(asdict(outcome))
        self.outcomes[features.number] = outcome
        self._unsettled[clip.shard].discard(features.number)
        self._build_if_due(clip.shard)

    def shards(self) -> dict[str, tuple[int, int]]:
        """Of each shard that is there: clips in it, bytes."""
        return {
            shard: (len(numbers), size_and_time(self._shard(shard))[0])
            for shard, numbers in sorted(self._shards.items())
            if numbers
        }

    def _record(self, clip: Clip, features: Features) -> VideoRecord:
        context: dict[str, Any] = {CONTEXT_KEY: [self.plan.provenance.token]}
        if clip.start_seconds is not None:
            context["start_time_seconds"] = [float(clip.start_seconds)]
        if clip.end_seconds is not None:
            context["end_time_seconds"] = [float(clip.end_seconds)]
        return VideoRecord(clip.video_id, np.array(clip.labels, np.int64), dict(features.streams), context)

    def _begin(self) -> None:
        """Refuses what would be written over, and shards of something else, that `train*` would find too."""
        ours = re.compile(
            rf"({'|'.join(SPLITS)})-\d+{re.escape(_SUFFIX)}|{'|'.join(map(re.escape, _TABLES))}"
        )
        for name in sorted(os.listdir(self.folder)):
            if ours.fullmatch(name) and not (name == VOCABULARY and self._is_given_vocabulary()):
                raise UsageError(
                    f"{self._path(name)}: is there already, and not from an extraction that could go on. "
                    f"Remove it, or {ADVICE[0].lower()}{ADVICE[1:]}."
                )
        self._journal.add(to_json(self.plan))
        self._describe()

    def _go_on(self) -> None:
        try:
            header, *lines = [json.loads(line) for line in self._journal.lines]
            old = from_json(header, where=self._journal.path)
            check_same(self.folder, old, self.plan)
            for line in lines:
                if "shard" in line:
                    self._note_shard(line)
                else:
                    outcome = Outcome(**{**line, "notes": tuple(line["notes"])})
                    self.plan.clips[outcome.clip]  # an IndexError where there is none
                    self.outcomes[outcome.clip] = outcome
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise DataError(
                f"{self._journal.path}: not a list of what was extracted, as this version writes it "
                f"({error!r}). {ADVICE}, or remove this file and what was extracted into the folder."
            ) from None
        self._find_done()
        self._describe()

    def _note_shard(self, line: dict[str, Any]) -> None:
        shard, numbers = line["shard"], line["clips"]
        if not set(numbers) <= set(self.plan.by_shard[shard]):
            raise ValueError(f"shard {shard} of other clips")
        if size_and_time(self._shard(shard))[0] == line["num_bytes"]:
            self._shards[shard] = numbers
        else:
            self._shards.pop(shard, None)  # what was written since, or somebody has removed it

    def _find_done(self) -> None:
        """Clips are done if their records are there, waiting or in a shard, and their files as they were.

        A file that is gone is no reason to do anything.
        """
        kept = {number for numbers in self._shards.values() for number in numbers}
        for number, outcome in self.outcomes.items():
            if outcome.failure is not None:
                continue  # is tried again: it may have been repaired
            if not outcome.is_of(self.plan.clips[number].path):
                self.replaced.add(number)
            elif number in kept or os.path.exists(self._part(number)):
                self.before.add(number)
        self.outcomes = {number: self.outcomes[number] for number in sorted(self.before)}

    def _take_out_replaced(self) -> None:
        """Of shards with clips that are to be done again the others are kept, each a file that waits."""
        for shard, numbers in list(self._shards.items()):
            if self.replaced.isdisjoint(numbers):
                continue
            self._take_apart(shard)
            path = self._shard(shard)
            try:
                os.unlink(path)  # from now on its line in the journal does not count
            except OSError as error:
                raise OutputError(
                    f"{path}: cannot be removed ({why(error)}), but holds a clip whose file was replaced."
                ) from error
            del self._shards[shard]
        self._remove_parts(sorted(self.replaced))

    def _is_given_vocabulary(self) -> bool:
        """Whether the user's own file of class names is the one in the folder, and says what ours would."""
        given, path = self._given_vocabulary, self._path(VOCABULARY)
        return given is not None and self._has_names(path) and os.path.samefile(given, path)

    def _has_names(self, path: str) -> bool:
        try:
            return Vocabulary.load(path).names == self.plan.names
        except ConfigError:  # also where it is not there
            return False

    def _describe(self) -> None:
        """Vocabulary and provenance, which are known before the first clip."""
        self.plan.provenance.save(Path(self._path(SIDECAR)))
        if self.plan.names and not self._has_names(self._path(VOCABULARY)):
            aside = self._path(f".{VOCABULARY}.partial")
            Vocabulary(self.plan.names).save(aside)
            os.replace(aside, self._path(VOCABULARY))

    def _build_if_due(self, shard: str) -> None:
        """Writes a shard of which nothing is missing any more, unless it is there as it should be."""
        done = [number for number in self.plan.by_shard[shard] if self._is_read(number)]
        if self._unsettled[shard] or self._shards.get(shard, []) == done:
            return
        self._take_apart(shard)
        with NewFile(self._shard(shard)) as file:
            for number in done:
                file.write(self._read_part(number))
        found = count_records(self._shard(shard))
        if found != len(done):
            raise OutputError(
                f"{self._shard(shard)}: {len(done)} clips were written, but {found} are there; check "
                "the disk."
            )
        self._journal.add({"shard": shard, "clips": done, "num_bytes": size_and_time(self._shard(shard))[0]})
        self._shards[shard] = done
        self._remove_parts(done)

    def _is_read(self, number: int) -> bool:
        outcome = self.outcomes.get(number)
        return outcome is not None and outcome.failure is None

    def _take_apart(self, shard: str) -> None:
        """Makes parts again of a shard that gets more clips than it had."""
        numbers = self._shards.get(shard, [])
        if not numbers:
            return
        records = read_records(self._shard(shard))
        for number, (payload, _) in zip(numbers, records, strict=True):
            with RecordWriter(self._part(number)) as writer:
                writer.write(payload.tobytes())

    def _read_part(self, number: int) -> bytes:
        try:
            with open(self._part(number), "rb") as file:
                return file.read()
        except OSError as error:
            raise OutputError(
                f"{self._part(number)}: cannot be read ({why(error)}); was it removed?"
            ) from error

    def _make_parts_folder(self) -> None:
        try:
            os.makedirs(self._path(_PARTS), exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._path(_PARTS)}: cannot be made ({why(error)}).") from error

    def _tidy(self) -> None:
        """Removes what an earlier run left half-written, or did not come to remove."""
        in_shards = {number for numbers in self._shards.values() for number in numbers}
        self._remove_parts(sorted(in_shards))
        asides = {f".{shard}{_SUFFIX}" for shard in self.plan.by_shard}
        with suppress(OSError):
            for name in os.listdir(self.folder):
                if name.endswith(".partial") and name.rsplit(".", 2)[0] in asides:
                    os.unlink(self._path(name))
            for name in os.listdir(self._path(_PARTS)):
                if name.endswith(".partial"):
                    os.unlink(os.path.join(self._path(_PARTS), name))

    def _remove_parts(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            with suppress(FileNotFoundError):
                os.unlink(self._part(number))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _shard(self, shard: str) -> str:
        return self._path(f"{shard}{_SUFFIX}")

    def _part(self, number: int) -> str:
        return os.path.join(self.folder, _PARTS, f"{number:08d}{_SUFFIX}")
