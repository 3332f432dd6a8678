rule report:
    input:
        model="results/{dataset}/model",
        cells="results/{dataset}/prepared.h5ad",
        generated="results/{dataset}/generated.h5ad",
        evaluation="results/{dataset}/evaluation/evaluation.json",
        interpretation="results/{dataset}/interpretation/interpretation.json",
        moves=results_of_moves,
        extension=extension_report,
    output:
        page=report(
            "results/{dataset}/report.html",
            caption="../report/report.rst",
            category="Report",
            subcategory="{dataset}",
            labels={"result": "{dataset}: all that is worth telling (page to open and send)"},
        ),
    log:
        "results/{dataset}/logs/report.log",
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.page, parent=True),
    shell:
        "bdm report {params.folder} {output.page}" " > {log} 2>&1"
