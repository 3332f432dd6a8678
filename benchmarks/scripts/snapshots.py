"""Generate left-out snapshots by bdm without a lineage, and by baselines.

A snapshot has the cells in a range of times, all at its median time. Every second snapshot is left out, all at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from covariates import Task as TypeTask
from covariates import fitted, splines
from distances import Rows, log_normalised, sample_rows, scored
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from bdm._core.seeds import numpy_generator
from bdm.api import BranchedDiffusion

LABEL, TIME, SNAPSHOT = "label", "time", "snapshot"  # columns of ``obs``; the name of a snapshot is its time
N_COMPONENTS = 30  # principal components for pairing cells


@dataclass(frozen=True)
class Task:
    """Left-out snapshot, with the snapshots before and after."""

    real: AnnData
    before: AnnData
    after: AnnData
    remaining: AnnData  # all kept snapshots

    @property
    def time(self) -> float:
        """Time of the left-out snapshot."""
        return float(self.real.obs[TIME].iloc[0])

    @property
    def weight(self) -> float:
        """Weight of the later snapshot, linear in time."""
        before, after = (float(cells.obs[TIME].iloc[0]) for cells in (self.before, self.after))
        return (self.time - before) / (after - before)


def mixture(task: Task, seed: int, weight: float | None = None) -> AnnData:
    """Sample real cells of both snapshots; ``weight`` is the share of later cells."""
    generator, n = numpy_generator(seed, "mixture"), task.real.n_obs
    n_after = round(n * (task.weight if weight is None else weight))
    before, after = (
        cells.X[sample_rows(np.arange(cells.n_obs), number, generator)]
        for cells, number in ((task.before, n - n_after), (task.after, n_after))
    )
    return AnnData(sparse.vstack([before, after], format="csr"), var=task.real.var)


def nearest(task: Task, seed: int) -> AnnData:
    """Sample real cells of the nearer snapshot."""
    return mixture(task, seed, weight=float(task.weight > 0.5))


def paired(task: Task, seed: int) -> AnnData:
    """Pair cells by optimal transport (POT), and add thinned counts of each pair."""
    import ot

    generator, ends = numpy_generator(seed, "paired"), (task.before, task.after)
    joint = np.concatenate([log_normalised(cells, slice(None)) for cells in ends])
    x, y = np.split(PCA(N_COMPONENTS, random_state=0).fit_transform(joint), [task.before.n_obs])
    plan = ot.emd(ot.unif(len(x)), ot.unif(len(y)), cdist(x, y, "sqeuclidean"))
    # Systematic sampling repeats a pair only if its share is large
    at = (generator.random() + np.arange(task.real.n_obs)) / task.real.n_obs
    pair = np.searchsorted(np.cumsum(plan) / plan.sum(), at)
    shares = 1 - task.weight, task.weight
    counts = [cells.X[rows].toarray().astype(int) for cells, rows in zip(ends, divmod(pair, len(y)), strict=True)]
    thinned = [generator.binomial(number, share) for number, share in zip(counts, shares, strict=True)]
    return AnnData(sparse.csr_matrix(sum(thinned), dtype=np.float32), var=task.real.var)


def by_splines(task: Task, seed: int) -> AnnData:
    """Sample counts around a spline of each gene over remaining snapshots."""
    at, known = np.full(task.real.n_obs, task.time), task.remaining.obs[TIME].to_numpy(float)
    return splines(TypeTask("cell", task.real, task.remaining, at, known), seed)


METHODS: dict[str, Callable[[Task, int], AnnData]] = {
    "nearest": nearest,
    "mixture": mixture,
    "mixture-half": partial(mixture, weight=0.5),
    "ot": paired,
    "splines": by_splines,
}


def by_labels(model: BranchedDiffusion, task: Task, seed: int) -> AnnData:
    """Generate cells of each type, with shares interpolated in time."""
    before, after = (cells.obs[LABEL].value_counts(normalize=True) for cells in (task.before, task.after))
    share = (before * (1 - task.weight)).add(after * task.weight, fill_value=0).sort_index()
    share = share[share.index.isin(model.cell_types)]
    number = numpy_generator(seed, "types").multinomial(task.real.n_obs, share / share.sum())
    table = pd.DataFrame({"cell_type": share.index, "n_cells": number, TIME: task.time})
    return model.generate(table[table["n_cells"] > 0], extrapolate=True, seed=seed)


def without_snapshots(cells: AnnData, n_snapshots: int, *, time_key: str, label_key: str, seed: int) -> Rows:
    """Leave out every second snapshot, and score the generated cells."""
    value = cells.obs[time_key]
    number = pd.qcut(value, n_snapshots, labels=False).to_numpy()
    cells = AnnData(cells.X, var=cells.var, obs=cells.obs[[]].assign(**{LABEL: cells.obs[label_key].astype(str)}))
    cells.obs[TIME] = value.groupby(number).transform("median").to_numpy(float)
    cells.obs[SNAPSHOT] = cells.obs[TIME].astype(str)
    remaining, rows = cells[number % 2 == 0].copy(), []
    labelled, unlabelled = (fitted(remaining, label_key=key, covariate_key=TIME, seed=seed) for key in (LABEL, None))
    between = fitted(remaining, label_key=SNAPSHOT, covariate_key=None, seed=seed)
    for left_out in range(1, n_snapshots - 1, 2):
        task = Task(*(cells[number == left_out + step].copy() for step in (0, -1, 1)), remaining)
        generated = {
            "bdm": between.generate(task.real.n_obs, snapshot=task.time, seed=seed),
            "bdm-labels": by_labels(labelled, task, seed),
            "bdm-no-labels": unlabelled.generate(task.real.n_obs, at={TIME: task.time}, seed=seed),
        }
        generated |= {name: method(task, seed) for name, method in METHODS.items()}
        name = f"{task.time:.3g}"
        rows += [{"left_out": name, "score": "snapshots"} | row for row in scored(generated, task.real, seed)]
    return rows
