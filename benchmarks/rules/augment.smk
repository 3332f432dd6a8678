rule make_rare:
    input:
        cells=whole_cells,
    output:
        cells="results/{data}/{seed}/prepared.h5ad",
    log:
        "results/{data}/{seed}/logs/make_rare.log",
    wildcard_constraints:
        data="|".join(MADE_RARE),
    params:
        cell_type=lambda wildcards: MADE_RARE[wildcards.data]["cell_type"],
        n_cells=lambda wildcards: MADE_RARE[wildcards.data]["n_cells"],
    shell:
        "python {SCRIPTS}/make_rare.py {input.cells} {output.cells}"
        " --cell-type {params.cell_type:q}"
        " --n-cells {params.n_cells}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule generate_more:
    input:
        model=model_of,
    output:
        cells="results/{data}/{seed}/more/{method}.h5ad",
    log:
        "results/{data}/{seed}/logs/generate_more-{method}.log",
    params:
        program=lambda wildcards: program(wildcards.method),
        options=lambda wildcards: KNOWN[wildcards.method].get("generate", ""),
        n_cells=config["augment"]["n_cells"],
    shell:
        "{params.program} generate {input.model} {output.cells}"
        " --cells {params.n_cells}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


def whole_if_made_rare(wildcards):
    """Give the cells that a data set with a type made rare was made from."""
    return whole_cells(wildcards) if wildcards.data in MADE_RARE else []


rule augment_run:
    input:
        cells=rules.prepare.output.cells,
        whole=whole_if_made_rare,
        generated=expand(rules.generate_more.output.cells, method=config["augment"]["methods"], allow_missing=True),
    output:
        scores="results/{data}/{seed}/augment.csv",
    log:
        "results/{data}/{seed}/logs/augment.log",
    params:
        whole=lambda wildcards, input: f"--whole {input.whole}" if input.whole else "",
    shell:
        "python {SCRIPTS}/augment.py {input.cells} {output.scores} {input.generated}"
        " {params.whole}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule augment:
    input:
        scores=expand(
            rules.augment_run.output.scores,
            data=[*config["augment"]["datasets"], *MADE_RARE],
            seed=SEEDS,
        ),
    output:
        table="results/augment.csv",
        text="results/augment.md",
    log:
        "results/logs/augment.log",
    shell:
        "python {SCRIPTS}/augment_table.py {output.table} {output.text} {input.scores} > {log} 2>&1"
