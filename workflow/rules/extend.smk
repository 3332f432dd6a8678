rule extend:
    input:
        model=lambda wildcards: f"results/{parent(wildcards.dataset)}/model",
        known=lambda wildcards: f"results/{parent(wildcards.dataset)}/prepared.h5ad",
        cells=setting("addition/path"),
        content=files_in_folder("addition/path"),
    output:
        model=directory("results/{dataset}/model"),
        cells="results/{dataset}/prepared.h5ad",
        extension="results/{dataset}/extension/extension_report.json",
        arrays="results/{dataset}/extension/extension_report.safetensors",
        types=in_archive(
            "results/{dataset}/extension/extensions.csv", "Extension", "new types in the hierarchy (table)"
        ),
        hierarchy=in_archive(
            "results/{dataset}/extension/hierarchy.png",
            "Extension",
            "hierarchy of cell types (figure)",
            caption="extended_hierarchy",
        ),
        genes=in_archive(
            "results/{dataset}/extension/type_specific_genes.csv",
            "Extension",
            "genes of type-specific decoders (table)",
        ),
    log:
        "results/{dataset}/logs/extend.log",
    benchmark:
        "results/{dataset}/benchmarks/extend.tsv"
    wildcard_constraints:
        dataset=one_of(EXTENDED),
    conda:
        "../envs/bdm.yaml"
    params:
        report=subpath(output.extension, parent=True),
        options=options("addition"),
    shell:
        "bdm extend {input.model} {input.cells:q} {output.model}"
        " --known {input.known}"
        " --joined {output.cells}"
        " --report {params.report}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
