"""Made-up cells, whose tree and genes are known, through every stage."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from synthetic_cells import SyntheticCells, SyntheticSettings, height, synthesise
from tree_comparison import TreeComparison

from bdm.api import BranchedDiffusion
from bdm.hierarchy.tree import Branch, Clade
from bdm.interpretation.ancestral_states import ancestral_states, compute_commitment
from bdm.interpretation.branch_genes import model_differences, model_expression
from bdm.interpretation.contrasts import Contrast, list_contrasts
from bdm.model.model import BranchedModel
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, Settings, TrainSettings

# The median cell has 3,000 counts, and types have 50 cells or more. The dimensions are those between types and within.
FEW = SyntheticSettings(n_types=8, n_genes=800, max_cells=300), 12
MANY = SyntheticSettings(n_types=16), 20


@dataclass(frozen=True)
class Truth:
    """Made-up cells, and the model that was fitted to them."""

    synthetic: SyntheticCells
    model: BranchedModel
    heights: dict[frozenset[str], int]

    @property
    def nodes(self) -> dict[frozenset[str], Branch]:
        """Inner nodes of the inferred tree by the types below them."""
        hierarchy = self.model.hierarchy
        inner = [branch for branch in hierarchy.branches if hierarchy.children[branch.name]]
        return {frozenset(hierarchy.leaves(branch.name)): branch for branch in inner}


def heights_of(clade: Clade) -> dict[frozenset[str], int]:
    """Heights of the inner nodes of a planted tree, by the types below them."""
    if not clade.children:
        return {}
    below = [heights_of(child) for child in clade.children]
    return {frozenset(clade.leaves()): height(clade), **below[0], **below[1]}


@pytest.fixture(scope="module", params=[FEW, pytest.param(MANY, marks=pytest.mark.nightly)], ids=["few", "many"])
def truth(request) -> Truth:
    made_up, n_latent = request.param
    synthetic = synthesise(made_up, seed=0)
    settings = Settings(
        prepare=PrepareSettings(genes="all", test=0.0),
        autoencoder=AutoencoderSettings(n_latent=n_latent, n_steps=200),
        hierarchy=HierarchySettings(n_bootstrap=20),
        train=TrainSettings(width=32, n_layers=2, n_steps=100),
    )
    model = BranchedDiffusion(synthetic.adata, settings=settings).fit().model
    return Truth(synthetic, model, heights_of(synthetic.tree))


@pytest.mark.slow
def test_inferred_tree_is_the_planted_one(truth):
    assert TreeComparison.from_trees(truth.model.hierarchy, truth.synthetic.tree).robinson_foulds == 0
    assert min(branch.support for branch in truth.nodes.values()) > 0.5


@pytest.mark.slow
def test_levels_are_in_the_order_of_planted_heights(truth):
    clades = list(truth.heights)
    planted = np.array([truth.heights[clade] for clade in clades])
    level = np.array([truth.nodes[clade].level for clade in clades])
    assert spearmanr(planted, level).statistic > 0.9
    higher = planted[:, None] - planted >= 2
    assert (level[:, None] - level)[higher].min() > 0


# ---- genes


@pytest.fixture(scope="module")
def contrasts(truth) -> tuple[Contrast, ...]:
    return list_contrasts(truth.model.hierarchy)


def planted_genes(synthetic: SyntheticCells, contrast: Contrast) -> tuple[np.ndarray, np.ndarray]:
    """Genes that the two branches of a contrast raise inside, and genes that other branches below the node change.

    The latter differ between the sides too, as far as cells have them; both are masks of genes.
    """
    inside, outside = set(contrast.inside), set(contrast.outside)
    raised, deeper = (np.zeros(synthetic.adata.n_vars, dtype=bool) for _ in range(2))
    for programme in synthetic.programmes:
        below = set(programme.cell_types)
        if below == inside:
            raised[programme.genes] = programme.log2_fold_change > 0
        elif below == outside:
            raised[programme.genes] = programme.log2_fold_change < 0
        elif below < inside or below < outside:
            deeper[programme.genes] = True
    return raised, deeper


def min_cells(synthetic: SyntheticCells, contrast: Contrast) -> int:
    """Cells on the smaller side of a contrast."""
    n_cells = synthetic.adata.obs["cell_type"].value_counts()
    return min(n_cells[list(side)].sum() for side in (contrast.inside, contrast.outside))


@pytest.mark.slow
def test_planted_genes_of_branches_are_the_models_markers(truth, contrasts):
    """In branches of a hundred cells and more on either side; those of fewer are learned in part."""
    expression, found = model_expression(truth.model, n_cells=200), []
    for contrast in contrasts:
        raised, deeper = planted_genes(truth.synthetic, contrast)
        score = model_differences(expression, contrast).score
        if min_cells(truth.synthetic, contrast) >= 100:
            found.append(average_precision_score(raised[~deeper], score[~deeper]))
    assert len(found) >= len(contrasts) / 2
    assert np.mean(found) > 0.95


@pytest.mark.slow
def test_planted_genes_of_branches_commit(truth, contrasts):
    """Whether a gene commits, and not when: a gene of an early branch parts the two sides no better than another."""
    states, found = ancestral_states(truth.model, n_cells=200), []
    for contrast in contrasts:
        raised, deeper = planted_genes(truth.synthetic, contrast)
        swapped = replace(contrast, inside=contrast.outside, outside=contrast.inside)
        own = raised | planted_genes(truth.synthetic, swapped)[0]
        level = compute_commitment(truth.model, states, contrast).level(truth.model.hierarchy.threshold)
        if min_cells(truth.synthetic, contrast) >= 100:
            found.append(average_precision_score(own[~deeper], np.nan_to_num(level)[~deeper]))
    assert np.mean(found) > 0.7
