"""What sort of token: the classes by which shifted tokens are counted."""

SAFETY = frozenset(
    "sorry apologize apologies cannot can't couldn't won't wouldn't unable not refuse decline "
    "illegal harmful unethical dangerous inappropriate unsafe against respect responsible "
    "assist ethical legal policy guidelines".split()
)
"""Words of refusals and warnings."""
DISCOURSE = frozenset(
    "however sure certainly absolutely indeed firstly first second third finally additionally "
    "moreover furthermore overall therefore thus instead here please thank thanks welcome great "
    "hello hi note remember important answer question happy glad hope".split()
)
"""Words that open, order and close answers."""
FUNCTION = frozenset(
    "a an the this that these those i you he she it we they me him her us them my your his its "
    "our their mine yours and or but nor so yet if then than because while although as of in on "
    "at by for with about to from up down out over under into through between after before is am "
    "are was were be been being have has had do does did will would shall should can could may "
    "might must there what which who whom whose when where why how all any some no none each "
    "every both few more most other such only own same too very just also".split()
)
"""Closed-class English words."""
KINDS = ("end", "punctuation", "number", "safety", "discourse", "function", "content")


def token_kind(text: str) -> str:
    """The class of one decoded token; special tokens decode to nothing and are `end`.

    Looked up as a whole word, case folded, so a piece of a word is `content`.

    >>> [token_kind(t) for t in ("", " .", "42", " Sorry", "However", " the", "house")]
    ['end', 'punctuation', 'number', 'safety', 'discourse', 'function', 'content']
    """
    word = text.strip().casefold().replace("\u2019", "'")
    if not word:
        return "end" if not text else "punctuation"
    if not any(c.isalnum() for c in word):
        return "punctuation"
    if word.replace(",", "").replace(".", "").isdigit():
        return "number"
    for kind, words in (("safety", SAFETY), ("discourse", DISCOURSE), ("function", FUNCTION)):
        if word in words:
            return kind
    return "content"
