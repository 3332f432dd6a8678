"""Figures of cells along covariates: the expression of genes in real and in generated cells."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from bdm.errors import InputError, abbreviated
from bdm.evaluation.cells import FLOOR, GENERATED
from bdm.evaluation.results import Evaluation
from bdm.plotting.evaluation import set_styles
from bdm.plotting.style import GREY, Style, checked, explain, gene_label, new_figure, open_frame, panels, shown_panels

N_COLUMNS, N_SHOWN = 3, 6  # panels, if no genes are named


def covariates(
    evaluation: Evaluation,
    genes: Sequence[str] = (),
    *,
    covariate: str | None = None,
    name: str = GENERATED,
    show: bool | None = None,
) -> list[Axes] | None:
    """Draw the expression of genes along a covariate, in test cells, generated cells, and the floor.

    Points are means in bins of equal numbers of test cells, bars two standard errors.

    Parameters
    ----------
    evaluation
        Result of :meth:`~bdm.BranchedDiffusion.evaluate` of a model with covariates.
    genes
        Genes of the table ``along``, which vary most along a covariate; the first six, if not given.
    covariate
        Name of the covariate; the first one, if not given.
    name
        Set of cells to draw.
    """
    table = checked(evaluation, Evaluation).along
    if not len(table):
        raise InputError("The evaluation has no covariates; evaluate a model that was fitted with `covariate_key=`.")
    covariate = covariate or str(table["covariate"].iloc[0])
    table = table[table["covariate"] == covariate]
    known = list(dict.fromkeys(table["gene"]))
    if unknown := [gene for gene in genes if gene not in known] or (not known and [covariate]):
        raise InputError(
            f"The evaluation has no {unknown[0]} along {covariate}; it has {abbreviated(known, n_shown=12)}."
        )
    chosen = list(genes) or known[:N_SHOWN]
    figure = new_figure(3.0 * min(N_COLUMNS, len(chosen)), 0.8 + 2.1 * -(-len(chosen) // N_COLUMNS))
    colour = set_styles(evaluation.sets)[name].colour
    looks: dict[str, tuple[str, Style]] = {
        FLOOR: ("floor (real training cells)", {"color": GREY, "marker": "d", "markersize": 4}),
        "test": ("test cells", {"color": "black", "marker": "o", "markersize": 4, "linestyle": ""}),
        name: (name, {"color": colour, "marker": "s", "markersize": 3.5}),
    }
    axes = panels(figure, len(chosen), n_columns=N_COLUMNS)
    for axis, gene in zip(axes, chosen, strict=True):
        for of_set, (label, look) in looks.items():
            rows = table[(table["gene"] == gene) & (table["set"] == of_set)]
            axis.errorbar(
                rows["value"], rows["mean"], 2 * rows["error"], label=label, elinewidth=0.8, linewidth=1, **look
            )
        axis.set_title(gene_label(gene), fontsize=10)
        open_frame(axis)
    explain(figure, axes[0])
    figure.supxlabel(covariate, fontsize=9)
    figure.supylabel("mean log1p(CP10k)", fontsize=9)
    return shown_panels(figure, show=show)
