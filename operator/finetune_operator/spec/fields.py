"""The fields of the API models, found by the path that a person sees."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import BaseMetadata, GroupedMetadata
from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from finetune_api import kubernetes as k8s


@dataclass(frozen=True)
class Shape:
    """A type taken apart. ``kind`` is object, list, map, enum or the name of a scalar type."""

    kind: Literal["object", "list", "map", "enum", "quantity", "string", "integer", "number", "boolean", "any"]
    model: type[BaseModel] | None = None
    item: Any = None
    """Annotation of a list's items or a map's values."""
    key: Any = None
    """Annotation of a map's keys."""
    choices: tuple[Any, ...] = ()
    metadata: tuple[Any, ...] = ()


_TEXT_EXAMPLES: dict[str, str] = {
    k8s.ABSOLUTE_PATH_PATTERN: "/data",
    k8s.ENV_NAME_PATTERN: "LOG_LEVEL",
    k8s.SECRET_KEY_PATTERN: "token",
}
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def parse_shape(annotation: Any, metadata: Sequence[Any] = ()) -> Shape:
    """What an annotation of a model's field stands for; ``X | None`` is X."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return parse_shape(inner, (*metadata, *_flatten(more)))
    if origin in (Union, types.UnionType):
        (inner,) = (each for each in get_args(annotation) if each is not type(None))
        return parse_shape(inner, metadata)
    found = tuple(metadata)
    if origin is Literal:
        return Shape("enum", choices=get_args(annotation), metadata=found)
    if origin in (list, tuple):
        return Shape("list", item=get_args(annotation)[0], metadata=found)
    if origin is dict:
        key, item = get_args(annotation)
        return Shape("map", item=item, key=key, metadata=found)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Shape("object", model=annotation, metadata=found)
    if any(isinstance(each, WithJsonSchema) for each in found):  # the only such type: an int or a string
        return Shape("quantity", metadata=found)
    return Shape(_SCALARS.get(annotation, "any"), metadata=found)  # type: ignore[arg-type]


def find_shape(root: type[BaseModel], location: Sequence[str | int]) -> tuple[Shape, FieldInfo | None]:
    """The shape at a path of aliases, list indices and map keys below ``root``, and the field there (None for an item).

    Raises KeyError when there is none.
    """
    shape, field = Shape("object", model=root), None
    for step in location:
        if shape.kind == "object" and shape.model is not None:
            field = find_field(shape.model, str(step))
            shape = parse_shape(field.annotation, field.metadata)
        elif shape.kind in ("list", "map"):
            shape, field = parse_shape(shape.item), None
        else:
            raise KeyError(step)
    return shape, field


def find_field(model: type[BaseModel], alias: str) -> FieldInfo:
    """The field of a model that a person writes as ``alias``. Raises KeyError when there is none."""
    for field in model.model_fields.values():
        if field.alias == alias:
            return field
    raise KeyError(alias)


def list_aliases(model: type[BaseModel]) -> list[str]:
    """What a person may write in an object of this model."""
    return [field.alias or name for name, field in model.model_fields.items()]


def build_example(shape: Shape, field: FieldInfo | None = None) -> Any:
    """A value that fits: the field's own example, else the least that its type allows."""
    if field is not None and field.examples:
        return field.examples[0]
    match shape.kind:
        case "object" if shape.model is not None:
            return {
                each.alias: build_example(parse_shape(each.annotation, each.metadata), each)
                for each in shape.model.model_fields.values()
                if each.is_required()
            }
        case "enum":
            return shape.choices[0]
        case "list":
            return [build_example(parse_shape(shape.item))]
        case "map":
            return {"key": "value"}
        case "boolean":
            return True
        case "integer" | "number":
            return 1
        case "quantity":
            return "16Gi"
    return _TEXT_EXAMPLES.get(read_bounds(shape.metadata).get("pattern", ""), "example")


def format_path(location: Sequence[str | int]) -> str:
    """``spec.podTemplate.env[2].name``; keys of maps that are no plain words stand in brackets."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.isidentifier():
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def read_bounds(metadata: Sequence[Any]) -> dict[str, Any]:
    """The constraints of a field by pydantic's names: gt, ge, lt, le, min_length, max_length, pattern."""
    names = ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern")
    return {
        name: value
        for constraint in _flatten(metadata)
        for name in names
        if (value := getattr(constraint, name, None)) is not None
    }


def _flatten(metadata: Sequence[Any]) -> Iterator[Any]:
    """Single constraints out of pydantic's grouped ones; a nested Field(...) stands for its own."""
    for each in metadata:
        if isinstance(each, FieldInfo):
            yield from _flatten(each.metadata)
        elif isinstance(each, GroupedMetadata) and not isinstance(each, BaseMetadata):
            yield from each
        else:
            yield each
