import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.nightly

CELLS = [
    """\
import bdm
from bdm.data.read import pbmc68k_counts

settings = bdm.Settings(
    prepare=bdm.PrepareSettings(n_genes=50, keep_genes="none", test=0.0),
    autoencoder=bdm.AutoencoderSettings(n_latent=4, n_steps=2, shared_decoder=True),
    train=bdm.TrainSettings(n_steps=2, width=8),
)
adata = pbmc68k_counts()
adata.layers["counts"] = adata.X
model = bdm.BranchedDiffusion(adata, label_key="bulk_labels", settings=settings).fit()""",
    "model",
    "bdm.pl.scores(model)",
]


@pytest.fixture(scope="module")
def outputs():
    """What the cells of a notebook show, each joined to one text."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
    nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    return ["".join(map(text_of, cell.outputs)) for cell in notebook.cells]


def text_of(output: nbformat.NotebookNode) -> str:
    return output.get("text") or output.get("evalue") or output.get("data", {}).get("text/plain", "")


def test_fit_shows_messages_and_how_far_it_is(outputs):
    for message in ("Counts are taken from counts.", "training the autoencoder: 100%"):
        assert message in outputs[0]


def test_the_model_is_shown_by_what_it_is(outputs):
    assert outputs[1].startswith("BranchedDiffusion, fitted on 692 cells\n")


def test_errors_name_what_to_give(outputs):
    assert outputs[2].endswith("needs the class Evaluation; you passed BranchedDiffusion.")
