"""The tables of each target: where their rows are, and what is in rows and columns."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import pandas as pd
import readers
from figures import draw_attacks, draw_costs, draw_null, draw_properties, draw_transmuted
from matplotlib.figure import Figure
from tidy import RARE

from bdm.applications.audit.attacks import ATTACKS
from bdm.applications.relations.gaussian_process import BINS
from bdm.data.cells import FLOOR
from bdm.evaluation.scores import SCORE_TITLES

Rows = pd.DataFrame


def over_seeds(values: pd.Series) -> str:
    """Format the mean, and the range if there are several values."""
    number = "{:.0f}" if values.abs().max() >= 10 else "{:.2f}"
    mean, low, high = (number.format(value) for value in (values.mean(), values.min(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def mean_of(form: str) -> Callable[[pd.Series], str]:
    """Format the mean alone."""
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


@dataclass(frozen=True)
class Table:
    """A table, or one for each value of a column of the rows; each cell shows the values of several seeds.

    Attributes
    ----------
    title
        Text before the table, in Markdown.
    rows, columns, each
        Columns of the rows whose values are in the rows and the columns of the table, and that have a table each.
    scores
        Scores to show, in their order, with their names in the table; all under their own names, if empty.
    shown
        Formats the values of a cell.
    by_seed
        Whether the values of a seed are averaged before they are shown.
    derive
        Chooses rows, or computes others from them.
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
            order = {name: place for place, name in enumerate(self.scores)}
            rows = rows.sort_values("score", key=lambda names: names.map(order), kind="stable")
            rows = rows.assign(score=rows["score"].map(dict(self.scores)))
        keys = list(dict.fromkeys([*self.rows, self.columns, *filter(None, [self.each])]))
        if self.by_seed:
            of_seed = list(dict.fromkeys([*keys, "seed"]))
            rows = rows.groupby(of_seed, sort=False)["value"].mean().reset_index()
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
    """Rows of one kind, which are a file, and what is shown of them.

    Attributes
    ----------
    read
        Reads the rows of a run from its folder.
    name
        Of the file, after the name of the target.
    figure
        Draws the rows.
    """

    read: Callable[[Path], Rows]
    tables: tuple[Table, ...] = ()
    name: str = ""
    figure: Callable[[Rows], Figure] | None = None


@dataclass(frozen=True)
class Target:
    """All parts of what a target shows."""

    title: str
    parts: tuple[Part, ...]


def markdown(table: pd.DataFrame) -> str:
    """Write a table with its index in Markdown."""
    table = table.reset_index()
    rows = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(str(value).replace('|', chr(92) + '|') for value in row)} |" for row in rows)


# ---- what is shown

FLOOR_NOTE = (
    "The floor is real training cells, scored as if they had been generated. Numbers are the mean over seeds, with the "
    "smallest and the largest value."
)
SCORES = {
    "energy": SCORE_TITLES["energy"],
    "energy_frequent": "Energy distance of types with 50 test cells or more, weighted by test cells",
    **{score: SCORE_TITLES[score] for score in ("forest_auc", "gene_auc", "slope")},
    "slope_by_type": "Slope by type",
    "fold_change_correlation": SCORE_TITLES["fold_change_correlation"],
    "gene_correlation": SCORE_TITLES["gene_correlation"],
    "f1_ratio": "F1 ratio",
    "memorisation": SCORE_TITLES["memorisation"],
    "training_seconds": "Training, s",
    "training_cpu_seconds": "Training, processor s",
    "generation_seconds": "Generation, s",
    "generation_cpu_seconds": "Generation, processor s",
    "memory_mb": "Peak memory, MB",
}
GRADES = Table(
    "## Runs by grade\n\nRuns that cannot be distinguished from real cells, are nearly like them, and differ, by the "
    "worse of forest and gene AUC, without allowance for chance.",
    shown=counts,
    by_seed=False,
    derive=readers.grades,
)
STEPS = {"s": "Seconds", "cpu_time": "Processor seconds", "max_rss": "Peak memory, MB"}


def of_study(name: str, title: str, *tables: Table, figure: Callable[[Rows], Figure] | None = None) -> Target:
    """Show the rows that a study wrote."""
    return Target(title, (Part(partial(readers.study, name=name), tables, figure=figure),))


