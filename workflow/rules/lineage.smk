rule lineage:
    input:
        cells=setting("path"),
        content=files_in_folder("path"),
        labels=optional_file("labels"),
        tree=optional_file("lineage/tree"),
    output:
        lineage="results/{dataset}/lineage/lineage.json",
        arrays="results/{dataset}/lineage/lineage.safetensors",
        errors=in_archive(
            "results/{dataset}/lineage/errors.csv", "Lineage", "expected errors (table)", caption="lineage_errors"
        ),
        branches=in_archive(
            "results/{dataset}/lineage/branches.csv",
            "Lineage",
            "changes on branches (table)",
            caption="lineage",
        ),
        figure=in_archive(
            "results/{dataset}/lineage/lineage.png",
            "Lineage",
            "changes on branches (figure)",
            caption="lineage",
        ),
    log:
        "results/{dataset}/logs/lineage.log",
    benchmark:
        "results/{dataset}/benchmarks/lineage.tsv"
    wildcard_constraints:
        dataset=one_of(FITTED),
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.lineage, parent=True),
        options=options(
            "dataset",
            "lineage",
            seed=False,
            without=["batch_key", "covariate_key", "donor_key", *IN_SPACE, "license"],
        ),
        files=file_options,
    shell:
        "bdm lineage {input.cells:q} {params.folder}"
        " {params.options}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"


rule reconstruct:
    input:
        lineage=rules.lineage.output.lineage,
        cells=setting("path"),
        content=files_in_folder("path"),
        labels=optional_file("labels"),
    output:
        cells="results/{dataset}/reconstructed/{reconstruction}.h5ad",
        genes="results/{dataset}/reconstructed/{reconstruction}.csv",
    log:
        "results/{dataset}/logs/reconstruct_{reconstruction}.log",
    benchmark:
        "results/{dataset}/benchmarks/reconstruct_{reconstruction}.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(input.lineage, parent=True),
        options=options("lineage/reconstructions/{reconstruction}"),
        counts=options("counts", seed=False),
        files=file_options,
    shell:
        "bdm reconstruct {params.folder} {input.cells:q} {output.cells}"
        " --genes {output.genes}"
        " {params.options}"
        " {params.counts}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"
