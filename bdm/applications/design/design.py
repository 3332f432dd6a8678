"""Sections of design files as dataclasses, with bounds and help of their keys."""

import logging
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen

from bdm._core.errors import InputError, abbreviated, error_prefix
from bdm._core.files import reading
from bdm._core.schema import StageSettings, Unset, settings_of
from bdm.generation.covariate_values import CovariateValues, range_of

logger = logging.getLogger(__name__)

LEARNED: Literal["learned"] = "learned"
NONE: Literal["none"] = "none"
DEFAULT_LEARNED = Unset("learned if the model has learned donors, otherwise none")
AS_DESIGNED = Unset("as in the design")
SUM_TOLERANCE = 1e-6  # of proportions
MAX_CHANGE = 20  # of log2 fold changes and log odds, to avoid overflow
AXES = ("donors", "cells", "depth", "log2_fold_change", "log_odds")  # of the grid of a power analysis
MIN_DONORS_OF_DESEQ2 = 12  # per condition; with fewer, its normal approximation inflates false discoveries
MAX_VARIATION = 5  # standard deviation of log expression

Number = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Weight = Annotated[float, Ge(0)]
Factor = Annotated[float, Gt(0)]
Quantile = Annotated[float, Ge(0), Le(1)]
Size = Annotated[float, Ge(0), Le(MAX_CHANGE)]
Method = Literal["deseq2", "deseq2_t", "t_test", "wilcoxon"]


