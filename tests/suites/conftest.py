"""What holds for every test of the suites."""

from collections.abc import Iterator

import pytest

from steerkit.suites import equal_kl, harms


@pytest.fixture(scope="module", autouse=True)
def few_controls() -> Iterator[None]:
    """Of random directions at equal KL enough to see what they are for.

    Each is calibrated and asked everything; that many of them make a p small is for real audits.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_kl, "DRAWS", 5)
        patch.setattr(equal_kl, "SPARE", 2)
        patch.setattr(equal_kl, "PROMPTS", 40)
        patch.setattr(harms, "ASKED", 20)
        yield
