"""What stands in the README.md of every store: its format, enough to read it with numpy alone."""

README = '''# An activation store

Activations of a language model on the rows of a dataset, written by steerkit.

- `manifest.json`: the dataset (fingerprint, rows, columns, rows that were left out), the model
  (fingerprint), and `groups`: sites that were captured in one pass, with the hash of their spec.
- `prompts/index.json`: `parts`, `[start, stop, characters, sha256]` of each range of rows that
  is one shard.
- `prompts/START.jsonl`: the prompts of a range: `row` (in this store), `dataset_row` (in the
  dataset), `prompt`, `metadata` (its scalar columns).
- `records.jsonl`: one line for each finished shard: `name`, `start`, `stop`, `rows`, `tokens`,
  `bytes`, `sha256` of the file, `errors` of the stored type at each site. The last line of a
  name counts; a line with `withdrawn` takes it back.
- `shards/DATASET-SPEC-START-STOP.safetensors`: the tensors of one group and range.

A folder of sums has no shards but `moments.safetensors`: for each class and group of its header's
`cells` (`[class, group, rows]`) and each site, in this order, the float64 `mean`, the `scatter`
(sum of outer products of what is left after the mean), and `skew` and `fourth` (sums of |u|^2 u
and |u|^4), from which covariances and their shrinkage follow.

`DATASET` is the beginning of the dataset's fingerprint, `SPEC` of the spec's hash, `START` and
`STOP` the range of prompt rows. Shards in the order of START make up the store. A shard has its
final name only when it is whole; `.*.tmp` files are leftovers.

A shard is a safetensors file: 8 bytes (little-endian) give the length of a JSON header, the
header gives dtype, shape and offsets of each tensor, the bytes follow. Its tensors:

| tensor | type | what |
|---|---|---|
| `values.SITE` | `[row, d_model]` | at a site such as `resid_post@3`: F32, BF16, F16 or I8 |
| `scale.SITE` | F32 `[row]` | for I8: a row is its integers times its scale |
| `prompt` | I64 `[row]` | which prompt (row of the store) each activation row belongs to |
| `position` | I32 `[row]` | position of its token in the prompt; -1 where pooled over several |
| `token` | I32 `[row]` | id of its token; -1 where pooled over several |
| `ids` | I32 | token ids of all prompts (and answers) of the range, one after another |
| `ids_start` | I64 `[prompts + 1]` | where each prompt's ids begin |
| `prompt_len` | I32 `[prompts]` | how many of them are the prompt; the rest is its answer |

numpy has no bfloat16; its bytes are the upper half of a float32:

```python
import json
from pathlib import Path
import numpy as np

TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "I32": "<i4", "I64": "<i8"}

def read_shard(path):
    """The tensors of a shard, mapped from disk."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    header.pop("__metadata__", None)

    def tensor(dtype, shape, data_offsets):
        return data[slice(*data_offsets)].view(TYPES[dtype]).reshape(shape)

    return {name: tensor(**about) for name, about in header.items()}

def values(tensors, site):
    """The activations of a shard at a site, float32."""
    stored = tensors[f"values.{site}"]
    if stored.dtype == np.uint16:  # bfloat16
        return (stored.astype(np.uint32) << 16).view(np.float32)
    scale = tensors.get(f"scale.{site}")
    return stored.astype(np.float32) * (1 if scale is None else scale[:, None])

def finished_shards(store, group=0):
    """The shards of a group in the order of their rows."""
    spec = json.loads(Path(store, "manifest.json").read_text())["groups"][group]["sha256"][:16]
    text = Path(store, "records.jsonl").read_text()
    lines = [json.loads(line) for line in text.split("\\n")[:-1]]
    latest = {line["name"]: line for line in lines}.values()
    mine = [r for r in latest if "withdrawn" not in r and f"-{spec}-" in r["name"]]
    return [Path(store, r["name"]) for r in sorted(mine, key=lambda r: r["start"])]
```

In Python with steerkit: `steerkit.ActivationStore(folder)`.
'''
