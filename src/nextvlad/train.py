"""`nextvlad train`, top to bottom: data, model, optimiser, then the loop, written out.

Across processes (torchrun) every step is one step of the global batch: batch norms use the statistics
of all ranks' frames and videos together, the loss is averaged over all ranks' videos, and a rank that
runs out of data goes on with empty batches until all are done. So N processes compute what one would.
"""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from nextvlad import checkpoint, distributed, optim
from nextvlad.config_json import to_json
from nextvlad.data.batch import FrameBatch
from nextvlad.data.device_batches import DeviceBatch, DeviceBatches
from nextvlad.data.loader import FrameLoader, count_examples
from nextvlad.data.segments import Segments
from nextvlad.errors import CheckpointError, ConfigError, OutputError, RecordError, TrainingError
from nextvlad.evaluate import check_scored, score
from nextvlad.files import write_json
from nextvlad.inference import tell_damage
from nextvlad.models import Model, build_model, for_inference
from nextvlad.progress import ProgressBar, counted, say
from nextvlad.run_config import DEFAULT_BATCH_SIZE, TrainConfig
from nextvlad.run_log import describe_run, log_row, open_log, tensorboard
from nextvlad.start import (
    batch_size_of_the_run,
    check_same_run,
    count_train_examples,
    find_train_batch_size,
    own_position,
    place_to_resume,
    settle,
    settle_provenance,
    start_weights,
)
from nextvlad.stopping import Interrupted, Stop, stop_on_signals
from nextvlad.train_step import Learner, flushed_denormals

_LARGEST_MAP = 2**29  # scores kept for the untruncated mAP while training: 2 GiB


