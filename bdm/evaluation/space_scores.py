"""Scores of cells in space: Moran's I of genes, and cell types of neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm.data.cells import FLOOR, Cells, RealCells, TypedCells, sample_by_label, smaller_numbers
from bdm.data.gene_tests import Agreement
from bdm.data.space import COORDINATES, SECTION, nearest_neighbours
from bdm.evaluation.table import EVERY, SPACE, Row, floor_of, missing_row, score_rows

N_NEIGHBOURS, N_IN_NEIGHBOURHOOD = 6, 15  # for Moran's I (as in squidpy), and for types of neighbours
MIN_DETECTED = 0.05  # share of real cells with counts of a gene; Moran's I of rarer genes is mostly noise
MIN_CELLS = 50  # of a type or section; with fewer, Moran's I is mostly noise
GENES_AT_A_TIME = 64
INDEPENDENT = 1 / 2  # effective share of independent genes, for the chance of correlations
N_MAPPED_GENES, N_MAPPED_SECTIONS, MAX_MAPPED_CELLS = 3, 2, 10_000  # in the figure; cells are per set


@dataclass(frozen=True)
class SpaceMaps:
    """Moran's I of genes in generated cells and real cells (training and test cells), and cells to draw.

    Attributes
    ----------
    genes
        A row per generated ``set`` and ``gene`` (with its ``symbol`` if that differs): ``moran`` and ``moran_within``
        in the set, and in as many real cells (``moran_real``, ``moran_within_real``). Genes detected in fewer than 5%
        of the real cells are left out.
    cells
        Equal numbers of cells to draw: ``set`` (``floor``: real cells), ``cell_type``, ``section`` and coordinates.
    mapped_genes
        Genes with the highest Moran's I in real cells.
    expression
        ``log1p`` of their normalised counts, ``cells`` x ``mapped_genes``.
    """

    genes: pd.DataFrame
    cells: pd.DataFrame
    mapped_genes: tuple[str, ...]
    expression: np.ndarray


@dataclass(frozen=True)
class SpaceStatistics:
    """Statistics of one set of cells in space."""

    moran: np.ndarray  # Moran's I of each gene
    moran_within: pd.DataFrame  # the same within types, types x genes; empty for a single type
    neighbours: pd.DataFrame  # mean shares of types among neighbours, types x types of neighbours
    neighbours_permuted: pd.DataFrame  # the same with types permuted over the positions of each section
    n_by_type: pd.Series

    @classmethod
    def from_cells(cls, cells: AnnData, *, seed: int = 0) -> SpaceStatistics:
        """Compute the statistics of :func:`place` cells; ``seed`` is for the permutation."""
        cell_type = cells.obs["cell_type"].to_numpy(dtype=str)
        within, n_by_type = {}, pd.Series(cell_type, dtype=str).value_counts()
        for name in n_by_type.index[n_by_type >= MIN_CELLS] if len(n_by_type) > 1 else ():
            members = cells[cell_type == name]
            within[name] = morans_i(members.X, neighbour_graph(members.obs, N_NEIGHBOURS))
        permuted, rng = cell_type.copy(), np.random.default_rng(seed)
        for rows in rows_by_section(cells.obs):
            permuted[rows] = rng.permutation(permuted[rows])
        graph = neighbour_graph(cells.obs, N_IN_NEIGHBOURHOOD)
        return cls(
            moran=morans_i(cells.X, neighbour_graph(cells.obs, N_NEIGHBOURS)),
            moran_within=pd.DataFrame.from_dict(within, orient="index", columns=range(cells.n_vars)),
            neighbours=neighbour_types(cell_type, graph),
            neighbours_permuted=neighbour_types(permuted, graph),
            n_by_type=n_by_type,
        )


def score_space(
    real: RealCells, generated: Mapping[str, TypedCells], *, most: int, seed: int
) -> tuple[list[Row], SpaceMaps | None]:
    """Compare generated cells with at most ``most`` real cells in space.

    Real cells are training and test cells together, in two random halves: generated cells, and the other half as their
    floor, are compared with the first. In a sample of cells, neighbours are farther apart, so each comparison is
    between equal numbers of cells in each section. Returns rows of the table of scores, and maps unless no set was
    compared.
    """
    parts = [cells for cells in (real.training, real.test) if cells.positions is not None]
    if not parts:
        return [not_compared(name, "not in the real cells") for name in generated], None
    pool = sample_together(parts, most=most, seed=seed)
    genes = np.flatnonzero((pool.counts > 0).mean(axis=0).A1 >= MIN_DETECTED)
    put = partial(place, genes=genes, library_size=float(np.median(pool.library_size)))
    first = sample_rows(pool, sections(pool).value_counts() // 2, seed=seed)
    half, other_half = pool[first], pool[np.setdiff1d(np.arange(len(pool)), first)]
    rows, tables, placed = [], [], {}
    for name, cells in generated.items():
        if cells.positions is None:
            rows.append(not_compared(name, "not in this set"))
            continue
        numbers = smaller_numbers(sections(cells).value_counts(), sections(half).value_counts())
        if numbers.sum() < MIN_CELLS:
            rows.append(not_compared(name, f"{numbers.sum()} cells in sections of real cells"))
            continue
        placed[name], reference, floor = (
            put(each[sample_rows(each, numbers, seed=seed)]) for each in (cells, half, other_half)
        )
        placed.setdefault(FLOOR, reference)
        of_query, of_real, of_floor = (
            SpaceStatistics.from_cells(each, seed=seed) for each in (placed[name], reference, floor)
        )
        scores, morans = compare_statistics(of_query, of_real)
        for set_name, values in {name: scores, floor_of(name): compare_statistics(of_floor, of_real)[0]}.items():
            rows += score_rows(values, kind=SPACE, group=EVERY, set=set_name, n_cells=len(reference))
        tables.append(pd.DataFrame({"set": name, "gene": real.genes[genes], **morans}))
    if not tables:
        return rows, None
    mapped = np.argsort(-tables[0]["moran_real"].fillna(-1).to_numpy(), kind="stable")[:N_MAPPED_GENES]
    maps = sample_to_map(placed, seed=seed)
    return rows, SpaceMaps(
        genes=real.names.with_symbols(pd.concat(tables, ignore_index=True)),
        cells=pd.concat([cells.obs.assign(set=name) for name, cells in maps.items()], ignore_index=True),
        mapped_genes=tuple(real.genes[genes[mapped]]),
        expression=np.concatenate([cells.X[:, mapped].toarray() for cells in maps.values()]),
    )


def not_compared(name: str, reason: str) -> Row:
    """Return the row of a set that is not compared in space."""
    return missing_row(SPACE, name, "moran_correlation", reason)


def compare_statistics(query: SpaceStatistics, real: SpaceStatistics) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Compare the statistics of query cells and real cells; returns scores, and Moran's I of each gene in both sets."""
    morans = {"moran": Agreement(query.moran, real.moran), "moran_within": compare_within_types(query, real)}
    scores: dict[str, float] = {}
    by_gene: dict[str, np.ndarray] = {}
    for name, agreement in morans.items():
        by_gene |= {name: agreement.query, f"{name}_real": agreement.test}
        known = agreement.subset(np.isfinite(agreement.query) & np.isfinite(agreement.test))
        scores |= known.scores(name, independent=INDEPENDENT)
        means = pd.DataFrame({"query": known.query, "real": known.test}).mean()
        scores |= {f"{name}_mean": float(means["query"]), f"{name}_mean_real": float(means["real"])}
    for name, neighbours in {"distance": query.neighbours, "distance_permuted": real.neighbours_permuted}.items():
        scores[f"neighbourhood_{name}"] = composition_distance(neighbours, real.neighbours, real.n_by_type)
    return scores, by_gene


