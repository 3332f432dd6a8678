rule atlas_cells:
    output:
        cells="results/many/{run}/cells.h5ad",
    log:
        "results/many/{run}/logs/cells.log",
    wildcard_constraints:
        run="|".join(ATLASES),
    params:
        n_types=config["atlas"]["n_types"],
        n_cells=lambda wildcards: ATLASES[wildcards.run]["n_cells"],
        seed=SEEDS[0],
    shell:
        "python {SCRIPTS}/atlas.py {output.cells}"
        " --n-types {params.n_types}"
        " --n-cells {params.n_cells}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule atlas:
    input:
        evaluations=expand(rules.many_evaluate.output.folder, run=ATLASES),
    output:
        table="results/atlas.csv",
        text="results/atlas.md",
        figure="results/atlas.png",
    log:
        "results/logs/atlas.log",
    params:
        runs=[f"results/many/{run}" for run in ATLASES],
    shell:
        "python {SCRIPTS}/atlas_table.py {output.table} {output.text} {output.figure} {params.runs} > {log} 2>&1"
