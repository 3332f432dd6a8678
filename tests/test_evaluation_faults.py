"""Faults of parts of the cells, which a verdict must see, and real cells, which it must pass; five seeds each."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bdm.data.cells import Cells, RealCells
from bdm.data.genes import GeneNames
from bdm.data.modalities import Modality
from bdm.evaluation.evaluate import compare_all_with_training
from bdm.evaluation.group_scores import score_groups
from bdm.evaluation.modality_scores import modality_scores
from bdm.evaluation.resamples import SIZE_LIMITS, draw_resamples
from bdm.evaluation.space_scores import score_space
from bdm.evaluation.table import score_table
from bdm.evaluation.verdict import Grade, Verdict, verdict
from bdm.settings import EvaluationSettings

SEEDS = range(5)
MODALITIES = (Modality("rna", "rna", slice(0, 100)), Modality("prot", "prot", slice(100, 112)))
VAR = pd.DataFrame(
    {"modality": ["rna"] * 100 + ["prot"] * 12, "feature_types": ["Gene Expression"] * 100 + ["Antibody Capture"] * 12},
    index=[f"g{i}" for i in range(100)] + [f"prot:p{i}" for i in range(12)],
)


@pytest.fixture(scope="module")
def cells(example_cells) -> Cells:
    """Cells of types of 50 cells or more."""
    counts = sparse.csr_matrix(example_cells.X, dtype=np.float32)
    cells = Cells(counts, example_cells.obs["bulk_labels"].to_numpy(dtype=str))
    return cells[np.isin(cells.cell_type, cells.types(fewest=50))]


def drawn(cells: Cells, number: int, rng: np.random.Generator, log2_effects: np.ndarray, group: np.ndarray) -> Cells:
    """Cells with the expected counts of example cells, changed by the effects of their groups."""
    rows = rng.integers(len(cells), size=number)
    rates = cells.counts[rows].toarray() * 2 ** log2_effects[group]
    return Cells(sparse.csr_matrix(rng.poisson(rates), dtype=np.float32), cells.cell_type[rows])


def parts(cells: Cells, seed: int, kind: str, n_groups: int, *, sd: float) -> dict[str, Cells]:
    """Training, test and generated cells of groups that differ by log2 fold changes, and the same with .6 of them."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(0, sd, (n_groups, cells.counts.shape[1]))
    numbers = {"training": 1200, "test": 500, "real": 500, "weak": 500}
    found = {}
    for name, number in numbers.items():
        group = rng.integers(n_groups, size=number)
        part = drawn(cells, number, rng, effects * (0.6 if name == "weak" else 1), group)
        found[name] = replace(part, **{kind: group.astype(str)})
    return found


def real_cells(of: dict[str, Cells]) -> RealCells:
    return RealCells(
        of["training"], of["test"], GeneNames(pd.DataFrame(index=map(str, range(of["test"].counts.shape[1]))))
    )


def judge(rows, sets) -> dict[str, Verdict]:
    table = score_table(rows, list(sets))
    return {name: verdict(table[table["set"] == name]) for name in sets}


def thinned(cells: Cells, share: float, is_thinned: np.ndarray, rng: np.random.Generator) -> Cells:
    counts = cells.counts.toarray().astype(int)
    counts[is_thinned] = rng.binomial(counts[is_thinned], share)
    return replace(cells, counts=sparse.csr_matrix(counts, dtype=np.float32))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_at_half_its_depth_and_weak_effects_of_batches_are_seen(cells, seed):
    of = parts(cells, seed, "batch", 2, sd=0.5)
    half = thinned(of["real"], 0.5, of["real"].batch == "1", np.random.default_rng(seed))
    sets = {"real": of["real"], "half": half, "weak": of["weak"]}
    found = judge(score_groups(real_cells(of), sets, most=1000, seed=seed), sets)
    assert found["real"].grade == Grade.SAME
    assert "AUC by library size (batch 1)" in found["half"].worst_scores
    assert found["half"].grade == Grade.DIFFERS
    assert "slope of log fold changes (batches)" in found["weak"].worst_scores
    assert found["real"].not_checked == "donors (not in the real cells)"


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_and_cells_of_one_donor_are_seen(cells, seed):
    of = parts(cells, seed, "donor", 4, sd=0.5)
    one = replace(of["training"][of["training"].donor == "2"], donor=None)  # training cells, without labels
    other = of["real"][of["real"].donor == "2"]
    sets = {"real": of["real"], "copies": of["training"], "one": one, "other": other}
    real, settings = real_cells(of), EvaluationSettings(n_repeats=1)
    resamples = draw_resamples(real, sets, settings, seed=seed)
    rows = [
        *compare_all_with_training(resamples, real.training, pairs=SIZE_LIMITS.pairs),
        *score_groups(real, sets, most=1000, seed=seed),
    ]
    found = judge(rows, sets)
    assert found["real"].grade == Grade.SAME
    assert "memorisation" in found["copies"].worst_scores
    assert found["one"].grade == Grade.DIFFERS
    assert found["other"].grade >= Grade.NEAR
    for name in ("one", "other"):
        assert "resemblance of one donor (donors)" in found[name].worst_scores
    assert found["one"].not_checked == "batches (not in the real cells); donors (not in this set)"
    [without] = re.findall(r"([^;]*) \(no cells in this set\)", found["other"].not_checked)
    assert set(without.strip().split(", ")) == {"donor 0", "donor 1", "donor 3"}


