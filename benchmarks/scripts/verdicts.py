"""Verdicts on real cells, with and without known faults."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import typer
from scipy import sparse
from tidy import tidy, write_rows

from bdm._core.seeds import numpy_generator
from bdm.data.cells import MIN_CELLS_FOR_MEANS, Cells, RealCells, sample_by_type
from bdm.data.prepare import gene_names, read_prepared
from bdm.evaluation.evaluate import Evaluation, evaluate
from bdm.evaluation.table import MIN_CELLS
from bdm.evaluation.verdict import Grade
from bdm.settings import EvaluationSettings

ALL = "all cells"
REAL = "real cells"
BOUNDS = (MIN_CELLS, 35, 100, 300)  # minimum cells per type in each group of verdicts
SHARES = {"train": 0.38, "generated": 0.44, "test": 0.18}  # of cells per type
SLOPES = np.linspace(-2, 8, 101)  # of log weights along the main axis
Fault = Callable[[Cells, Cells, np.random.Generator], Cells]


def divided(cells: Cells, *, seed: int) -> dict[str, Cells]:
    """Divide cells at random into training, "generated" and test cells."""
    rest, parts = np.arange(len(cells)), {}
    for name, share in list(SHARES.items())[1:]:
        numbers = np.ceil(share * cells.n_by_type).astype(int)
        rows = rest[sample_by_type(cells[rest], numbers, seed=seed)]
        parts[name], rest = cells[rows], np.setdiff1d(rest, rows)
    return parts | {"train": cells[rest]}


def rounded(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Round up or down at random, with the same mean."""
    return np.floor(values + generator.random(values.shape))


def by_type(change: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]) -> Fault:
    """Return a fault that changes counts and training counts of each type.

    Counts are cells x genes. Types with few cells are dropped.
    """

    def changed(cells: Cells, training: Cells, generator: np.random.Generator) -> Cells:
        parts = []
        for cell_type in cells.types(fewest=MIN_CELLS_FOR_MEANS):
            pair = (group.counts[group.cell_type == cell_type].toarray() for group in (cells, training))
            counts = change(*pair, generator)
            parts.append(Cells(sparse.csr_matrix(counts, dtype=np.float32), np.repeat(cell_type, len(counts))))
        return joined(parts)

    return changed


def joined(parts: list[Cells]) -> Cells:
    """Concatenate sets of cells."""
    counts = sparse.vstack([part.counts for part in parts]).tocsr()
    return Cells(counts, np.concatenate([part.cell_type for part in parts]))


def log_cp10k(counts: np.ndarray) -> np.ndarray:
    """Return ``log1p(CP10k)`` of dense counts."""
    return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def main_axis(counts: np.ndarray) -> np.ndarray:
    """Return the loadings of the first principal component."""
    expression = log_cp10k(counts)
    loadings = np.linalg.svd(expression - expression.mean(axis=0), full_matrices=False)[2][0]
    return loadings * np.sign(loadings.sum())


def shift(size: float) -> Fault:
    """Select two fifths of each type, shifted by ``size`` SD along the main axis.

    Weights increase exponentially along the axis, which shifts a normal distribution.
    """

    def shifted(counts: np.ndarray, training: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        position = log_cp10k(counts) @ main_axis(training)
        position = (position - position.mean()) / max(position.std(), 1e-9)
        noise, n_cells = generator.gumbel(size=len(counts)), max(2 * len(counts) // 5, 2)
        chosen = [np.argsort(-(slope * position + noise))[:n_cells] for slope in SLOPES]
        sizes = [position[rows].mean() for rows in chosen]
        return counts[chosen[np.argmin(np.abs(np.array(sizes) - size))]]

    return by_type(shifted)


def overdispersed(counts: np.ndarray, training: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Multiply each count by a gamma variable with mean 1 and SD 0.5."""
    return rounded(counts * generator.gamma(4, 1 / 4, size=counts.shape), generator)


def without_sub_group(counts: np.ndarray, training: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Drop the 30% of cells furthest along the main axis."""
    scores = log_cp10k(counts) @ main_axis(training)
    return counts[scores <= np.quantile(scores, 0.7)]


def copied(cells: Cells, training: Cells, generator: np.random.Generator) -> Cells:
    """Replace half of the cells by training cells of the same type."""
    seeds = generator.integers(2**31, size=2)
    numbers = cells.n_by_type
    kept = cells[sample_by_type(cells, numbers - numbers // 2, seed=seeds[0])]
    return joined([kept, training[sample_by_type(training, numbers // 2, seed=seeds[1])]])


def mislabelled(cells: Cells, training: Cells, generator: np.random.Generator) -> Cells:
    """Shuffle the labels of a tenth of the cells."""
    chosen = generator.random(len(cells)) < 0.1
    labels = cells.cell_type.copy()
    labels[chosen] = generator.permutation(labels[chosen])
    return Cells(cells.counts, labels)


FAULTS: dict[str, Fault] = {
    "shift by 0.2 SD": shift(0.2),
    "shift by 0.5 SD": shift(0.5),
    "shift by 0.8 SD": shift(0.8),
    "overdispersed": by_type(overdispersed),
    "sub-group missing": by_type(without_sub_group),
    "a tenth mislabelled": mislabelled,
    "half are copies": copied,
}


def group_of(cell_type: str, n_cells: int) -> str:
    """Name the group of a verdict by its number of test cells."""
    if cell_type == ALL:
        return ALL
    low = max(bound for bound in BOUNDS if bound <= n_cells)
    return f"{low} or more" if low == BOUNDS[-1] else f"{low} to {BOUNDS[BOUNDS.index(low) + 1] - 1}"


def verdicts_of(evaluation: Evaluation, name: str) -> pd.DataFrame:
    """List verdicts on all cells and each type.

    ``found`` and ``large`` are 100 for a difference, and a large difference.
    """
    verdicts = {ALL: evaluation.verdict(name), **evaluation.verdicts_by_type(name)}
    rows = [
        {
            "method": name,
            "cell_type": cell_type,
            "group": group_of(cell_type, verdict.n_cells),
            "found": 100 * (verdict.grade != Grade.SAME),
            "large": 100 * (verdict.grade == Grade.DIFFERS),
        }
        for cell_type, verdict in verdicts.items()
        if verdict.n_cells >= MIN_CELLS
    ]
    return pd.DataFrame(rows)


def main(
    prepared: Path,
    out: Path,
    *,
    n_splits: int = 20,
    n_faulty: int = 5,
    seed: int = 0,
) -> None:
    """Write verdicts on real cells in random splits.

    ``n_faulty`` of the ``n_splits`` splits also evaluate cells with faults.
    """
    adata = read_prepared(prepared)
    cells = Cells.from_anndata(adata)
    settings = EvaluationSettings(n_repeats=1)
    tables = []
    for split in range(n_splits):
        generator = numpy_generator(seed, "verdicts", split)
        parts = divided(cells, seed=int(generator.integers(2**31)))
        faults = FAULTS if split < n_faulty else {}
        sets = {REAL: parts["generated"]} | {
            name: fault(parts["generated"], parts["train"], generator) for name, fault in faults.items()
        }
        real = RealCells(parts["train"], parts["test"], gene_names(adata))
        evaluation = evaluate(real, sets, settings, seed=int(generator.integers(2**31)))
        tables += [verdicts_of(evaluation, name).assign(split=split) for name in sets]
    write_rows(tidy(pd.concat(tables), ["method", "cell_type", "group", "split"]), out)


if __name__ == "__main__":
    typer.run(main)
