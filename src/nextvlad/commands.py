"""All verbs of the command line, by name; and demo, which goes through them one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from nextvlad import file_commands, model_commands, video_commands
from nextvlad.command_options import Count, option, parse
from nextvlad.errors import UsageError


def demo(arguments: list[str]) -> int:
    """`nextvlad demo`: returns the exit status."""

    def call(
        out: Annotated[Path | None, option("DIR", "(default: demo-run; demo-video-run with --video)")] = None,
        video: bool = False,
        clips: Count = None,
        open_plots: bool = False,
    ) -> None:
        """The whole job on embedded data, end to end, in about a minute on a CPU.

        With --video: from clips that it draws to named tags, in about three minutes.

        Args:
            out: Folder for everything it makes.
            video: Draw and encode clips with sound, extract their features, train, evaluate, tag one.
            clips: How many to draw, with --video; 160 if not given.
            open_plots: Show the pictures, or pages, in the desktop's viewer at the end.
        """
        if video:
            from nextvlad.video_demo import DEFAULT_CLIPS, video_demo

            video_demo(
                out or Path("demo-video-run"),
                num_clips=DEFAULT_CLIPS if clips is None else clips,
                open_report=open_plots,
            )
            return
        if clips is not None:
            raise UsageError("--clips: only with --video.")
        from nextvlad.demo import demo as run

        run(out or Path("demo-run"), open_plots=open_plots)

    parse(call, arguments, "demo")
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "check": file_commands.check,
    "train": model_commands.train,
    "evaluate": model_commands.evaluate,
    "predict": model_commands.predict,
    "report": model_commands.report,
    "ensemble": file_commands.ensemble,
    "import": file_commands.import_,
    "convert": file_commands.convert,
    "bench": model_commands.bench,
    "extract": video_commands.extract,
    "tag": video_commands.tag,
}
"""By name, in the order a user meets them."""
