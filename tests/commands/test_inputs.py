import pytest

from steerkit.commands.inputs import read_contrast, read_layers, read_names
from steerkit.errors import PromptError, SiteError


@pytest.mark.parametrize(
    ("text", "layers"),
    [("", None), ("3", (3,)), ("3,5", (3, 5)), ("4-6,5,0", (4, 5, 6, 0))],
)
def test_layers_are_read(text, layers):
    assert read_layers(text) == layers


@pytest.mark.parametrize("text", ["x", "-1", "1-", "5-3", "1..3"])
def test_other_layers_are_refused(text):
    with pytest.raises(SiteError, match=r"layers read '3', '3,5' or '4-12'|names no layer"):
        read_layers(text)


def test_names_may_have_spaces_and_trailing_commas():
    assert read_names(" pca, lda ,") == ("pca", "lda")


def test_contrasts_come_from_files_and_by_name(tmp_path):
    assert read_contrast("builtin:sentiment", "raw").positive[0].template == "raw"
    # What a row says stands, unless another template is asked for.
    assert read_contrast("builtin:truth_topical").positive[0].template == "raw"
    assert read_contrast("builtin:truth_topical", "chat").positive[0].template == "chat"
    with pytest.raises(PromptError, match="did you mean 'politeness'"):
        read_contrast("builtin:politnes")
    with pytest.raises(PromptError, match="no contrast file at"):
        read_contrast(str(tmp_path / "none.jsonl"))
    with pytest.raises(PromptError, match="did you mean 'chat'"):
        read_contrast("builtin:sentiment", "chatt")
