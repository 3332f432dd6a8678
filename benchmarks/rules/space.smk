rule score_space:
    input:
        cells=f"{RUN}/prepared.h5ad",
    output:
        rows=f"{RUN}/space.csv",
    log:
        f"{RUN}/logs/space.log",
    params:
        python=quote(config["peer_python"]),
        options=lambda wildcards: options("space", DATASETS[wildcards.data]),
    shell:
        "{params.python} {SCRIPTS}/space.py {input.cells} {output.rows} {params.options}"
        " --seed {wildcards.seed} > {log} 2>&1"
