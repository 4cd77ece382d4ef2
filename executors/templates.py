"""Placeholders in a work pool's job template: plain values, environment, blocks, variables.

The rules are those of Prefect 3.8, with one exception. Where several placeholders stand in one
text, Prefect replaces them one after the other in no particular order, so that a value which
looks like a placeholder is sometimes replaced as well. Here a text is read once, from left to
right, and what a placeholder was replaced with is not read again.
"""

from __future__ import annotations

import copy
import enum
import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from executors import errors

if TYPE_CHECKING:
    from dispatcher.prefect_api import schemas

BLOCK_PREFIX = "prefect.blocks."
VARIABLE_PREFIX = "prefect.variables."
ENVIRONMENT_PREFIX = "$"
REFERENCE_KEY = "$ref"

_PLACEHOLDER = re.compile(r"\{\{\s*([\w.\-\[\]$]+)\s*\}\}")


class Missing(enum.Enum):
    """The type of :data:`MISSING`."""

    MISSING = "missing"


MISSING = Missing.MISSING
"""What a look-up returns for something that does not exist; ``None`` is an ordinary value."""


class ReferenceReader(Protocol):
    """Reads what templates refer to. Errors other than "no such object" pass through."""

    def read_block_document(self, type_slug: str, name: str) -> schemas.BlockDocument | None:
        """Return the block with its secrets in clear, or ``None`` if there is no such block."""
        ...

    def read_block_document_by_id(self, block_document_id: str) -> schemas.BlockDocument | None:
        """Return the block with its secrets in clear, or ``None`` if there is no such block."""
        ...

    def read_variable(self, name: str) -> Any:
        """Return the variable's value, any JSON; :data:`MISSING` if there is no such variable."""
        ...


class PlaceholderKind(enum.Enum):
    """Where a placeholder's value comes from."""

    VALUE = "value"
    ENVIRONMENT = "environment"
    BLOCK = "block"
    VARIABLE = "variable"


_KIND_BY_PREFIX = {
    BLOCK_PREFIX: PlaceholderKind.BLOCK,
    VARIABLE_PREFIX: PlaceholderKind.VARIABLE,
    ENVIRONMENT_PREFIX: PlaceholderKind.ENVIRONMENT,
}


@dataclass(frozen=True)
class Placeholder:
    """One ``{{ name }}``; ``text`` is how it is written, braces included."""

    text: str
    name: str

    @property
    def kind(self) -> PlaceholderKind:
        """The kind, which the beginning of the name decides."""
        for prefix, kind in _KIND_BY_PREFIX.items():
            if self.name.startswith(prefix):
                return kind
        return PlaceholderKind.VALUE


_Lookup = Callable[[Placeholder], Any]


def find_placeholders(template: Any) -> list[Placeholder]:
    """List the different placeholders of a template in the order of their first appearance.

    Keys of mappings are not searched: they are never templated.
    """
    found: dict[Placeholder, None] = {}

    def collect(leaf: Any) -> Any:
        if isinstance(leaf, str):
            found.update(dict.fromkeys(map(_placeholder, _PLACEHOLDER.finditer(leaf))))
        return leaf

    _map_leaves(template, collect)
    return list(found)


def apply_values(
    template: Any, values: Mapping[str, Any], *, environ: Mapping[str, str] | None = None
) -> Any:
    """Fill in values and ``{{ $NAME }}``; leave references to blocks and variables as they are.

    A text that is nothing but one placeholder becomes the value with its type, or
    :data:`MISSING` if there is none (in a mapping or list the entry is removed). In a longer
    text a value is written as ``str`` does, and a missing one leaves nothing. ``environ``
    defaults to the environment of this process; a name it does not have is empty. Neither
    argument is changed, but the result may share objects with ``values``.

    Raises :class:`~executors.errors.ConfigurationError` for a type that JSON does not have.
    """
    surroundings = os.environ if environ is None else environ

    def look_up(placeholder: Placeholder) -> Any:
        if placeholder.kind is PlaceholderKind.VALUE:
            return _get_path(values, placeholder.name)
        return surroundings.get(placeholder.name.lstrip(ENVIRONMENT_PREFIX), "")

    fill = _filler({PlaceholderKind.VALUE, PlaceholderKind.ENVIRONMENT}, look_up)
    return _map_leaves(template, lambda leaf: fill(_json_leaf(leaf)))


def resolve_block_references(template: Any, reader: ReferenceReader) -> Any:
    """Replace ``{{ prefect.blocks.type.name.path }}`` and ``{"$ref": {"block_document_id": id}}``.

    A block whose data is only ``{"value": …}`` stands for that value, except in a ``$ref``,
    which stands for the whole data. Each block is read once. What a block contains is not
    searched for further blocks. A ``$ref`` that does not name a block is ordinary data.

    Raises :class:`~executors.errors.ConfigurationError` if a block or a path in it does not
    exist, or a mapping or list would have to be written into a longer text.
    """
    by_name = functools.cache(reader.read_block_document)
    by_id = functools.cache(reader.read_block_document_by_id)
    fill = _filler(
        {PlaceholderKind.BLOCK},
        lambda placeholder: _block_value(placeholder, by_name),
        to_text=_scalar_text,
    )
    return _map_leaves(template, fill, lambda node: _referenced_data(node, by_id))