def compare_within_types(query: SpaceStatistics, real: SpaceStatistics) -> Agreement:
    """Average Moran's I of each gene over the types in both sets, weighted by their real cells."""
    types = real.moran_within.index.intersection(query.moran_within.index)
    values = np.stack([query.moran_within.loc[types], real.moran_within.loc[types]]).astype(float)
    weights = np.isfinite(values).all(axis=0) * real.n_by_type.reindex(types).to_numpy()[:, None]
    with np.errstate(invalid="ignore"):
        return Agreement(*(np.where(weights > 0, values, 0) * weights).sum(axis=1) / weights.sum(axis=0))


# ---- statistics


def neighbour_graph(positions: pd.DataFrame, n_neighbours: int) -> sparse.csr_matrix:
    """Compute weights of the nearest neighbours in the same section, cells x cells.

    The weights of a cell are equal and sum to 1. Cells of small sections have fewer neighbours, and a cell alone none.
    """
    coordinates, n_cells = positions.filter(items=COORDINATES).to_numpy(), len(positions)
    cells, neighbours = nearest_neighbours(coordinates, positions[SECTION].to_numpy(), n_neighbours)
    weights = 1 / np.bincount(cells, minlength=n_cells)[cells]
    return sparse.csr_matrix((weights, (cells, neighbours)), shape=(n_cells, n_cells))


