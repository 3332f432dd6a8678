"""Simulate responses to related conditions, with known log fold changes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Self

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from synthetic_cells import shares

from bdm.applications.relations.pseudobulk import PSEUDO

CONTROL = "control"
LIBRARY_SIZE = 1500  # median
DISPERSION = 0.2
SHARE_OF_GENES = 0.3  # that respond to a set of conditions, a drug or a perturbation
DOSES = (0.1, 0.3, 1.0, 3.0, 10.0)


def sample_cells(log_rate: pd.DataFrame, n_cells: int, generator: np.random.Generator) -> AnnData:
    """Sample negative binomial counts, ``n_cells`` for each row.

    Parameters
    ----------
    log_rate
        Natural log of expected counts, up to a constant, with genes as columns. The levels of the index become columns
        of ``obs``.
    """
    counts = []
    for share in shares(log_rate.to_numpy()):
        library_size = LIBRARY_SIZE * generator.lognormal(0, 0.3, (n_cells, 1))
        rate = generator.gamma(1 / DISPERSION, DISPERSION, (n_cells, len(share))) * library_size * share
        counts.append(sparse.csr_matrix(generator.poisson(rate), dtype=np.float32))
    obs = log_rate.index.repeat(n_cells).to_frame(index=False)
    obs.index = "cell " + obs.index.astype(str)
    return AnnData(sparse.vstack(counts, format="csr"), obs=obs, var=pd.DataFrame(index=log_rate.columns))


@dataclass(frozen=True)
class SimulatedResponses:
    """True expression of cell types in conditions.

    Attributes
    ----------
    log_rate
        Natural log of expected counts, up to a constant: (``cell_type``, ``condition``) x genes.
    features
        Features of the conditions, as for :func:`bdm.tl.respond`.
    """

    log_rate: pd.DataFrame
    features: pd.DataFrame | None = None

    @classmethod
    def from_effects(
        cls, effect: np.ndarray, conditions: Sequence[str], generator: np.random.Generator, **attributes: pd.DataFrame
    ) -> Self:
        """Add log fold changes to random profiles of the types.

        ``effect`` is conditions x types x genes. Genes that respond get a constant, so that all others keep their
        shares of counts.
        """
        _, n_types, n_genes = effect.shape
        profile = generator.standard_normal(n_genes) + 0.7 * evolved(n_types, n_genes, generator)
        before = np.exp(profile) * (effect != 0)
        total, total_after = (share.sum(axis=2, keepdims=True) for share in (before, before * np.exp(effect)))
        constant = np.log(np.maximum(total, 1e-12) / np.maximum(total_after, 1e-12))
        balanced = np.where(effect != 0, effect + constant, 0)
        rates = np.concatenate([profile[None], profile + balanced]).reshape(-1, n_genes)
        types = [f"type {number + 1:02}" for number in range(n_types)]
        index = pd.MultiIndex.from_tuples(
            [(name, condition) for condition, name in product([CONTROL, *conditions], types)],
            names=["cell_type", "condition"],
        )
        return cls(pd.DataFrame(rates, index, [f"gene {number + 1}" for number in range(n_genes)]), **attributes)

    @property
    def effects(self) -> pd.DataFrame:
        """True natural log fold changes of shares with pseudo-count, (type, condition) x genes."""
        log_share = np.log(pd.DataFrame(shares(self.log_rate.to_numpy()), *self.log_rate.axes) + PSEUDO)
        control = log_share.xs(CONTROL, level="condition")
        return log_share.sub(control, level="cell_type").drop(CONTROL, level="condition")

    def sample(
        self, generator: np.random.Generator, *, left_out: Iterable[str] = (), gaps: float = 0.0, n_cells: int = 60
    ) -> AnnData:
        """Sample cells of all conditions but ``left_out``; a share of types lacks each condition."""
        conditions = self.log_rate.index.get_level_values("condition")
        is_gap = (generator.random(len(conditions)) < gaps) & (conditions != CONTROL)
        return sample_cells(self.log_rate[~conditions.isin(list(left_out)) & ~is_gap], n_cells, generator)


# ---- responses


def evolved(n_types: int, n_genes: int, generator: np.random.Generator) -> np.ndarray:
    """Sample values of variance 1 along a balanced tree, types x genes."""
    depth = max(1, int(np.ceil(np.log2(n_types))))
    below = [np.arange(n_types) >> (depth - level) for level in range(1, depth + 1)]
    return np.sum([generator.standard_normal((2**depth, n_genes))[node] for node in below], axis=0) / np.sqrt(depth)


def sparse_response(n_types: int, n_genes: int, generator: np.random.Generator) -> np.ndarray:
    """Sample a response of some genes that types share in part, types x genes."""
    responds = generator.random(n_genes) < SHARE_OF_GENES
    common, by_type = generator.standard_normal(n_genes), evolved(n_types, n_genes, generator)
    return np.asarray(responds * (0.8 * common + 0.4 * by_type))


def simulate_sets(
    generator: np.random.Generator,
    *,
    n_types: int = 6,
    n_conditions: int = 16,
    n_sets: int = 4,
    n_genes: int = 300,
    n_outliers: int = 0,
) -> SimulatedResponses:
    """Simulate conditions in sets with similar responses.

    The conditions of a set share the common response and its differences between types.
    Condition ``i`` is in set ``i % n_sets``; the third condition of each set is in the next set, too. The first
    condition of each of the first ``n_outliers`` sets has an independent response.
    """
    member = np.eye(n_sets)[np.arange(n_conditions) % n_sets]
    third = slice(2 * n_sets, 3 * n_sets)
    member[third] += np.roll(member[third], 1, axis=1)
    of_set = np.stack([sparse_response(n_types, n_genes, generator) for _ in range(n_sets)])
    own = [0.3 * sparse_response(n_types, n_genes, generator) for _ in range(n_conditions)]
    effect = np.tensordot(member, of_set, axes=1) + np.stack(own)
    for number in range(n_outliers):
        effect[number] = sparse_response(n_types, n_genes, generator)
    effect += 0.1 * generator.standard_normal(effect.shape)
    conditions = [f"condition {number + 1:02}" for number in range(n_conditions)]
    features = pd.DataFrame(member, conditions, [f"set {number + 1}" for number in range(n_sets)])
    return SimulatedResponses.from_effects(effect, conditions, generator, features=features)


def simulate_doses(
    generator: np.random.Generator, *, n_types: int = 3, n_drugs: int = 4, n_genes: int = 300, bell_shaped: float = 0.3
) -> SimulatedResponses:
    """Simulate drugs at ``DOSES``, with saturating and ``bell_shaped`` curves of genes."""
    log_dose, effects, conditions = np.log(DOSES)[:, None], [], []
    for number in range(n_drugs):
        centre = generator.uniform(log_dose.min(), log_dose.max(), n_genes)
        bell = np.exp(-((log_dose - centre) ** 2) / (2 * np.log(3) ** 2))
        saturating = 1 / (1 + np.exp(generator.uniform(1, 2, n_genes) * (centre - log_dose)))
        curve = np.where(generator.random(n_genes) < bell_shaped, bell, saturating)
        effects.append(1.2 * curve[:, None] * sparse_response(n_types, n_genes, generator))
        conditions += [f"drug {number + 1}, {dose:g}" for dose in DOSES]
    return SimulatedResponses.from_effects(np.concatenate(effects), conditions, generator)


def with_doses(cells: AnnData) -> AnnData:
    """Split the names of conditions into the columns ``drug`` and ``dose`` of ``obs``."""
    names = cells.obs["condition"].str.partition(", ")
    cells.obs["drug"], cells.obs["dose"] = names[0], names[2].replace("", "0").astype(float)
    return cells


def simulate_pairs(
    generator: np.random.Generator,
    *,
    n_types: int = 2,
    n_parts: int = 6,
    n_genes: int = 300,
    sum_factor: float = 1.0,
    interaction: float = 0.0,
) -> SimulatedResponses:
    """Simulate perturbations and all pairs of them.

    The response to a pair is ``sum_factor`` times the sum of its parts, plus an independent response times
    ``interaction``.
    """
    parts = {chr(ord("A") + number): sparse_response(n_types, n_genes, generator) for number in range(n_parts)}
    effects = dict(parts)
    for first, second in combinations(parts, 2):
        remainder = interaction * sparse_response(n_types, n_genes, generator)
        effects[f"{first}+{second}"] = sum_factor * (parts[first] + parts[second]) + remainder
    return SimulatedResponses.from_effects(np.stack(list(effects.values())), list(effects), generator)


def simulate_drugs(
    generator: np.random.Generator, *, n_types: int = 6, n_active: int = 6, n_inactive: int = 6, n_genes: int = 300
) -> SimulatedResponses:
    """Simulate drugs with a response, and drugs without."""
    active = [sparse_response(n_types, n_genes, generator) for _ in range(n_active)]
    effect = np.concatenate([np.stack(active), np.zeros((n_inactive, n_types, n_genes))])
    conditions = [f"active {number + 1}" for number in range(n_active)]
    conditions += [f"inactive {number + 1}" for number in range(n_inactive)]
    return SimulatedResponses.from_effects(effect, conditions, generator)


def simulate_mixtures(generator: np.random.Generator, *, n_genes: int = 300) -> SimulatedResponses:
    """Simulate mixtures of three components, whose features are two of the shares; the control has equal shares."""
    profile = np.stack([*shares(generator.standard_normal(n_genes) + 0.9 * generator.standard_normal((3, n_genes)))])
    grid = [(i / 4, j / 4) for i in range(5) for j in range(5 - i)]
    mixed = [pair for pair in grid if max(*pair, 1 - sum(pair)) < 1]
    conditions = [f"mixture {number + 1:02}" for number in range(len(mixed))]
    share = np.array([(1 / 3, 1 / 3), *mixed])
    index = pd.MultiIndex.from_product([["type 01"], [CONTROL, *conditions]], names=["cell_type", "condition"])
    names = [f"gene {number + 1}" for number in range(n_genes)]
    log_rate = pd.DataFrame(np.log(np.column_stack([share, 1 - share.sum(axis=1)]) @ profile), index, names)
    return SimulatedResponses(log_rate, features=pd.DataFrame(share[1:], conditions, ["first", "second"]))


# ---- donors


def simulate_donors(
    generator: np.random.Generator,
    *,
    sd: float,
    n_types: int = 8,
    n_genes: int = 300,
    n_donors: int = 4,
    paired: bool = False,
    responds: bool = False,
    n_cells: int = 30,
) -> tuple[SimulatedResponses, AnnData]:
    """Simulate donors whose expression differs in the same way in all types.

    Parameters
    ----------
    sd
        Standard deviation between donors of the natural log of expected counts.
    n_donors
        Number of donors in each condition.
    paired
        Whether donors have cells in both conditions. Half of the variance between donors is then the same in both.
    responds
        Whether cells respond to the condition.

    Returns
    -------
    The responses without differences between donors, and cells with them.
    """
    response = float(responds) * sparse_response(n_types, n_genes, generator)
    truth = SimulatedResponses.from_effects(response[None], ["stimulated"], generator)
    rates, of_donors = [], np.sqrt(0.5) * sd * generator.standard_normal((n_donors, n_genes))
    for condition in (CONTROL, "stimulated"):
        of_condition = truth.log_rate.xs(condition, level="condition", drop_level=False)
        for number, of_donor in enumerate(of_donors):
            name = f"donor {number + 1}" if paired else f"donor {number + 1} {condition}"
            own = sd * generator.standard_normal(n_genes)
            difference = of_donor + np.sqrt(0.5) * own if paired else own
            rates.append(pd.concat({name: of_condition + difference}, names=["donor"]))
    return truth, sample_cells(pd.concat(rates), n_cells, generator)


def split_control(cells: AnnData, control: str, generator: np.random.Generator) -> AnnData:
    """Divide the control cells of each type at random into ``control`` and ``stimulated``."""
    halves = cells[(cells.obs["condition"] == control).to_numpy()].copy()
    order = (
        halves.obs.assign(random=generator.random(halves.n_obs)).groupby("cell_type", observed=True)["random"].rank()
    )
    halves.obs["condition"] = np.where(order % 2 == 0, CONTROL, "stimulated")
    return halves
