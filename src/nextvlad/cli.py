"""The command line: one function a verb, nothing heavy imported before a verb is known.

Exit status: 0 done; 1 the data, a file or the machine is at fault; 2 the call is at fault;
130 and 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nextvlad.errors import NextvladError, is_out_of_memory

_HELP = """\
nextvlad: classify videos from frame-level features.

Usage: nextvlad VERB ...        (nextvlad VERB --help explains a verb)

  demo       the whole job on embedded data, in about a minute on a CPU
  check      look at a data set and verify every record of it
  train      train or fine-tune a model
  evaluate   Hit@1, PERR, GAP and mAP of a checkpoint or a file of predictions
  predict    the best labels of each video: .jsonl, .csv, .parquet or .pkl file
  report     a page on a model: AP a label, confusions, calibration, thresholds
  tag        videos: labels with scores, and the seconds that speak for each
  ensemble   the weighted mean of prediction files of any systems
  import     a checkpoint of PaddleVideo or TensorFlow becomes one of ours
  extract    videos and their labels become frame features
  convert    PaddleVideo's data pickles become TFRecord files, and back
  bench      how fast this machine reads, trains and infers on your data

DATA is files, directories, quoted globs, or .list files with one path a line;
files are TFRecords or PaddleVideo's pickles.
A CHECKPOINT is the folder of a run, or one of the checkpoints inside it.

  nextvlad demo
  nextvlad check 'yt8m/train*.tfrecord' --vocabulary vocabulary.csv
  nextvlad train audioset --data.train 'bal*' --data.valid 'eval*' --out runs/a
  nextvlad evaluate runs/a 'eval*'
  nextvlad predict runs/a 'eval*' --out predictions.jsonl
  nextvlad predict runs/s 'test*' --segments --out segments.csv
  nextvlad tag runs/own holiday.mp4 --report holiday.html
  nextvlad import nextvlad_youtube8m.tar.gz paddle-model
  nextvlad convert train.list --out tfrecords

Exit status: 0 done, 1 the data is at fault, 2 the call is at fault.
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one verb and leaves with its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Torch takes large memory in pages of 2 MB then. The gradients of the large layers are new memory at each
    # step, and in pages of 4 kB the system's work on it takes twice as long as the product that fills it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not given or given[0] in ("-h", "--help", "help"):
        print(_HELP, end="", file=sys.stdout if given else sys.stderr)
        sys.exit(0 if given else 2)
    if given[0] in ("-V", "--version", "version"):
        from nextvlad import __version__

        print(f"nextvlad {__version__}")
        sys.exit(0)
    sys.exit(_guarded(given[0], given[1:]))


def _run(name: str, arguments: list[str]) -> int:
    from nextvlad.commands import VERBS

    if name not in VERBS:
        print(f"nextvlad: no verb {name!r}; wanted one of {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    return VERBS[name](arguments)


def _guarded(name: str, arguments: list[str]) -> int:
    """Turns every error a user can cause into its message and its exit status, from the imports on."""
    try:
        return _run(name, arguments)
    except NextvladError as error:
        # What reads the data spells options as `train` does.
        message = (
            str(error)
            if name == "train"
            else str(error).replace("--data.skip-", "--skip-").replace("--data.trust-", "--trust-")
        )
        print(f"nextvlad: {message}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("nextvlad: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `nextvlad ... | head`: nobody reads on, also not what Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # the machine's, where no verb knows more: a full disk behind standard output
        where = error.filename or "the output"
        print(f"nextvlad: {where}: {error.strerror or error}. Make room, or check it.", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print("nextvlad: out of memory; use a smaller batch or model (see --help).", file=sys.stderr)
        return 1


if __name__ == "__main__":
    main()
