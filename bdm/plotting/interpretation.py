from pathlib import Path

from bdm.interpretation.interpret import Interpretation
from bdm.plotting.branch_agreement import agreement_figure
from bdm.plotting.branch_genes import branch_genes_figure
from bdm.plotting.commitment import commitment_figure
from bdm.plotting.figure import save_figure
from bdm.plotting.hybrids import hybrids_figure
from bdm.plotting.markers import markers_figure
from bdm.plotting.paths import paths_figure
from bdm.plotting.places import places_figure

FIGURES = {
    "branch_genes": branch_genes_figure,
    "commitment": commitment_figure,
    "paths": paths_figure,
    "hybrids": hybrids_figure,
    "umap": places_figure,
    "agreement": agreement_figure,
    "markers": lambda interpretation: markers_figure(interpretation.markers, interpretation.hierarchy),
}


def write_figures(folder: Path, interpretation: Interpretation) -> None:
    """Write each figure as a PNG of its name."""
    for name, draw in FIGURES.items():
        save_figure(draw(interpretation), folder / f"{name}.png")
