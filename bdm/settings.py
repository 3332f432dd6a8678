"""Settings of all stages, with type, default, bounds and help.

A setting with a help text is also an option of the command line (:mod:`bdm.commands.base`) and a key of the
configuration (`docs/config_schema.py`). A setting without help exists in Python only.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from bdm._core.errors import InputError
from bdm._core.schema import Key, Kinds, Setting, StageSettings, Unset
from bdm._core.validation import keys_rejection, section_rejection, split_rejection

AS_FITTED = Unset("as in the model's data")
WITHOUT_LABELS = "cell"  # cell type of cells without labels: the Cell Ontology's term for any cell, CL:0000000

PRIORS = Kinds(
    "prior",
    "bdm.priors",
    {
        "mixture": "bdm.prior.mixture",
        "diffusion": "bdm.prior.diffusion",
    },
)

EFFECTS = Kinds(
    "effect",
    "bdm.effects",
    {
        "batches": "bdm.effects.batches",
        "covariates": "bdm.effects.covariates",
        "positions": "bdm.effects.space",
        "donors": "bdm.effects.donors",
    },
)

DECODERS = Kinds("decoder", "bdm.decoders", {"negative_binomial": "bdm.autoencoder.decoder"})

# ---- types of settings that several stages have

Seed = Annotated[int, Ge(0), Lt(2**32), "Random seed; the same seed gives the same results on the same machine."]
Samples = Annotated[int, Ge(20), "Samples of each cell, from which the interval is computed."]
Counts = Annotated[
    str,
    "Slot of the raw counts: `X`, `raw`, the name of a layer, or `auto` (the first of layer `counts`, `raw` and `X` "
    "with raw counts).",
]
License = Annotated[str | None, MinLen(1), "License of the data, such as `cc-by-4.0`.", Unset("not stated")]
LearningRate = Annotated[float, Gt(0), "Maximum learning rate; lower it if training diverges."]


@dataclass(frozen=True, kw_only=True)
class InputKeys(StageSettings):
    """Columns and slot of counts of an AnnData.

    None: as in the data of the fit.
    """

    label_key: Annotated[str | None, "Column of `obs` with the cell type.", AS_FITTED] = None
    batch_key: Annotated[str | None, "Column of `obs` with the batch.", AS_FITTED] = None
    counts: Annotated[str | None, "Slot of raw counts: `X`, `raw`, the name of a layer, or `auto`.", AS_FITTED] = None


# ---- stages


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(StageSettings):
    """Settings of the selection of cells and genes, and of the split.

    In Python, ``genes`` and ``keep_genes`` also accept names of genes. Effective donors are defined in
    :func:`bdm.data.filters.effective_donors`. The default of ``test`` is 0 in Python and on the command line, and 0.2
    in the workflow.
    """

    label_key: Annotated[
        str | None,
        MinLen(1),
        "Column of `obs` with the cell type.",
        Unset(f"no labels; all cells have the type `{WITHOUT_LABELS}`, divided into sub-populations"),
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
    spatial_key: Annotated[
        str | None,
        MinLen(1),
        "Key of `obsm` with the positions of cells or spots, in two or three coordinates.",
        Unset("no positions"),
        Key("dataset"),
    ] = None
    section_key: Annotated[
        str | None,
        MinLen(1),
        "Column of `obs` with the tissue section; sections have separate coordinates.",
        Unset("one section"),
        Key("dataset"),
    ] = None
    counts: Annotated[Counts, Key("dataset")] = "auto"
    leave_out: Annotated[tuple[str, ...], "Cell types to leave out."] = ()
    drop_unlabelled: Annotated[bool, "Leave out cells without a cell type; by default, they are an error."] = False
    genes: Annotated[
        str | Path | tuple[str, ...],
        "Genes that the latent is from: `seurat_v3` (the most variable), `all`, or a text file with a gene per line.",
        Key(words=("seurat_v3", "all")),
    ] = "seurat_v3"
    n_genes: Annotated[int, Ge(1), "Number of most variable genes."] = 2000
    keep_genes: Annotated[
        str | Path | tuple[str, ...],
        "Further genes to generate: `all`, `none`, or a text file with a gene per line.",
        Key(words=("all", "none")),
    ] = "all"
    n_peaks: Annotated[int, Ge(1), "Number of peaks to use: the ones detected in most training cells."] = 20_000
    modality: Annotated[
        tuple[str, ...],
        "Modality to use, as `NAME=KIND`; KIND is `rna`, `prot` or `atac`.",
        Unset("all with known names"),
        Key("dataset"),
    ] = ()
    intersect: Annotated[bool, "Use the cells that all modalities have, if their cells differ.", Key("dataset")] = False
    gene_symbols: Annotated[
        str | None,
        "Column of `var` with gene symbols, if genes have other names.",
        Unset("the first of `feature_name`, `gene_symbols`, `gene_name`, `symbol` and names like these"),
    ] = None
    clip_outliers: Annotated[
        bool, "Lower single counts far above all others of the gene in the cell type, before genes are ranked."
    ] = False
    min_genes_per_cell: Annotated[int, Ge(0), "Minimum number of detected genes; other cells are left out."] = 0
    min_cells_per_gene: Annotated[int, Ge(0), "Minimum number of training cells; other genes are left out."] = 3
    min_cells_per_type: Annotated[
        int,
        Ge(1),
        "Minimum number of cells; smaller cell types are left out.",
        Key(bounds=(Ge(3),)),  # a cell per part of the split; the workflow has three parts
    ] = 10
    min_donors: Annotated[
        int, Ge(1), "Minimum number of effective donors per cell type and sub-population; other types are left out."
    ] = 1
    validation: Annotated[
        float, Ge(0), Lt(1), "Fraction of cells to select the best training step.", Key(bounds=(Gt(0), Lt(1)))
    ] = 0.1
    test: Annotated[
        float,
        Ge(0),
        Lt(1),
        "Fraction of cells to hold out for the evaluation of generated cells.",
        Key(bounds=(Gt(0), Lt(1)), default=0.2),
    ] = 0.0
    license: Annotated[License, Key("dataset")] = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Each part of the split has a cell of each type
        n_parts = 1 + (self.validation > 0) + (self.test > 0)
        Setting("min_cells_per_type", Annotated[int, Ge(n_parts)]).checked(self.min_cells_per_type)
        groups = {"label_key": self.label_key, "batch_key": self.batch_key, "donor_key": self.donor_key}
        repeated = keys_rejection(*groups.items(), *(("covariate_key", key) for key in self.covariate_key))
        sections = section_rejection(self.section_key, self.spatial_key)
        if sentence := repeated or sections or split_rejection(self.validation, self.test):
            raise InputError(sentence)

    @property
    def reading(self) -> dict[str, Any]:
        """Keyword arguments of :func:`bdm.data.read.read_cells`."""
        return {name: getattr(self, name) for name in ("modality", "intersect", "counts")}


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(StageSettings):
    """Settings of the count autoencoder."""

    n_latent: Annotated[int, Ge(1), "Number of latent dimensions."] = 30
    likelihood: Annotated[
        str, DECODERS, "Distribution of counts: `negative_binomial`, or the name of your own decoder."
    ] = "negative_binomial"
    loading_scale: Annotated[
        float,
        Gt(0),
        "Prior standard deviation of loadings (log expression per latent unit); lower is smoother.",
    ] = 0.1
    n_steps: Annotated[int, Ge(1), "Maximum number of training steps of the autoencoder."] = 400
    batch_size: Annotated[int, Ge(1)] = 256
    learning_rate: LearningRate = 1e-2
    sub_populations: Annotated[
        Literal["auto", "none"] | Annotated[int, Ge(1)],
        "Sub-populations of each cell type: `auto` (as many as held-out cells support), `none`, or a number.",
    ] = "auto"
    min_cells_per_sub_population: Annotated[int, Ge(2), "Minimum number of cells per sub-population."] = 30
    shared_decoder: Annotated[
        bool,
        "Use one decoder for all cell types, even if type-specific decoders fit validation cells better.",
    ] = False


@dataclass(frozen=True, kw_only=True)
class HierarchySettings(StageSettings):
    """Settings of the hierarchy of cell types."""

    threshold: Annotated[
        float, Gt(0.5), Lt(1), "AUC of the best classifier of two cell types at their noise level in the tree."
    ] = 0.9
    n_bootstrap: Annotated[int, Ge(0), "Number of bootstrap resamples of the cells, for the support of branches."] = 100


@dataclass(frozen=True, kw_only=True)
class TrainSettings(StageSettings):
    """Settings of the prior over latents, and of the training of its network."""

    prior: Annotated[
        str,
        PRIORS,
        "Distribution of latents: `mixture` (a normal per population, in closed form), `diffusion` (the mixture, "
        "corrected by a network if held-out cells gain by it), or the name of your own prior.",
    ] = "mixture"
    width: Annotated[int, Ge(1), "Width of the network of the prior."] = 128
    n_layers: Annotated[int, Ge(1), "Number of residual blocks of the network of the prior."] = 3
    n_steps: Annotated[int, Ge(1), "Maximum number of training steps of the network of the prior."] = 2000
    learning_rate: LearningRate = 2e-3


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
class GenerationSettings(StageSettings):
    """Settings of generation."""

    shared_ancestors: Annotated[
        bool,
        "Generate cell i of every population (`ancestor` in `obs`) from the same sample at the root.",
    ] = False


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(StageSettings):
    """Settings of the evaluation of generated cells."""

    n_repeats: Annotated[
        int, Ge(1), "Maximum number of resamples to average scores over; one with 2,000 test cells or more."
    ] = 3
    max_cells_per_type: Annotated[int, Ge(5), "Maximum number of cells per type in a resample."] = 500


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

    n_genes: Annotated[int, Ge(1), "Number of top genes to list and compare for each branch."] = 20
    n_cells: Annotated[int, Ge(1)] = 500
    n_markers: Annotated[int, Ge(1)] = 3


@dataclass(frozen=True, kw_only=True)
class ResponseSettings(StageSettings):
    """Settings of responses of cell types to conditions."""

    label_key: Annotated[str, MinLen(1), "Column of `obs` with the cell type."] = "cell_type"
    condition_key: Annotated[
        tuple[str, ...], MinLen(1), "Column of `obs` with the condition; the values of several columns are combined."
    ] = ("condition",)
    control: Annotated[
        str | None, MinLen(1), "Reference condition.", Unset("the condition called `control` or the like")
    ] = None
    dose_key: Annotated[
        str | None,
        MinLen(1),
        "Column of `obs` with the dose: a number, 0 in the control; or one for each part of a combination, as `0.1+3`.",
        Unset("no doses"),
    ] = None
    combination_separator: Annotated[
        str | None,
        MinLen(1),
        "Text between the perturbations of a combination, such as `+` in `KLF1+CEBPA`.",
        Unset("no combinations"),
    ] = None
    donor_key: Annotated[
        str | None,
        "Column of `obs` with the donor; the error of a response is the variation between donors.",
        Unset("no donors"),
    ] = None
    counts: Counts = "auto"
    min_cells: Annotated[int, Ge(2), "Minimum number of cells of a type in a condition to measure its response."] = 10


@dataclass(frozen=True, kw_only=True)
class LineageSettings(StageSettings):
    """Settings of expression along a lineage."""

    label_key: Annotated[str, MinLen(1), "Column of `obs` with the cell type."] = "cell_type"
    lineage_key: Annotated[
        str | None,
        MinLen(1),
        "Column of `obs` with lineage names, such as ABpla; the beginnings of a name are its ancestors.",
        Unset("nodes are the cell types of a tree"),
    ] = None
    time_key: Annotated[str | None, MinLen(1), "Column of `obs` with the time.", Unset("branch lengths count")] = None
    counts: Counts = "auto"
    n_times: Annotated[int, Ge(2), "Maximum number of time bins."] = 15
    min_cells: Annotated[int, Ge(2), "Minimum number of cells of a node in a time bin to measure its expression."] = 5


@dataclass(frozen=True, kw_only=True)
class AuditSettings(StageSettings):
    """Settings of a privacy audit."""

    n_folds: Annotated[int, Ge(1), "Number of folds: divisions into members, reference and non-members."] = 3
    cells_only: Annotated[bool, "Attack only the generated cells; attacking the model takes a second fit."] = False
    cells_per_training_cell: Annotated[
        float, Gt(0), "Number of generated cells per training cell of a fold; use the ratio that you will share."
    ] = 1.0
