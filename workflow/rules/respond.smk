rule respond:
    input:
        cells=setting("path"),
        content=files_in_folder("path"),
        labels=optional_file("labels"),
        condition_features=optional_file("respond/condition_features"),
    output:
        responses="results/{dataset}/responses/responses.json",
        arrays="results/{dataset}/responses/responses.safetensors",
        errors=in_archive(
            "results/{dataset}/responses/errors.csv", "Responses", "expected errors (table)", caption="response_errors"
        ),
        errors_figure=in_archive(
            "results/{dataset}/responses/errors.png",
            "Responses",
            "expected errors (figure)",
            caption="response_errors",
        ),
        response=in_archive(
            "results/{dataset}/responses/response.png",
            "Responses",
            "responses on the tree (figure)",
            caption="response",
        ),
    log:
        "results/{dataset}/logs/respond.log",
    benchmark:
        "results/{dataset}/benchmarks/respond.tsv"
    wildcard_constraints:
        dataset=one_of(FITTED),
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.responses, parent=True),
        options=options("dataset", "respond", seed=False, without=["batch_key", "covariate_key", *IN_SPACE, "license"]),
        files=file_options,
    shell:
        "bdm respond {input.cells:q} {params.folder}"
        " {params.options}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"


rule predict:
    input:
        responses=rules.respond.output.responses,
        cells=setting("path"),
        content=files_in_folder("path"),
        labels=optional_file("labels"),
    output:
        cells="results/{dataset}/predicted/{prediction}.h5ad",
        effects="results/{dataset}/predicted/{prediction}.csv",
    log:
        "results/{dataset}/logs/predict_{prediction}.log",
    benchmark:
        "results/{dataset}/benchmarks/predict_{prediction}.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(input.responses, parent=True),
        options=options("respond/predictions/{prediction}"),
        counts=options("counts", seed=False),
        files=file_options,
    shell:
        "bdm predict {params.folder} {input.cells:q} {output.cells}"
        " --effects {output.effects}"
        " {params.options}"
        " {params.counts}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"