def morans_i(expression: sparse.csr_matrix, graph: sparse.csr_matrix) -> np.ndarray:
    """Compute Moran's I of each gene; NaN for constant genes."""
    columns, values = expression.tocsc(), np.empty(expression.shape[1])
    for start in range(0, len(values), GENES_AT_A_TIME):
        genes = slice(start, start + GENES_AT_A_TIME)
        x = columns[:, genes].toarray().astype(float)
        z = x - x.mean(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            block = len(z) / graph.sum() * (z * (graph @ z)).sum(axis=0) / (z**2).sum(axis=0)
        values[genes] = np.where(x.min(axis=0) < x.max(axis=0), block, np.nan)
    return values


def neighbour_types(cell_type: np.ndarray, graph: sparse.csr_matrix) -> pd.DataFrame:
    """Compute the mean share of each type among neighbours, types x types of neighbours.

    NaN for types without neighbours.
    """
    types, codes = np.unique(cell_type, return_inverse=True)
    is_type = sparse.csr_matrix((np.ones(len(codes)), (np.arange(len(codes)), codes)))
    weights = (is_type.T @ graph @ is_type).toarray()
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(weights / weights.sum(axis=1, keepdims=True), index=types, columns=types)


def composition_distance(query: pd.DataFrame, real: pd.DataFrame, n_by_type: pd.Series) -> float:
    """Average the total variation distance between rows, weighted by ``n_by_type``.

    NaN for a single type.
    """
    types = real.columns.union(query.columns)
    difference = query.reindex(columns=types, fill_value=0) - real.reindex(columns=types, fill_value=0)
    distance = difference.abs().sum(axis=1, skipna=False).dropna() / 2  # of the types in both sets
    weights = n_by_type[distance.index]
    return float((distance * weights).sum() / weights.sum()) if len(distance) and len(types) > 1 else float("nan")


# ---- samples


def place(cells: Cells, genes: np.ndarray, *, library_size: float) -> AnnData:
    """Return log1p of counts normalised to a library size, with positions and types in ``obs``."""
    assert cells.positions is not None
    scale = sparse.diags(library_size / np.maximum(cells.library_size, 1))
    obs = cells.positions.assign(cell_type=cells.cell_type).set_axis(np.arange(len(cells)).astype(str))
    return AnnData(sparse.csr_matrix(scale @ cells.counts[:, genes]).log1p(), obs=obs)


def rows_by_section(positions: pd.DataFrame) -> list[np.ndarray]:
    """Return the indices of the cells of each section."""
    return list(positions.groupby(SECTION).indices.values())


def sections(cells: TypedCells) -> pd.Series:
    """Return the section of each cell."""
    assert cells.positions is not None
    return cells.positions[SECTION]


def sample_rows(cells: TypedCells, numbers: pd.Series, *, seed: int) -> np.ndarray:
    """Sample cells of each section, by ``numbers``."""
    return sample_by_label(sections(cells).to_numpy(), numbers, seed=seed)


def sample_together(parts: Sequence[TypedCells], *, most: int, seed: int) -> Cells:
    """Sample at most ``most`` cells, the same share of each part, and concatenate them."""
    share, rng = min(1, most / sum(map(len, parts))), np.random.default_rng(seed)
    samples = [cells[np.sort(rng.permutation(len(cells))[: int(share * len(cells))])] for cells in parts]
    positions = pd.concat([cells.positions for cells in samples], join="inner", ignore_index=True)
    counts = sparse.vstack([cells.counts for cells in samples], format="csr")
    return Cells(counts, np.concatenate([cells.cell_type for cells in samples]), positions=positions)


def sample_to_map(sets: Mapping[str, AnnData], *, seed: int) -> dict[str, AnnData]:
    """Sample as many cells of each set to draw, in the largest sections of real cells; real cells come first."""
    numbers = sets[FLOOR].obs[SECTION].value_counts()[:N_MAPPED_SECTIONS]
    for cells in sets.values():
        numbers = smaller_numbers(cells.obs[SECTION].value_counts(), numbers)
    numbers = (numbers * min(1, MAX_MAPPED_CELLS / max(numbers.sum(), 1))).astype(int)
    return {
        name: sets[name][sample_by_label(sets[name].obs[SECTION].to_numpy(), numbers, seed=seed)]
        for name in (FLOOR, *(name for name in sets if name != FLOOR))
    }
