"""The verbs that look at files or make others of them, as the command line offers them.

Check, ensemble, import, convert. What does the work is imported only inside a verb.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from nextvlad.command_options import Count, Data, File, given, option, parse


def check(arguments: list[str]) -> int:
    """`nextvlad check`: returns the exit status."""

    def call(
        data: Data,
        json: File = None,
        vocabulary: File = None,
        workers: Count = None,
    ) -> int:
        """Verifies every record of a data set and shows what is in it.

        Exit status 1 if a record is damaged.

        Args:
            data: Files, folders, quoted globs, or .list files with one path a line.
            json: Also write the findings to this file.
            vocabulary: CSV with class names; labels outside it are damage.
            workers: Reader processes, 0 for none beside this one; one a processor, at most 8, if not given.
        """
        from nextvlad.check import check as run

        return run(given(data), json_file=json, vocabulary=vocabulary, workers=workers)

    status: int = parse(call, arguments, "check")
    return status


def ensemble(arguments: list[str]) -> int:
    """`nextvlad ensemble`: returns the exit status."""

    def call(
        files: Annotated[tuple[Path, ...], tyro.conf.Positional, option("FILE...")],
        out: Annotated[Path, option("FILE", "(required)")],
        weights: Annotated[tuple[float, ...], option("FLOAT...")] = (),
        top_k: Count = None,
        vocabulary: File = None,
    ) -> None:
        """The weighted mean of prediction files of the same videos, into one file.

        Of a single file: the same predictions in another format.

        Args:
            files: Prediction files of any systems: JSON Lines, Kaggle CSV, Parquet, Paddle pickle.
            out: By its suffix: .jsonl, .csv (Kaggle 2018), .parquet or .pkl (Paddle v1.5.1).
            weights: One a file, in the same order; equal ones if not given.
            top_k: Labels a video, best first; 20, or all of a single file, if not given.
            vocabulary: CSV with class names, for .jsonl and .parquet.
        """
        from nextvlad.ensemble import ensemble as run

        run(files, out=out, weights=weights or None, top_k=top_k, vocabulary=vocabulary)

    parse(call, arguments, "ensemble")
    return 0


def import_(arguments: list[str]) -> int:
    """`nextvlad import`: returns the exit status."""

    def call(
        source: Annotated[Path, tyro.conf.Positional, option("SOURCE")],
        out: Annotated[Path, tyro.conf.Positional, option("OUT")],
        eigenvalues: File = None,
        vocabulary: File = None,
    ) -> None:
        """A trained NeXtVLAD of PaddleVideo or of the author's TensorFlow code becomes a checkpoint folder.

        Of the author's code the single model and the mixture. Shows what was found and what became of it.

        Args:
            source: Paddle's folder, file or .tar.gz (v1.5, v1.6, v1.7+), or TensorFlow's folder or prefix.
            out: A new checkpoint folder.
            eigenvalues: eigenvals.npy of YouTube-8M's PCA, which a TensorFlow checkpoint does not hold.
            vocabulary: CSV with class names, kept with the checkpoint.
        """
        from nextvlad.import_checkpoint import import_checkpoint

        import_checkpoint(source, out, eigenvalues=eigenvalues, vocabulary=vocabulary)

    parse(call, arguments, "import")
    return 0


def convert(arguments: list[str]) -> int:
    """`nextvlad convert`: returns the exit status."""

    def call(
        data: Data,
        out: Annotated[Path, option("DIR", "(required)")],
        to: Literal["auto", "tfrecord", "pickle"] = "auto",
        videos_per_file: Count = None,
        workers: Count = None,
        skip_damaged: bool = False,
        compression: Literal["none", "gzip", "zlib"] = "none",
    ) -> None:
        """PaddleVideo's data pickles become TFRecord files, and the other way round.

        The same command again goes on where it was stopped.

        Args:
            data: Files, folders, quoted globs, or .list files with one path a line.
            out: Folder for the files to make; made if it is not there.
            to: What to make; auto is the other kind than the data's.
            videos_per_file: Numbered files of at most so many videos; if not given, one for each file.
            workers: Processes, 0 for none beside this one; one a processor, at most 8, if not given.
            skip_damaged: Skip damaged records and list them, instead of stopping.
            compression: Of TFRecord files, each as a whole.
        """
        from nextvlad.convert import convert as run

        run(
            given(data),
            out,
            to=None if to == "auto" else to,
            videos_per_file=videos_per_file,
            workers=workers,
            skip_damaged=skip_damaged,
            compression=None if compression == "none" else compression,
        )

    parse(call, arguments, "convert")
    return 0
