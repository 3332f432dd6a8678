rule hierarchy:
    input:
        autoencoder=rules.autoencoder.output.model,
        tree=optional_file("hierarchy/tree"),
    output:
        hierarchy="results/{dataset}/hierarchy.json",
        newick="results/{dataset}/hierarchy.nwk",
        figure=in_archive("results/{dataset}/hierarchy.png", "Hierarchy", "hierarchy of cell types (figure)"),
        table=in_archive("results/{dataset}/hierarchy.csv", "Hierarchy", "branches (table)", caption="hierarchy_table"),
    log:
        "results/{dataset}/logs/hierarchy.log",
    benchmark:
        "results/{dataset}/benchmarks/hierarchy.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        options=options("hierarchy"),
        files=file_options,
    shell:
        "bdm hierarchy {input.autoencoder} {output.hierarchy}"
        " --newick {output.newick}"
        " --figure {output.figure}"
        " --table {output.table}"
        " {params.options}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"
