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

from nextvlad import checkpoint, distributed, optim, run_folder
from nextvlad.data.batch import FrameBatch
from nextvlad.data.device_batches import DeviceBatch, DeviceBatches
from nextvlad.data.loader import FrameLoader
from nextvlad.errors import ConfigError
from nextvlad.inference import tell_damage
from nextvlad.models import Model, build_model
from nextvlad.progress import ProgressBar, counted, say
from nextvlad.resuming import check_same_run, gather_state, own_position, place_to_resume, restore
from nextvlad.run_config import DEFAULT_BATCH_SIZE, TrainConfig
from nextvlad.run_log import describe_run, log_row, open_log, tensorboard
from nextvlad.start import (
    batch_size_of_the_run,
    find_num_examples,
    find_train_batch_size,
    settle,
    settle_provenance,
    start_weights,
)
from nextvlad.stopping import Interrupted, Stop, ask_all_ranks, stop_on_signals
from nextvlad.train_step import Learner, flushed_denormals
from nextvlad.validation import Validation, in_short


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
        self.provenance, expected = settle_provenance(
            config, start_from=self.start_from or (checkpoint.resolve(init) if init else None)
        )
        self.unit = "segments" if config.data.segments else "videos"
        world = distributed.world_size()
        if config.data.batch_size != "auto" and config.data.batch_size % world:
            raise ConfigError(
                f"data.batch_size: got {config.data.batch_size}, wanted a multiple of the {world} processes."
            )

        state = checkpoint.TrainingState()
        if self.start_from is not None:
            state = checkpoint.read_training_state(self.start_from)
            check_same_run(self.start_from, config)
        self.num_examples = find_num_examples(
            config.data, int(state.values.get("num_train_examples") or config.data.num_train_examples or 0)
        )

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
        best = state.values.get("best") if (out / "best").exists() else None
        self.validation = Validation(config, device, expected=expected, best=best)
        self.evaluated_at = int(state.values.get("evaluated_at", 0))
        self.loss_sum, self.loss_count = state.values.get("loss_since_log", (0.0, 0))
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
            segments="rated" if config.data.segments else None,
            expected=expected,
        )
        self.batches = DeviceBatches(self.loader, device)
        torch.manual_seed(config.seed * 1009 + distributed.rank())
        if self.start_from is not None:
            restore(self.learner, state, step=self.step, where=self.start_from)
            if distributed.is_main():
                say(f"Resuming from {self.start_from}: step {self.step}, {self.examples:,} {self.unit} seen.")
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
            run_folder.begin(self.out, self.config)
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
                asked, due = ask_all_ranks(stop, due=self._saving_is_due())
                if (asked or due) and self.saved_step != self.step:
                    self._save()
                if asked:
                    raise Interrupted(stop.signum or signal.SIGTERM)
            if config.data.valid and self.evaluated_at != self.step:
                result = self._evaluate(log, board)
        if self.saved_step != self.step:
            self._save()
        damage = distributed.gather_objects([*self.loader.damage, *self.validation.damage])
        if damage is not None:
            tell_damage([error for of_rank in damage for error in of_rank])
            self.learner.halver.tell_total()
            self._say_farewell()
        return result

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
        """Scores the model, tells of it and saves it."""
        result = self.validation.score(self.model, self.learner.precision)
        self.evaluated_at = self.step
        better = self.validation.note(result, self.step)
        if distributed.is_main():
            epoch = self.examples / self.num_examples
            at = {"step": self.step, "examples": self.examples, "epoch": epoch}
            log_row(log, board, {"kind": "valid", **at, **result})
            mark = "  *best" if better else ""
            say(f"epoch {epoch:6.2f}  step {self.step:6d}  {in_short(result)}{mark}")
        self._save(best=better)
        return result

    def _saving_is_due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.config.save_every_minutes

    def _save(self, *, best: bool = False) -> None:
        """The whole state as a new checkpoint; `last` (and `best`) lead to it afterwards."""
        self.saved_step = self.step
        counters = {
            "step": self.step,
            "examples": self.examples,
            "evaluated_at": self.evaluated_at,
            "best": self.validation.best,
            "loss_since_log": (self.loss_sum, self.loss_count),
            "num_train_examples": self.num_examples,
        }
        state = gather_state(self.learner, self.batches, counters)
        self.saved_at = time.monotonic()
        if state is not None:
            run_folder.add_checkpoint(
                self.out,
                self.step,
                self.model,
                best=best,
                vocabulary=self.vocabulary,
                provenance=self.provenance,
                config=self.config,
                state=state,
            )

    def _say_farewell(self) -> None:
        best, steps = self.validation.best, counted(self.step, "step")
        place = self.out / ("best" if best else "last")
        say(f"Done: {steps}, {self.examples:,} {self.unit}. Checkpoint: {place}")
        if best and best["value"] is not None:
            say(f"Best {best['metric']} {best['value']:.4f} at step {best['step']}.")
