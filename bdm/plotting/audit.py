"""Areas under ROC curves of the attacks of an audit, between chance and copies of training cells."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.audit.attacks import ATTACKS, CHANCE, COPIES, GENERATED
from bdm.audit.results import FIGURE, Audit
from bdm.plotting.style import GREY, MODEL, REAL, NewFigure, Style, save_figure, shade_rows, shown

STYLES: dict[str, Style] = {
    GENERATED: MODEL,
    COPIES: REAL,
    CHANCE: {"linestyle": "", "marker": "^", "color": GREY, "markersize": 5.5, "markerfacecolor": "white"},
}
LABELS = {
    GENERATED: "generated cells (bar: 95% interval; dots: folds)",
    COPIES: "copies of training cells",
    CHANCE: "chance: cells of others",
}


def audit(audit: Audit, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the area under the ROC curve of each attack, between chance and copies of training cells.

    Parameters
    ----------
    audit
        What :meth:`bdm.BranchedDiffusion.audit` returned, or ``Audit.load(folder)``.

    Examples
    --------
    ::

        bdm.pl.audit(model.audit())
    """
    return shown(audit_figure(audit, new=plt.figure), show=show)


def audit_figure(audit: Audit, *, new: NewFigure = Figure) -> Figure:
    """Draw a panel for cells and, if the audit has donors, one for donors, and a row for each attack."""
    levels = list(dict.fromkeys(audit.by_fold["level"]))[::-1]
    present = set(audit.by_fold["attack"])
    attacks = [name for name in ATTACKS if name in present]
    height = 1.5 + 0.42 * len(attacks)
    figure = new(figsize=(1.9 + 3.3 * len(levels), height), layout="constrained")
    axes = figure.subplots(1, len(levels), squeeze=False, sharey=True)[0]
    for ax, level in zip(axes, levels, strict=True):
        draw(ax, audit, level, attacks)
    axes[0].set_yticks(range(len(attacks)), [ATTACKS[name] for name in attacks])
    axes[0].set_ylim(len(attacks) - 0.5, -0.5)
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw(ax: Axes, audit: Audit, level: str, attacks: list[str]) -> None:
    """Draw the areas of one level, from all cells."""
    shade_rows(ax, len(attacks))
    mean, by_fold = (of[(of["level"] == level) & of["n_cells"].isna()] for of in (audit.attacks, audit.by_fold))
    for name, style in STYLES.items():
        of_set = mean[(mean["set"] == name) & mean["attack"].isin(attacks)]
        row = np.array([attacks.index(attack) for attack in of_set["attack"]])
        if name == GENERATED:
            ax.hlines(row, of_set["low"], of_set["high"], color=style["color"], linewidth=1.2, alpha=0.5)
            folds = by_fold[by_fold["set"] == name]
            rows = [attacks.index(attack) for attack in folds["attack"]]
            ax.plot(folds["auc"], rows, linestyle="", marker=".", markersize=4, color=style["color"], alpha=0.6)
        ax.plot(of_set["auc"], row, label=LABELS[name], **style)
    ax.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    if level == audit.unit and np.isfinite(audit.verdict.limit):
        ax.axvline(
            audit.verdict.limit, color=GREY, linewidth=1, linestyle="--", label="chance reaches it in 5% of audits"
        )
    ax.set_xlim(min(0.35, float(by_fold["auc"].min()) - 0.02), 1.02)
    ax.set_xlabel(f"AUC of members against other {level}s")
    ax.set_title(f"{level}s", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)


def save_audit(folder: Path, audit: Audit) -> None:
    """Write an audit into a folder, with its figure."""
    audit.save(folder)
    save_figure(audit_figure(audit), Path(folder) / FIGURE)