def train(
    config: TrainConfig,
    out: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    resume_from: Path | None = None,
    largest_batch: int = DEFAULT_BATCH_SIZE,
) -> dict[str, Any]:
    """One training run.

    Args:
        config: everything about it.
        out: the run folder: `config.json`, `metrics.jsonl`, `last`, `best`, `checkpoints/`.
        init: a checkpoint whose weights to start from; its architecture replaces that of `config`.
        resume: go on from `out`/last.
        resume_from: go on from this checkpoint of the same run.
        largest_batch: what the batch size "auto" means where memory does.

    Returns:
        The last validation metrics; empty without validation data, or when a resumed run was at its end.

    Raises:
        NextvladError: as its message says; the last checkpoint is kept.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = distributed.pick_device(config.device)
    with flushed_denormals(), distributed.process_group(device), stop_on_signals() as stop:
        place = place_to_resume(out, resume=resume, resume_from=resume_from)
        return Run(config, out, device, init=init, start_from=place, largest_batch=largest_batch).go(stop)


class Run:
    """What the loop needs at hand; made by `train`, used once. Nothing is written before `go`."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        device: torch.device,
        *,
        init: Path | None = None,
        start_from: Path | None = None,
        largest_batch: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        self.out, self.device, self.start_from = out, device, start_from
        config, self.vocabulary = settle(batch_size_of_the_run(config, start_from), init=init)
        self.config = config
        self.provenance, self.expected = settle_provenance(
            config, start_from=self.start_from or (checkpoint.resolve(init) if init else None)
        )
        self.best_by = str(config.best_by)  # settled
        self.unit = "segments" if config.data.segments else "videos"
        self.segments: Segments | None = "rated" if config.data.segments else None
        world = distributed.world_size()
        if config.data.batch_size != "auto" and config.data.batch_size % world:
            raise ConfigError(
                f"data.batch_size: got {config.data.batch_size}, wanted a multiple of the {world} processes."
            )

        state = checkpoint.TrainingState()
        if self.start_from is not None:
            state = checkpoint.read_training_state(self.start_from)
            check_same_run(self.start_from, config)
        self.num_examples = int(state.values.get("num_train_examples") or config.data.num_train_examples or 0)
        if not self.num_examples:
            self.num_examples = distributed.share_object(
                count_train_examples(config.data) if distributed.is_main() else 0
            )
        if not self.num_examples:
            raise TrainingError(f"{' '.join(config.data.train)}: no {self.unit} in the training data.")

        torch.manual_seed(config.seed)  # the same weights on every rank
        self.model: Model = build_model(config.model).to(device)
        if self.start_from is not None:
            checkpoint.load_weights(self.model, self.start_from)
        else:
            start_weights(self.model, config, self.vocabulary, init)
        self.learner = Learner(self.model, config)
        self.batch_size = self._settle_batch_size(largest_batch)
        config = self.config
        self.step = int(state.values.get("step", 0))
        self.examples = int(state.values.get("examples", 0))
        # A best checkpoint counts only where it is: this may be another folder than the one resumed from.
        self.best: dict[str, Any] | None = state.values.get("best") if (out / "best").exists() else None
        self.evaluated_at = int(state.values.get("evaluated_at", 0))
        self.loss_sum, self.loss_count = state.values.get("loss_since_log", (0.0, 0))
        self.num_valid: int | None = None
        self.valid_damage: list[RecordError] = []
        self.loader = FrameLoader(
            config.data.train,
            streams=config.model.streams,
            num_classes=config.model.num_classes,
            batch_size=self.batch_size // world,
            max_frames=config.data.max_frames,
            shuffle=True,
            shuffle_buffer=config.data.shuffle_buffer,
            seed=config.seed,
            epochs=config.epochs,
            workers=config.data.workers,
            pin_memory=device.type == "cuda",
            rank=distributed.rank(),
            world_size=world,
            skip_damaged=config.data.skip_damaged,
            position=own_position(self.start_from, state),
            segments=self.segments,
            expected=self.expected,
        )
        self.batches = DeviceBatches(self.loader, device)
        torch.manual_seed(config.seed * 1009 + distributed.rank())
        if self.start_from is not None:
            self._restore(state)
        total = self.num_examples * config.epochs
        self.total_examples = min(total, config.steps * self.batch_size) if config.steps else total
        self.saved_at = time.monotonic()
        self.saved_step: int | None = None

    def _settle_batch_size(self, largest: int) -> int:
        """Videos a step; puts into the configuration what "auto" came to."""
        size = self.config.data.batch_size
        if size == "auto":
            chosen = find_train_batch_size(
                self.config,
                lambda batch: self.learner.add_gradients(batch.to(self.device), batch.num_videos),
                self.model,
                self.learner.random,
                largest,
            )
            size = chosen.batch_size
            self.config = replace(self.config, data=replace(self.config.data, batch_size=size))
        return size

    def go(self, stop: Stop) -> dict[str, Any]:
        """The loop."""
        if distributed.is_main():
            self._prepare_folder()
            describe_run(
                self.config,
                self.model,
                num_examples=self.num_examples,
                unit=self.unit,
                precision=self.learner.precision,
                begins=self.step == 0,
            )
        config = self.config
        result: dict[str, Any] = {}
        since, since_videos = time.monotonic(), 0
        per_epoch = self.num_examples
        with (
            self.loader,
            open_log(self.out / "metrics.jsonl", self.step) as log,
            tensorboard(config, self.out) as board,
            ProgressBar(
                "Training",
                total=self.total_examples,
                unit=self.unit,
                done=self.examples,
                show=distributed.is_main(),
            ) as bar,
        ):
            batches = iter(self.batches)
            while config.steps is None or self.step < config.steps:
                batch = next(batches, None)
                here = torch.tensor(
                    batch.host.num_videos if batch else 0, device=distributed.collective_device()
                )
                num_videos = int(distributed.sum_over_ranks(here))
                if num_videos == 0:
                    break
                if batch is None:
                    nothing = FrameBatch.empty(config.model.streams, config.model.num_classes)
                    batch = DeviceBatch(nothing, nothing.to(self.device))

                loss, lr = self.take_step(batch, num_videos)
                self.loss_sum += loss * num_videos
                self.loss_count += num_videos
                since_videos += num_videos
                bar.advance(num_videos, f"epoch {self.examples / per_epoch:.2f} loss {loss:.3f} lr {lr:.2g}")

                if self.step % config.log_every == 0:
                    row = {
                        "kind": "train",
                        "step": self.step,
                        "examples": self.examples,
                        "epoch": self.examples / per_epoch,
                        "loss": self.loss_sum / self.loss_count,
                        "lr": lr,
                        "split_batches": self.learner.halver.num_recent(),
                        "examples_per_second": since_videos / (time.monotonic() - since),
                    }
                    log_row(log, board, row)
                    self.loss_sum, self.loss_count = 0.0, 0
                    since, since_videos = time.monotonic(), 0
                if config.data.valid and self._evaluation_due(num_videos):
                    result = self._evaluate(log, board)
                    since, since_videos = time.monotonic(), 0
                asked, due = self._ask_all_ranks(stop)
                if (asked or due) and self.saved_step != self.step:
                    self._save()
                if asked:
                    raise Interrupted(stop.signum or signal.SIGTERM)
            if config.data.valid and self.evaluated_at != self.step:
                result = self._evaluate(log, board)
        if self.saved_step != self.step:
            self._save()
        damage = distributed.gather_objects([*self.loader.damage, *self.valid_damage])
        if damage is not None:
            tell_damage([error for of_rank in damage for error in of_rank])
            self.learner.halver.tell_total()
            self._say_farewell()
        return result

    def _ask_all_ranks(self, stop: Stop) -> tuple[bool, bool]:
        """Whether to stop, and whether it is time to save: the same answer on every rank.

        Saving takes all ranks, and their clocks differ, so the first rank's decides.
        """
        due = distributed.is_main() and (
            time.monotonic() - self.saved_at > 60 * self.config.save_every_minutes
        )
        wishes = torch.tensor(
            [stop.signum != 0, due], dtype=torch.int64, device=distributed.collective_device()
        )
        asked, due = (bool(votes) for votes in distributed.sum_over_ranks(wishes).tolist())
        return asked, due

    def take_step(self, batch: DeviceBatch, num_videos: int) -> tuple[float, float]:
        """One update from a batch, which on all ranks has `num_videos`; returns its loss and the rate."""
        lr = optim.learning_rate(
            self.config.optim,
            examples_seen=self.examples,
            step_examples=self.batch_size,
            total_examples=self.total_examples,
        )
        loss = self.learner.step(batch, num_videos, number=self.step + 1, lr=lr)
        self.step += 1
        self.examples += num_videos
        return loss, lr

    def _evaluation_due(self, num_videos: int) -> bool:
        """After a step of `num_videos`: every `eval_every` steps, or where an epoch ended in it."""
        if self.config.eval_every is not None:
            return self.step % self.config.eval_every == 0
        before = self.examples - num_videos
        return self.examples // self.num_examples > before // self.num_examples

    def _evaluate(self, log: IO[bytes] | None, board: Any) -> dict[str, Any]:
        config = self.config
        self.model.eval()
        if self.num_valid is None and not config.data.segments:
            self.num_valid = count_examples(config.data.valid, skip_damaged=config.data.skip_damaged)
        with FrameLoader(
            config.data.valid,
            streams=config.model.streams,
            num_classes=config.model.num_classes,
            batch_size=config.data.eval_batch_size,
            max_frames=config.data.max_frames,
            workers=config.data.workers,
            pin_memory=self.device.type == "cuda",
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            skip_damaged=config.data.skip_damaged,
            segments=self.segments,
            expected=self.expected,
        ) as loader:
            small = (self.num_valid or 0) * config.model.num_classes <= _LARGEST_MAP
            result: dict[str, Any] = score(
                for_inference(self.model, self.learner.precision),
                loader,
                with_map=small or self.best_by == "map",
                segments=config.data.segments,
                show=False,
                batch_option="--data.eval-batch-size",
            )
        check_scored(result, config.data.valid)
        self.valid_damage = loader.damage
        self.evaluated_at = self.step
        value = result[self.best_by]
        better = self.best is None or (
            value is not None and _is_better(self.best_by, value, self.best["value"])
        )
        if better:
            self.best = {"step": self.step, "metric": self.best_by, "value": value}
        if distributed.is_main():
            row = {
                "kind": "valid",
                "step": self.step,
                "examples": self.examples,
                "epoch": self.examples / self.num_examples,
                **result,
            }
            log_row(log, board, row)
            shown = "  ".join(
                f"{name} {result[key]:.4f}"
                for name, key in (
                    ("segment MAP", "segment_map"),
                    ("GAP", "gap"),
                    ("Hit@1", "hit_at_one"),
                    ("PERR", "perr"),
                    ("mAP", "map"),
                    ("loss", "loss"),
                )
                if result.get(key) is not None
            )
            epoch = self.examples / self.num_examples
            say(f"epoch {epoch:6.2f}  step {self.step:6d}  {shown}{'  *best' if better else ''}")
        self._save(best=better)
        return result

    def _save(self, *, best: bool = False) -> None:
        """The whole state as a new checkpoint; `last` (and `best`) lead to it afterwards."""
        self.saved_step = self.step
        states = distributed.gather_objects(
            (
                self.batches.position(),
                torch.get_rng_state(),
                self.learner.random.get_state(),
                _cuda_random_state(self.device),
            )
        )
        self.saved_at = time.monotonic()
        if states is None:
            return
        tensors = optim.optimizer_tensors(self.learner.optimizer, self.model)
        for index, (_, cpu, mixup, cuda) in enumerate(states):
            tensors |= {f"random.cpu.{index}": cpu, f"random.mixup.{index}": mixup}
            if cuda is not None:
                tensors[f"random.cuda.{index}"] = cuda
        state = checkpoint.TrainingState(
            values={
                "step": self.step,
                "examples": self.examples,
                "evaluated_at": self.evaluated_at,
                "best": self.best,
                "loss_since_log": (self.loss_sum, self.loss_count),
                "num_train_examples": self.num_examples,
                "scaler": self.learner.scaler.state_dict(),
                "positions": [position for position, *_ in states],
            },
            tensors=tensors,
        )
        folder = self.out / "checkpoints" / f"step-{self.step:08d}"
        attempt = 1
        while folder.exists():
            attempt += 1
            folder = folder.with_name(f"step-{self.step:08d}-{attempt}")
        checkpoint.save(
            folder,
            self.model,
            vocabulary=self.vocabulary,
            provenance=self.provenance,
            config=self.config,
            state=state,
        )
        if best:
            checkpoint.point(self.out / "best", folder)
        checkpoint.point(self.out / "last", folder)
        checkpoint.remove_unlinked(self.out)

    def _restore(self, state: checkpoint.TrainingState) -> None:
        index, learner = distributed.rank(), self.learner
        try:
            optim.load_optimizer_tensors(learner.optimizer, self.model, state.tensors, step=self.step)
            torch.set_rng_state(state.tensors[f"random.cpu.{index}"])
            learner.random.set_state(state.tensors[f"random.mixup.{index}"])
            if f"random.cuda.{index}" in state.tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(state.tensors[f"random.cuda.{index}"], self.device)
            if scaler := state.values["scaler"]:  # empty from where there was none
                learner.scaler.load_state_dict(scaler)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.start_from}: its training state does not fit this model ({error})."
            ) from error
        if distributed.is_main():
            say(f"Resuming from {self.start_from}: step {self.step}, {self.examples:,} {self.unit} seen.")

    def _prepare_folder(self) -> None:
        try:
            (self.out / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.out}: cannot be made ({error.strerror or error}); choose another --out."
            ) from error
        write_json(self.out / "config.json", to_json(self.config))

    def _say_farewell(self) -> None:
        name, steps = "best" if self.best else "last", counted(self.step, "step")
        say(f"Done: {steps}, {self.examples:,} {self.unit}. Checkpoint: {self.out / name}")
        if self.best and self.best["value"] is not None:
            say(f"Best {self.best['metric']} {self.best['value']:.4f} at step {self.best['step']}.")


def _is_better(metric: str, value: float, best: float | None) -> bool:
    if best is None:
        return True
    return value < best if metric == "loss" else value > best


def _cuda_random_state(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None
