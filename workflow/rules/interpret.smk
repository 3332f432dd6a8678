rule interpret:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
        generated=GENERATED,
    output:
        interpretation="results/{dataset}/interpretation/interpretation.json",
        tensors="results/{dataset}/interpretation/interpretation.safetensors",
        branches="results/{dataset}/interpretation/branches.h5ad",
        branch_genes=in_archive(
            "results/{dataset}/interpretation/branch_genes.csv",
            "Interpretation",
            "marker genes of each branch (table)",
        ),
        branch_genes_figure=in_archive(
            "results/{dataset}/interpretation/branch_genes.png",
            "Interpretation",
            "marker genes of each branch (figure)",
        ),
        nodes=in_archive(
            "results/{dataset}/interpretation/nodes.csv", "Interpretation", "support and genes of the nodes (table)"
        ),
        commitment=in_archive(
            "results/{dataset}/interpretation/commitment.csv", "Interpretation", "commitment of genes (table)"
        ),
        commitment_figure=in_archive(
            "results/{dataset}/interpretation/commitment.png", "Interpretation", "commitment of genes (figure)"
        ),
        ancestral_states_figure=in_archive(
            "results/{dataset}/interpretation/ancestral_states.png",
            "Interpretation",
            "ancestral states by branch (figure)",
        ),
        agreement=in_archive(
            "results/{dataset}/interpretation/agreement.csv", "Interpretation", "agreement with test cells (table)"
        ),
        agreement_figure=in_archive(
            "results/{dataset}/interpretation/agreement.png", "Interpretation", "agreement with test cells (figure)"
        ),
        markers=in_archive("results/{dataset}/interpretation/markers.csv", "Interpretation", "marker genes (table)"),
        markers_figure=in_archive(
            "results/{dataset}/interpretation/markers.png", "Interpretation", "marker genes (figure)"
        ),
    log:
        "results/{dataset}/logs/interpret.log",
    benchmark:
        "results/{dataset}/benchmarks/interpret.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.interpretation, parent=True),
        options=options("interpret"),
    shell:
        "bdm interpret {input.model} {input.cells} {input.generated} {params.folder}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
