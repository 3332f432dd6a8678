rule reconstruct_lineages:
    input:
        cells=cells_to_prepare,
    output:
        rows=f"{RUN}/lineages.csv",
    log:
        f"{RUN}/logs/lineages.log",
    params:
        options=lambda wildcards: options("lineages", DATASETS[wildcards.data]),
    shell:
        "python {SCRIPTS}/lineages.py {input.cells:q} {output.rows} {params.options} --seed {wildcards.seed} > {log} 2>&1"
