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
        attacks=report(
            "results/{dataset}/audit/attacks.csv",
            caption="../report/attacks.rst",
            category="Audit",
            subcategory="{dataset}",
            labels={"result": "{dataset}: attacks (table)"},
        ),
        by_label=report(
            "results/{dataset}/audit/by_label.csv",
            caption="../report/attacks.rst",
            category="Audit",
            subcategory="{dataset}",
            labels={"result": "{dataset}: attacks by cell type (table)"},
        ),
        figure=report(
            "results/{dataset}/audit/audit.png",
            caption="../report/attacks.rst",
            category="Audit",
            subcategory="{dataset}",
            labels={"result": "{dataset}: attacks (figure)"},
        ),
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
