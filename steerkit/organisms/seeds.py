"""Which claims hold on which training seeds: `python -m steerkit.organisms.seeds --out DIR`."""

import argparse
import json
import logging
from pathlib import Path

from steerkit.organisms import train

_log = logging.getLogger(__name__)
SUMMARY = Path(__file__).parent / "seeds.json"
"""The shipped summary: claims by seed, and for each claim on how many seeds it was met."""


def summarize(folder: Path) -> dict[str, dict[str, dict[str, bool]] | dict[str, int]]:
    """Collect the claims of all seeds trained under `folder` (in `seed_*/truth.json`)."""
    seeds: dict[str, dict[str, bool]] = {}
    for file in sorted(folder.glob("seed_*/truth.json")):
        found = json.loads(file.read_text())
        seeds[str(found["seed"])] = found["claims"]
    claims = next(iter(seeds.values()), {})
    met = {claim: sum(seed[claim] for seed in seeds.values()) for claim in claims}
    return {"seeds": seeds, "met_on": met}


def main() -> None:
    """Train every seed that has no truth file yet, then write the summary."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, required=True, help="folder for seed_N folders")
    parser.add_argument("--summary", type=Path, default=SUMMARY)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        folder = args.out / f"seed_{seed}"
        if not (folder / "truth.json").exists():
            _log.info("training seed %d", seed)
            train.build(folder, seed=seed, progress=True)
        args.summary.write_text(json.dumps(summarize(args.out), indent=1) + "\n")


if __name__ == "__main__":
    main()
