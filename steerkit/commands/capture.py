"""`steerkit capture`: a contrast in, activations out."""

from pathlib import Path

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, table
from steerkit.commands.outputs import check_free


def command(
    model: o.Model,
    contrast: o.ContrastFile,
    out: o.OutFile = Path("activations.safetensors"),
    part: o.Part = "fit",
    streams: o.Streams = "resid_post",
    layers: o.Layers = "",
    positions: o.Positions = "last",
    limit: o.Limit = 0,
    template: o.Template = "auto",
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Record what a model's streams hold while it reads two piles of prompts.

    \b
    Examples:
      steerkit capture -m organism:aligned -c requests.jsonl
      steerkit capture -m ./my-model -c builtin:sentiment --layers 4-12
      steerkit capture -m gpt2 -c pairs.csv --part all --positions mean_prompt
    """
    import steerkit as sk
    from steerkit.pipeline import part_of

    check_free([out], force=force)
    chosen = part_of(inputs.read_contrast(contrast, template), part, seed=seed, limit=limit)
    at = inputs.read_layers(layers)
    loaded = inputs.open_model(model, device, dtype)
    say(f"capturing {chosen}")
    found = sk.capture(
        loaded,
        chosen,
        streams=inputs.read_names(streams),
        layers=at,
        positions=inputs.read_positions(positions),
    )
    found.save(out)
    return Answer(
        {
            "activations": str(out),
            "model": loaded.info.to_json(),
            "contrast_sha256": found.contrast_sha256,
            "part": part,
            "prompts": len(found.prompts),
            "rows": len(found),
            "sites": [str(site) for site in found.sites],
        },
        table(
            "Captured",
            "what",
            "value",
            rows=[
                ("model", loaded.info.name),
                ("prompts", f"{sum(found.labels)} positive, {found.labels.count(0)} negative"),
                ("sites", f"{found.sites[0]} .. {found.sites[-1]} ({len(found.sites)})"),
                ("written", str(out)),
            ],
        ),
    )
