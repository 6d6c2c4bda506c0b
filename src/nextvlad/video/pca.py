"""Principal components, as YouTube-8M reduced Inception's 2,048 numbers to 1,024 and whitened them.

y = (x - mean) E / sqrt(eigenvalues + 1e-4), with E the eigenvectors of the covariance, largest first.

Source: YouTube-8M's feature_extractor.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from nextvlad.errors import DataError, UsageError
from nextvlad.files import NewFile

WHITENING_EPSILON = 1e-4
_NO_ARRAYS = (  # all that np.load raises on damaged files
    *(OSError, ValueError, EOFError, SyntaxError, TokenError),
    *(MemoryError, RecursionError, OverflowError, TypeError, KeyError, BadZipFile, NotImplementedError),
)
_YT8M_SIZE = 1024


@dataclass(frozen=True)
class Pca:
    """A fitted PCA: D numbers in, M out.

    Attributes:
        mean: [D] float32.
        eigenvectors: [D, M] float32, orthonormal columns.
        eigenvalues: [M] float32, the variance along each, largest first.
        whiten: whether each component is brought to variance 1.
    """

    mean: NDArray[np.float32]
    eigenvectors: NDArray[np.float32]
    eigenvalues: NDArray[np.float32]
    whiten: bool = True

    def __post_init__(self) -> None:
        size = self.mean.shape[0] if self.mean.ndim == 1 else -1
        wanted = (size, self.eigenvalues.shape[0] if self.eigenvalues.ndim == 1 else -1)
        if self.eigenvectors.shape != wanted or 0 in wanted:
            raise DataError(
                f"a PCA of mean {self.mean.shape}, eigenvectors {self.eigenvectors.shape} and eigenvalues "
                f"{self.eigenvalues.shape}; wanted [D], [D, M] and [M]."
            )
        if not all(np.isfinite(a).all() for a in (self.mean, self.eigenvectors, self.eigenvalues)):
            raise DataError("a PCA with values that are not finite.")
        if (self.eigenvalues < -1e-3 * abs(self.eigenvalues).max()).any():
            raise DataError("a PCA with negative eigenvalues.")

    @property
    def size(self) -> int:
        """M, numbers a row after it."""
        return len(self.eigenvalues)

    @property
    def sha256(self) -> str:
        """Of its numbers."""
        digest = hashlib.sha256(b"whitened" if self.whiten else b"plain")
        for array in (self.mean, self.eigenvectors, self.eigenvalues):
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return digest.hexdigest()

    def apply(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """[T, D] -> [T, M].

        Raises:
            UsageError: D differs from that of the PCA.
        """
        if values.shape[-1] != len(self.mean):
            raise UsageError(
                f"a PCA for {len(self.mean)} numbers a row, and features of {values.shape[-1]}; use the PCA "
                "that was fitted on features of this backbone."
            )
        components = (np.asarray(values, dtype=np.float32) - self.mean) @ self.eigenvectors
        if self.whiten:
            components = components / np.sqrt(np.maximum(self.eigenvalues, 0) + np.float32(WHITENING_EPSILON))
        return components.astype(np.float32)

    def save(self, path: Path) -> None:
        """Writes an .npz file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        buffer = BytesIO()
        np.savez(
            buffer,
            mean=self.mean,
            eigenvectors=self.eigenvectors,
            eigenvalues=self.eigenvalues,
            whiten=np.array(self.whiten),
        )
        with NewFile(path) as file:
            file.write(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Pca:
        """Reads what `save` wrote, or a folder with YouTube-8M's mean.npy, eigenvals.npy and eigenvecs.npy.

        Raises:
            UsageError: not there, or not such a file.
            DataError: shapes or values are wrong.
        """
        try:
            if path.is_dir():
                return cls._of_yt8m(path)
            found = np.load(path, allow_pickle=False)
            if not isinstance(found, NpzFile):
                raise ValueError("a single array")
            with found as arrays:
                return cls(
                    mean=arrays["mean"].astype(np.float32),
                    eigenvectors=arrays["eigenvectors"].astype(np.float32),
                    eigenvalues=arrays["eigenvalues"].astype(np.float32),
                    whiten=bool(arrays["whiten"]),
                )
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except (*_NO_ARRAYS, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UsageError(
                f"{path}: cannot be read as a PCA ({reason}); wanted an .npz file that `Pca.save` wrote, or "
                "a folder with YouTube-8M's mean.npy, eigenvals.npy and eigenvecs.npy."
            ) from error

    @classmethod
    def _of_yt8m(cls, folder: Path) -> Pca:
        """Columns of one, and eigenvectors as rows, as in yt8m_pca.tgz; the first 1,024 are used."""
        mean, values, vectors = (
            np.load(folder / name, allow_pickle=False).astype(np.float32)
            for name in ("mean.npy", "eigenvals.npy", "eigenvecs.npy")
        )
        return cls(
            mean=mean.ravel(),
            eigenvectors=np.ascontiguousarray(vectors.T[:, :_YT8M_SIZE]),
            eigenvalues=values.ravel()[:_YT8M_SIZE],
        )


class PcaFit:
    """Fits a PCA to rows that come in pieces; memory is that of the covariance, D x D doubles."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._sum: NDArray[np.float64] | None = None
        self._products: NDArray[np.float64] | None = None
        self._shift: NDArray[np.float64] | None = None

    def add(self, values: NDArray[np.floating]) -> None:
        """Takes rows [T, D] float."""
        if not len(values):
            return
        rows = np.asarray(values, dtype=np.float64)
        if self._shift is None:
            self._shift = rows.mean(axis=0)  # near the mean, so that products lose no digits
            size = rows.shape[1]
            self._sum, self._products = np.zeros(size), np.zeros((size, size))
        assert self._sum is not None
        assert self._products is not None
        rows = rows - self._shift
        self.num_rows += len(rows)
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows

    def fit(self, size: int, *, whiten: bool = True) -> Pca:
        """The PCA to `size` components; eigenvectors' signs are fixed (largest entry positive).

        Raises:
            UsageError: `size` is more than D, or than there were rows.
        """
        if self._sum is None or self._products is None or self._shift is None or self.num_rows <= size:
            raise UsageError(
                f"a PCA to {size} numbers needs more than {size} rows; there were {self.num_rows}. Give more "
                "videos or a smaller size."
            )
        if not 1 <= size <= len(self._sum):
            raise UsageError(f"a PCA to {size} numbers of rows of {len(self._sum)}; wanted 1 to that.")
        mean = self._sum / self.num_rows
        covariance = (self._products - self.num_rows * np.outer(mean, mean)) / (self.num_rows - 1)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1][:size], vectors[:, ::-1][:, :size]
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(size)])
        return Pca(
            mean=(mean + self._shift).astype(np.float32),
            eigenvectors=np.ascontiguousarray(vectors, dtype=np.float32),
            eigenvalues=np.maximum(values, 0).astype(np.float32),
            whiten=whiten,
        )
