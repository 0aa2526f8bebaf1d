"""What generic discovery cannot see, by Hugging Face `model_type`. Keep it small.

An entry is needed only where a probe forward cannot tell: a contribution that is scaled
before it is added, or a network whose parts have unusual names.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where a family differs from what discovery assumes.

    Attributes:
        scale: config field by which attention and MLP outputs are multiplied before they
            are added to the stream.
        attn: path, inside a block, of the module whose output is the attention contribution.
        mlp: the same for the MLP contribution.
    """

    scale: str = ""
    attn: str = ""
    mlp: str = ""


FAMILIES: dict[str, Family] = {
    "granite": Family(scale="residual_multiplier"),
    "granitemoe": Family(scale="residual_multiplier"),
    "granitemoeshared": Family(scale="residual_multiplier"),
    # The two sub-layers add the residual themselves; what they add is the inner projection.
    "bloom": Family(attn="self_attention.dense", mlp="mlp.dense_4h_to_h"),
}
