rule predict_relations:
    input:
        cells=lambda wildcards: [] if DATASETS[wildcards.data].get("simulated") else cells_to_prepare(wildcards),
    output:
        rows=f"{RUN}/relations.csv",
    log:
        f"{RUN}/logs/relations.log",
    params:
        options=lambda wildcards: options("relations", DATASETS[wildcards.data]),
    shell:
        "python {SCRIPTS}/relations.py {params.options} {input.cells:q} {output.rows} --seed {wildcards.seed}"
        " > {log} 2>&1"
