"""What a design file may contain: each section as a dataclass, whose fields are the keys with their bounds and help."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen

from bdm._core.errors import InputError, at
from bdm._core.files import reading
from bdm._core.schema import StageSettings, Unset
from bdm.generation.at import At, ends_of
from bdm.settings import Seed

LEARNED: Literal["learned"] = "learned"
NONE: Literal["none"] = "none"
WHERE_LEARNED = Unset("learned where the model has learned donors, otherwise none")
EVERYWHERE = Unset("all")
TOLERANCE = 1e-6  # of the sum of proportions
AS_DESIGNED = Unset("as in the design")
MAX_CHANGE = 20  # log2 fold change, and shift of log odds; counts could overflow beyond
AXES = ("donors", "cells", "depth", "log2_fold_change", "log_odds")  # of a grid of experiments
MIN_DONORS_OF_DESEQ2 = 12  # of each condition; with fewer, its normal distribution makes too many false discoveries
MAX_VARIATION = 5  # standard deviation of natural log expression

Number = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Weight = Annotated[float, Ge(0)]
Factor = Annotated[float, Gt(0)]
Quantile = Annotated[float, Ge(0), Le(1)]
Size = Annotated[float, Ge(0), Le(MAX_CHANGE)]
Method = Literal["deseq2", "deseq2_t", "t_test", "wilcoxon"]
In = Annotated[tuple[str, ...], "Cell types, sub-populations, or clades of the tree, by name.", EVERYWHERE]


@dataclass(frozen=True, kw_only=True)
class Samples(StageSettings):
    """The samples: donors x conditions, with their batches and numbers of cells."""

    section: ClassVar[str] = "samples"

    donors: Annotated[Number | dict[str, Number], "Donors in each condition, or numbers by condition."] = 1
    paired: Annotated[bool, "Every donor has a sample in every condition."] = False
    conditions: Annotated[tuple[str, ...], "Names of the conditions; the first is the reference."] = ("control",)
    cells: Annotated[
        Literal["learned"] | Count | dict[str, Count],
        "Cells of each sample, of all cell types by the composition; `learned`, as many as donors of the data have; or "
        "exact numbers by cell type.",
    ] = 500
    variation: Annotated[
        Literal["learned", "none"] | Annotated[float, Ge(0), Le(MAX_VARIATION)] | None,
        "Difference between donors: `learned`, `none`, or the standard deviation of natural log expression between "
        "donors, independent for each gene, half of its variance shared by all cell types.",
        WHERE_LEARNED,
    ] = None
    covariates: Annotated[
        dict[str, Any] | None,
        "Values of covariates of the model: of each, a number, a range of values such as `[300, 400]`, or these by "
        "condition, or by sample, as in `{time: {control: 350, treated: [400, 450]}}`.",
        Unset("all as training cells have them"),
    ] = None
    extrapolate: Annotated[bool, "Allow values of covariates that training cells of a type do not have."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.conditions:
            raise InputError("conditions is empty, but must name at least one condition.")
        if len(set(self.conditions)) < len(self.conditions):
            raise InputError("conditions has the same name twice; give each condition a name of its own.")
        known = ", ".join(self.conditions)
        if isinstance(self.donors, dict):
            for name in [*self.donors, *self.conditions]:
                if name not in self.conditions:
                    raise InputError(f"donors: there is no condition {name!r}; the conditions are {known}.")
                if name not in self.donors:
                    raise InputError(f"donors has no number for the condition {name!r}.")
            if self.paired and len(set(self.donors.values())) > 1:
                raise InputError("paired donors have samples in every condition; give one number of donors.")
        if self.cells == 0 or (isinstance(self.cells, dict) and not sum(self.cells.values())):
            raise InputError("cells asks for no cells; give at least one cell of one type.")
        for covariate, given in (self.covariates or {}).items():
            for key, value in given.items() if isinstance(given, dict) else [(self.conditions[0], given)]:
                if key not in (*self.conditions, *self.names):
                    raise InputError(
                        f"covariates.{covariate}: there is no condition or sample {key!r}; the conditions are {known}."
                    )
                ends_of(f"covariates.{covariate}", value)

    @property
    def names(self) -> list[str]:
        """Names of the samples, by condition, then donor."""
        return [f"sample-{number + 1}" for number in range(sum(map(self.donors_in, self.conditions)))]

    def values_in(self, condition: str, sample: str) -> At:
        """Return the values of covariates that are given for a sample of a condition."""
        found = {}
        for name, given in (self.covariates or {}).items():
            by_key = given if isinstance(given, dict) else {condition: given}
            if (value := by_key.get(sample, by_key.get(condition))) is not None:
                found[name] = ends_of(name, value)
        return found

    def donors_in(self, condition: str) -> int:
        """Return the number of donors in a condition."""
        return self.donors[condition] if isinstance(self.donors, dict) else self.donors


@dataclass(frozen=True, kw_only=True)
class Shift(StageSettings):
    """A shift of the composition in one condition."""

    section: ClassVar[str] = "shift"

    condition: Annotated[str, "Condition in which the proportions differ."]
    in_: Annotated[tuple[str, ...], MinLen(1), "Cell types, sub-populations or clades whose share differs."]
    log_odds: Annotated[
        float,
        Ge(-MAX_CHANGE),
        Le(MAX_CHANGE),
        "Natural logarithm of the factor by which their odds differ from the reference.",
    ]


@dataclass(frozen=True, kw_only=True)
class Composition(StageSettings):
    """Shares of the cell types in the samples."""

    section: ClassVar[str] = "composition"

    proportions: Annotated[
        Literal["learned"] | dict[str, Weight],
        "Share of each cell type or sub-population, which sum to 1; or `learned`, as in the training cells.",
    ] = LEARNED
    concentration: Annotated[
        Literal["learned", "none"] | Factor | None,
        "Concentration of the Dirichlet distribution of a donor's shares, smaller for donors that differ more: a "
        "number, `learned`, or `none` for donors with the same shares.",
        WHERE_LEARNED,
    ] = None
    shifts: Annotated[tuple[Shift, ...], "Shifts by condition; each is as below."] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.proportions, dict) and abs(sum(self.proportions.values()) - 1) > TOLERANCE:
            total = sum(self.proportions.values())
            raise InputError(f"proportions sum to {total:g}, but must sum to 1.")


@dataclass(frozen=True, kw_only=True)
class GeneChoice(StageSettings):
    """Genes, proteins and peaks by name, or sampled by their expression."""

    section: ClassVar[str] = "genes"

    names: Annotated[tuple[str, ...], "Names or symbols."] = ()
    n: Annotated[int | None, Ge(1), "Number of genes to sample.", Unset("none")] = None
    expression: Annotated[
        tuple[Quantile, ...],
        "Two quantiles of the expression in the cells that change, between which genes are sampled.",
        Unset("any expression"),
    ] = ()
    modality: Annotated[str | None, "Modality of which genes are sampled.", Unset("RNA")] = None

    @classmethod
    def expanded(cls, value: Any) -> Any:
        """Turn a list of genes into the section."""
        return {"names": value} if isinstance(value, str | list | tuple) else value

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names and (self.n is not None or self.expression or self.modality):
            raise InputError("give either names of genes or how to sample them, not both.")
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise InputError(f"the gene {twice} is named twice; name each gene once.")
        if self.expression and not (len(self.expression) == 2 and self.expression[0] < self.expression[1]):
            raise InputError("expression must be two quantiles between 0 and 1, the lower first, such as [0.2, 0.9].")


@dataclass(frozen=True, kw_only=True)
class FoldChange(StageSettings):
    """Log2 fold changes of genes: given, or drawn from a distribution."""

    section: ClassVar[str] = "log2_fold_change"

    values: Annotated[
        tuple[Annotated[float, Ge(-MAX_CHANGE), Le(MAX_CHANGE)], ...], "One for all genes, or one for each."
    ] = ()
    distribution: Annotated[Literal["normal"] | None, "`normal`.", Unset("given")] = None
    mean: Annotated[float, Ge(-MAX_CHANGE), Le(MAX_CHANGE), "Mean of the distribution."] = 1.0
    sd: Annotated[float, Ge(0), Le(MAX_CHANGE), "Standard deviation of the distribution."] = 0.3
    up: Annotated[float, Ge(0), Le(1), "Share of genes that keep the sign; the sign of the others is reversed."] = 1.0

    @classmethod
    def expanded(cls, value: Any) -> Any:
        """Turn a number or a list of numbers into the section."""
        if isinstance(value, list | tuple):
            return {"values": value}
        return value if isinstance(value, dict) else {"values": [value]}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values and self.distribution is not None:
            raise InputError("give log2 fold changes, or the `distribution` to draw them from, not both.")


@dataclass(frozen=True, kw_only=True)
class Change(StageSettings):
    """A change of expression that is planted."""

    section: ClassVar[str] = "change"

    name: Annotated[str, MinLen(1), "Name of the change, for the truth."]
    condition: Annotated[str | None, "Condition in which cells change.", Unset("all, as in a difference of types")] = (
        None
    )
    in_: In = ()
    genes: Annotated[GeneChoice, "Names, or `{n: 50, expression: [0.2, 0.9]}`."]
    log2_fold_change: Annotated[
        FoldChange, "One for all genes, one for each, or `{distribution: normal, mean: 1, sd: 0.3, up: 0.5}`."
    ]
    share: Annotated[float, Gt(0), Le(1), "Share of the cells that respond."] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.genes.names and self.genes.n is None:
            raise InputError("genes: give names, or a number `n` to sample.")
        if not self.log2_fold_change.values and self.log2_fold_change.distribution is None:
            raise InputError("log2_fold_change: give numbers, or the `distribution` to draw them from.")


@dataclass(frozen=True, kw_only=True)
class Depth(StageSettings):
    """Number of counts of a cell."""

    section: ClassVar[str] = "depth"

    factor: Annotated[Factor | dict[str, Factor], "Factor of all library sizes, or factors by condition."] = 1.0


@dataclass(frozen=True, kw_only=True)
class Doublets(StageSettings):
    """Droplets with two cells of the same sample."""

    section: ClassVar[str] = "doublets"

    rate: Annotated[float, Ge(0), Le(1), "Share of the cells that have a second cell in their droplet."] = 0.0
    within: Annotated[
        float | None,
        Ge(0),
        Le(1),
        "Share of the doublets whose cells are of one cell type.",
        Unset("as by chance, by the composition"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Ambient(StageSettings):
    """RNA in the droplets that is not of their cells."""

    section: ClassVar[str] = "ambient"

    share: Annotated[float, Ge(0), Lt(1), "Share of the counts of a cell that is ambient RNA."] = 0.0
    empty_counts: Annotated[
        int, Ge(0), "Counts in the empty droplets of each sample, which are ambient RNA alone; they are summed by gene."
    ] = 0


@dataclass(frozen=True, kw_only=True)
class PowerSettings(StageSettings):
    """The values of a grid, in all combinations, and how often each experiment is simulated and tested."""

    section: ClassVar[str] = "power"

    donors: Annotated[tuple[Annotated[int, Ge(2)], ...], "Donors in each condition, 2 or more.", AS_DESIGNED] = ()
    cells: Annotated[tuple[Number, ...], "Cells of each sample.", AS_DESIGNED] = ()
    depth: Annotated[tuple[Factor, ...], "Factors of the library sizes of the design.", AS_DESIGNED] = ()
    log2_fold_change: Annotated[
        tuple[Size, ...], "Sizes of the planted log2 fold changes, which keep their signs.", AS_DESIGNED
    ] = ()
    log_odds: Annotated[
        tuple[Size, ...], "Sizes of the shifts of the composition, which keep their signs.", AS_DESIGNED
    ] = ()
    n_repeats: Annotated[int, Ge(1), "Simulated experiments of each combination."] = 10
    methods: Annotated[
        tuple[Method, ...] | None,
        "Tests of expression: `deseq2`, `deseq2_t`, `t_test` or `wilcoxon`; none for the composition alone.",
        Unset(f"`deseq2`, or `deseq2_t` where any condition has fewer than {MIN_DONORS_OF_DESEQ2} donors"),
    ] = None
    fdr: Annotated[float, Gt(0), Lt(1), "False discovery rate below which a gene or a cell type is found."] = 0.05


@dataclass(frozen=True, kw_only=True)
class Design(StageSettings):
    """A designed experiment, as a design file describes it."""

    samples: Annotated[Samples, "The samples."] = field(default_factory=Samples)
    composition: Annotated[Composition, "The shares of cell types."] = field(default_factory=Composition)
    changes: Annotated[tuple[Change, ...], "The changes of expression to plant."] = ()
    depth: Annotated[Depth, "The number of counts."] = field(default_factory=Depth)
    doublets: Annotated[Doublets, "Droplets with two cells."] = field(default_factory=Doublets)
    ambient: Annotated[Ambient, "Ambient RNA."] = field(default_factory=Ambient)
    power: Annotated[PowerSettings, "The grid of a power analysis, for `bdm power`."] = field(
        default_factory=PowerSettings
    )
    expected: Annotated[bool, "Add the expected counts of each cell as a layer."] = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [change.name for change in self.changes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"two changes have the name {twice!r}; give each a name of its own.")
        if isinstance(self.samples.cells, dict):
            for key in ("proportions", "shifts"):
                if getattr(self.composition, key) != getattr(Composition, key):
                    raise InputError(
                        f"composition.{key} has no effect, as samples.cells has the numbers of each cell type; give "
                        "one number for all cells of a sample, or leave it out."
                    )
        reference = self.samples.conditions[0]
        differ = [(f"changes.{one.name}", one.condition) for one in self.changes if one.condition is not None]
        differ += [("composition.shifts", shift.condition) for shift in self.composition.shifts]
        factors = self.depth.factor if isinstance(self.depth.factor, dict) else {}
        for place, condition in [*differ, *(("depth.factor", name) for name in factors)]:
            if condition not in self.samples.conditions:
                known = ", ".join(self.samples.conditions)
                raise InputError(f"{place}: there is no condition {condition!r}; the conditions are {known}.")
            if condition == reference and place != "depth.factor":
                raise InputError(f"{place}: {reference!r} is the reference of all others; name one of these.")


def read_design(design: Design | dict[str, Any] | Path | str, *, seed: int | None = None) -> Design:
    """Read a design file, or a dictionary with the same content, and replace its seed if another is given."""
    if isinstance(design, str | Path):
        with reading(Path(design), "YAML"):
            try:
                content = yaml.safe_load(Path(design).read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from error
        with at(design):
            found = Design.of(content)
    else:
        found = Design.of(design, "design")
    return found if seed is None else replace(found, seed=seed)
