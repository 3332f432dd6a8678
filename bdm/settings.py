"""Settings of all stages, with type, default, bounds and help.

A setting with a help text is also an option of the command line (:mod:`bdm.commands.base`) and a key of the
configuration (`docs/config_schema.py`). A setting without help exists in Python only.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from bdm._core.errors import InputError
from bdm._core.kinds import DECODERS, PRIORS
from bdm._core.schema import Key, Setting, StageSettings, Unset
from bdm._core.validation import keys_rejection, split_rejection

AS_FITTED = Unset("as in the model's data")
WITHOUT_LABELS = "cell"  # the one cell type of cells without labels; the Cell Ontology's term for any cell, CL:0000000

# ---- options of single runs: seed, files, cell types

Seed = Annotated[int, Ge(0), "Seed of every random draw; the same seed gives the same results on the same machine."]
Labels = Annotated[
    Path | None,
    "Table (`.csv`, `.tsv`) with cell names first, whose other columns are added to `obs`.",
    Unset("no table"),
]
Tree = Annotated[
    Path | None,
    "Your own tree of cell types: nested lists in `.json`, or Newick in `.nwk`.",
    Unset("clustering of the cell types"),
]
NewTypes = Annotated[tuple[str, ...], "Cell types to add.", Unset("all that the model lacks")]
MissingAsZero = Annotated[bool, "Treat genes that the cells lack as not expressed."]
TargetType = Annotated[str, MinLen(1), "Cell type or sub-population to transmute to."]
DesignFile = Annotated[Path, "Design of the experiment (`.yaml`)."]
SourceTypes = Annotated[tuple[str, ...], "Cell types to transmute.", Unset("all others")]
Counts = Annotated[
    str,
    "Where the raw counts are: `X`, `raw`, the name of a layer, or `auto`: the first of layer `counts`, `raw` and `X` "
    "that holds counts.",
]
Relation = Literal["all", "tree", "distance", "none"]  # relations of cell types along which responses covary
PredictedCondition = Annotated[
    str, MinLen(1), "Condition to change control cells to, or the control, to change other cells back."
]
PredictedTypes = Annotated[tuple[str, ...], "Cell types to change.", Unset("all that the cells have")]
LineageRelation = Literal["all", "lineage", "time", "none"]  # relations of places along which expression covaries
LineageTreeFile = Annotated[
    Path | None, "Lineage tree in Newick, whose nodes have names.", Unset("that of the lineage names")
]
LineageNode = Annotated[str, MinLen(1), "Node of the lineage whose cells are reconstructed."]
LineageTime = Annotated[
    str | None,
    MinLen(1),
    "Time, such as 350, or a range, such as 300:400, in a lineage with times.",
    Unset("when the node exists, as far as that is between samples"),
]
ExtrapolateLineage = Annotated[
    bool, "Reconstruct cells, too, that samples of their lineage are not both before and after."
]
License = Annotated[str | None, MinLen(1), "License of the data, such as `cc-by-4.0`.", Unset("not stated")]
Source = Annotated[str | None, MinLen(1), "Where the data are from: study, accession, consent.", Unset("not stated")]
Contact = Annotated[str | None, MinLen(1), "Who answers questions on the data, with an address.", Unset("not stated")]
LearningRate = Annotated[float, Gt(0), "Highest learning rate; choose a lower one if training diverges."]


@dataclass(frozen=True, kw_only=True)
class InputKeys(StageSettings):
    """Columns and slot of counts of an AnnData; None: as in the data of the fit."""

    label_key: Annotated[str | None, "Column of `obs` with the cell type.", AS_FITTED] = None
    batch_key: Annotated[str | None, "Column of `obs` with the batch.", AS_FITTED] = None
    counts: Annotated[
        str | None, "Where the raw counts are: `X`, `raw`, the name of a layer, or `auto`.", AS_FITTED
    ] = None


# ---- stages


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(StageSettings):
    """Settings of the selection of cells and genes, and of the split.

    In Python, ``genes`` and ``keep_genes`` also accept names of genes. Effective donors are defined in
    :func:`bdm.data.filters.effective_donors`. The default of ``test`` is 0 in Python and on the command line, and 0.2
    in the workflow.
    """

    section: ClassVar[str] = "prepare"

    label_key: Annotated[
        str | None,
        MinLen(1),
        "Column of `obs` with the cell type.",
        Unset(f"no labels; all cells are of one type, `{WITHOUT_LABELS}`, whose sub-populations are found"),
        Key("dataset"),
    ] = "cell_type"
    batch_key: Annotated[str | None, "Column of `obs` with the batch.", Unset("no batches"), Key("dataset")] = None
    donor_key: Annotated[str | None, "Column of `obs` with the donor.", Unset("no donors"), Key("dataset")] = None
    covariate_key: Annotated[
        tuple[Annotated[str, MinLen(1)], ...],
        "Column of `obs` with a number that cells depend on, such as time, dose, age or pseudotime.",
        Unset("no covariates"),
        Key("dataset"),
    ] = ()
    counts: Annotated[Counts, Key("dataset")] = "auto"
    leave_out: Annotated[tuple[str, ...], "Cell types to leave out."] = ()
    drop_unlabelled: Annotated[bool, "Leave out cells without a cell type, which are an error otherwise."] = False
    genes: Annotated[
        str | Path | tuple[str, ...],
        "`seurat_v3` (the most variable genes), `all`, or a text file with one gene a line, by name or symbol.",
    ] = "seurat_v3"
    n_genes: Annotated[int, Ge(1), "Number of most variable genes."] = 2000
    keep_genes: Annotated[
        str | Path | tuple[str, ...] | None,
        "Genes to add to the most variable ones: a text file with one gene a line, or `markers`, the built-in markers "
        "that the data have.",
        Unset("no others"),
    ] = None
    n_peaks: Annotated[int, Ge(1), "Number of peaks, if there are any: those in most training cells."] = 20_000
    modality: Annotated[
        tuple[str, ...],
        "Modality to use, as `NAME=KIND`, where KIND is `rna`, `prot` or `atac`.",
        Unset("all whose names are known"),
        Key("dataset"),
    ] = ()
    intersect: Annotated[
        bool, "Use the cells that all modalities have, where these are of different cells.", Key("dataset")
    ] = False
    gene_symbols: Annotated[
        str | None,
        "Column of `var` with gene symbols, where genes have other names.",
        Unset("a guess: `feature_name`, `gene_symbols`, `gene_name` or `symbol`"),
    ] = None
    clip_outliers: Annotated[
        bool, "Lower single counts that are far above all others of a gene in a cell type, before genes are ranked."
    ] = False
    min_genes_per_cell: Annotated[int, Ge(0), "Leave out cells with counts of fewer genes."] = 0
    min_cells_per_gene: Annotated[int, Ge(0), "Leave out genes in fewer training cells."] = 3
    min_cells_per_type: Annotated[
        int,
        Ge(1),
        "Leave out cell types of fewer cells.",
        Key(bounds=(Ge(3),)),  # one cell per part of the split; the workflow has three
    ] = 10
    min_donors: Annotated[
        int, Ge(1), "Leave out cell types, and form no sub-populations, of cells of fewer effective donors."
    ] = 1
    validation: Annotated[
        float, Ge(0), Lt(1), "Fraction of cells that choose the best training step.", Key(bounds=(Gt(0), Lt(1)))
    ] = 0.1
    test: Annotated[
        float,
        Ge(0),
        Lt(1),
        "Fraction of cells that are held out, for the evaluation of generated cells.",
        Key(bounds=(Gt(0), Lt(1)), default=0.2),
    ] = 0.0
    license: Annotated[License, Key("dataset")] = None
    seed: Annotated[Seed, Key(absent=True)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        n_splits = 1 + (self.validation > 0) + (self.test > 0)
        Setting("min_cells_per_type", Annotated[int, Ge(n_splits)]).checked(self.min_cells_per_type)
        groups = {"label_key": self.label_key, "batch_key": self.batch_key, "donor_key": self.donor_key}
        keys = keys_rejection(*groups.items(), *(("covariate_key", key) for key in self.covariate_key))
        if sentence := keys or split_rejection(self.validation, self.test):
            raise InputError(sentence)

    @property
    def reading(self) -> dict[str, Any]:
        """Keyword arguments of :func:`bdm.data.read.read_cells`."""
        return {name: getattr(self, name) for name in ("modality", "intersect", "counts")}


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(StageSettings):
    """Settings of the count autoencoder."""

    section: ClassVar[str] = "autoencoder"

    n_latent: Annotated[int, Ge(1), "Dimensions of the latent space."] = 30
    likelihood: Annotated[
        str, DECODERS, "Distribution of counts: `negative_binomial`, or that of a decoder of your own."
    ] = "negative_binomial"
    loading_scale: Annotated[
        float, Gt(0), "How far a latent dimension is expected to change a gene's log expression; less is smoother."
    ] = 0.1
    n_steps: Annotated[int, Ge(1), "Maximum number of training steps of the autoencoder."] = 400
    batch_size: Annotated[int, Ge(1)] = 256
    learning_rate: LearningRate = 1e-2
    sub_populations: Annotated[
        Literal["auto", "none"] | Annotated[int, Ge(1)],
        "Sub-populations of each cell type: `auto` (as many as held-out cells support), `none`, or a number.",
    ] = "auto"
    min_cells_per_sub_population: Annotated[int, Ge(2), "Fewest cells of a sub-population."] = 30
    shared_decoder: Annotated[
        bool,
        "One decoder for all cell types, also for those whose validation cells a type-specific decoder fits better.",
    ] = False


@dataclass(frozen=True, kw_only=True)
class HierarchySettings(StageSettings):
    """Settings of the hierarchy of cell types."""

    section: ClassVar[str] = "hierarchy"

    threshold: Annotated[
        float, Gt(0.5), Lt(1), "AUC of the best classifier of two cell types at the noise level where they branch."
    ] = 0.9
    flat: Annotated[bool, "No tree: every cell type has a separate branch.", Key(absent=True)] = False
    n_bootstrap: Annotated[int, Ge(0), "Resamples of the cells, for the support of each branch."] = 100


@dataclass(frozen=True, kw_only=True)
class TrainSettings(StageSettings):
    """Settings of the prior over latents, and of the training of its network.

    Attributes
    ----------
    averaging
        Decay of the exponential moving average of weights per training step.
    """

    section: ClassVar[str] = "train"

    prior: Annotated[
        str,
        PRIORS,
        "Distribution of latents: `mixture` (a normal of each population, in closed form), `diffusion` (with a network "
        "on the branches where it gains), `flow` (flow matching), or one of your own.",
    ] = "mixture"
    width: Annotated[int, Ge(1), "Width of the network of the prior."] = 128
    n_layers: Annotated[int, Ge(1), "Residual blocks of the network of the prior."] = 3
    n_steps: Annotated[int, Ge(1), "Most training steps of the network of the prior."] = 3000
    batch_size: Annotated[int, Ge(1)] = 256
    learning_rate: LearningRate = 2e-3
    averaging: Annotated[float, Ge(0), Lt(1)] = 0.998


@dataclass(frozen=True, kw_only=True)
class FitSettings(StageSettings):
    """Settings of all stages from prepared cells to the model."""

    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    hierarchy: HierarchySettings = field(default_factory=HierarchySettings)
    train: TrainSettings = field(default_factory=TrainSettings)


@dataclass(frozen=True, kw_only=True)
class Settings(FitSettings):
    """Settings of every stage from raw counts to the model."""

    prepare: PrepareSettings = field(default_factory=PrepareSettings)


@dataclass(frozen=True, kw_only=True)
class SamplerSettings(StageSettings):
    """Settings of sampling, with one evaluation of the denoiser per noise level."""

    n_levels: Annotated[int, Ge(2), "Noise levels between pure noise and a cell, on branches with a network."] = 12


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(SamplerSettings):
    """Settings of generation."""

    section: ClassVar[str] = "generate"

    shared_ancestors: Annotated[
        bool,
        "Let cell i of every population (`ancestor` in `obs`) descend from the same sample at the root.",
    ] = False


@dataclass(frozen=True, kw_only=True)
class TransmutationSettings(SamplerSettings):
    """Settings of transmutation."""

    section: ClassVar[str] = "transmute"


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(StageSettings):
    """Settings of the evaluation of generated cells."""

    section: ClassVar[str] = "evaluate"

    n_repeats: Annotated[
        int, Ge(1), "Maximum number of resamples over which scores are averaged; of 2,000 test cells, one."
    ] = 3
    max_cells_per_type: Annotated[int, Ge(5), "Maximum number of cells of a type that are compared at a time."] = 500


@dataclass(frozen=True, kw_only=True)
class PredictedEvaluationSettings(StageSettings):
    """Settings of the evaluation of cells predicted in a condition."""

    section: ClassVar[str] = "evaluate_predicted"

    label_key: Annotated[
        str | None, MinLen(1), "Column of `obs` with the cell type.", Unset("all cells are of one type")
    ] = None
    n_top_genes: Annotated[
        int, Ge(2), "Number of genes that the condition changes most, by t-statistics, which are scored apart."
    ] = 100
    n_repeats: Annotated[
        int, Ge(1), "Number of random halves of the real cells to compare with, over which scores are averaged."
    ] = 5
    max_cells_per_type: Annotated[int, Ge(5), "Maximum number of cells of a type that are compared at a time."] = 500


@dataclass(frozen=True, kw_only=True)
class InterpretationSettings(StageSettings):
    """Settings of an interpretation.

    Attributes
    ----------
    n_cells
        Number of sampled cells per branch, for the expression that the model expects.
    n_markers
        Number of markers per cell type.
    """

    section: ClassVar[str] = "interpret"

    n_genes: Annotated[int, Ge(1), "Top genes of each branch that are listed and compared."] = 20
    n_cells: Annotated[int, Ge(1)] = 500
    n_markers: Annotated[int, Ge(1)] = 3


@dataclass(frozen=True, kw_only=True)
class ResponseSettings(StageSettings):
    """Settings of responses of cell types to conditions."""

    section: ClassVar[str] = "respond"

    label_key: Annotated[str, MinLen(1), "Column of `obs` with the cell type.", Key(absent=True)] = "cell_type"
    condition_key: Annotated[
        tuple[str, ...], MinLen(1), "Column of `obs` with the condition; the values of several are combined."
    ] = ("condition",)
    control: Annotated[
        str | None, MinLen(1), "Condition that others are compared with.", Unset("the one named `control` or the like")
    ] = None
    donor_key: Annotated[
        str | None,
        "Column of `obs` with the donor, whose variation is the error of a response.",
        Unset("no donors"),
        Key(absent=True),
    ] = None
    counts: Annotated[Counts, Key(absent=True)] = "auto"
    min_cells: Annotated[int, Ge(2), "Fewest cells of a type in a condition whose response is measured."] = 10
    relations: Annotated[
        Relation,
        "What responses of cell types covary along: their `tree`, the `distance` of their profiles, `all`, or `none`.",
    ] = "all"


@dataclass(frozen=True, kw_only=True)
class LineageSettings(StageSettings):
    """Settings of expression along a lineage."""

    section: ClassVar[str] = "lineage"

    label_key: Annotated[str, MinLen(1), "Column of `obs` with the cell type.", Key(absent=True)] = "cell_type"
    lineage_key: Annotated[
        str | None,
        MinLen(1),
        "Column of `obs` with lineage names, such as ABpla, in which an ancestor is the beginning of a name.",
        Unset("the nodes are the cell types, and a tree is given"),
    ] = None
    time_key: Annotated[str | None, MinLen(1), "Column of `obs` with the time.", Unset("branch lengths count")] = None
    counts: Annotated[Counts, Key(absent=True)] = "auto"
    n_times: Annotated[int, Ge(2), "Number of time bins, if the cells have more times."] = 15
    min_cells: Annotated[int, Ge(2), "Fewest cells of a node, with times in a bin, whose expression is measured."] = 5
    relations: Annotated[
        LineageRelation, "What expression covaries along: the `lineage`, `time`, `all`, or `none`."
    ] = "all"


@dataclass(frozen=True, kw_only=True)
class AuditSettings(StageSettings):
    """Settings of a privacy audit."""

    section: ClassVar[str] = "audit"

    n_folds: Annotated[int, Ge(1), "Number of divisions into members, reference and non-members."] = 3
    cells_only: Annotated[
        bool, "Attack the generated cells only, and not the model, too, which takes the fit of a second model."
    ] = False
    cells_per_training_cell: Annotated[
        float, Gt(0), "Number of generated cells for each training cell of a fold: as many as you will share."
    ] = 1.0
    donor_key: Annotated[
        str | None,
        "Column of `obs` with the donor.",
        Unset("the donors of bdm prepare, or else a column `donor`; without any, cells are audited"),
        Key(absent=True),
    ] = None
    by_cell: Annotated[bool, "Audit cells, although there are donors.", Key(absent=True)] = False
