rule generate_times:
    input:
        cells=cells_to_prepare,
    output:
        rows=f"{RUN}/time.csv",
    log:
        f"{RUN}/logs/time.log",
    params:
        python=quote(config["peer_python"]),
        options=lambda wildcards: options("time", DATASETS[wildcards.data]),
    shell:
        "{params.python} {SCRIPTS}/times.py {input.cells:q} {output.rows} {params.options}"
        " --seed {wildcards.seed} > {log} 2>&1"
