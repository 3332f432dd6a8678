"""Score cells in space: patterns of genes, left-out blocks, realism and simulated fields."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from scipy.sparse import csr_matrix
from self_fit import generate_like, of_split, score
from sklearn.decomposition import PCA
from space_methods import (
    PlacedCells,
    copies,
    fit_bdm,
    gaussian_process,
    generate_at,
    scdesigner,
    surface,
    types_alone,
    with_common_units,
)
from spatial_fields import NO_FIELD, SpatialFields
from tidy import write_rows

from bdm._core.seeds import derive
from bdm.data.cells import FLOOR
from bdm.data.prepare import read_prepared
from bdm.data.space import POSITIONS, SECTION
from bdm.evaluation.metrics import energy_distance, pair_distances
from bdm.evaluation.space_scores import (
    MIN_CELLS,
    MIN_DETECTED,
    SpaceStatistics,
    compare_statistics,
    rows_by_section,
)
from bdm.model.model import BranchedModel

MIN_CELLS_OF_BLOCK = 8
N_COMPONENTS = 20
N_DRAWS = 30  # of cells at all positions, to average to a surface
N_DRAWS_TO_COMPARE = 3  # with test cells, as local variation differs between draws
N_DRAWS_OF_BLOCKS = 5  # of the few cells of a left-out block
TINY = 1e-12
BDM, WITHOUT, PROCESS = "branched", "without coordinates", "Gaussian process"

Row = dict[str, Any]


# ---- cells at the positions of training cells


def annotated(cells: PlacedCells) -> AnnData:
    """Return expression with positions and types in ``obs``, for scores in space."""
    x, y = cells.places.positions.T
    columns = {"x": x, "y": y, SECTION: cells.places.section.astype(str), "cell_type": cells.cell_type}
    obs = pd.DataFrame(columns).set_axis(np.arange(len(x)).astype(str))
    return AnnData(csr_matrix(cells.expression), obs=obs)


def score_training_positions(
    prepared: AnnData, model: BranchedModel, without: BranchedModel, *, seed: int
) -> Iterator[Row]:
    """Score cells at the positions of training cells, and compare cells with test cells."""
    training = of_split(prepared, test=False)
    detected = training[:, training.X.getnnz(axis=0) >= MIN_DETECTED * training.n_obs]
    library_size = float(np.median(training.X.sum(axis=1).A1))

    def placed(cells: AnnData) -> PlacedCells:
        whole = PlacedCells.from_cells(cells, library_size=library_size)
        return replace(whole, expression=whole.expression[:, cells.var_names.isin(detected.var_names)])

    real = placed(training)
    sets = {
        BDM: placed(generate_at(model, training, seed=seed)),
        WITHOUT: types_alone(placed(generate_like(training, without, seed=seed)), real, seed=seed),
        "types alone": types_alone(real, real, seed=seed),
        "copies": copies(real, real, rank=2),
        PROCESS: gaussian_process(real, real, seed=seed),
    }
    if len(set(real.cell_type)) > 1:
        sets["types from the map"] = placed(generate_at(model, training, seed=seed, types=False))
    if find_spec("scdesigner"):
        sets["scdesigner"] = placed(scdesigner(training, training, seed=seed))
    statistics = {name: SpaceStatistics.from_cells(annotated(cells)) for name, cells in {FLOOR: real, **sets}.items()}
    in_space = {name: compare_statistics(query, statistics[FLOOR])[0] for name, query in statistics.items()}
    in_space[FLOOR] = score_floor(annotated(real), seed=seed)
    realism = {FLOOR: score(training, prepared, seed=seed)}
    generators = {BDM: partial(generate_at, model, training), WITHOUT: partial(generate_like, training, without)}
    for name, generate in generators.items():
        draws = [generate(seed=derive(seed, "realism", draw)) for draw in range(N_DRAWS_TO_COMPARE)]
        realism[name] = pd.DataFrame([score(cells, prepared, seed=seed) for cells in draws]).mean().to_dict()
    for by_method in (in_space, realism, {BDM: surface_scores(model)}):
        for method, scores in by_method.items():
            yield from ({"method": method, "score": name, "value": value} for name, value in scores.items())


def score_floor(real: AnnData, *, seed: int) -> dict[str, float]:
    """Score sections of real cells against each other, or two random halves of a single section."""
    parts = [real[rows] for rows in rows_by_section(real.obs) if len(rows) >= MIN_CELLS]
    if len(parts) < 2:
        halves = np.array_split(np.random.default_rng(seed).permutation(real.n_obs), 2)
        parts = [real[np.sort(rows)] for rows in halves]
    statistics = [SpaceStatistics.from_cells(part, seed=seed) for part in parts]
    pairs = [compare_statistics(*pair)[0] for pair in permutations(statistics, 2)]
    return {str(score): float(value) for score, value in pd.DataFrame(pairs).mean().items()}


def surface_scores(model: BranchedModel) -> dict[str, float]:
    """Return which parts of a model depend on positions."""
    assert model.space is not None
    return {
        "types with a surface": float(model.space.coefficients.any(axis=(1, 2)).mean()),
        "factors with local variation": float(len(model.space.local)),
        "genes with a surface": float(model.space.genes.shared.any(axis=1).mean()),
        "genes and types with their own surface": float(model.space.genes.has_own.mean()),
        "map": float(model.space.log_odds.any()),
    }


# ---- left-out blocks


def score_blocks(prepared: AnnData, n_blocks: int, *, seed: int) -> Iterator[Row]:
    """Leave out blocks in turn, and score cells generated at their positions.

    Each seed leaves out other blocks.
    """
    cells = prepared.copy()
    cells.obs["split"] = cells.obs["split"].astype(str).replace("test", "train")
    placed = partial(PlacedCells.from_cells, library_size=float(np.median(cells.X.sum(axis=1).A1)))
    real = placed(cells)
    components = PCA(min(N_COMPONENTS, cells.n_vars - 1), random_state=0).fit(real.expression)
    blocks = real.places.blocks()
    names, sizes = np.unique(blocks, return_counts=True)
    order = np.random.default_rng(0).permutation(names[sizes >= MIN_CELLS_OF_BLOCK])
    for block in order[seed * n_blocks : (seed + 1) * n_blocks]:
        rest = np.flatnonzero(blocks != block)
        left_out = np.flatnonzero((blocks == block) & np.isin(real.cell_type, real.cell_type[rest]))
        known, target, truth = real[rest], real[left_out], components.transform(real[left_out].expression)
        model, scores = fit_bdm(cells[rest], seed=seed), []
        for draw in range(N_DRAWS_OF_BLOCKS):
            draw_seed = derive(seed, "block", draw)
            predictions = simple_predictions(known, target, blocks[rest], seed=draw_seed)
            predictions[BDM] = placed(generate_at(model, cells[left_out], seed=draw_seed))
            if draw == 0 and find_spec("scdesigner"):  # each of its draws is a fit
                predictions["scdesigner"] = placed(scdesigner(cells[rest], cells[left_out], seed=seed))
            for method, query in predictions.items():
                distances = pair_distances(components.transform(query.expression), truth)
                energy = energy_distance(distances, len(query.cell_type))
                scores.append({"method": method, "value": energy})
        for method, energy in pd.DataFrame(scores).groupby("method")["value"].mean().items():
            yield {"method": method, "score": "block_energy", "block": int(block), "value": energy}


def simple_predictions(
    known: PlacedCells, target: PlacedCells, blocks: np.ndarray, *, seed: int
) -> dict[str, PlacedCells]:
    """Predict a left-out block by simple methods; ``blocks`` has the block of each known cell."""
    centre, in_section = target.places.positions.mean(axis=0), known.places.section == target.places.section[0]
    names = np.unique(blocks[in_section])
    centres = [known.places.positions[blocks == name].mean(axis=0) for name in names]
    nearest = known[blocks == names[np.linalg.norm(centres - centre, axis=1).argmin()]]
    of_nearest, shared = types_alone(known, target, seed=seed), np.isin(target.cell_type, nearest.cell_type)
    if shared.any():
        of_nearest.expression[shared] = types_alone(nearest, target[shared], seed=seed).expression
    return {
        "same types, anywhere": types_alone(known, target, seed=seed),
        "same types, nearest block": of_nearest,
        "nearest block": nearest,
        "copies": copies(known, target),
        PROCESS: gaussian_process(known, target, seed=seed),
    }


# ---- simulated fields


def score_fields(training: AnnData, model: BranchedModel, *, seed: int) -> Iterator[Row]:
    """Compare surfaces of genes within types with the simulated fields.

    The surface of a gene is the log of its mean count over draws.
    """
    assert model.space is not None
    training = training[np.lexsort(training.obsm[POSITIONS].T)]
    cell_type, counts = training.obs["cell_type"].to_numpy(dtype=str), training.X.toarray()
    sums = np.zeros((2, *counts.shape))  # over halves of the draws
    for draw in range(N_DRAWS):
        cells = generate_at(model, training, seed=derive(seed, "surface", draw))
        sums[draw % 2] += cells.X[np.lexsort(cells.obsm[POSITIONS].T)].toarray()
    fields = SpatialFields.sample(training.n_vars, sorted(set(cell_type)), seed=seed)
    known = replace(PlacedCells.from_cells(training, library_size=1), expression=np.log1p(counts))
    truth, first, second, process = (
        values - pd.DataFrame(values).groupby(cell_type).transform("mean").to_numpy()
        for values in (
            fields(training.obsm[POSITIONS] * training.uns["unit"], cell_type),
            *np.log(sums + 1),
            surface(known, known),
        )
    )
    has_field = (fields.kind != NO_FIELD) & ((fields.cell_type == "") | (fields.cell_type == cell_type[:, None]))
    for kind in np.unique(fields.kind):
        for part, name in ((has_field, kind), (~has_field, f"{kind}, types without a field")):
            entries = part & (fields.kind == kind)
            if not entries.any():
                continue
            expected = truth[entries]
            for method, halves in ((BDM, (first, second)), (PROCESS, (process, process))):
                x, y = (half[entries] for half in halves)
                deviation = np.sqrt(max(np.mean(x * y), TINY))  # without noise, which is independent in the halves
                yield {"method": method, "score": f"deviation, {name}", "value": deviation}
                if expected.any():
                    covariance = np.mean((x + y) / 2 * expected)
                    correlation = covariance / deviation / np.sqrt(np.mean(expected**2))
                    yield {"method": method, "score": f"r, {name}", "value": correlation}
                    yield {"method": method, "score": f"slope, {name}", "value": covariance / np.mean(expected**2)}
    genes = model.space.genes
    own = (genes.shared.any(axis=1) | genes.has_own.any(axis=1))[fields.kind == NO_FIELD]
    yield {"method": BDM, "score": "genes without a field and without a surface", "value": float(1 - own.mean())}


def main(prepared: Path, out: Path, *, n_blocks: int = 0, seed: int = 0) -> None:
    """Write the scores of all methods."""
    cells = with_common_units(read_prepared(prepared))
    training = of_split(cells, test=False)
    model, without = (fit_bdm(training, seed=seed, positions=positions) for positions in (True, False))
    rows = [*score_training_positions(cells, model, without, seed=seed)]
    if "field" in cells.var:
        rows += score_fields(training, model, seed=seed)
    rows += score_blocks(cells, n_blocks, seed=seed)
    write_rows(pd.DataFrame(rows, columns=["method", "block", "score", "value"]).dropna(subset="value"), out)


if __name__ == "__main__":
    typer.run(main)
