"""The APIs that llmbench speaks. A new one is a file of this folder and its name in ``NAMES``.

Nothing is imported before it is asked for: flags import the names, and have to be fast.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmbench.apis.api import Api

NAMES = ("chat", "completions", "responses", "messages")


@cache
def _load(name: str) -> "Api":
    api: Api = import_module(f"llmbench.apis.{name}").API
    return api


class _Apis(Mapping[str, "Api"]):
    """Each API by its name: the ``API`` of the module that is called so."""

    def __getitem__(self, name: str) -> "Api":
        if name not in NAMES:
            raise KeyError(name)
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


APIS: Mapping[str, "Api"] = _Apis()
