"""The generated reference, and what it measures."""

import pytest

from tools import generate_matrix, generate_reference

FIELDS = list(generate_reference.list_fields())


def test_file_is_what_the_models_say() -> None:
    for page in (generate_matrix, generate_reference):
        generated = page.generate()
        assert {path: path.read_text() for path in generated} == generated


@pytest.mark.parametrize(("path", "field", "shape"), FIELDS, ids=[path for path, _, _ in FIELDS])
def test_every_field_changes_what_is_applied(
    path: str, field: generate_reference.FieldInfo, shape: generate_reference.Shape
) -> None:
    """A field without behaviour has no place in the API; the only choice of an enumeration changes nothing yet."""
    drives_manifests = len(shape.choices) != 1 and path not in generate_reference.BEHAVIOUR
    assert bool(generate_reference.find_driven(path, field, shape)) == drives_manifests


def test_measures_what_is_known() -> None:
    driven = {path: generate_reference.find_driven(path, field, shape) for path, field, shape in FIELDS}
    assert driven["podTemplate.image"] == ["container.image"]
    assert driven["method.alpha"] == ["plan.json:method.lora.alpha"]
    assert driven["observability.wandbSecretRef"] == [
        "container.env[WANDB_API_KEY].valueFrom.secretKeyRef.key",
        "container.env[WANDB_API_KEY].valueFrom.secretKeyRef.name",
    ]
