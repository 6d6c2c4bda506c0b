"""How long `nextvlad --help` takes, against Python alone; wanted below 0.3 s and without torch."""

from __future__ import annotations

import subprocess
import sys

from measure import compare, finish, parser

_LOADED = (
    "import sys\n"
    "from nextvlad.cli import main\n"
    "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
    "print('torch' in sys.modules, file=sys.stderr)"
)


def run(*arguments: str) -> float:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return 1


def loads_torch() -> bool:
    command = [sys.executable, "-c", _LOADED]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return done.stderr.strip().endswith("True")


def main() -> None:
    options = parser(__doc__, rounds=20).parse_args()
    comparison = compare(
        "help",
        {
            "nextvlad --help": lambda: run("-m", "nextvlad", "--help"),
            "python -c pass": lambda: run("-c", "pass"),
        },
        unit="calls",
        rounds=2 if options.quick else options.rounds,
        warmup=options.warmup,
        facts={"loads_torch": loads_torch(), "wanted_s": 0.3},
    )
    finish("startup", [comparison], options)


if __name__ == "__main__":
    main()