@pytest.mark.parametrize("seed", SEEDS)
def test_positions_shuffled_within_types_are_seen(cells, seed):
    """Expression varies along one coordinate within types."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(0, 1, cells.counts.shape[1])[:200]
    placed = []
    for number in (2400, 1200, 1500):
        xy = rng.random((number, 2))
        rows = rng.integers(len(cells), size=number)
        rates = (cells.counts[rows][:, :200].toarray() + 0.1) * np.exp((xy[:, :1] - 0.5) * slopes)
        positions = pd.DataFrame(xy, columns=["x", "y"]).assign(section="section")
        counts = sparse.csr_matrix(rng.poisson(rates), dtype=np.float32)
        placed.append(Cells(counts, cells.cell_type[rows], positions=positions))
    training, test, generated = placed

    def shuffled(share: float) -> Cells:
        order, is_shuffled = np.arange(len(generated)), rng.random(len(generated)) < share
        for name in generated.n_by_type.index:
            rows = np.flatnonzero((generated.cell_type == name) & is_shuffled)
            order[rows] = rng.permutation(rows)
        return replace(generated, positions=generated.positions.iloc[order].reset_index(drop=True))

    sets = {"real": generated, "shuffled": shuffled(1.0), "half": shuffled(0.5)}
    real = RealCells(training, test, GeneNames(pd.DataFrame(index=map(str, range(200)))))
    found = judge(score_space(real, sets, most=10_000, seed=seed)[0], sets)
    assert found["real"].grade == Grade.SAME
    assert found["shuffled"].grade == Grade.DIFFERS
    assert "Moran's I within types: r (positions)" in found["shuffled"].worst_scores
    assert found["half"].grade == Grade.DIFFERS
    assert "Moran's I within types: slope (positions)" in found["half"].worst_scores


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shuffled_modality_is_seen(cells, seed):
    """Proteins depend on genes within types."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (100, 12)) / 5

    def joint(number: int) -> Cells:
        rna = drawn(cells, number, rng, np.zeros((1, cells.counts.shape[1])), np.zeros(number, dtype=int)).counts[
            :, :100
        ]
        proteins = rng.poisson(20 * np.exp(np.clip(rna.log1p() @ weights, -3, 3)))
        types = cells.cell_type[rng.integers(len(cells), size=number)]
        return Cells(
            sparse.hstack([rna, sparse.csr_matrix(proteins)], format="csr", dtype=np.float32),
            types,
            modalities=MODALITIES,
        )

    real = RealCells(joint(1200), joint(500), GeneNames(VAR))
    generated = joint(500)
    counts = generated.counts.toarray()
    counts[:, 100:] = rng.permutation(counts[:, 100:])
    shuffled = replace(generated, counts=sparse.csr_matrix(counts))
    sets = {"real": generated, "shuffled": shuffled}
    resamples = draw_resamples(real, sets, EvaluationSettings(n_repeats=1), seed=seed)
    found = judge(modality_scores(resamples, VAR, most=10_000), sets)
    assert found["real"].grade == Grade.SAME
    assert found["shuffled"].grade == Grade.DIFFERS
    assert "correlations with genes: r (modality prot)" in found["shuffled"].worst_scores
