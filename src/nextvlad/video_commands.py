"""The verbs that begin at videos, as the command line offers them: extract, tag.

PyAV and torch are imported only inside a verb, once its options are known to be good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from nextvlad.command_options import Checkpoint, Count, File, option, parse
from nextvlad.errors import UsageError

Videos = Annotated[tuple[str, ...], tyro.conf.Positional, option("VIDEOS...")]
Text = Annotated[str | None, option("TEXT")]
_NONE = "none"


def extract(arguments: list[str]) -> int:
    """`nextvlad extract`: returns the exit status."""

    def call(
        videos: Videos,
        out: Annotated[Path, option("DIR", "(required)")],
        labels: Annotated[tuple[Path, ...], option("CSV...")] = (),
        labels_from_folders: bool = False,
        vocabulary: File = None,
        split_column: Text = None,
        group_column: Text = None,
        group_pattern: Text = None,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        videos_per_shard: int = 256,
        visual: str = "efficientnet-lite0",
        audio: str = "log-mel",
        visual_pca: File = None,
        audio_pca: File = None,
        rate_hz: float = 1.0,
        batch_size: int = 32,
        workers: Count = None,
        threads: Count = None,
        device: str = "auto",
    ) -> None:
        """Videos and their labels become frame features, in YouTube-8M's TFRecord files.

        The same command again goes on where it was stopped, and tries again what could not be read.
        Exit status 1 if not one video could be read; failures.csv lists those that could not.

        Args:
            videos: Files, folders (at any depth), quoted globs, or .list files with one path a line.
            out: Folder for train-*, valid-*, test-*, vocabulary.csv, provenance.json and index.csv.
            labels: CSV of path,label;label with or without header, or Kinetics' lists of clips.
            labels_from_folders: clips/dog/x.mp4 is a dog.
            vocabulary: CSV with class names, in the order wanted; else those of the labels, by alphabet.
            split_column: Column of the labels that says train, valid or test; "split" if not given.
            group_column: Column of the source of a clip; clips of one are never parted. "group" if not given.
            group_pattern: Regular expression that finds the source in a file's name: its first (...).
            fractions: Of the videos, or groups, for train, valid and test, where no column says it.
            videos_per_shard: At most so many a file.
            visual: What looks at pictures: efficientnet-lite0, a file (.onnx, .pt2), package.module:callable,
                or none.
            audio: What listens, likewise; or none.
            visual_pca: PCA (.npz) applied to the features of pictures.
            audio_pca: PCA (.npz) applied to the features of sound.
            rate_hz: Rows of features a second.
            batch_size: Pictures that go through the backbone together.
            workers: Processes that decode, 0 for none beside this one; half of the processors if not given.
            threads: Of the backbone; the processors that are left if not given.
            device: Of the backbone: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        """
        if not videos:
            raise UsageError("no VIDEOS given; wanted files, folders, quoted globs or .list files.")
        from nextvlad.distributed import pick_device
        from nextvlad.extract import extract as run
        from nextvlad.extract_labels import LabelOptions
        from nextvlad.extract_splits import SplitOptions
        from nextvlad.video.extractor import ExtractorOptions

        run(
            videos,
            out,
            ExtractorOptions(
                visual=None if visual == _NONE else visual,
                audio=None if audio == _NONE else audio,
                visual_pca=visual_pca,
                audio_pca=audio_pca,
                rate_hz=rate_hz,
                batch_size=batch_size,
                device=str(pick_device(device)),
            ),
            labels=LabelOptions(labels, labels_from_folders, split_column, group_column, vocabulary),
            splits=SplitOptions(fractions, group_pattern),
            videos_per_shard=videos_per_shard,
            workers=workers,
            threads=threads,
        )

    parse(call, arguments, "extract")
    return 0


def tag(arguments: list[str]) -> int:
    """`nextvlad tag`: returns the exit status."""

    def call(
        checkpoint: Checkpoint,
        videos: Videos,
        out: File = None,
        report: File = None,
        top_k: Count = None,
        threshold: Annotated[float | None, option("FLOAT")] = None,
        visual: Annotated[str | None, option("BACKBONE")] = None,
        audio: Annotated[str | None, option("BACKBONE")] = None,
        visual_pca: File = None,
        audio_pca: File = None,
        trust_features: bool = False,
        device: str = "auto",
    ) -> int:
        """Names with scores for videos, and the seconds that speak for each.

        Exit status 1 if a video could not be read; the others are tagged all the same.

        Args:
            checkpoint: Folder of a run (its best checkpoint is taken) or of one checkpoint, trained on
                features of `nextvlad extract`.
            videos: Video or sound files, folders of them, quoted globs, or .list files with one path a line.
            out: Also write a row a video to this file (.jsonl), with what each second contributes.
            report: Also write a page to this file (.html): thumbnails, contributions and loudness over time.
            top_k: Labels a video at most, best first; 5, or all where there are fewer, if not given.
            threshold: Only labels of this score or more; each label's own, where the checkpoint has them, if
                not given.
            visual: What makes features of pictures, if not the default: .onnx or .pt2 file, or
                package.module:callable.
            audio: What makes features of sound, likewise.
            visual_pca: The PCA of the features of pictures, if one was used.
            audio_pca: The PCA of the features of sound, likewise.
            trust_features: Tag although the features of the training were made in another way, or nobody
                knows how.
            device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        """
        if not videos:
            raise UsageError("no VIDEOS given; wanted files, folders, quoted globs or .list files.")
        from nextvlad.tag import tag as run
        from nextvlad.tag_extractor import FeatureOptions

        features = FeatureOptions(
            visual=visual,
            audio=audio,
            visual_pca=visual_pca,
            audio_pca=audio_pca,
            trust_features=trust_features,
        )
        result = run(
            checkpoint,
            videos,
            out=out,
            report=report,
            top_k=top_k,
            threshold=threshold,
            features=features,
            device=device,
        )
        return 1 if result.failures else 0

    status: int = parse(call, arguments, "tag")
    return status
