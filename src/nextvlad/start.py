"""Before the first step of a run: what the data decides, what can be refused early, the first weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nextvlad import batch_size, checkpoint, distributed, fine_tuning
from nextvlad.config import with_streams
from nextvlad.data.batch import FrameBatch
from nextvlad.data.loader import count_examples, peek_streams
from nextvlad.data.origins import check_origins, origin_of
from nextvlad.data.ratings import count_segments, read_ratings
from nextvlad.data.sources import expand, read
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import ConfigError, RecordError, TrainingError, UsageError
from nextvlad.models import Model
from nextvlad.models.inputs import read_whitening_factors
from nextvlad.progress import ProgressBar, say
from nextvlad.provenance import Expected, Provenance
from nextvlad.run_config import DataConfig, TrainConfig
from nextvlad.split_batches import remember

_LOOK_AT = 1000  # videos looked at for labels before a long training starts
_MOST_CLASSES = 1 << 20  # that labels alone, without a vocabulary, may ask for
_OF_TRAINING = ("dropout", "distillation_weight", "temperature")  # a model's, but the recipe's to say


def settle(config: TrainConfig, *, init: Path | None) -> tuple[TrainConfig, Vocabulary | None]:
    """Fills in what the data, the vocabulary and `init` decide; checks what can be checked early.

    Raises:
        NextvladError: no data, no labels, a vocabulary of the wrong length.
    """
    if not config.data.train:
        raise UsageError(
            "no training data; pass --data.train with files, directories, quoted globs or .list files."
        )
    expand(config.data.train)
    look = _look_at_ratings if config.data.segments else _look_at_labels
    if config.data.valid:
        look(config.data.valid, "validation", skip_damaged=config.data.skip_damaged)
    vocabulary = Vocabulary.load(Path(config.data.vocabulary)) if config.data.vocabulary else None
    model = config.model
    if init is not None:
        place = checkpoint.resolve(init)
        theirs = checkpoint.read_config(place)
        if vocabulary is None:
            vocabulary = checkpoint.read_vocabulary(place, theirs.num_classes)
        ours = {
            name: getattr(model, name)
            for name in _OF_TRAINING
            if isinstance(model, type(theirs)) and hasattr(model, name)
        }
        num_classes = len(vocabulary) if vocabulary else model.num_classes or theirs.num_classes
        model = replace(theirs, num_classes=num_classes, **ours)
    if not model.streams:
        model = with_streams(model, peek_streams(config.data.train, skip_damaged=config.data.skip_damaged), 0)
    largest = look(
        config.data.train,
        "training",
        skip_damaged=config.data.skip_damaged,
        all_of_them=vocabulary is None and not model.num_classes,
    )
    if vocabulary is None and not model.num_classes and largest >= _MOST_CLASSES:
        raise TrainingError(
            f"{' '.join(config.data.train)}: a label {largest:,}; as many classes as the data's labels go up "
            f"to are made, at most {_MOST_CLASSES:,}. It is damaged, or give --data.vocabulary or "
            "--model.num-classes."
        )
    if vocabulary is not None and model.num_classes:
        vocabulary.check_size(model.num_classes, where=config.data.vocabulary or "vocabulary")
    model = with_streams(model, (), len(vocabulary) if vocabulary else largest + 1)
    best_by = config.best_by or ("segment_map" if config.data.segments else "gap")
    return replace(config, model=model, best_by=best_by), vocabulary


def settle_provenance(
    config: TrainConfig, *, start_from: Path | None
) -> tuple[Provenance | None, Expected | None]:
    """How the features of the run were made, and what all of its data has to be like.

    Args:
        config: settled.
        start_from: the checkpoint whose weights the run begins with.

    Returns:
        What the run's checkpoints say of it, and what its loaders expect; None: nothing.

    Raises:
        DataError: training data, validation data and `start_from` are not all of the same features.
    """
    streams = tuple(stream.name for stream in config.model.streams)
    found, first = origin_of(config.data.train)
    before = checkpoint.read_provenance(start_from) if start_from else None
    if config.data.trust_features:
        known = found or before
        return known.only(streams) if known else None, None
    if found and before:
        found = found.filled_from(before)
    expected = Expected(before, streams, f"the model in {start_from}")
    if start_from is None:
        expected = Expected(found, streams, first)
    for data in (config.data.train, config.data.valid):
        if data:
            check_origins(data, expected)
    return found.only(streams) if found else None, expected


def batch_size_of_the_run(config: TrainConfig, start_from: Path | None) -> TrainConfig:
    """A run that goes on keeps the batch size that "auto" came to when it began."""
    before = checkpoint.read_train_config(start_from) if start_from else None
    if config.data.batch_size != "auto" or before is None:
        return config
    return replace(config, data=replace(config.data, batch_size=before.data.batch_size))


def find_train_batch_size(
    config: TrainConfig,
    work: Callable[[FrameBatch], object],
    model: Model,
    random: torch.Generator,
    largest: int,
) -> batch_size.Chosen:
    """What "auto" comes to; says it. Leaves the model and all random states as they were.

    Args:
        config: settled, but for the batch size.
        work: one pass of training on a batch.
        model: on its device.
        random: what `work` draws from beside torch's own.
        largest: the recipe's batch size.

    Raises:
        ConfigError: there are several processes.
    """
    if distributed.is_distributed():
        raise ConfigError(
            "data.batch_size: auto is for one process, since several take part in every pass. Give a number."
        )
    streams, num_classes = config.model.streams, config.model.num_classes
    most = 5 if config.data.segments else config.data.max_frames
    num_frames = batch_size.longest_video(config.data.train, streams, most)
    undo = remember(model, model.device, random)
    chosen = batch_size.for_training(
        work,
        lambda size: batch_size.made_up_batch(streams, num_classes, size, num_frames),
        model.device,
        wanted=largest,
        reserve_bytes=2 * sum(parameter.nbytes for parameter in model.parameters()),  # Adam's two moments
    )
    undo()
    say(f"Batch size {chosen.batch_size}, videos of {num_frames} frames: {chosen.reason}.")
    return chosen


def _look_at_labels(
    data: Sequence[str], purpose: str, *, skip_damaged: bool, all_of_them: bool = False
) -> int:
    """The largest label among the first videos, or all; TrainingError if there is none."""
    largest = seen = 0
    labelled = False
    skip = (lambda error: None) if skip_damaged else None
    for record in read(data, max_frames=1, on_damage=skip):
        seen += 1
        if len(record.labels):
            labelled = True
            largest = max(largest, int(record.labels.max()))
        if seen >= _LOOK_AT and not all_of_them:
            break
    if not labelled:
        raise TrainingError(
            f"{' '.join(data)}: no labels in the first {seen:,} videos; wanted labelled {purpose} data "
            "(is this a test split?)."
        )
    return largest


def _look_at_ratings(
    data: Sequence[str], purpose: str, *, skip_damaged: bool, all_of_them: bool = False
) -> int:
    """The largest class rated in the first videos, or in all; TrainingError if no segment is rated at all."""
    largest, seen, rated = 0, 0, False
    for segments in read_ratings(data, on_damage=ignore if skip_damaged else None):
        seen += 1
        for segment in segments:
            rated = True
            if segment.rated is not None:  # as it always is
                largest = max(largest, int(segment.rated.max()))
        # Rated videos may be rare, and their count wants every record anyway.
        if seen >= _LOOK_AT and rated and not all_of_them:
            break
    if not rated:
        raise TrainingError(
            f"{' '.join(data)}: no rated segments in its {seen:,} videos; wanted {purpose} data with "
            "segment_labels, as YouTube-8M's of 2019. For whole videos leave out --data.segments."
        )
    return largest


def find_num_examples(config: DataConfig, known: int) -> int:
    """Videos of the training data, or its rated segments, on every rank.

    Args:
        config: which data.
        known: as an earlier part of the run counted them, or the user says; 0: every record is read.

    Raises:
        NextvladError: damage (without skip_damaged), no such data; TrainingError: there are none.
    """
    num_examples = known or int(
        distributed.share_object(_count_examples(config) if distributed.is_main() else 0)
    )
    if not num_examples:
        unit = "segments" if config.segments else "videos"
        raise TrainingError(f"{' '.join(config.train)}: no {unit} in the training data.")
    return num_examples


def _count_examples(config: DataConfig) -> int:
    if not config.segments:
        return count_examples(config.train, skip_damaged=config.skip_damaged)
    on_damage = ignore if config.skip_damaged else None
    with ProgressBar("Counting segments", total=None, unit="videos") as bar:
        return count_segments(config.train, on_damage=on_damage, on_video=lambda: bar.advance(1))


def ignore(error: RecordError) -> None:
    """Damage that is told when the record is wanted."""
    del error


def start_weights(
    model: Model, config: TrainConfig, vocabulary: Vocabulary | None, init: Path | None
) -> None:
    """What a new run's weights are beside random: those of `init`, and the reverse whitening; says it.

    Args:
        model: fresh.
        config: settled.
        vocabulary: of the run, by whose names classes are matched.
        init: a checkpoint or a run; None: random weights.
    """
    if init is not None:
        place = checkpoint.resolve(init)
        report = fine_tuning.initialise(model, place, vocabulary)
        if distributed.is_main():
            say(
                f"From {init}: {len(report.loaded)} tensors loaded, {len(report.fresh)} fresh, "
                f"{len(report.skipped)} skipped; {report.classes_matched} of "
                f"{config.model.num_classes} classes matched."
            )
            for title, names in (("fresh", report.fresh), ("skipped", report.skipped)):
                if names:
                    say(f"  {title}: {', '.join(names)}")
            theirs = checkpoint.read_config(place).num_classes
            if vocabulary is None and theirs != config.model.num_classes:
                say(
                    f"  The classifier starts anew: the checkpoint has {theirs} classes, this model "
                    f"{config.model.num_classes}. To keep it: --model.num-classes {theirs}."
                )
    if config.data.eigenvalues is not None:
        undo_whitening(model, Path(config.data.eigenvalues))


def undo_whitening(model: Model, path: Path) -> None:
    """Puts the originals' reverse whitening into the model's rgb preprocessing.

    Args:
        model: with a stream called rgb.
        path: .npy of at least D eigenvalues of YouTube-8M's PCA, largest first (eigenvals.npy).
    """
    if all(stream.name != "rgb" for stream in model.config.streams):
        raise UsageError("--data.eigenvalues belongs to a stream called rgb, and this model has none.")
    preprocess = model.preprocessing("rgb")
    preprocess.undo_whitening(read_whitening_factors(path, len(preprocess.scale)))
