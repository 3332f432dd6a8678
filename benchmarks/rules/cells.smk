SIMULATED = [name for name, dataset in DATASETS.items() if "simulate" in dataset]
PREPARED_AGAIN = [name for name, dataset in DATASETS.items() if "change_prepared" in dataset]


def raw_cells(wildcards):
    """Return the file of a data set, or of its original."""
    dataset = DATASETS[wildcards.data]
    return f"{config['data']}/{dataset.get('file', dataset.get('of', wildcards.data) + '.h5ad')}"


def cells_to_prepare(wildcards):
    """Return the cells of a data set: simulated, changed or raw."""
    made = {"simulate": rules.simulate.output.cells, "change": rules.change.output.cells}
    changed = [cells.format(**wildcards) for key, cells in made.items() if key in DATASETS[wildcards.data]]
    return changed or raw_cells(wildcards)


rule simulate:
    output:
        cells=temp(f"{RUN}/simulated.h5ad"),
    log:
        f"{RUN}/logs/simulate.log",
    params:
        options=lambda wildcards: DATASETS[wildcards.data]["simulate"],
    shell:
        "python {SCRIPTS}/simulated.py {params.options} {output.cells} --seed {wildcards.seed} > {log} 2>&1"


rule change:
    input:
        cells=raw_cells,
    output:
        cells=temp(f"{RUN}/changed.h5ad"),
    log:
        f"{RUN}/logs/change.log",
    params:
        options=lambda wildcards: DATASETS[wildcards.data]["change"],
    shell:
        "python {SCRIPTS}/cells.py {params.options} {input.cells:q} {output.cells} --seed {wildcards.seed} > {log} 2>&1"


rule prepare:
    input:
        cells=cells_to_prepare,
    output:
        cells=f"{RUN}/prepared.h5ad",
    log:
        f"{RUN}/logs/prepare.log",
    benchmark:
        f"{RUN}/times/prepare.tsv"
    wildcard_constraints:
        data="|".join(set(DATASETS) - set(PREPARED_AGAIN)),
    params:
        options=lambda wildcards: options("prepare", DATASETS[wildcards.data]),
    shell:
        "bdm prepare {input.cells:q} {output.cells} --test 0.2 --keep-genes none {params.options} --seed {wildcards.seed} > {log} 2>&1"


def whole_cells(wildcards):
    """Return the prepared cells of the original data set."""
    return rules.prepare.output.cells.format(data=DATASETS[wildcards.data]["of"], seed=wildcards.seed)


rule change_prepared:
    input:
        cells=whole_cells,
    output:
        cells=f"{RUN}/prepared.h5ad",
    log:
        f"{RUN}/logs/prepare.log",
    wildcard_constraints:
        data="|".join(PREPARED_AGAIN),
    params:
        options=lambda wildcards: DATASETS[wildcards.data]["change_prepared"],
    shell:
        "python {SCRIPTS}/cells.py {params.options} {input.cells} {output.cells} --seed {wildcards.seed} > {log} 2>&1"
