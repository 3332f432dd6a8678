rule example:
    output:
        cells="resources/pbmc68k_reduced.h5ad",
    log:
        "resources/pbmc68k_reduced.log",
    conda:
        "../envs/bdm.yaml"
    shell:
        "bdm example {output.cells}" " > {log} 2>&1"


rule prepare:
    input:
        cells=setting("path"),
        content=files_in_folder("path"),
        labels=optional_file("labels"),
        genes=optional_file("prepare/genes"),
        keep_genes=optional_file("prepare/keep_genes"),
    output:
        cells="results/{dataset}/prepared.h5ad",
    log:
        "results/{dataset}/logs/prepare.log",
    benchmark:
        "results/{dataset}/benchmarks/prepare.tsv"
    wildcard_constraints:
        dataset=one_of(FITTED),
    conda:
        "../envs/bdm.yaml"
    params:
        no_labels=lambda wildcards: "" if setting("label_key")(wildcards) else "--no-labels",
        options=options("dataset", "prepare"),
        files=file_options,
    shell:
        "bdm prepare {input.cells:q} {output.cells}"
        " {params.no_labels}"
        " {params.options}"
        " {params.files}"
        " > {log} 2>&1"
