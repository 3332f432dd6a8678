rule hierarchy:
    input:
        autoencoder=rules.autoencoder.output.model,
        tree=optional_file("hierarchy/tree"),
    output:
        hierarchy="results/{dataset}/hierarchy.json",
        newick="results/{dataset}/hierarchy.nwk",
        figure=report(
            "results/{dataset}/hierarchy.png",
            caption="../report/hierarchy.rst",
            category="Hierarchy",
            subcategory="{dataset}",
            labels={"result": "{dataset}: hierarchy of cell types (figure)"},
        ),
        page=report(
            "results/{dataset}/hierarchy.html",
            caption="../report/hierarchy_page.rst",
            category="Hierarchy",
            subcategory="{dataset}",
            labels={"result": "{dataset}: hierarchy of cell types (page to open and search)"},
        ),
        table=report(
            "results/{dataset}/hierarchy.csv",
            caption="../report/hierarchy_table.rst",
            category="Hierarchy",
            subcategory="{dataset}",
            labels={"result": "{dataset}: branches (table)"},
        ),
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
        " --page {output.page}"
        " --table {output.table}"
        " {params.options}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"


rule hierarchy_flat:
    input:
        autoencoder=rules.autoencoder.output.model,
    output:
        hierarchy="results/{dataset}/flat/hierarchy.json",
    log:
        "results/{dataset}/logs/hierarchy_flat.log",
    conda:
        "../envs/bdm.yaml"
    params:
        options=options("hierarchy/threshold"),  # on which the range of noise levels depends
    shell:
        "bdm hierarchy {input.autoencoder} {output.hierarchy}"
        " --flat"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
