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
        cells_only=switch("--cells-only", "audit/cells_only"),
        cells_per_training_cell=setting("audit/cells_per_training_cell"),
        n_latent=setting("autoencoder/n_latent"),
        loading_scale=setting("autoencoder/loading_scale"),
        n_steps=setting("autoencoder/n_steps"),
        learning_rate=setting("autoencoder/learning_rate"),
        sub_populations=setting("autoencoder/sub_populations"),
        min_cells=setting("autoencoder/min_cells_per_sub_population"),
        shared_decoder=switch("--shared-decoder", "autoencoder/shared_decoder"),
        tree=file_or_option("--tree", "tree", "hierarchy/tree"),
        threshold=setting("hierarchy/threshold"),
        n_bootstrap=setting("hierarchy/n_bootstrap"),
        ontology_key=option("--ontology-key", "hierarchy/ontology_key"),
        prior=setting("train/prior"),
        prior_n_steps=setting("train/n_steps"),
        width=setting("train/width"),
        n_layers=setting("train/n_layers"),
        prior_learning_rate=setting("train/learning_rate"),
        shared_ancestors=switch("--shared-ancestors", "generate/shared_ancestors"),
        stochastic=switch("--stochastic", "generate/stochastic"),
        n_levels=setting("generate/n_levels"),
        seed=lookup(within=settings, dpath="seed"),
        settings=tracked(
            "audit/n_folds",
            "audit/cells_only",
            "audit/cells_per_training_cell",
            "autoencoder",
            "hierarchy",
            "train",
            "generate/n_levels",
            "generate/stochastic",
            "generate/shared_ancestors",
        ),
    shell:
        "bdm audit {input.cells} {output.fold}"
        " --part {wildcards.fold}-of-{params.n_folds}"
        " --n-folds {params.n_folds}"
        " {params.cells_only}"
        " --cells-per-training-cell {params.cells_per_training_cell}"
        " --n-latent {params.n_latent}"
        " --loading-scale {params.loading_scale}"
        " --autoencoder-n-steps {params.n_steps}"
        " --autoencoder-learning-rate {params.learning_rate}"
        " --sub-populations {params.sub_populations}"
        " --min-cells-per-sub-population {params.min_cells}"
        " {params.shared_decoder}"
        " {params.tree}"
        " {params.ontology_key}"
        " --threshold {params.threshold}"
        " --n-bootstrap {params.n_bootstrap}"
        " --prior {params.prior}"
        " --prior-n-steps {params.prior_n_steps}"
        " --width {params.width}"
        " --n-layers {params.n_layers}"
        " --prior-learning-rate {params.prior_learning_rate}"
        " {params.shared_ancestors}"
        " {params.stochastic}"
        " --n-levels {params.n_levels}"
        " --seed {params.seed}"
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
