"""Where frame features come from: what made them, so that a model never meets those of another extractor.

Features of two extractors may have the same names and sizes, and a model trained on the one gives nonsense
for the other without any error. So `nextvlad extract` writes down how each stream was made:

- `provenance.json` beside the shards, for people and for messages;
- a fingerprint of it in the context of every record, so that a shard that was moved still says what it is;
- `features.json` in every checkpoint that was trained on them.

Data of others, as YouTube-8M and AudioSet, has none of these: it fits models that have none either.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nextvlad.errors import DataError
from nextvlad.files import why, write_json

CONTEXT_KEY = "provenance"
"""The context feature of a record that holds `Provenance.token`."""

SIDECAR = "provenance.json"
"""Its name in a folder of features."""

TRUST = "--data.trust-features"
"""The option that lets features through all the same."""

_FORMAT, _VERSION = "nextvlad-features", 1
_DIGITS = 16  # of a fingerprint
_NOT_KNOWN = "not known"


@dataclass(frozen=True, kw_only=True)
class StreamProvenance:
    """How one stream of features was made; two that are equal in all of it can be used for each other.

    Attributes:
        extractor: name of what turned pictures or sound into numbers.
        weights_sha256: of its file of weights; None where it has none.
        preprocessing: JSON values: size, crop, mean and deviation, channel order, ...
        rate_hz: rows a second of video.
        size: D, numbers a row.
        pca_sha256: of the PCA applied; None: none was.
        quantiser: JSON values: how floats became bytes.
    """

    extractor: str
    weights_sha256: str | None
    preprocessing: Mapping[str, Any]
    rate_hz: float
    size: int
    pca_sha256: str | None
    quantiser: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ where anything of it differs."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {**values, "rate_hz": float(self.rate_hz)}


_FIELDS = [field.name for field in fields(StreamProvenance)]


@dataclass(frozen=True)
class Provenance:
    """How each stream of some features was made.

    Attributes:
        streams: name -> how it was made, or only the fingerprint of that, where a shard was parted from its
            `provenance.json`.
    """

    streams: Mapping[str, StreamProvenance | str]

    def fingerprint(self, stream: str) -> str | None:
        """Of one stream; None if it is not there."""
        value = self.streams.get(stream)
        return value.fingerprint if isinstance(value, StreamProvenance) else value

    @property
    def token(self) -> bytes:
        """What each record keeps: `name=fingerprint` of each stream, with spaces between."""
        return " ".join(f"{name}={self.fingerprint(name)}" for name in sorted(self.streams)).encode()

    @classmethod
    def from_token(cls, token: bytes) -> Provenance:
        """The reverse, as far as it goes. Of what is no token, one that equals nothing else."""
        pairs = (part.rpartition("=") for part in token.decode(errors="backslashreplace").split())
        return cls({name: value for name, _, value in pairs})

    def only(self, streams: Iterable[str]) -> Provenance:
        """That of some streams."""
        return Provenance({name: self.streams[name] for name in streams if name in self.streams})

    def filled_from(self, known: Provenance) -> Provenance:
        """With the details of `known` where only a fingerprint is known here, and it is the same."""
        return Provenance(
            {
                name: known.streams[name] if known.fingerprint(name) == self.fingerprint(name) else value
                for name, value in self.streams.items()
            }
        )

    def to_json(self) -> dict[str, Any]:
        """What `provenance.json` and `features.json` hold."""
        streams = {
            name: {
                "fingerprint": self.fingerprint(name),
                **(value.to_json() if isinstance(value, StreamProvenance) else {}),
            }
            for name, value in sorted(self.streams.items())
        }
        return {"format": _FORMAT, "version": _VERSION, "streams": streams}

    @classmethod
    def from_json(cls, values: Any, *, where: str) -> Provenance:
        """The reverse.

        Raises:
            DataError: names `where`: of another format or version, or changed by hand.
        """
        try:
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r}")
            if values["version"] != _VERSION:
                raise ValueError(f"version {values['version']!r}, this nextvlad reads {_VERSION}")
            return cls({name: _stream(name, stream) for name, stream in values["streams"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{where}: does not say how features were made, as this version writes it ({error}). Put the "
                "file back that `nextvlad extract` wrote, or remove it."
            ) from error

    def save(self, path: Path) -> None:
        """Writes the JSON file; OutputError if it cannot be written."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Provenance | None:
        """Reads the JSON file; None if it is not there; DataError if it is damaged."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({why(error)}).") from error
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error}). Remove it, or put it back.") from error
        return cls.from_json(values, where=str(path))


def _stream(name: str, values: Mapping[str, Any]) -> StreamProvenance | str:
    details = dict(values)
    fingerprint = details.pop("fingerprint")
    if not isinstance(fingerprint, str):
        raise TypeError(f"fingerprint of {name} is {fingerprint!r}")
    if not details:
        return fingerprint
    stream = StreamProvenance(**details)
    if stream.fingerprint != fingerprint:
        raise ValueError(f"{name} does not fit its fingerprint {fingerprint}; it was changed")
    return stream


def of_record(context: Mapping[str, Any]) -> bytes:
    """The token in the context of a record; b"" if there is none."""
    values = context.get(CONTEXT_KEY)
    return values[0] if values and isinstance(values[0], bytes) else b""


def of_file(token: bytes, path: str) -> Provenance | None:
    """What a token that was found in a file says, with the details of the `provenance.json` beside it."""
    if not token:
        return None
    provenance = Provenance.from_token(token)
    beside = Provenance.load(Path(path).parent / SIDECAR)
    return provenance.filled_from(beside) if beside else provenance


@dataclass(frozen=True)
class Expected:
    """The features that data has to have.

    Attributes:
        provenance: None: such as nobody wrote down, as YouTube-8M's.
        streams: the model's, which are compared; others are not used.
        whose: who wants them, as messages say it: "the model in runs/a".
    """

    provenance: Provenance | None
    streams: tuple[str, ...]
    whose: str

    def check(self, token: bytes, path: str) -> None:
        """Raises DataError, with both sides, unless a record of `path` with this token fits."""
        check_match(
            self.provenance,
            of_file(token, path),
            streams=self.streams,
            wanted_by=self.whose,
            found_in=os.fspath(path),
        )


def check_match(
    wanted: Provenance | None,
    found: Provenance | None,
    *,
    streams: Iterable[str],
    wanted_by: str,
    found_in: str,
) -> None:
    """Refuses features that are not those that are wanted.

    Args:
        wanted: of a model, or of other data; None: not known.
        found: of the features at hand; None: not known.
        streams: those to compare.
        wanted_by: who wants them: "the model in runs/a".
        found_in: where they are: a file, or "this extractor".

    Raises:
        DataError: with both sides, field by field.
    """
    different = [name for name in streams if _fingerprint(wanted, name) != _fingerprint(found, name)]
    if not different:
        return
    if found is None:
        what = "nothing says how its features were made, and something does for those of"
    elif wanted is None:
        what = "its features were made by `nextvlad extract`, and nothing says so of those of"
    else:
        what = "its features were made in another way than those of"
    raise DataError(
        f"{found_in}: {what} {wanted_by}.\n{compared(wanted, found, different)}\nBring together features "
        "and a model that belong together: extract the videos again as for the model, or train on these. "
        f"If you know that they match, say so with {TRUST}."
    )


def _fingerprint(provenance: Provenance | None, stream: str) -> str | None:
    return provenance.fingerprint(stream) if provenance else None


def compared(
    wanted: Provenance | None,
    found: Provenance | None,
    streams: Iterable[str],
    titles: tuple[str, str] = ("wanted", "found"),
) -> str:
    """A table of both sides, field by field; `*` marks what differs."""
    rows = [("", "stream", *titles)]
    for name in streams:
        sides = [_shown(wanted, name), _shown(found, name)]
        rows.append(("", name, "", ""))
        keys = list(dict.fromkeys([*sides[0], *sides[1]]))
        for key in keys:
            left, right = (side.get(key, "-") for side in sides)
            rows.append(("*" if left != right else "", f"  {key}", left, right))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def _shown(provenance: Provenance | None, stream: str) -> dict[str, str]:
    """The fields of one stream, nested ones as a.b, as texts."""
    value = provenance.streams.get(stream) if provenance else None
    if value is None:
        return {"extractor": "no such stream" if provenance else _NOT_KNOWN}
    if isinstance(value, str):
        return {"extractor": f"{_NOT_KNOWN} (no {SIDECAR} beside it)", "fingerprint": value}
    shown: dict[str, str] = {}
    for name in _FIELDS:
        _flatten(name, getattr(value, name), shown)
    return {**shown, "fingerprint": value.fingerprint}


def _flatten(name: str, value: Any, into: dict[str, str]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(f"{name}.{key}", inner, into)
    elif name.endswith("sha256"):
        into[name] = f"{value[:12]}..." if value else "-"
    else:
        into[name] = "-" if value is None else str(value)[:60]
