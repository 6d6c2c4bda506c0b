"""PCA against scikit-learn and YouTube-8M's formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from nextvlad.errors import DataError, UsageError
from nextvlad.video.pca import Pca, PcaFit


def rows(number: int = 400, size: int = 12) -> np.ndarray:
    generator = np.random.default_rng(5)
    mixing = generator.normal(size=(size, size)) * np.linspace(2, 0.1, size)[:, None]
    return (generator.normal(size=(number, size)) @ mixing + 30.0).astype(np.float32)


def fitted(size: int = 4, *, whiten: bool = True) -> Pca:
    fit = PcaFit()
    for part in np.array_split(rows(), 7):
        fit.add(part)
    fit.add(rows()[:0])
    return fit.fit(size, whiten=whiten)


def test_the_same_as_scikit_learn() -> None:
    pca, other = fitted(), PCA(4).fit(rows().astype(np.float64))
    np.testing.assert_allclose(pca.eigenvalues, other.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(np.abs(pca.eigenvectors.T), np.abs(other.components_), atol=1e-4)
    plain = fitted(whiten=False).apply(rows())
    np.testing.assert_allclose(np.abs(plain), np.abs(other.transform(rows())), atol=2e-3)


def test_whitened_components_have_variance_one() -> None:
    whitened = fitted().apply(rows())
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(4), atol=0.02)


def test_saved_and_loaded(tmp_path: Path) -> None:
    pca = fitted()
    pca.save(tmp_path / "pca.npz")
    loaded = Pca.load(tmp_path / "pca.npz")
    np.testing.assert_array_equal(loaded.apply(rows()), pca.apply(rows()))
    assert loaded.sha256 == pca.sha256
    assert loaded.sha256 != fitted(whiten=False).sha256
    assert [path.name for path in tmp_path.iterdir()] == ["pca.npz"]


def test_the_matrices_of_youtube_8m(tmp_path: Path) -> None:
    """Columns of mean and eigenvalues, eigenvectors as rows; y = (x - mean) E / sqrt(eigenvalue + 1e-4)."""
    generator = np.random.default_rng(0)
    mean, values = generator.normal(size=(1100, 1)), np.sort(generator.random((1100, 1)))[::-1]
    vectors = generator.normal(size=(1100, 1100))
    for name, array in (("mean", mean), ("eigenvals", values), ("eigenvecs", vectors)):
        np.save(tmp_path / f"{name}.npy", array)
    x = generator.normal(size=(3, 1100)).astype(np.float32)
    wanted = (x - mean[:, 0]) @ vectors.T[:, :1024] / np.sqrt(values[:1024, 0] + 1e-4)
    pca = Pca.load(tmp_path)
    assert pca.size == 1024
    np.testing.assert_allclose(pca.apply(x), wanted, rtol=2e-3, atol=2e-3)


def test_what_is_refused(tmp_path: Path) -> None:
    few, many = PcaFit(), PcaFit()
    few.add(rows()[:3])
    many.add(rows())
    with pytest.raises(UsageError, match="needs more than 4 rows; there were 3"):
        few.fit(4)
    with pytest.raises(UsageError, match="wanted 1 to that"):
        many.fit(13)
    with pytest.raises(UsageError, match="for 12 numbers a row, and features of 5"):
        fitted().apply(np.zeros((1, 5), dtype=np.float32))
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    for path in (tmp_path / "a.npz", tmp_path / "no.npz", tmp_path):
        with pytest.raises(UsageError, match="cannot be read as a PCA"):
            Pca.load(path)
    np.savez(tmp_path / "b.npz", mean=np.zeros(3), eigenvectors=np.zeros((2, 2)), eigenvalues=np.zeros(2),
             whiten=True)  # fmt: skip
    with pytest.raises(DataError, match=r"b\.npz: a PCA of mean \(3,\)"):
        Pca.load(tmp_path / "b.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UsageError, match=r"one\.npy: cannot be read as a PCA \(a single array\)"):
        Pca.load(tmp_path / "one.npy")
    np.savez(tmp_path / "c.npz", mean=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read as a PCA"):
        Pca.load(tmp_path / "c.npz")
