from pathlib import Path

from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.interpret import Interpretation
from bdm.plotting.branch_agreement import agreement_figure
from bdm.plotting.branch_genes import branch_genes_figure
from bdm.plotting.figure import save_figure
from bdm.plotting.markers import markers_figure


def write_figures(folder: Path, hierarchy: Hierarchy, interpretation: Interpretation) -> None:
    """Write ``branch_genes.png``, ``agreement.png`` and ``markers.png``."""
    figures = {
        "branch_genes": branch_genes_figure(hierarchy, interpretation),
        "agreement": agreement_figure(interpretation),
        "markers": markers_figure(interpretation.markers),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
