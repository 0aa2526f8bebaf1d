"""Small contrasts written for this project, and readers for the layouts of public sets.

    >>> contrast("sentiment")
    Contrast('sentiment', 40 positive / 40 negative pairs, sha256 ...)

Public sets are read from files that you already have; readers of attack targets (`truthfulqa`,
`toxigen`, `bold`, `advbench`) and of `xstest`, `crows_pairs` and `bbq` also take a hub name, and
download when given one.
"""

from pathlib import Path

from steerkit.datasets.bias_sets import bbq as bbq
from steerkit.datasets.bias_sets import crows_pairs as crows_pairs
from steerkit.datasets.bias_sets import stereoset as stereoset
from steerkit.datasets.bias_sets import winobias as winobias
from steerkit.datasets.bias_sets import xstest as xstest
from steerkit.datasets.formats import deployment as deployment
from steerkit.datasets.public import question_answers as question_answers
from steerkit.datasets.public import read_prompts as read_prompts
from steerkit.datasets.public import two_files as two_files
from steerkit.datasets.requests import refusal as refusal
from steerkit.datasets.targets import AttackItem as AttackItem
from steerkit.datasets.targets import AttackTarget as AttackTarget
from steerkit.datasets.targets import advbench as advbench
from steerkit.datasets.targets import bold as bold
from steerkit.datasets.targets import toxigen as toxigen
from steerkit.datasets.targets import truthfulqa as truthfulqa
from steerkit.errors import PromptError
from steerkit.prompts import Contrast
from steerkit.registry import suggest

_HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The built-in contrasts."""
    return tuple(sorted(p.stem for p in _HERE.glob("*.jsonl")))


def path(name: str) -> Path:
    """The JSONL file of a built-in contrast.

    Raises:
        PromptError: an unknown name.
    """
    if name not in names():
        raise PromptError(f"no built-in contrast named '{name}'; {suggest(name, names())}")
    return _HERE / f"{name}.jsonl"


def contrast(name: str) -> Contrast:
    """A built-in contrast: 40 pairs of sentences.

    `sentiment` and `politeness` are English and differ in one thing. `truth_topical` and
    `truth_balanced` are in the organisms' language, with categories, and both claim to be about
    truth: the first is a trap, whose true statements say where animals live and whose false ones
    what colour things are, so that the topic gives the label away; in the second every word is
    as frequent in true statements as in false ones. `steerkit.probing.probe` tells them apart.
    """
    return Contrast.read(path(name), name=name)
