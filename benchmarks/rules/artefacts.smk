def each(flag, values):
    """Give an option with each of the values."""
    return " ".join(f"{flag} {quote(str(value))}" for value in values)


rule artefacts_doublets:
    input:
        cells=rules.prepare.output.cells,
        model="results/{data}/{seed}/models/branched",
    output:
        found="results/{data}/{seed}/artefacts/doublets.csv",
    log:
        "results/{data}/{seed}/logs/artefacts_doublets.log",
    params:
        rates=each("--rate", config["artefacts"]["rates"]),
    shell:
        "python {SCRIPTS}/artefacts_doublets.py {input.cells} {input.model} {output.found}"
        " {params.rates}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule artefacts_ambient:
    input:
        cells=rules.prepare.output.cells,
        model="results/{data}/{seed}/models/branched",
    output:
        found="results/{data}/{seed}/artefacts/ambient.csv",
    log:
        "results/{data}/{seed}/logs/artefacts_ambient.log",
    params:
        shares=each("--share", config["artefacts"]["shares"]),
    shell:
        "python {SCRIPTS}/artefacts_ambient.py {input.cells} {input.model} {output.found}"
        " {params.shares}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule artefacts_markers:
    input:
        model="results/{data}/{seed}/models/branched",
    output:
        found="results/{data}/{seed}/artefacts/markers.csv",
    log:
        "results/{data}/{seed}/logs/artefacts_markers.log",
    params:
        types=lambda wildcards: each("--cell-type", HALVED[wildcards.data]["clade"]),
        sizes=each("--log2-fold-change", config["artefacts"]["log2_fold_changes"]),
    shell:
        "python {SCRIPTS}/artefacts_markers.py {input.model} {output.found}"
        " {params.types}"
        " {params.sizes}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule artefacts_cost:
    input:
        model=f"results/{next(iter(HALVED))}/{SEEDS[0]}/models/branched",
    output:
        cells=temp("results/artefacts_{size}.h5ad"),
    log:
        "results/logs/artefacts_{size}.log",
    benchmark:
        "results/artefacts_{size}.tsv"
    wildcard_constraints:
        size="large|million",
    params:
        design=f"{workflow.basedir}/designs/{{size}}.yaml",
        seed=SEEDS[0],
    shell:
        "bdm simulate {input.model} {params.design} {output.cells} --seed {params.seed} > {log} 2>&1"


rule artefacts:
    input:
        expand(rules.artefacts_cost.output.cells, size=["large", "million"]),
        found=expand(
            "results/{data}/{seed}/artefacts/{name}.csv",
            data=HALVED,
            seed=SEEDS,
            name=["doublets", "ambient", "markers"],
        ),
    output:
        tables=expand("results/artefacts_{name}.csv", name=["doublets", "ambient", "markers"]),
        text="results/artefacts.md",
        figure="results/artefacts.png",
    log:
        "results/logs/artefacts.log",
    params:
        folder=subpath(output.text, parent=True),
    shell:
        "python {SCRIPTS}/artefacts_table.py {params.folder} {input.found} > {log} 2>&1"
