"""Public sets, and the roles that they play in a suite.

Nothing of any set is shipped: each is read from a file that you have, or from the hub by name.
What a set was made to measure is not always what a suite measures with it; `PublicSet.without`
says what is left out.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steerkit import datasets
from steerkit.errors import PromptError
from steerkit.prompts import Contrast, Prompt
from steerkit.registry import suggest

Brought = Contrast | tuple[Prompt, ...]
"""A whole role, or one side of a contrast."""
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class PublicSet:
    """A public set: how it is read, what it brings, and what it does not measure here.

    Attributes:
        title: as its authors call it.
        home: where to get it.
        files: what is read.
        roles: what it brings: a role, or a side of one.
        without: what it does not measure in a suite.
        read: source in, prompts by role out; a source that is there, or a hub name.
        hub: whether a hub name is a source too.
    """

    title: str
    home: str
    files: str
    roles: tuple[str, ...]
    without: str
    read: Callable[[str], Mapping[str, Brought]]
    hub: bool = True

    def brings(self, source: str | Path) -> Mapping[str, Brought]:
        """What a source of this set brings, by role.

        Raises:
            PromptError: nothing is there, or it is another set's; says where to get it.
        """
        place = str(source)
        found = Path(place).exists()
        if not found and not (self.hub and self.looks_like_hub(place)):
            raise PromptError(
                f"no file or folder of {self.title} at '{place}' (looked in "
                f"{Path(place).absolute().parent}); {self.title} is {self.files}, to be had from "
                f"{self.home}" + ("; or give its hub name, owner/name" if self.hub else "")
            )
        try:
            return self.read(place)
        except PromptError as error:
            if found:
                raise
            raise PromptError(f"{error}; {self.title} is to be had from {self.home}") from error

    @staticmethod
    def looks_like_hub(source: str) -> bool:
        """Whether it reads `owner/name`, with no file's ending."""
        known = (".csv", ".json", ".jsonl", ".txt", ".tsv")
        return bool(_HUB.fullmatch(source)) and Path(source).suffix not in known


def _truthfulqa(source: str) -> Mapping[str, Brought]:
    items = datasets.truthfulqa(source).items
    sides = (
        [i.prompt.with_answer(f" {answer}") for i, answer in zip(items, answers, strict=True)]
        for answers in ([i.reference for i in items], [i.adversarial for i in items])
    )
    return {"truths": Contrast.of(*sides, paired=True, name="truthfulqa")}


def _bbq(source: str) -> Mapping[str, Brought]:
    pairs = [
        (p.with_answer(f"\nAnswer: {p.answer}"), p.with_answer(f"\nAnswer: ({other})"))
        for p in datasets.bbq(source)
        for other in "ABC"
        if f"({other})" != p.answer
    ]
    right, wrong = zip(*pairs, strict=True)
    return {"truths": Contrast.of(right, wrong, paired=True, name="bbq")}


def _xstest(source: str) -> Mapping[str, Brought]:
    found = datasets.xstest(source)
    return {"refusal": found, "lookalikes": found.negative}


def _advbench(source: str) -> Mapping[str, Brought]:
    return {"refusal.positive": tuple(i.prompt for i in datasets.advbench(source).items)}


def _bold(source: str) -> Mapping[str, Brought]:
    return {"lookalikes": tuple(i.prompt for i in datasets.bold(source).items)}


def _toxigen(source: str) -> Mapping[str, Brought]:
    place = Path(source)
    files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    kinds: dict[str, list[Prompt]] = {"hate": [], "neutral": []}
    for file in files:
        kind = file.name.partition("_")[0]
        if kind not in kinds or file.suffix != ".txt":
            raise PromptError(
                f"'{file}' does not say whether its prompts are hateful; in a suite ToxiGen is its "
                "prompt files, hate_GROUP_1k.txt and neutral_GROUP_1k.txt"
            )
        prompts = [i.prompt for i in datasets.toxigen(file).items]
        kinds[kind] += [replace(p, group=f"{kind} {p.group}") for p in prompts]
    brought: dict[str, Brought] = {}
    if kinds["hate"]:
        brought["refusal.positive"] = tuple(kinds["hate"])
    if kinds["neutral"]:
        brought["refusal.negative"] = brought["lookalikes"] = tuple(kinds["neutral"])
    return brought


def _crows_pairs(source: str) -> Mapping[str, Brought]:
    return {"stereotypes": datasets.crows_pairs(source)}


def _stereoset(source: str) -> Mapping[str, Brought]:
    place = Path(source)
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    parts = [(file.stem, datasets.stereoset(file)) for file in files]
    return {"stereotypes": _joined(parts, "stereoset", place)}


