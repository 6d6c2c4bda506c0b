"""Where memory does not do for a batch: its two halves, one after the other, instead of the end of the work.

In evaluation and prediction a video's result does not depend on the others of its batch, so halves give
the same. In training the gradients of both halves are added up, which is the gradient of the whole batch
but for one thing: each half is normalised with its own statistics (batch norms), and the running ones take
in both.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from nextvlad.data.batch import FrameBatch
from nextvlad.errors import DataError, is_out_of_memory
from nextvlad.progress import say

T = TypeVar("T")

_MOST_LINES = 3  # of batches that were split; more would bury the rest


class Halver:
    """Runs work on batches, and on the halves of one that is too large for the memory.

    Args:
        option: what makes batches smaller, as the user spells it.
        consequence: what to know of results from halves.
        refusal: why batches must not be split; None where they may.

    Attributes:
        num_split: batches that were split so far.
    """

    def __init__(self, option: str, *, consequence: str = "", refusal: str | None = None) -> None:
        self._option, self._consequence, self._refusal = option, consequence, refusal
        self.num_split = 0
        self._counted = 0

    def run(
        self,
        work: Callable[[FrameBatch], T],
        batch: FrameBatch,
        *,
        undo: Callable[[], None] | None = None,
        where: str = "",
    ) -> list[T]:
        """What `work` returns for the batch, or for each of its halves.

        Args:
            work: what needs the memory; must be able to start anew.
            batch: one video or more; a half is never split again.
            undo: takes back what an attempt that failed has done.
            where: begins the messages, as in "step 12: ".

        Raises:
            DataError: memory does not do for a half either, or the batch cannot be split.
        """
        if (whole := self._attempt(work, batch)) is not None:
            return [whole[0]]
        # Nothing of the attempt is alive any more here: not its graph, nor the error with its frames.
        found = f"{where}out of memory on {_describe(batch)}"
        if self._refusal is not None:
            raise DataError(f"{found}. {self._refusal} Use a smaller {self._option}.")
        if batch.num_videos < 2:
            raise DataError(f"{found}, which is all of the batch. Use a smaller model, or free some memory.")
        self.num_split += 1
        self._tell(found)
        results: list[T] = []
        for half in batch.split(2):
            _free_memory()
            if undo is not None and not results:
                undo()
            result = self._attempt(work, half)
            if result is None:
                raise DataError(
                    f"{where}out of memory on {_describe(half)} too, the half of a batch. Use a smaller "
                    f"{self._option} or model, or a lower --precision."
                )
            results.append(result[0])
        return results

    def num_recent(self) -> int:
        """Batches that were split since this was asked last."""
        recent, self._counted = self.num_split - self._counted, self.num_split
        return recent

    def tell_total(self) -> None:
        """At the end: how many batches were split, if not each was told."""
        if self.num_split > _MOST_LINES:
            say(f"{self.num_split:,} batches were split in halves for want of memory. {self._advice()}")

    def _attempt(self, work: Callable[[FrameBatch], T], batch: FrameBatch) -> tuple[T] | None:
        """The result, in a tuple, or None where memory ran out."""
        try:
            return (work(batch),)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _tell(self, found: str) -> None:
        if self.num_split > _MOST_LINES:
            return
        end = " More such batches are counted, and told at the end." if self.num_split == _MOST_LINES else ""
        found = found[0].upper() + found[1:]
        say(f"{found}: done in two halves.{self._consequence} {self._advice()}{end}")

    def _advice(self) -> str:
        return f"A smaller {self._option} avoids it."


def remember(model: nn.Module, device: torch.device, *generators: torch.Generator) -> Callable[[], None]:
    """What a pass of training changes beside gradients: running statistics and random states.

    Returns:
        puts them back as they are now, and drops all gradients.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    states = [generator.get_state() for generator in generators]

    @torch.no_grad()
    def restore() -> None:
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for parameter in model.parameters():
            parameter.grad = None

    return restore


def _describe(batch: FrameBatch) -> str:
    frames = max((len(of_stream.values) for of_stream in batch.streams.values()), default=0)
    videos = "1 video" if batch.num_videos == 1 else f"{batch.num_videos:,} videos"
    return f"{videos} of {frames:,} frames"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
