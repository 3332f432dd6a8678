RESPONSES = config["responses"]


rule select_responses:
    input:
        cells=cells_to_prepare,
    output:
        cells=f"{RUN}/responses/cells.h5ad",
    log:
        f"{RUN}/logs/responses-select.log",
    params:
        options=lambda wildcards: options("responses", DATASETS[wildcards.data]),
    shell:
        "python {SCRIPTS}/responses.py select {input.cells:q} {output.cells} {params.options} > {log} 2>&1"


rule predict_responses:
    input:
        cells=rules.select_responses.output.cells,
    output:
        cells=f"{RUN}/responses/{{predictor}}.h5ad",
    log:
        f"{RUN}/logs/responses-{{predictor}}.log",
    benchmark:
        f"{RUN}/times/responses-{{predictor}}.tsv"
    wildcard_constraints:
        predictor="|".join([*RESPONSES["methods"], *RESPONSES["peers"]]),
    params:
        python=lambda wildcards: quote(config["peer_python"]) if wildcards.predictor in RESPONSES["peers"] else "python",
    shell:
        "{params.python} {SCRIPTS}/responses.py predict {input.cells} {output.cells} --method {wildcards.predictor}"
        " --seed {wildcards.seed} > {log} 2>&1"


rule score_responses:
    input:
        cells=rules.select_responses.output.cells,
        predicted=expand(
            rules.predict_responses.output.cells,
            predictor=[*RESPONSES["methods"], *RESPONSES["peers"]],
            allow_missing=True,
        ),
    output:
        rows=f"{RUN}/responses.csv",
    log:
        f"{RUN}/logs/responses-score.log",
    shell:
        "python {SCRIPTS}/responses.py score {input.cells} {input.predicted} {output.rows}"
        " --seed {wildcards.seed} > {log} 2>&1"
