"""Targets of the workflow: their files, tables and figures."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import readers
from figures import draw_attacks, draw_costs, draw_null, draw_properties, draw_transmuted
from matplotlib.figure import Figure
from tidy import RARE

from bdm.applications.audit.attacks import ATTACKS
from bdm.applications.relations.gaussian_process import SIZES
from bdm.data.cells import FLOOR
from bdm.evaluation.table import SCORES as BDM_SCORES

Rows = pd.DataFrame


def over_seeds(values: pd.Series) -> str:
    """Format the mean, and the range of several values."""
    number = "{:.0f}" if values.abs().max() >= 10 else "{:.2f}"
    mean, low, high = (number.format(value) for value in (values.mean(), values.min(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def format_mean(form: str) -> Callable[[pd.Series], str]:
    """Return a function that formats the mean of values."""
    return lambda values: form.format(values.mean())


def number_and_mean(values: pd.Series) -> str:
    """Format the number of values, and their mean in percent."""
    return f"{len(values)}: {values.mean():.1f}%"


def counts(values: pd.Series) -> str:
    """Count the values 0, 1 and 2."""
    return "/".join(str((values == grade).sum()) for grade in range(3))


def same(rows: Rows) -> Rows:
    """Show all rows."""
    return rows


def errors(rows: Rows) -> Rows:
    """Select all errors."""
    return rows[rows["score"].str.startswith("error")]


def errors_of_responding(rows: Rows) -> Rows:
    """Select errors of real perturbations that respond."""
    return rows[(rows["score"] == "error") & ~rows["data"].str.startswith("simulated")]


def coverages(rows: Rows) -> Rows:
    """Select coverages by size of the prediction."""
    return rows[rows["score"].str.startswith("covered, ")]


@dataclass(frozen=True)
class Table:
    """Table of rows, or a table for each value of a column.

    Each cell shows the values of several seeds.

    Attributes
    ----------
    title
        Text before the table, in Markdown.
    rows, columns, each
        Names of columns with the row names, the column names and the table names.
    scores
        Names of scores in the table, in order; by default, all scores with their keys.
    shown
        Formats the values of a cell.
    by_seed
        Average the values of each seed first.
    derive
        Selects or computes the rows of the table.
    """

    title: str
    rows: tuple[str, ...] = ("data",)
    columns: str = "method"
    each: str = ""
    scores: Mapping[str, str] | None = None
    shown: Callable[[pd.Series], str] = over_seeds
    by_seed: bool = True
    derive: Callable[[Rows], Rows] = same

    def as_text(self, rows: Rows) -> Iterator[str]:
        """Yield each table in Markdown, after its name if there are several."""
        rows = self.derive(rows)
        if self.scores is not None:
            rows = rows[rows["score"].isin(list(self.scores))]
            order = {name: position for position, name in enumerate(self.scores)}
            rows = rows.sort_values("score", key=lambda names: names.map(order), kind="stable")
            rows = rows.assign(score=rows["score"].map(dict(self.scores)))
        keys = list(dict.fromkeys([*self.rows, self.columns, *filter(None, [self.each])]))
        if self.by_seed:
            rows = rows.groupby(list(dict.fromkeys([*keys, "seed"])), sort=False)["value"].mean().reset_index()
        for name, part in rows.groupby(self.each, sort=False) if self.each else [("", rows)]:
            if name:
                yield f"## {name}"
            yield markdown(self.wide(part))

    def wide(self, rows: Rows) -> pd.DataFrame:
        """Return the table as text; the floor is the first column or row."""
        table = rows.pivot_table(
            index=list(self.rows), columns=self.columns, values="value", aggfunc=self.shown, sort=False
        )
        first = [name for name in table.columns if name == FLOOR]
        return table[[*first, *table.columns.drop(first)]].fillna("")


@dataclass(frozen=True)
class Part:
    """File of rows, with its tables and figure.

    Attributes
    ----------
    read
        Reads the rows of a run from its folder.
    name
        Suffix of the file name.
    figure
        Draws the rows.
    """

    read: Callable[[Path], Rows]
    tables: tuple[Table, ...] = ()
    name: str = ""
    figure: Callable[[Rows], Figure] | None = None


@dataclass(frozen=True)
class Target:
    """Title and parts of a target."""

    title: str
    parts: tuple[Part, ...]


def markdown(table: pd.DataFrame) -> str:
    """Write a table with its index in Markdown."""
    table = table.reset_index()
    rows = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(str(value).replace('|', chr(92) + '|') for value in row)} |" for row in rows)


# ---- tables

FLOOR_NOTE = (
    "The floor is real training cells, scored as generated cells. Numbers are means over seeds, with the range."
)
SCORES = {
    "energy": BDM_SCORES["energy"].title,
    "energy_frequent": "Energy distance of types with 50 test cells or more, weighted by test cells",
    **{score: BDM_SCORES[score].title for score in ("forest_auc", "gene_auc", "slope")},
    "slope_by_type": "Slope by type",
    "fold_change_correlation": BDM_SCORES["fold_change_correlation"].title,
    "gene_correlation": BDM_SCORES["gene_correlation"].title,
    "f1_ratio": "F1 ratio",
    "memorisation": BDM_SCORES["memorisation"].title,
    "training_seconds": "Training, s",
    "training_cpu_seconds": "Training, processor s",
    "generation_seconds": "Generation, s",
    "generation_cpu_seconds": "Generation, processor s",
    "memory_mb": "Peak memory, MB",
}
REALISM = {
    "forest_auc": BDM_SCORES["forest_auc"].title,
    "gene_auc": BDM_SCORES["gene_auc"].title,
    "pooled_energy": "Energy distance of all cells",
}
GRADES = Table(
    "## Runs by grade\n\nRuns that cannot be distinguished from real cells, are nearly like them, and differ. Grades "
    "are by the worse of forest and gene AUC, without allowance for chance.",
    shown=counts,
    by_seed=False,
    derive=readers.grades,
)
STEPS = {"s": "Seconds", "cpu_time": "Processor seconds", "max_rss": "Peak memory, MB"}


def study(name: str, title: str, *tables: Table, figure: Callable[[Rows], Figure] | None = None) -> Target:
    """Show the rows of a study."""
    return Target(title, (Part(partial(readers.study, name=name), tables, figure=figure),))


def comparison(name: str, steps: Mapping[str, list[str]], *tables: Table) -> Part:
    """Show a table of each score; ``steps`` are training steps by method."""
    read = partial(readers.scores, comparison=name, steps=steps)
    return Part(read, (Table(FLOOR_NOTE, each="score", scores=SCORES), *tables))


def groups(name: str, kind: str) -> Part:
    """Show the scores of each group of a kind in a comparison."""
    read = partial(readers.scores_of_groups, comparison=name, kind=kind)
    return Part(read, (Table(f"# Scores by {kind}", ("data", kind, "score")),), name="scores")


RARE_TYPES = Table(
    f"# Rare types: fewer than {RARE} training cells",
    ("data", "cell_type", "n_train", "n_test"),
    each="score",
    scores={"energy": "Energy distance", "f1": "F1"},
    derive=readers.rare,
)
PROPERTIES = Table(
    "Mean distance to test cells beyond the floor, over properties.",
    shown=format_mean("{:.3f}"),
    derive=readers.beyond_floor,
)
NETWORK = Table(
    "# Use of the network, and losses of held-out cells", ("data", "seed"), "score", shown=format_mean("{:.5g}")
)
PROTEINS = Table("RMSE and median correlation of log1p counts; coverage of 90% intervals.", ("method",), "score")
COSTS = Table("Time and memory of each step.", ("step",), "data", each="score", scores=STEPS)
FACTS = Table("# Trees, cells and files", ("score",), "data", shown=format_mean("{:.4g}"))

STUDIES = {
    "ambient": study(
        "ambient",
        "Ambient RNA in real and generated cells",
        Table(
            "Estimated percentage of counts, by planted share.",
            ("data", "planted"),
            shown=format_mean("{:.1%}"),
            scores={"found": "found"},
        ),
        Table(
            "Share of 95% intervals that contain the planted share.",
            scores={"covered": "covered"},
            shown=format_mean("{:.0%}"),
        ),
    ),
    "audit": Target(
        "Membership inference by method",
        (
            Part(
                readers.attacks,
                (
                    Table(
                        "AUC of members: means over folds and seeds, with the range. Copies are the training cells.",
                        ("data", "method"),
                        "score",
                        scores=ATTACKS,
                        by_seed=False,
                    ),
                ),
                figure=draw_attacks,
            ),
        ),
    ),
    "augment": study(
        "augment",
        "Recognising rare types",
        Table(
            f"F1 of types with fewer than {RARE} training cells, on held-out cells.",
            ("data", "cell_type", "n_train", "n_test"),
            each="score",
        ),
    ),
    "designs": study(
        "designs",
        "Tests between donors without real differences",
        Table(
            "Differences between random groups of donors, or of paired samples, are by chance. A valid test has "
            "p-values up to 0.05 in 5% of its tests. Standard errors are over splits. False discoveries are tests per "
            "split with a false discovery rate below 5%.",
            ("cells", "donors", "method"),
            "score",
            shown=format_mean("{:.2g}"),
            derive=readers.without_curves,
        ),
        figure=draw_null,
    ),
    "donors": study(
        "donors",
        "New donors",
        Table(
            "Ratios to left-out donors, and correlations with them over genes.",
            ("data", "method"),
            "score",
            scores={
                "pseudobulk": "variance of pseudobulks",
                "pseudobulk_r": "correlation of pseudobulks",
                "intraclass": "intraclass correlation",
                "intraclass_r": "correlation of intraclass correlations",
                "depth": "intraclass correlation of depth",
                "first": "share of first component",
                "composition": "spread of composition",
            },
        ),
    ),
    "doublets": study(
        "doublets",
        "Doublets in real and generated cells",
        Table(
            "Detection of doublets by scrublet.",
            ("data", "kind", "rate"),
            each="score",
            scores={"auc": "AUC", "recall": "Recall"},
        ),
    ),
    "extend": study(
        "extend",
        "Cell types added to a trained model",
        Table("Means over types.", ("data", "method"), "score"),
        Table(
            "# By type",
            ("data", "cell_type", "n_test"),
            each="score",
            scores={"energy": "Energy distance", "forest_auc": "Forest AUC"},
        ),
    ),
    "network": study(
        "network",
        "What a network adds, by the number of cells",
        Table(
            "Gain of held-out cells in standard errors, share of their loss that it is, runs that kept the network, "
            "processor seconds, and energy distance to held-out cells.",
            ("data", "n_cells", "method"),
            "score",
        ),
    ),
    "paper": study(
        "paper",
        "Branched and linear diffusions",
        Table(
            "Sampling: evaluations of the network by cell, milliseconds of processor by 1,000 cells, and energy "
            "distance to held-out cells. Added types: energy distance of known types before and after, of the new "
            "type, and processor seconds.",
            ("data", "method"),
            "score",
        ),
    ),
    "few_cells": study(
        "few_cells",
        "Types with few training cells",
        Table(
            "Means over types reduced to few cells, with the range over seeds.",
            ("data", "n_train"),
            each="score",
            scores={"forest_auc": "Forest AUC", "gene_auc": "Gene AUC", "f1": "F1 of a linear classifier"},
        ),
    ),
    "genes": study(
        "genes",
        "Every gene",
        Table(
            "Scores of the most variable genes, and of the other genes. log2 mean and variance: medians over genes of "
            "their mean and variance relative to training cells.",
            ("data", "method"),
            "score",
        ),
    ),
    "pbmc3k_protocol": study(
        "pbmc3k_protocol",
        "PBMC3K by the protocol of CFGen",
        Table("Distances to test cells in their principal components: means over cell types.", ("method",), "score"),
    ),
    "populations": Target(
        "Populations of cells without labels",
        (
            Part(
                readers.agreement_of_populations,
                (
                    Table(
                        "Columns of labels show the adjusted Rand index with these labels: 1 for identical groups, "
                        "0 by chance. The agreement of seeds is this index between two seeds.",
                        ("method",),
                        "score",
                        each="data",
                        by_seed=False,
                    ),
                ),
            ),
        ),
    ),
    "time": study(
        "time",
        "Cells at left-out times",
        Table(
            "Energy distance to the left-out cells: nodes of a lineage, and the middle third of times of a node or "
            "type.",
            ("data", "left_out"),
            each="score",
            scores={"nodes": "Nodes", "types": "Types"},
        ),
    ),
    "space": study(
        "space",
        "Cells in space",
        Table(
            "Moran's I of genes, overall and within types, and types of neighbours, at the positions of training "
            "cells. The floor is other sections, or halves of the positions.",
            ("data", "method"),
            "score",
            derive=readers.scores_in_space,
        ),
        Table(
            "# Left-out blocks\n\nEnergy distance to the real cells: means over blocks.",
            scores={"block_energy": "energy"},
        ),
        Table(
            "# Left-out blocks in which bdm is nearer",
            shown=format_mean("{:.0%}"),
            derive=readers.nearer_blocks,
        ),
        Table(
            "# Realism\n\nCells at the positions of training cells, compared with test cells.",
            each="score",
            scores=REALISM,
        ),
        Table("# Parts that depend on positions", ("score",), "data", derive=readers.surfaces),
        Table("# Surfaces compared with simulated fields", ("score",), derive=readers.fields),
    ),
    "proteins": Target("Proteins predicted from RNA", (Part(readers.predicted_proteins, (PROTEINS,)),)),
    "predicted_output": study(
        "predicted_output",
        "The form of predicted cells",
        Table(
            "Means over types, on the 100 genes that change most. Predicted means come from real cells, or from "
            "control cells plus the mean change of other types.",
            ("data", "means", "method"),
            "score",
        ),
    ),
    "properties": Target(
        "Properties of cells in simulator benchmarks",
        (Part(readers.properties, (PROPERTIES,), figure=draw_properties),),
    ),
    "recovered": study(
        "recovered",
        "Cell types and their genes in generated cells",
        Table(
            "Share of cells to which a linear classifier of training cells gives the type that was asked for (floor: "
            "test cells). Genes that differ in mean between a type and all others (Welch's t-test, false discovery "
            "rate 0.1), in cells of the method and in test cells (found) or in cells of the method alone (other), "
            "relative to their number in test cells; floor: training cells.",
            each="score",
        ),
    ),
    "responses": study(
        "responses",
        "Left-out responses of cell types to a condition",
        Table(
            "Means over types, on the 100 genes that change most. The position is the E-distance, scaled to 0 for the "
            "floor (half of the real cells) and 1 for unchanged control cells.",
            ("method",),
            "data",
            each="score",
            scores={
                "edistance": "E-distance",
                "position": "Position",
                "pearson_delta": "Correlation of changes",
                "common_degs": "Share of the same genes",
            },
        ),
        Table(
            "# Coverage\n\nShare of genes with changes in the 90% interval, by size of the predicted log2 fold change.",
            ("data", "method"),
            "score",
            shown=format_mean("{:.1%}"),
            scores={f"covered_{size:g}": f"from {size:g}" for size in (0.0, *SIZES)},
        ),
        Table("# E-distance by type", ("data", "cell_type"), scores={"edistance": "E-distance"}),
    ),
    "relations": study(
        "relations",
        "Conditions that nobody measured",
        Table(
            "Root mean squared error of log fold changes, relative to unchanged cells: means over what was left out.",
            ("data", "score"),
            derive=errors,
        ),
        Table("# Error by perturbation", ("left_out",), each="data", derive=errors_of_responding),
        Table(
            "# Coverage\n\nShare of log fold changes in the 90% interval, by size of the predicted log2 fold change.",
            ("data",),
            "score",
            shown=format_mean("{:.1%}"),
            derive=coverages,
        ),
        Table(
            "# Data without a response, or with a known one\n\nShare of rows with `sign` above 0.95, the expected "
            "error of predictions relative to unchanged cells, whether a warning says that nothing is predicted, the "
            "coverage of 90% intervals, and the slope of changes along the expression of a gene.",
            ("data",),
            "score",
            scores={name: name for name in ("sign above 0.95", "expected error", "warned", "covered", "slope")},
        ),
    ),
    "self_fit": study(
        "self_fit",
        "How near could cells be?",
        Table(
            "The self-fit is a fit to cells of the fitted model, where only the error of estimation is left. Posterior "
            "samples of training cells are free of the error of the prior.",
            each="score",
            scores={
                **REALISM,
                "variance": "Variance of expressed genes within types, relative to training cells",
                "outlying": BDM_SCORES["outlying_counts"].title,
                "relative_slope": "Slope of gene-gene correlations within types, relative to training cells",
                "training_seconds": "Training, s",
                "training_cpu_seconds": "Training, processor s",
            },
        ),
    ),
    "transmute": study(
        "transmute",
        "Cells transmuted to another type",
        Table("Means over pairs.", ("method",), "score", each="data"),
        Table("# Energy distance by pair", ("original_type", "to"), scores={"energy": "energy"}),
        figure=draw_transmuted,
    ),
    "tree": study(
        "tree",
        "Trees and annotations",
        Table(
            "Groups are clades (`found`), missing, or split by clades. Nearest clade is the highest Jaccard index of "
            "the group with a clade. Chance is the mean over random trees.",
            ("data", "group", "n_types"),
            "score",
        ),
    ),
    "verdicts": study(
        "verdicts",
        "Verdicts on real cells, and on cells with known faults",
        Table(
            "## Real cells\n\nNumber of verdicts on real cells, evaluated as generated cells, and percentage that find "
            "a difference, by number of test cells.",
            columns="group",
            scores={"found": "found"},
            shown=number_and_mean,
            by_seed=False,
            derive=readers.real_cells,
        ),
        Table(
            "## Cells with known faults\n\nPercentage of verdicts that find a difference, and a large difference.",
            ("method",),
            "group",
            each="score",
            scores={"found": "Differences", "large": "Large differences"},
            shown=format_mean("{:.0f}"),
            by_seed=False,
            derive=readers.faulty_cells,
        ),
    ),
}


def targets(steps: Mapping[str, list[str]]) -> dict[str, Target]:
    """Return all targets by name; ``steps`` are training steps by method."""
    by_type = Part(partial(readers.scores_by_type, comparison="all"), (RARE_TYPES,), name="by_type")
    network = Part(readers.network, (NETWORK,), name="network")
    scores_of_atlas = Table(FLOOR_NOTE, ("data", "method"), "score", scores=SCORES)
    return STUDIES | {
        "all": Target("Scores on held-out cells", (comparison("all", steps, GRADES), by_type, network)),
        "coarse": Target("Coarse labels", (comparison("coarse", {}), network)),
        "modalities": Target(
            "Cells of several modalities",
            (
                comparison("modalities", steps),
                groups("modalities", "modality"),
            ),
        ),
        "batches": Target(
            "Cells of several batches",
            (
                comparison("batches", steps),
                groups("batches", "batch"),
            ),
        ),
        "diffusion_peers": Target("Other diffusions in latents", (comparison("diffusion_peers", steps),)),
        "priors": Target("Priors of the same latents", (comparison("priors", steps), network)),
        "many": Target(
            "Many cell types",
            (
                Part(partial(readers.times, comparison="many"), (COSTS,)),
                Part(readers.facts_of_many, (FACTS,), name="facts"),
            ),
        ),
        "space_cost": Target(
            "Cost of positions of 100,000 cells", (Part(partial(readers.times, comparison="space_cost"), (COSTS,)),)
        ),
        "atlas": Target(
            "Cost by number of cells",
            (
                Part(partial(readers.times, comparison="atlas"), (COSTS,), figure=draw_costs),
                Part(partial(readers.scores, comparison="atlas", steps={}), (scores_of_atlas,), name="scores"),
            ),
        ),
    }
