PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
CHECK_VERSION := import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit( \
	"bdm needs Python 3.11 to 3.13, but $(PYTHON) is %d.%d; name another, as in make PYTHON=python3.12" % v)
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
# Tests begin in the order of tests/conftest.py, and each process takes over tests that another has not begun
PYTEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 pytest --numprocesses=auto --dist=worksteal

# Python compiles a package as it is first imported, which takes twice as long as the import, and keeps the result
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo workflow example-design test test-slow test-nightly test-oldest test-packages audit lint install docs config build benchmark

help:
	@echo "make demo     fit a model to the example cells, generate cells, and evaluate them: results/"
	@echo "make example-design  compare tests of expression on a designed experiment, on the model of the demo"
	@echo "make test     run the tests, except those marked slow or nightly"
	@echo "make test-slow  run the slow tests, too: all that a change must pass"
	@echo "make test-nightly  run all tests, with all examples"
	@echo "make test-oldest  run the tests with the oldest packages that pyproject.toml allows, in .venv-oldest (6 GB)"
	@echo "make test-packages  install the packages that are released, and run the first example of the README with them"
	@echo "make audit    list known vulnerabilities of the packages in .venv, from PyPI"
	@echo "make lint     check the style of the code and of the workflow, and the types"
	@echo "make docs     build the documentation: docs/_build/html/index.html"
	@echo "make config   write the schema of the configuration and config/README.md from bdm/settings.py"
	@echo "make install  install bdm into .venv only"
	@echo "make build    make the packages that are released: dist/"
	@echo "make benchmark DATA=folder  compare bdm with other methods, in .venv-peers: benchmarks/README.md"

demo: $(INSTALLED)
	@$(MAKE) --no-print-directory --jobs=2 .venv/umap workflow
	@echo "The results of the demo are in $(CURDIR):"
	@echo "  results/pbmc68k/report.html        the report, which shows how realistic the cells are: open it in a browser"
	@echo "  results/pbmc68k/generated.h5ad     generated cells, as raw counts"
	@echo "  results/pbmc68k/model/             the model"
	@echo "  results/pbmc68k/hierarchy.png      the tree of cell types"
	@echo "  results/pbmc68k/evaluation/        comparison of generated cells with test cells"
	@echo "  results/pbmc68k/interpretation/    marker genes of each branch"
	@echo "  results/pbmc68k/transmutation/     B cells transmuted to NK cells, and their comparison with real NK cells"

workflow: $(INSTALLED)
	$(BIN)/snakemake --cores all

# UMAP is compiled when it is first used, which takes half a minute: here, while the model is fitted, and not after
.venv/umap: $(INSTALLED)
	@$(BIN)/python -c "import numpy; from bdm.evaluation.metrics import compute_umap; compute_umap(numpy.random.rand(50, 5), seed=0)"
	@touch $@

example-design: .venv/power
	$(BIN)/snakemake --cores all results/pbmc68k/model
	$(BIN)/bdm power results/pbmc68k/model config/example-power.yaml results/pbmc68k/power/example-design --force
	@echo "The results are in $(CURDIR)/results/pbmc68k/power/example-design: power.png, power.csv"

test: .venv/test
	$(IN_VENV) $(PYTEST) -m "not slow and not nightly"

test-slow: .venv/test
	$(IN_VENV) $(PYTEST) -m "not nightly" --durations=20

test-nightly: .venv/test
	$(IN_VENV) BDM_CASES=10 $(PYTEST) --dist=loadfile --no-loadscope-reorder --durations=60

# uv, as pip knows no oldest versions.
test-oldest: $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --allow-existing --seed --python 3.11 .venv-oldest
	$(BIN)/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable '.[test]'
	PATH="$(CURDIR)/.venv-oldest/bin:$$PATH" $(PYTEST) -m "not nightly"

test-packages: .venv/test
	$(IN_VENV) $(PYTEST) tests/test_packaging.py tests/test_environment.py

audit: $(INSTALLED)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > .venv/packages.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement .venv/packages.txt

lint: .venv/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/snakefmt --check Snakefile workflow benchmarks
	$(BIN)/snakemake --lint
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/question.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.readthedocs .readthedocs.yaml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/hadolint .github/docker/Dockerfile

docs: .venv/docs
	$(IN_VENV) OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@! grep -rE --include='*.html' '<(script|link|img)[^>]*="https?:' docs/_build/html || { echo "These pages need the network"; exit 1; }
	@! grep -q '&lt;Axes' docs/_build/html/tutorial.html || { echo "The tutorial lacks figures"; exit 1; }
	@echo "The documentation is in $(CURDIR)/docs/_build/html/index.html"

config: $(INSTALLED)
	$(BIN)/python docs/config_reference.py

build: $(INSTALLED)
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --outdir dist

install: $(INSTALLED)

# Each adds an extra of pyproject.toml to bdm
.venv/test .venv/lint .venv/docs .venv/benchmark .venv/power: .venv/%: $(INSTALLED)
	$(BIN)/python -m pip install --no-compile --editable '.[$*]'
	@touch $@

# TARGET is one of those that benchmarks/README.md lists. PEERS is a Python with bdm and the packages of its peers; CFGEN and
# SCDIFFUSION are folders with their code, which two targets need. A run that was stopped goes on with the steps that it has not
# completed.
CFGEN ?= .venv-peers/CFGen
SCDIFFUSION ?= .venv-peers/scDiffusion
benchmark: TARGET ?= all
benchmark: .venv/benchmark $(if $(PEERS),,.venv-peers/installed) \
		$(if $(filter diffusion_peers recovered,$(TARGET)),$(if $(PEERS),,.venv-peers/diffusion) $(CFGEN) $(SCDIFFUSION))
	@test -d "$(DATA)" || { echo "Name the folder with the data sets, as in make benchmark DATA=cells"; exit 2; }
	cd benchmarks && $(IN_VENV) snakemake --cores all --keep-going --rerun-incomplete \
		--config data="$(abspath $(DATA))" peer_python="$(or $(PEERS),$(CURDIR)/.venv-peers/bin/python)" \
		cfgen="$(abspath $(CFGEN))" scdiffusion="$(abspath $(SCDIFFUSION))" -- $(TARGET)

.venv-peers/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv .venv-peers
	.venv-peers/bin/python -m pip install --no-compile --editable '.[peers]'
	@touch $@

.venv-peers/diffusion: .venv-peers/installed
	.venv-peers/bin/python -m pip install --no-compile --editable '.[peers,diffusion-peers]'
	@touch $@

.venv-peers/CFGen:
	git clone --quiet https://github.com/theislab/CFGen $@
	git -C $@ checkout --quiet e347d1a

.venv-peers/scDiffusion:
	git clone --quiet https://github.com/EperLuo/scDiffusion $@
	git -C $@ checkout --quiet e20ee19

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --editable '.[workflow]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c '$(CHECK_VERSION)'
	$(PYTHON) -m venv --upgrade-deps .venv || { rm -rf .venv; exit 1; }