def of_comparison(name: str, steps: Mapping[str, list[str]], *tables: Table) -> Part:
    """Show a table of each score of a comparison; ``steps`` are those that each method trains in."""
    read = partial(readers.scores, comparison=name, steps=steps)
    return Part(read, (Table(FLOOR_NOTE, each="score", scores=SCORES), *tables))


RARE_TYPES = Table(
    f"# Rare types: fewer than {RARE} training cells",
    ("data", "cell_type", "n_train", "n_test"),
    each="score",
    scores={"energy": "Energy distance", "f1": "F1"},
    derive=readers.rare,
)
PROPERTIES = Table(
    "Mean distance to test cells beyond the floor, over properties.",
    shown=mean_of("{:.3f}"),
    derive=readers.beyond_floor,
)
BRANCHES = Table(
    "# Use of the network, and losses of validation cells", ("data", "seed"), "score", shown=mean_of("{:.5g}")
)
MODALITIES = Table("# Scores by modality", ("data", "modality", "score"))
PROTEINS = Table("RMSE and median correlation of log1p counts; coverage of 90% intervals.", ("method",), "score")
COSTS = Table("Time and memory of each step.", ("step",), "data", each="score", scores=STEPS)
FACTS = Table("# Trees, cells and files", ("score",), "data", shown=mean_of("{:.4g}"))

