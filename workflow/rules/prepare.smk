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
        label_key=option("--label-key", "label_key", unset="--no-labels"),
        batch_key=option("--batch-key", "batch_key"),
        donor_key=option("--donor-key", "donor_key"),
        counts=setting("counts"),
        labels=file_option("--labels", "labels"),
        leave_out=options_each("--leave-out", "prepare/leave_out"),
        drop_unlabelled=switch("--drop-unlabelled", "prepare/drop_unlabelled"),
        genes=lambda wildcards, input: input.genes or setting("prepare/genes")(wildcards),
        n_genes=setting("prepare/n_genes"),
        keep_genes=file_or_option("--keep-genes", "keep_genes", "prepare/keep_genes"),
        gene_symbols=option("--gene-symbols", "prepare/gene_symbols"),
        clip_outliers=switch("--clip-outliers", "prepare/clip_outliers"),
        min_genes_per_cell=setting("prepare/min_genes_per_cell"),
        min_cells_per_gene=setting("prepare/min_cells_per_gene"),
        min_cells_per_type=setting("prepare/min_cells_per_type"),
        min_donors=setting("prepare/min_donors"),
        validation=setting("prepare/validation"),
        test=setting("prepare/test"),
        seed=lookup(within=settings, dpath="seed"),
        license=option("--license", "license"),
        settings=tracked("label_key", "batch_key", "donor_key", "counts", "license", "prepare"),
    shell:
        "bdm prepare {input.cells:q} {output.cells}"
        " {params.label_key}"
        " {params.batch_key}"
        " {params.donor_key}"
        " --counts {params.counts:q}"
        " {params.labels}"
        " {params.leave_out}"
        " {params.drop_unlabelled}"
        " --genes {params.genes:q}"
        " --n-genes {params.n_genes}"
        " {params.keep_genes}"
        " {params.gene_symbols}"
        " {params.clip_outliers}"
        " --min-genes-per-cell {params.min_genes_per_cell}"
        " --min-cells-per-gene {params.min_cells_per_gene}"
        " --min-cells-per-type {params.min_cells_per_type}"
        " --min-donors {params.min_donors}"
        " --validation {params.validation}"
        " --test {params.test}"
        " {params.license}"
        " --seed {params.seed}"
        " > {log} 2>&1"
