"""`h_adapter`: the name that surveys and benchmarks give to Houlsby's adapters."""

from __future__ import annotations

from typing import ClassVar, Literal

from luthier.methods.adapter import Adapter


class HAdapter(Adapter):
    """Houlsby's adapters under the name of the literature."""

    kind: Literal["h_adapter"] = "h_adapter"  # type: ignore[assignment]  # the alias differs in its name alone

    title: ClassVar[str] = "H-Adapter (another name of adapter)"
    zh: ClassVar[dict[str, str]] = {**Adapter.zh, "title": "H-Adapter（adapter 的别名）"}
