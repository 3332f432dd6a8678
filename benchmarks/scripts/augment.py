"""Score classifiers of rare types, with and without generated cells.

Every strategy trains on the same real cells, and adds cells to each rare type up to the median number of all types.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import typer
from scipy import sparse
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from tidy import RARE, write_rows

from bdm._core.seeds import derive, numpy_generator
from bdm.api import BranchedDiffusion
from bdm.data.cell_sets import read_real_cells
from bdm.data.cells import Cells

CLASSIFIERS: dict[str, Callable[..., ClassifierMixin]] = {
    "logistic regression": lambda **settings: LogisticRegression(max_iter=1000, **settings),
    "random forest": lambda **settings: RandomForestClassifier(n_estimators=200, **settings),
}


@dataclass(frozen=True)
class Strategy:
    """Training cells of a classifier, and whether types have equal weights."""

    training: Cells
    balanced: bool = False


def strategies(training: Cells, generated: dict[str, Cells], n_added: pd.Series, *, seed: int) -> dict[str, Strategy]:
    """Return strategies by name; ``n_added`` is by rare type."""
    return {
        "plain": Strategy(training),
        "balanced": Strategy(training, balanced=True),
        "oversampled": Strategy(joined(training, sampled(training, n_added, seed=seed, replace=True))),
        **{name: Strategy(joined(training, sampled(cells, n_added, seed=seed))) for name, cells in generated.items()},
    }


def sampled(cells: Cells, numbers: pd.Series, *, seed: int, replace: bool = False) -> Cells:
    """Sample ``numbers`` of cells by type."""
    rows = [
        numpy_generator(seed, "augment", cell_type).choice(np.flatnonzero(cells.cell_type == cell_type), n, replace)
        for cell_type, n in numbers.items()
    ]
    return cells[np.concatenate(rows)]


def joined(cells: Cells, others: Cells) -> Cells:
    """Concatenate two sets of cells."""
    counts = sparse.vstack([cells.counts, others.counts]).tocsr()
    return Cells(counts, np.concatenate([cells.cell_type, others.cell_type]))


def f1_of_types(strategy: Strategy, classifier: str, test: Cells, rare: list[str], *, seed: int) -> np.ndarray:
    """Compute the F1 of rare types among all test cells."""
    settings = {"class_weight": "balanced" if strategy.balanced else None, "random_state": derive(seed) % 2**32}
    trained = CLASSIFIERS[classifier](**settings).fit(strategy.training.expression, strategy.training.cell_type)
    predicted = trained.predict(test.expression)
    return f1_score(test.cell_type, predicted, labels=rare, average=None, zero_division=0)


def main(prepared: Path, models: list[Path], out: Path, *, seed: int = 0) -> None:
    """Write the F1 of each rare type by classifier and strategy.

    Models are named after their folders.
    """
    real = read_real_cells(prepared)
    n_train = real.training.n_by_type
    rare = n_train.index[n_train < RARE].tolist()
    n_added = (int(n_train.median()) - n_train[rare]).clip(lower=0)
    generated = {
        path.name: Cells.from_anndata(BranchedDiffusion.load(path).generate(n_added[n_added > 0].to_dict(), seed=seed))
        for path in models
    }
    rows = [
        pd.DataFrame(
            {
                "method": name,
                "cell_type": rare,
                "n_train": n_train[rare].to_numpy(),
                "n_test": real.test.n_by_type.reindex(rare, fill_value=0).to_numpy(),
                "score": classifier,
                "value": f1_of_types(strategy, classifier, real.test, rare, seed=seed),
            }
        )
        for name, strategy in strategies(real.training, generated, n_added, seed=seed).items()
        for classifier in CLASSIFIERS
    ]
    write_rows(pd.concat(rows), out)


if __name__ == "__main__":
    typer.run(main)