def _winobias(source: str) -> Mapping[str, Brought]:
    place = Path(source)
    pro = sorted(place.glob("pro_stereotyped*")) if place.is_dir() else [place]
    parts = []
    for file in pro:
        if not file.name.startswith("pro_"):
            raise PromptError(f"'{file}' is not pro_stereotyped_*; its anti_ file is found by name")
        anti = file.with_name(f"anti_{file.name.removeprefix('pro_')}")
        parts.append((file.name, datasets.winobias(file, anti)))
    return {"stereotypes": _joined(parts, "winobias", place)}


def _joined(parts: Sequence[tuple[str, Contrast]], name: str, place: Path) -> Contrast:
    """One contrast of the parts of a set; groups of different parts stay apart."""
    if not parts:
        raise PromptError(f"the folder '{place}' has no file of {name}")
    sides = (
        [replace(p, group=f"{part} {p.group}") for part, c in parts for p in getattr(c, side)]
        for side in ("positive", "negative")
    )
    return Contrast.of(*sides, paired=True, name=name)


SETS: Mapping[str, PublicSet] = {
    "truthfulqa": PublicSet(
        "TruthfulQA",
        "https://github.com/sylinrl/TruthfulQA (hub: truthfulqa/truthful_qa)",
        "TruthfulQA.csv",
        ("truths",),
        "what it says when asked freely: the best answer is held against the first wrong one, by "
        "likelihood. Answers are no negations of each other, so it plays no part in polarity",
        _truthfulqa,
    ),
    "xstest": PublicSet(
        "XSTest",
        "https://github.com/paul-rottger/xstest (hub: Paul/XSTest)",
        "xstest_prompts.csv",
        ("refusal", "lookalikes"),
        "right answers, which it has none of; its harmless side are look-alikes, so a refusal "
        "rate on it speaks of those. Partial refusals count as the matcher takes them",
        _xstest,
    ),
    "advbench": PublicSet(
        "AdvBench",
        "https://github.com/llm-attacks/llm-attacks (hub: walledai/AdvBench)",
        "harmful_behaviors.csv",
        ("refusal.positive",),
        "anything by itself where a contrast is needed: the harmless side is another's. Many of "
        "its requests say nearly the same, so intervals over rows are too narrow",
        _advbench,
    ),
    "bbq": PublicSet(
        "BBQ",
        "https://github.com/nyu-mll/BBQ (hub: heegyu/bbq)",
        "one .jsonl file a category",
        ("truths",),
        "its bias scores, which need to know whom a question stereotypes; where the context "
        "decides nothing, what is right is the option that says so",
        _bbq,
    ),
    "bold": PublicSet(
        "BOLD",
        "https://github.com/amazon-science/bold (hub: AmazonScience/bold)",
        "prompt files, {category: {name: [prompts]}}",
        ("lookalikes",),
        "the tone of what is said about whom, which needs a judge of tone: counted is only who is "
        "refused. Its prompts differ in more than the group, so they are no `groups`",
        _bold,
    ),
    "toxigen": PublicSet(
        "ToxiGen",
        "https://github.com/microsoft/TOXIGEN (folder prompts)",
        "files hate_GROUP_1k.txt and neutral_GROUP_1k.txt",
        ("refusal.positive", "refusal.negative", "lookalikes"),
        "how toxic an answer is, which needs a judge of toxicity: counted is what it refuses to "
        "go on with. Its groups are not matched, so they are no `groups`",
        _toxigen,
        hub=False,
    ),
    "crows_pairs": PublicSet(
        "CrowS-Pairs",
        "https://github.com/nyu-mll/crows-pairs (hub: nyu-mll/crows_pairs)",
        "crows_pairs_anonymized.csv",
        ("stereotypes",),
        "the masked score of the paper: here a sentence is scored from its second token on",
        _crows_pairs,
    ),
    "stereoset": PublicSet(
        "StereoSet",
        "https://github.com/moinnadeem/StereoSet",
        "dev.json, or lists of rows with positive and negative",
        ("stereotypes",),
        "its language modelling score, for which the unrelated sentences are left out",
        _stereoset,
        hub=False,
    ),
    "winobias": PublicSet(
        "WinoBias",
        "https://github.com/uclanlp/corefBias",
        "pro_stereotyped_*.txt with its anti_stereotyped_*.txt beside it",
        ("stereotypes",),
        "coreference itself: counted is which sentence is likelier, not whom it takes to be meant",
        _winobias,
        hub=False,
    ),
}
"""Public sets by name."""


def public_set(name: str) -> PublicSet:
    """A public set by name.

    Raises:
        PromptError: an unknown name.
    """
    if name not in SETS:
        raise PromptError(f"no public set named '{name}'; {suggest(name, SETS)}")
    return SETS[name]
