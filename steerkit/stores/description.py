"""A store in numbers and in words."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from steerkit.stores.executor import Record

if TYPE_CHECKING:
    from steerkit.stores.store import ActivationStore


def worst_errors(records: Iterable[Record | None]) -> dict[str, dict[str, float]]:
    """The largest bound on each error at each site, over all shards."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        for site, errors in (record.errors if record else {}).items():
            worst = found.setdefault(site, dict.fromkeys(errors, 0.0))
            for name, value in errors.items():
                worst[name] = max(worst[name], value)
    return found


def describe(store: "ActivationStore", records: Sequence[Record | None]) -> dict[str, Any]:
    """What a store is, of which these records are finished, as a plain dictionary."""
    manifest = store.manifest
    there = [record for record in records if record is not None]
    first = {task.name for task in manifest.tasks(manifest.groups[:1])}
    return {
        "path": str(store.path),
        "model": manifest.info.name,
        "dataset": dict(manifest.dataset),
        "pooling": store.pooling,
        "sites": {
            str(site): next(g.dtype for g in manifest.groups if str(site) in g.sites)
            for site in store.sites
        },
        "prompts": store.n_prompts,
        "rows": len(store) if store.complete else None,
        "tokens": sum(record.tokens for record in there if record.name in first),
        "shards": len(records),
        "missing": len(records) - len(there),
        "bytes": sum(record.bytes for record in there),
        "errors": worst_errors(there),
        "sha256": store.sha256 if store.complete else None,
    }


def as_html(about: Mapping[str, Any]) -> str:
    """What `describe` says, for a notebook."""
    done = about["shards"] - about["missing"]
    sites = ", ".join(f"{site} ({kind})" for site, kind in about["sites"].items())
    rows = "not finished" if about["rows"] is None else f"{about['rows']:,} rows"
    return (
        f"<b>ActivationStore</b> of {escape(about['model'])}<br>"
        f"{escape(str(about['dataset']['name']))}: {about['prompts']:,} prompts, {rows}, "
        f"pooling <code>{escape(about['pooling'])}</code><br>{sites}<br>"
        f"{done:,} of {about['shards']:,} shards, {about['bytes'] / 1e6:,.1f} MB in "
        f"<code>{escape(about['path'])}</code>"
    )