STUDIES = {
    "ambient": of_study(
        "ambient",
        "Ambient RNA in real and generated cells",
        Table(
            "Percent of the counts that is found, by the share that was planted.",
            ("data", "planted"),
            shown=mean_of("{:.1%}"),
            scores={"found": "found"},
        ),
        Table(
            "Share of the intervals (95%) that contain the planted share.",
            scores={"covered": "covered"},
            shown=mean_of("{:.0%}"),
        ),
    ),
    "audit": Target(
        "What attacks find in the cells of each method",
        (
            Part(
                readers.attacks,
                (
                    Table(
                        "AUC of members, as means over folds and seeds, with the smallest and the largest value. "
                        "Copies are the training cells, and chance is cells of other donors.",
                        ("data", "method"),
                        "score",
                        each="level",
                        scores=ATTACKS,
                        by_seed=False,
                    ),
                ),
                figure=draw_attacks,
            ),
        ),
    ),
    "augment": of_study(
        "augment",
        "Recognising rare types",
        Table(
            f"F1 of types of fewer than {RARE} training cells, on held-out cells.",
            ("data", "cell_type", "n_train", "n_test"),
            each="score",
        ),
    ),
    "designs": of_study(
        "designs",
        "Tests of donors that differ by chance alone",
        Table(
            "In random splits of donors into two groups, or of pairs of samples, all differences are by chance. A "
            "valid test has p-values up to 0.05 in 5% of its tests. Standard errors are over splits. False "
            "discoveries are tests with a false discovery rate below 5%, in a split.",
            ("cells", "donors", "method"),
            "score",
            shown=mean_of("{:.2g}"),
            derive=readers.without_curves,
        ),
        figure=draw_null,
    ),
    "donors": of_study(
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
    "doublets": of_study(
        "doublets",
        "Doublets in real and generated cells",
        Table(
            "Doublets that scrublet finds.",
            ("data", "kind", "rate"),
            each="score",
            scores={"auc": "AUC", "recall": "Recall"},
        ),
    ),
    "extend": of_study(
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
    "few_cells": of_study(
        "few_cells",
        "Types of few training cells",
        Table(
            "Means over types, which were made rare, with the range over seeds.",
            ("data", "n_train"),
            each="score",
            scores={"forest_auc": "Forest AUC", "gene_auc": "Gene AUC", "f1": "F1 of a linear classifier"},
        ),
    ),
    "populations": Target(
        "Populations of cells without labels",
        (
            Part(
                readers.agreement_of_populations,
                (
                    Table(
                        "Columns named after labels have the adjusted Rand index to these labels: 1 for the same "
                        "groups, 0 by chance. The agreement of seeds is that index between two seeds.",
                        ("method",),
                        "score",
                        each="data",
                        by_seed=False,
                    ),
                ),
            ),
        ),
    ),
    "time": of_study(
        "time",
        "Cells at times that were left out",
        Table(
            "Energy distance to the real cells of each node of a lineage, of the middle third of the times of a node "
            "or type, and of snapshots; and the share of progenitors that leads to the nodes that descend from them.",
            ("data", "left_out"),
            each="score",
            scores={
                "nodes": "Nodes",
                "types": "Types",
                "snapshots": "Snapshots",
                "fates": "Fates",
                "fates, right": "Cells whose most probable fate is right",
                "fates, log loss": "Log loss of fates",
            },
        ),
    ),
    "proteins": Target("Proteins predicted from RNA", (Part(readers.predicted_proteins, (PROTEINS,)),)),
    "predicted_output": of_study(
        "predicted_output",
        "The form of predicted cells",
        Table(
            "Means over types, on the 100 genes that the condition changes most. Means are those of real cells, "
            "or of control cells with the mean change of the other types.",
            ("data", "means", "method"),
            "score",
        ),
    ),
    "properties": Target(
        "Properties that benchmarks of simulators compare",
        (Part(readers.properties, (PROPERTIES,), figure=draw_properties),),
    ),
    "responses": of_study(
        "responses",
        "Cells of types whose response to a condition was left out",
        Table(
            "Means over types, on the 100 genes that change most. The position is that of the E-distance between the "
            "floor, 0, which is half of the real cells, and unchanged control cells, 1.",
            ("method",),
            "data",
            each="score",
            scores={
                "edistance": "E-distance",
                "position": "Position",
                "pearson_delta": "Correlation of changes",
                "common_degs": "Share of the same genes",
                "mse": "Squared error of means",
            },
        ),
        Table(
            "# Coverage\n\nShare of the changes of genes in 90% intervals, by quantile of expression.",
            ("data", "method"),
            "score",
            shown=mean_of("{:.1%}"),
            scores={f"covered_{low:.0%}": f"{low:.0%} to {high:.0%}" for low, high in pairwise(BINS)},
        ),
        Table("# E-distance by type", ("data", "cell_type"), scores={"edistance": "E-distance"}),
    ),
    "transmute": of_study(
        "transmute",
        "Cells transmuted to another type",
        Table("Means over pairs.", ("method",), "score", each="data"),
        Table("# Energy distance by pair", ("original_type", "to"), scores={"energy": "energy"}),
        figure=draw_transmuted,
    ),
    "tree": of_study(
        "tree",
        "Trees and annotations",
        Table(
            "Groups are clades (`found`), missing, or split by clades; nearest clade is the share of types that it and "
            "the group have in common. Chance is the mean over random trees.",
            ("data", "group", "n_types"),
            "score",
        ),
    ),
    "verdicts": of_study(
        "verdicts",
        "Verdicts on cells whose truth is known",
        Table(
            "## Real cells\n\nThe number of verdicts on real cells as if they had been generated, and how many of them "
            "find a difference, by the number of test cells.",
            columns="group",
            scores={"found": "found"},
            shown=number_and_mean,
            by_seed=False,
            derive=readers.real_alone,
        ),
        Table(
            "## Cells with known faults\n\nPercent of the verdicts that find a difference, and a large one.",
            ("method",),
            "group",
            each="score",
            scores={"found": "Differences", "large": "Large differences"},
            shown=mean_of("{:.0f}"),
            by_seed=False,
            derive=readers.faulty_alone,
        ),
    ),
}


def targets(steps: Mapping[str, list[str]]) -> dict[str, Target]:
    """Give all targets by name; ``steps`` are those that each method trains in."""
    by_type = Part(partial(readers.scores_by_type, comparison="all"), (RARE_TYPES,), name="by_type")
    branches = Part(readers.branches, (BRANCHES,), name="branches")
    scores_of_atlas = Table(FLOOR_NOTE, ("data", "method"), "score", scores=SCORES)
    return STUDIES | {
        "all": Target("Scores on held-out cells", (of_comparison("all", steps, GRADES), by_type, branches)),
        "coarse": Target("Coarse labels", (of_comparison("coarse", {}), branches)),
        "modalities": Target(
            "Cells of several modalities",
            (
                of_comparison("modalities", steps),
                Part(readers.scores_of_modalities, (MODALITIES,), name="scores"),
            ),
        ),
        "priors": Target("Priors of the same latents", (of_comparison("priors", steps), branches)),
        "many": Target(
            "Many cell types",
            (
                Part(partial(readers.times, comparison="many"), (COSTS,)),
                Part(readers.facts_of_many, (FACTS,), name="facts"),
            ),
        ),
        "atlas": Target(
            "Cost by number of cells",
            (
                Part(partial(readers.times, comparison="atlas"), (COSTS,), figure=draw_costs),
                Part(partial(readers.scores, comparison="atlas", steps={}), (scores_of_atlas,), name="scores"),
            ),
        ),
    }