def resolve_variables(template: Any, reader: ReferenceReader) -> Any:
    """Replace ``{{ prefect.variables.name }}``; a variable that does not exist becomes ``""``.

    A text that is nothing but one placeholder becomes the variable's value with its type. Each
    variable is read once. There is no access to parts of a variable: all of the name counts.
    """
    read = functools.cache(reader.read_variable)

    def look_up(placeholder: Placeholder) -> Any:
        value = read(placeholder.name.removeprefix(VARIABLE_PREFIX))
        return "" if value is MISSING else copy.deepcopy(value)

    return _map_leaves(template, _filler({PlaceholderKind.VARIABLE}, look_up))


def _placeholder(match: re.Match[str]) -> Placeholder:
    return Placeholder(text=match[0], name=match[1])


def _map_leaves(
    node: Any,
    leaf: Callable[[Any], Any],
    mapping: Callable[[dict[str, Any]], Any] = lambda _: MISSING,
) -> Any:
    """Copy a tree of dicts and lists with each leaf replaced; drop entries that become MISSING.

    ``mapping`` may replace a whole dict; it returns MISSING for one to be walked through.
    """
    if isinstance(node, dict):
        if (replacement := mapping(node)) is not MISSING:
            return replacement
        entries = ((key, _map_leaves(value, leaf, mapping)) for key, value in node.items())
        return {key: value for key, value in entries if value is not MISSING}
    if isinstance(node, list):
        items = (_map_leaves(item, leaf, mapping) for item in node)
        return [item for item in items if item is not MISSING]
    return leaf(node)


def _plain_text(_: Placeholder, value: Any) -> str:
    return "" if value is MISSING else str(value)


def _scalar_text(placeholder: Placeholder, value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise errors.ConfigurationError(
            f"{placeholder.text} is a {type(value).__name__} and cannot stand inside a longer"
            " text; add the path of a single value in it"
        )
    return str(value)


def _filler(
    kinds: set[PlaceholderKind],
    look_up: _Lookup,
    to_text: Callable[[Placeholder, Any], str] = _plain_text,
) -> Callable[[Any], Any]:
    """Make a function that replaces the placeholders of these kinds in a leaf."""

    def replace(match: re.Match[str]) -> str:
        placeholder = _placeholder(match)
        if placeholder.kind not in kinds:
            return placeholder.text
        return to_text(placeholder, look_up(placeholder))

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, str):
            return leaf
        whole = _PLACEHOLDER.fullmatch(leaf)
        if whole and (placeholder := _placeholder(whole)).kind in kinds:
            return look_up(placeholder)
        return _PLACEHOLDER.sub(replace, leaf)

    return fill


def _json_leaf(leaf: Any) -> Any:
    if leaf is None or isinstance(leaf, (str, int, float)):
        return leaf
    raise errors.ConfigurationError(
        f"a job template cannot contain a {type(leaf).__name__}; use text, numbers, booleans,"
        " null, lists and mappings"
    )


def _get_path(values: Any, path: str) -> Any:
    """Follow ``a.b[0].c``; a part that is a number is an index where no key is written so.

    So does Prefect from 3.9 on; those before found no such key at all.
    """
    found = values
    for part in path.replace("[", ".").replace("]", "").split("."):
        try:
            is_key = isinstance(found, Mapping) and part in found
            found = found[part if is_key else _index_or_key(part)]
        except (TypeError, LookupError):
            return MISSING
    return found


def _index_or_key(part: str) -> str | int:
    try:
        return int(part)
    except ValueError:
        return part


def _block_value(
    placeholder: Placeholder,
    read: Callable[[str, str], schemas.BlockDocument | None],
) -> Any:
    type_slug, name, path = _split_block_name(placeholder)
    block = read(type_slug, name)
    if block is None:
        raise errors.ConfigurationError(
            f"block {name!r} of type {type_slug!r}, which {placeholder.text} refers to, does not"
            " exist; create it or remove the reference"
        )
    value = _unwrapped(block.data, path)
    if path is not None and (value := _get_path(value, path)) is MISSING:
        raise errors.ConfigurationError(
            f"block {name!r} of type {type_slug!r} has no value at {path!r}, which"
            f" {placeholder.text} refers to"
        )
    return copy.deepcopy(value)


def _split_block_name(placeholder: Placeholder) -> tuple[str, str, str | None]:
    """Split into block type, block name and the path inside the block, if there is one."""
    type_slug, _, rest = placeholder.name.removeprefix(BLOCK_PREFIX).partition(".")
    name, dot, path = rest.partition(".")
    if not type_slug or not name:
        raise errors.ConfigurationError(
            f"{placeholder.text} does not name a block; write"
            " {{ prefect.blocks.<block type>.<block name> }}"
        )
    return type_slug, name, path if dot else None


def _unwrapped(data: dict[str, Any], path: str | None) -> Any:
    """Return the only value of a system block, unless the path names that ``value`` itself."""
    names_value = path is not None and path.replace("[", ".").split(".")[0] == "value"
    return data["value"] if set(data) == {"value"} and not names_value else data


def _referenced_data(
    node: dict[str, Any], read: Callable[[str], schemas.BlockDocument | None]
) -> Any:
    reference = node.get(REFERENCE_KEY)
    block_document_id = reference.get("block_document_id") if isinstance(reference, dict) else None
    if not block_document_id:
        return MISSING
    block = read(str(block_document_id))
    if block is None:
        raise errors.ConfigurationError(
            f"block document {str(block_document_id)!r} does not exist; create the block anew and"
            " update the reference to it"
        )
    return copy.deepcopy(block.data)
