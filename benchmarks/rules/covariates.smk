rule generate_left_out_values:
    input:
        cells=cells_to_prepare,
    output:
        rows=f"{RUN}/time.csv",
    log:
        f"{RUN}/logs/time.log",
    params:
        options=lambda wildcards: options("time", DATASETS[wildcards.data]),
    shell:
        "python {SCRIPTS}/covariates.py {input.cells:q} {output.rows} {params.options} --seed {wildcards.seed} > {log} 2>&1"
