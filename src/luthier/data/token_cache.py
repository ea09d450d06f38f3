"""Rendered examples kept on disk, so that the next run on the same rows does not tokenise them again.

An entry is a folder of plain arrays (.npy, read by mapping) and `meta.json`; its name is a hash of everything that the
tokens depend on: the records as they were read, the tokenizer with its template, the settings of the renderer, and the
code. So nothing stale can be read, and sets are shared by runs, whatever their files are called.

An entry is written beside its place, synced, and renamed: another process sees all of it or nothing, and where two
write the same entry at once the first one wins. Sizes are compared when an entry is opened, and a torn one is not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier import __version__
from luthier.core.cache import cache_folder
from luthier.core.rundir import sync
from luthier.data.records import Record
from luthier.data.render import Rendered
from luthier.data.spool import encoded
from luthier.data.store import ExampleStore, SourceTable, split_source

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

LEAST_BYTES = 1 << 20
"""Rows that hold less are tokenised sooner than it is worth a file."""
META = "meta.json"
_FORMAT = 1
_CHUNK = 1 << 22
_STALE_SECONDS = 86_400.0


def rendered_once(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, object],
    render: Callable[[], Rendered],
) -> Rendered:
    """Return what `render` gives: from the cache if it is there, else made and kept. Small sets are just made.

    Args:
        settings: everything besides the records and the tokenizer that the result depends on.
    """
    folder = cache_folder()
    if folder is None:
        return render()
    digest, names, size = _digest(records)
    if size < LEAST_BYTES:
        return render()
    entry = folder / "tokens" / _key(digest, tokenizer, settings)
    found = _read(entry, names)
    if found is not None:
        with suppress(OSError):
            os.utime(entry)  # when it was last of use, for whoever tidies up
        return found
    made = render()
    try:
        _write(entry, made, names)
    except OSError as error:
        return Rendered(made.store, made.counts, f"not kept in the cache {folder}: {error.strerror or error}")
    kept = _read(entry, names)
    if kept is None:  # another process removed it, or the file system lies
        return made
    return Rendered(kept.store, made.counts, f"kept in the cache: {entry} ({_megabytes(entry)})")


def _digest(records: Sequence[Record]) -> tuple[str, list[str], int]:
    """Return what identifies the records and their lines, the names of their files, and the bytes they hold."""
    whole, size = hashlib.sha256(), 0
    names: dict[str, int] = {}
    for text, source in encoded(records):
        name, line = split_source(source)
        place = names.setdefault(name, len(names))
        size += len(text)
        whole.update(b"%d %d %d\n" % (place, len(text), line))
        whole.update(text)
    return whole.hexdigest(), list(names), size


def _key(digest: str, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, object]) -> str:
    parts = {
        "format": _FORMAT,
        "luthier": __version__,
        "code": _code(),
        "libraries": [version(name) for name in ("transformers", "tokenizers", "jinja2")],
        "records": digest,
        "tokenizer": fingerprint_of(tokenizer),
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a hash of the source of this folder: whatever is changed in it may change tokens."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer of the tokenizers library inside; renderers have refused all that have none."""
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    assert isinstance(backend, Tokenizer)
    return backend


def fingerprint_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what identifies a tokenizer: its vocabulary and rules, its special tokens, and its template."""
    rules = json.loads(backend_of(tokenizer).to_str())
    # What the last call asked for, not what the tokenizer is.
    rules |= {"truncation": None, "padding": None}
    parts = {
        "class": type(tokenizer).__name__,
        "rules": rules,
        "special": tokenizer.special_tokens_map,
        "added": {i: [t.content, t.special] for i, t in tokenizer.added_tokens_decoder.items()},
        "template": tokenizer.chat_template,
        "ids": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


# ---------------------------------------------------------------------- the files


def _arrays(store: ExampleStore) -> dict[str, np.ndarray]:
    files, lines = store.places.numbers
    found = {
        "tokens": store.tokens_T,
        "codes": store.codes_T,
        "palette": store.palette,
        "borders": store.borders,
        "sequences": store.sequences,
        "files": files,
        "lines": lines,
    }
    if store.branches_S is not None:
        found["branches"] = store.branches_S
    return found | {f"extra.{name}": values for name, values in store.extras.items()}


def _write(entry: Path, made: Rendered, names: Sequence[str]) -> None:
    """Write an entry beside its place and rename it.

    Raises:
        OSError: the disk refuses.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    _tidy(entry.parent)
    beside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=entry.parent))
    try:
        sizes = {}
        for name, array in _arrays(made.store).items():
            sizes[name] = _write_array(beside / f"{name}.npy", array)
        places = [names.index(name) for name in made.store.places.names]
        meta = {"sizes": sizes, "places": places, "names": list(names), "counts": made.counts}
        _write_bytes(beside / META, json.dumps(meta).encode())
        sync(beside)
        try:
            beside.rename(entry)
        except OSError:
            if _read(entry, names) is None:  # else another process was first, with the same content
                shutil.rmtree(entry)
                beside.rename(entry)
        sync(entry.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_array(path: Path, array: np.ndarray) -> int:
    """Write an array in numpy's own form, in pieces, and return the file's size."""
    with path.open("wb") as stream:
        flat = np.ascontiguousarray(array)
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(flat))
        for start in range(0, len(flat), _CHUNK):
            stream.write(flat[start : start + _CHUNK].tobytes())
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell()


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _tidy(folder: Path) -> None:
    """Remove what a killed process has left half-written."""
    for path in folder.glob(".tmp-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _read(entry: Path, names: Sequence[str]) -> Rendered | None:
    """Return an entry, or None where there is none or not all of one."""
    try:
        meta = json.loads((entry / META).read_bytes())
        arrays = {}
        for name, size in meta["sizes"].items():
            path = entry / f"{name}.npy"
            if path.stat().st_size != size:
                return None
            arrays[name] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, KeyError):
        return None
    now = [str(names[place]) for place in meta["places"]]
    extras = {name.removeprefix("extra."): values for name, values in arrays.items() if name.startswith("extra.")}
    store = ExampleStore(
        arrays["tokens"],
        arrays["codes"],
        arrays["palette"],
        arrays["borders"],
        SourceTable(now, arrays["files"], arrays["lines"]),
        extras,
        arrays.get("branches"),
        arrays["sequences"],
    )
    counts = meta["counts"]
    for old, new in zip(meta["names"], names):  # the same rows may lie elsewhere now
        counts["notes"] = [note.replace(old, new) for note in counts["notes"]] if old != new else counts["notes"]
    return Rendered(store, counts, f"read from the cache: {entry} ({_megabytes(entry)})")


def _megabytes(entry: Path) -> str:
    size = sum(path.stat().st_size for path in entry.iterdir())
    return f"{size / 1e6:,.0f} MB"
