"""A script of a user, whose types ``make lint`` checks; a type checker also finds its mistakes, which are marked."""

import bdm

settings = bdm.Settings(prepare=bdm.PrepareSettings(test=0.2), hierarchy=bdm.HierarchySettings(threshold=0.8))
model = bdm.BranchedDiffusion("cells.h5ad", "cell_type", tree=bdm.read_tree("tree.nwk"), settings=settings).fit()
model.transmute(model.generate(10), "NK", ["B"])
evaluation: bdm.Evaluation = model.evaluate()
bdm.pl.scores(evaluation, show=False)
bdm.pl.power(model.power("design.yaml"), show=False)
bdm.tl.pseudobulk_tests(model.generate(10), bdm.tl.ExperimentSettings(sample_key="donor"))
bdm.pl.hierarchy(bdm.ExtensionReport.load("report"))
try:
    bdm.BranchedDiffusion.load("model").generate({"B": 10})
except bdm.InputError as error:
    print(error)

model.generate(5, shared_ancestors="yes")  # type: ignore[arg-type]
print(bdm.pl.scoers)  # type: ignore[attr-defined]
print(bdm.Settigns)  # type: ignore[attr-defined]
