rule audit:
    input:
        cells=rules.prepare.output.cells,
        tree=optional_file("hierarchy/tree"),
    output:
        audit="results/{dataset}/audit/summary.json",
        record="results/{dataset}/audit/audit.json",
        scores="results/{dataset}/audit/audit.safetensors",
        by_fold="results/{dataset}/audit/by_fold.csv",
        attacks=in_archive("results/{dataset}/audit/attacks.csv", "Audit", "attacks (table)"),
        by_label=in_archive(
            "results/{dataset}/audit/by_label.csv", "Audit", "attacks by cell type (table)", caption="attacks"
        ),
        figure=in_archive("results/{dataset}/audit/audit.png", "Audit", "attacks (figure)", caption="attacks"),
    log:
        "results/{dataset}/logs/audit.log",
    benchmark:
        "results/{dataset}/benchmarks/audit.tsv"
    wildcard_constraints:
        dataset=one_of(FITTED),
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.audit, parent=True),
        options=options("audit", "autoencoder", "hierarchy", "train", "generate", without=["n_cells"]),
        files=file_options,
    shell:
        "bdm audit {input.cells} {params.folder}"
        " {params.options}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"
