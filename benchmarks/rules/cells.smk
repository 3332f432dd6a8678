def raw_cells(wildcards):
    """Give the file of a data set, or of the one that it is made from."""
    return f"{config['data']}/{DATASETS[wildcards.data].get('of', wildcards.data)}.h5ad"


def cells_to_prepare(wildcards):
    """Give the cells of a data set, thinned where it says so."""
    thin = "thin" in DATASETS[wildcards.data]
    return rules.thin.output.cells.format(**wildcards) if thin else raw_cells(wildcards)


rule thin:
    input:
        cells=raw_cells,
    output:
        cells=temp("results/{data}/{seed}/thinned.h5ad"),
    log:
        "results/{data}/{seed}/logs/thin.log",
    params:
        fraction=lambda wildcards: DATASETS[wildcards.data]["thin"],
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
        data="|".join(DATASETS),
    params:
        options=lambda wildcards: options("prepare", DATASETS[wildcards.data]),
    shell:
        "bdm prepare {input.cells:q} {output.cells}" " {params.options}" " --seed {wildcards.seed}" " > {log} 2>&1"
