use rule evaluate as ontology_evaluate with:
    input:
        cells=rules.prepare.output.cells,
        branched="results/{data}/{seed}/cells/branched.h5ad",
        compared=expand(rules.generate.output.cells, method=config["ontology"]["methods"], allow_missing=True),
    output:
        overall="results/{data}/{seed}/ontology/overall.csv",
        by_type="results/{data}/{seed}/ontology/by_type.csv",
    log:
        "results/{data}/{seed}/logs/ontology_evaluate.log",
    benchmark:
        "results/{data}/{seed}/times/ontology_evaluate.tsv"


rule ontology:
    input:
        overall=expand(rules.ontology_evaluate.output.overall, data=config["ontology"]["datasets"], seed=SEEDS),
        hierarchies=expand(
            rules.hierarchy.output.hierarchy,
            data=config["ontology"]["datasets"],
            seed=SEEDS,
            model=["branched", "ontology"],
        ),
    output:
        table="results/ontology.csv",
        nodes="results/ontology_nodes.csv",
        text="results/ontology.md",
    log:
        "results/logs/ontology.log",
    params:
        folder=subpath(output.table, parent=True),
    shell:
        "python {SCRIPTS}/ontology_table.py {params.folder} {input.overall} > {log} 2>&1"