@dataclass(frozen=True, kw_only=True)
class Samples(StageSettings):
    """Samples: donors, conditions and numbers of cells."""

    donors: Annotated[Number | dict[str, Number], "Donors in each condition, or numbers by condition."] = 1
    paired: Annotated[bool, "Every donor has a sample in every condition."] = False
    conditions: Annotated[tuple[str, ...], "Names of the conditions; the first is the reference."] = ("control",)
    cells: Annotated[
        Literal["learned"] | Count | dict[str, Count],
        "Cells per sample: a number, `learned` (as many as donors of the data have), or exact numbers by cell type.",
    ] = 500
    variation: Annotated[
        Literal["learned", "none"] | Annotated[float, Ge(0), Le(MAX_VARIATION)] | None,
        "Differences between donors: `learned`, `none`, or the standard deviation of natural log expression between "
        "donors. It is independent for each gene; cell types share half of the variance.",
        DEFAULT_LEARNED,
    ] = None
    batches: Annotated[
        tuple[str, ...] | dict[str, str | tuple[str, ...]] | None,
        "Batches of the model, evenly over the samples of each condition: a name, a list of names, or either by "
        "condition or sample.",
        Unset("about as frequent in each condition as in training cells"),
    ] = None
    covariates: Annotated[
        dict[str, Any] | None,
        "Covariates of the model, by name: a number or a range such as `[300, 400]`, or either by condition or sample, "
        "as in `{time: {control: 350, treated: [400, 450]}}`.",
        Unset("as in training cells"),
    ] = None
    extrapolate: Annotated[bool, "Allow covariates outside the range of a type's training cells."] = False
    positions: Annotated[bool, "Give cells positions where the map of the model has their populations."] = False
    section_: Annotated[
        str | dict[str, str] | None,
        "Tissue section of the cells, with `positions`: a name, or names by condition or sample.",
        Unset("drawn for each sample, in proportion to training cells"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.conditions:
            raise InputError("conditions is empty; name at least one condition.")
        if len(set(self.conditions)) < len(self.conditions):
            raise InputError("conditions has the same name twice; give each condition its own name.")
        known = ", ".join(self.conditions)
        if isinstance(self.donors, dict):
            for name in [*self.donors, *self.conditions]:
                if name not in self.conditions:
                    raise InputError(f"donors: there is no condition {name!r}; the conditions are {known}.")
                if name not in self.donors:
                    raise InputError(f"donors has no number for the condition {name!r}; add one.")
            if self.paired and len(set(self.donors.values())) > 1:
                raise InputError("paired donors have samples in every condition; give one number of donors.")
        if self.cells == 0 or (isinstance(self.cells, dict) and not sum(self.cells.values())):
            raise InputError("cells sum to 0; give at least one cell of one type.")
        if self.section_ is not None and not self.positions:
            raise InputError("section has no effect without positions; add `positions: true`, or leave it out.")
        covariates = {f"covariates.{name}": setting for name, setting in (self.covariates or {}).items()}
        for place, setting in {"section": self.section_, "batches": self.batches, **covariates}.items():
            for key in setting if isinstance(setting, dict) else ():
                if key not in (*self.conditions, *self.names):
                    raise InputError(f"{place}: there is no condition or sample {key!r}; the conditions are {known}.")
        for place, setting in covariates.items():
            for value in setting.values() if isinstance(setting, dict) else [setting]:
                range_of(place, value)

    @property
    def names(self) -> list[str]:
        """Names of the samples, ordered by condition, then donor."""
        return [f"sample-{number + 1}" for number in range(sum(map(self.donors_in, self.conditions)))]

    def values_in(self, condition: str, sample: str) -> CovariateValues:
        """Return the covariates of a sample of a condition."""
        values = {}
        for name, setting in (self.covariates or {}).items():
            if (value := value_in(setting, condition, sample)) is not None:
                values[name] = range_of(name, value)
        return values

    def section_in(self, condition: str, sample: str) -> str | None:
        """Return the tissue section of a sample of a condition; None to draw it."""
        name: str | None = value_in(self.section_, condition, sample)
        return name

    def batches_in(self, condition: str, sample: str) -> tuple[str, ...]:
        """Return the batches to draw the batch of a sample from; empty for those of training cells."""
        names = value_in(self.batches, condition, sample)
        return (names,) if isinstance(names, str) else tuple(names or ())

    def donors_in(self, condition: str) -> int:
        """Return the number of donors in a condition."""
        return self.donors[condition] if isinstance(self.donors, dict) else self.donors


def value_in(setting: Any, condition: str, sample: str) -> Any:
    """Return the value of a setting in a sample of a condition; None if it has none."""
    return setting.get(sample, setting.get(condition)) if isinstance(setting, dict) else setting


@dataclass(frozen=True, kw_only=True)
class Shift(StageSettings):
    """Shift of the composition in a condition."""

    condition: Annotated[str, "Condition with other proportions."]
    in_: Annotated[tuple[str, ...], MinLen(1), "Cell types, sub-populations or clades to shift."]
    log_odds: Annotated[float, Ge(-MAX_CHANGE), Le(MAX_CHANGE), "Natural log odds ratio to the reference."]


@dataclass(frozen=True, kw_only=True)
class Composition(StageSettings):
    """Proportions of cell types in the samples."""

    proportions: Annotated[
        Literal["learned"] | dict[str, Weight],
        "Proportions of cell types or sub-populations, which sum to 1; or `learned` (as in training cells).",
    ] = LEARNED
    concentration: Annotated[
        Literal["learned", "none"] | Factor | None,
        "Dirichlet concentration of the donors' proportions, smaller if donors differ more: a number, `learned`, or "
        "`none` for equal donors.",
        DEFAULT_LEARNED,
    ] = None
    shifts: Annotated[tuple[Shift, ...], "Shifts of the composition, by condition."] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.proportions, dict) and abs(sum(self.proportions.values()) - 1) > SUM_TOLERANCE:
            total = sum(self.proportions.values())
            raise InputError(f"proportions sum to {total:g}, but must sum to 1.")


@dataclass(frozen=True, kw_only=True)
class GeneChoice(StageSettings):
    """Genes, proteins or peaks, by name or sampled by expression."""

    names: Annotated[tuple[str, ...], "Names or symbols."] = ()
    n: Annotated[int | None, Ge(1), "Number of genes to sample.", Unset("none")] = None
    expression: Annotated[
        tuple[Quantile, ...],
        "Range of expression to sample genes from: two quantiles, in the cells that change.",
        Unset("any expression"),
    ] = ()
    modality: Annotated[str | None, "Modality to sample genes from.", Unset("RNA")] = None

    @classmethod
    def expanded(cls, value: Any) -> Any:
        """Convert a list of genes to the section."""
        return {"names": value} if isinstance(value, str | list | tuple) else value

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names and (self.n is not None or self.expression or self.modality):
            raise InputError("give either names of genes or how to sample them, not both.")
        if duplicate := next((name for name in self.names if self.names.count(name) > 1), None):
            raise InputError(f"the gene {duplicate} is named twice; name each gene once.")
        if self.expression and not (len(self.expression) == 2 and self.expression[0] < self.expression[1]):
            raise InputError("expression must be two quantiles between 0 and 1, the lower first, such as [0.2, 0.9].")


@dataclass(frozen=True, kw_only=True)
class FoldChange(StageSettings):
    """Log2 fold changes: values, or a distribution to sample from."""

    values: Annotated[
        tuple[Annotated[float, Ge(-MAX_CHANGE), Le(MAX_CHANGE)], ...], "One value for all genes, or one per gene."
    ] = ()
    distribution: Annotated[Literal["normal"] | None, "`normal`, to sample fold changes.", Unset("values")] = None
    mean: Annotated[float, Ge(-MAX_CHANGE), Le(MAX_CHANGE), "Mean of the distribution."] = 1.0
    sd: Annotated[float, Ge(0), Le(MAX_CHANGE), "Standard deviation of the distribution."] = 0.3
    up: Annotated[float, Ge(0), Le(1), "Fraction of genes that keep the sign; the others are reversed."] = 1.0

    @classmethod
    def expanded(cls, value: Any) -> Any:
        """Convert a number or a list of numbers to the section."""
        if isinstance(value, list | tuple):
            return {"values": value}
        return value if isinstance(value, dict) else {"values": [value]}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values and self.distribution is not None:
            raise InputError("give log2 fold changes, or the `distribution` to sample them from, not both.")


@dataclass(frozen=True, kw_only=True)
class Change(StageSettings):
    """Planted change of expression."""

    name: Annotated[str, MinLen(1), "Name of the change in the truth."]
    condition: Annotated[str | None, "Condition with the change.", Unset("all, for differences between cell types")] = (
        None
    )
    in_: Annotated[tuple[str, ...], "Cell types, sub-populations, or clades of the tree, by name.", Unset("all")] = ()
    genes: Annotated[GeneChoice, "Names, or `{n: 50, expression: [0.2, 0.9]}`."]
    log2_fold_change: Annotated[
        FoldChange, "A value, a value per gene, or `{distribution: normal, mean: 1, sd: 0.3, up: 0.5}`."
    ]
    share: Annotated[float, Gt(0), Le(1), "Fraction of cells that respond."] = 1.0
    region: Annotated[
        dict[str, tuple[float, ...]] | None,
        "Region of the cells that change, such as `{x: [0, 500], y: [200, 400]}`, in units of the coordinates.",
        Unset("the whole tissue"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for axis, ends in (self.region or {}).items():
            if len(ends) != 2 or ends[0] > ends[1]:
                raise InputError(f"region.{axis} is {list(ends)}, but must be two numbers, the lower first.")
        if not self.genes.names and self.genes.n is None:
            raise InputError("genes: give names, or a number `n` to sample.")
        if not self.log2_fold_change.values and self.log2_fold_change.distribution is None:
            raise InputError("log2_fold_change: give numbers, or the `distribution` to sample them from.")

    @property
    def region_text(self) -> str:
        """Region in words; empty for the whole tissue."""
        return ", ".join(f"{axis} {low:g} to {high:g}" for axis, (low, high) in (self.region or {}).items())


@dataclass(frozen=True, kw_only=True)
class Depth(StageSettings):
    """Sequencing depth."""

    factor: Annotated[Factor | dict[str, Factor], "Factor of library sizes, or factors by condition."] = 1.0


@dataclass(frozen=True, kw_only=True)
class Doublets(StageSettings):
    """Droplets with two cells of the same sample."""

    rate: Annotated[float, Ge(0), Le(1), "Fraction of droplets with a second cell."] = 0.0
    within: Annotated[
        float | None,
        Ge(0),
        Le(1),
        "Fraction of doublets with both cells of the same type.",
        Unset("by chance"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Ambient(StageSettings):
    """Ambient RNA in the droplets."""

    share: Annotated[float, Ge(0), Lt(1), "Fraction of a cell's counts from ambient RNA."] = 0.0
    empty_counts: Annotated[
        int, Ge(0), "Total counts of the empty droplets of each sample, which contain ambient RNA alone."
    ] = 0


@dataclass(frozen=True, kw_only=True)
class PowerSettings(StageSettings):
    """Grid of experiments to simulate and test; all combinations of the values."""

    donors: Annotated[tuple[Annotated[int, Ge(2)], ...], "Donors in each condition, 2 or more.", AS_DESIGNED] = ()
    cells: Annotated[tuple[Number, ...], "Cells per sample.", AS_DESIGNED] = ()
    depth: Annotated[tuple[Factor, ...], "Factors of library sizes, relative to the design.", AS_DESIGNED] = ()
    log2_fold_change: Annotated[
        tuple[Size, ...], "Absolute log2 fold changes; signs are as in the design.", AS_DESIGNED
    ] = ()
    log_odds: Annotated[
        tuple[Size, ...], "Absolute shifts of the composition; signs are as in the design.", AS_DESIGNED
    ] = ()
    n_repeats: Annotated[int, Ge(1), "Simulated experiments per combination."] = 10
    methods: Annotated[
        tuple[Method, ...] | None,
        "Tests of expression: `deseq2`, `deseq2_t`, `t_test` or `wilcoxon`; empty to test the composition alone.",
        Unset(f"`deseq2`, or `deseq2_t` if a condition has fewer than {MIN_DONORS_OF_DESEQ2} donors"),
    ] = None
    fdr: Annotated[float, Gt(0), Lt(1), "False discovery rate of significant genes and cell types."] = 0.05


@dataclass(frozen=True, kw_only=True)
class Design(StageSettings):
    """Designed experiment: the content of a design file."""

    samples: Annotated[Samples, "Samples."] = field(default_factory=Samples)
    composition: Annotated[Composition, "Proportions of cell types."] = field(default_factory=Composition)
    changes: Annotated[tuple[Change, ...], "Changes of expression to plant."] = ()
    depth: Annotated[Depth, "Sequencing depth."] = field(default_factory=Depth)
    doublets: Annotated[Doublets, "Droplets with two cells."] = field(default_factory=Doublets)
    ambient: Annotated[Ambient, "Ambient RNA."] = field(default_factory=Ambient)
    power: Annotated[PowerSettings, "Grid of a power analysis, for `bdm power`."] = field(default_factory=PowerSettings)
    expected: Annotated[bool, "Add expected counts as a layer."] = False
    seed: Annotated[int, Ge(0), Lt(2**63), "Seed of every random draw."] = 0  # as derived for repeats of `bdm power`

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [change.name for change in self.changes]
        if duplicate := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"two changes have the name {duplicate!r}; give each its own name.")
        if isinstance(self.samples.cells, dict):
            for key in ("proportions", "shifts"):
                if getattr(self.composition, key) != getattr(Composition, key):
                    raise InputError(
                        f"composition.{key} has no effect, as samples.cells has exact numbers by cell type; give one "
                        "number of cells per sample, or leave it out."
                    )
        for change in self.changes:
            if change.region and not self.samples.positions:
                raise InputError(
                    f"changes.{change.name}.region needs cells with positions; add `positions: true` to samples."
                )
        reference = self.samples.conditions[0]
        places = [
            (f"changes.{change.name}", change.condition) for change in self.changes if change.condition is not None
        ]
        places += [("composition.shifts", shift.condition) for shift in self.composition.shifts]
        factors = self.depth.factor if isinstance(self.depth.factor, dict) else {}
        for place, condition in [*places, *(("depth.factor", name) for name in factors)]:
            if condition not in self.samples.conditions:
                known = ", ".join(self.samples.conditions)
                raise InputError(f"{place}: there is no condition {condition!r}; the conditions are {known}.")
            if condition == reference and place != "depth.factor":
                raise InputError(f"{place}: {reference!r} is the reference condition; name another condition.")


def described_keys(section: type[StageSettings] = Design, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the keys of a design, such as ``samples.donors``, with their meanings and defaults."""
    for setting in settings_of(section):
        key, default = f"{prefix}{setting.public_name}", setting.default
        if setting.unset or default is MISSING:
            yield key, setting.help or "", setting.unset or "required"
        elif not isinstance(default, type):
            value = list(default) if isinstance(default, tuple) else default
            text = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
            yield key, setting.help or "", f"`{text}`"
        if setting.nested is not None:
            yield from described_keys(setting.nested, f"{key}[]." if tuple in setting.types else f"{key}.")


def keys_in_words() -> str:
    """List the keys of a design for a help text."""
    rows = (f"{key}: {text} [{default}]" for key, text, default in described_keys())
    return "\n".join(textwrap.fill(row, 108, subsequent_indent="    ") for row in rows)


def read_design(design: Design | dict[str, Any] | Path | str, *, seed: int | None = None) -> Design:
    """Read a design from a YAML file or dictionary.

    Parameters
    ----------
    design
        Path of a design file, a dictionary with the same content, or a design.
    seed
        Seed that replaces the design's.

    Raises
    ------
    InputError
        If the file cannot be read, or a key or value is invalid.
    """
    if isinstance(design, str | Path):
        with reading(Path(design), "YAML"):
            try:
                content = yaml.safe_load(Path(design).read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from error
        with error_prefix(design):
            parsed = Design.from_content(content)
    else:
        parsed = Design.from_content(design, "design")
    if not isinstance(design, Design):  # once, although a power analysis compiles many designs
        warn_of_confounding(parsed.samples)
    return parsed if seed is None else replace(parsed, seed=seed)


def warn_of_confounding(samples: Samples) -> None:
    """Warn of conditions that share no designed batch with the reference."""
    names = iter(samples.names)
    batches: dict[str, dict[str, None]] = {}
    for condition in samples.conditions:
        by_sample = [samples.batches_in(condition, next(names)) for _ in range(samples.donors_in(condition))]
        # Empty for batches of training cells, which all conditions can have
        batches[condition] = {} if () in by_sample else dict.fromkeys(chain.from_iterable(by_sample))
    (reference, expected), *others = batches.items()
    confounded = [(name, own) for name, own in others if own and expected and own.keys().isdisjoint(expected)]
    if confounded:
        logger.warning(
            "Effects of batch and condition cannot be told apart, as conditions share no batch: %s.",
            ", ".join(f"{name} ({abbreviated([*own])})" for name, own in [(reference, expected), *confounded]),
        )
