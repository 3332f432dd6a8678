# The folds of an audit run on their own, each with the fits of its models.
rule audit:
    input:
        cells=rules.prepare.output.cells,
        tree=optional_file("hierarchy/tree"),
    output:
        fold=temp(directory("results/{dataset}/audit_folds/{fold}")),
    log:
        "results/{dataset}/logs/audit/{fold}.log",
    benchmark:
        "results/{dataset}/benchmarks/audit/{fold}.tsv"
    wildcard_constraints:
        dataset=one_of(FITTED),
        fold=r"\d+",
    conda:
        "../envs/bdm.yaml"
    params:
        n_folds=setting("audit/n_folds"),
        options=options("audit", "autoencoder", "hierarchy", "train", "generate", without=["n_cells"]),
        files=file_options,
    shell:
        "bdm audit {input.cells} {output.fold}"
        " --part {wildcards.fold}-of-{params.n_folds}"
        " {params.options}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"


rule merge_audit:
    input:
        folds=audited_folds,
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
        "results/{dataset}/logs/merge_audit.log",
    benchmark:
        "results/{dataset}/benchmarks/merge_audit.tsv"
    wildcard_constraints:
        dataset=one_of(FITTED),
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.audit, parent=True),
    shell:
        "bdm merge {params.folder} {input.folds} > {log} 2>&1"
