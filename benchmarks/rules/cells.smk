WHOLE = {dataset["of"]: {"prepare": dataset.get("prepare", "")} for dataset in HELD_OUT.values()}
PREPARED = WHOLE | {name: dataset for name, dataset in DESCRIBED.items() if name not in HELD_OUT}


def raw_cells(wildcards):
    """Give the file of a data set, or of the one that it is made from."""
    return f"{config['data']}/{PREPARED[wildcards.data].get('of', wildcards.data)}.h5ad"


def cells_to_prepare(wildcards):
    """Give the cells of a data set: simulated, thinned, with labels joined or without some types, as configured."""
    changes = {
        "simulate": rules.continuous_cells.output.cells,
        "thin": rules.thin.output.cells,
        "join": rules.join_labels.output.cells,
        "leave_out": rules.leave_out.output.cells,
    }
    changed = [cells.format(**wildcards) for key, cells in changes.items() if key in PREPARED[wildcards.data]]
    return changed or raw_cells(wildcards)


rule continuous_cells:
    output:
        cells=temp("results/{data}/{seed}/simulated.h5ad"),
    log:
        "results/{data}/{seed}/logs/continuous_cells.log",
    params:
        options=lambda wildcards: PREPARED[wildcards.data]["simulate"],
    shell:
        "python {SCRIPTS}/continuous_cells.py {params.options} {output.cells} --seed {wildcards.seed} > {log} 2>&1"


rule join_labels:
    input:
        cells=raw_cells,
    output:
        cells=temp("results/{data}/{seed}/joined.h5ad"),
    log:
        "results/{data}/{seed}/logs/join_labels.log",
    params:
        column=lambda wildcards: PREPARED[wildcards.data]["join"],
    shell:
        "python {SCRIPTS}/join_labels.py {input.cells:q} {output.cells} --column {params.column:q} > {log} 2>&1"


rule leave_out:
    input:
        cells=raw_cells,
    output:
        cells=temp("results/{data}/{seed}/without.h5ad"),
    log:
        "results/{data}/{seed}/logs/leave_out.log",
    params:
        cell_type=lambda wildcards: PREPARED[wildcards.data]["leave_out"],
    shell:
        "python {SCRIPTS}/leave_out.py {input.cells:q} {output.cells} --cell-type {params.cell_type:q} > {log} 2>&1"


rule thin:
    input:
        cells=raw_cells,
    output:
        cells=temp("results/{data}/{seed}/thinned.h5ad"),
    log:
        "results/{data}/{seed}/logs/thin.log",
    params:
        fraction=lambda wildcards: PREPARED[wildcards.data]["thin"],
    shell:
        "python {SCRIPTS}/thin.py {input.cells:q} {output.cells}"
        " --fraction {params.fraction}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule prepare:
    input:
        cells=cells_to_prepare,
    output:
        cells="results/{data}/{seed}/prepared.h5ad",
    log:
        "results/{data}/{seed}/logs/prepare.log",
    benchmark:
        "results/{data}/{seed}/times/prepare.tsv"
    wildcard_constraints:
        data="|".join(PREPARED),
    params:
        options=lambda wildcards: options("prepare", PREPARED[wildcards.data]),
    shell:
        "bdm prepare {input.cells:q} {output.cells}" " {params.options}" " --seed {wildcards.seed}" " > {log} 2>&1"


def whole_cells(wildcards):
    """Give the prepared cells of the data set that another is made from."""
    return rules.prepare.output.cells.format(data=(MADE_RARE | HELD_OUT)[wildcards.data]["of"], seed=wildcards.seed)


rule hold_out:
    input:
        cells=whole_cells,
    output:
        cells="results/{data}/{seed}/prepared.h5ad",
    log:
        "results/{data}/{seed}/logs/hold_out.log",
    wildcard_constraints:
        data="|".join(HELD_OUT),
    params:
        options=lambda wildcards: HELD_OUT[wildcards.data]["hold_out"],
    shell:
        "python {SCRIPTS}/hold_out.py {input.cells} {output.cells}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"
