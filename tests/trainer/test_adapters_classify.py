"""Classifiers: every kind of method has the score's head in what it trains and exports."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.methods import METHODS, MethodType
from tests.trainer.adapters import LORA, NF4, PARTS, artifact, plan_method
from tests.trainer.plans import write_conversations

ROWS = [[0, 117, 82, 301, 77, 2, 45, 410], [0, 5, 9, 200]]
METHOD: dict[MethodType, dict[str, Any]] = {
    "full": {},
    "freeze": PARTS["freeze"],
    "lora": {"lora": LORA},
    "qlora": {"lora": LORA, "quantization": NF4},
    "pissa": PARTS["pissa"],
    "ia3": PARTS["ia3"],
    "p-tuning-v2": PARTS["p-tuning-v2"],
    "bottleneck": PARTS["bottleneck"],
}


@pytest.mark.parametrize("method", METHOD)
def test_a_classifier_is_exported_with_its_head(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: MethodType
) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from finetune_trainer.export.artifacts import export_artifacts
    from finetune_trainer.model.adapter import prepare_method
    from finetune_trainer.model.load import load_base, load_model
    from finetune_trainer.model.starts import keep_start

    monkeypatch.setitem(PARTS, method, METHOD[method])
    data = write_conversations(tmp_path / "rows.jsonl", 2)
    plan = plan_method(method, tmp_path, tiny_model, data, objective={"type": "reward"})
    model, config = prepare_method(plan, load_model(plan, str(tiny_model), 0))
    model = model if config is None else get_peft_model(model, config)
    keep_start(plan, model)
    if method == "qlora":
        assert type(model.base_model.model.score.original_module) is torch.nn.Linear
    if METHODS[method].adapter:
        model.set_adapter("default")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("score" in name for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    # A batch with padding: the score is read before it.
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ROWS], True, model.config.pad_token_id)
    for _ in range(3):
        scores = model(input_ids=padded, attention_mask=padded != model.config.pad_token_id).logits
        assert scores.shape == (2, 1)
        (scores[1] - scores[0]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.inference_mode():
        alone = [float(model(input_ids=torch.tensor([row])).logits) for row in ROWS]
        together = model(input_ids=padded, attention_mask=padded != model.config.pad_token_id).logits.flatten().tolist()
    assert alone == pytest.approx(together, abs=1e-5) and alone[0] - alone[1] > 0.1

    records = export_artifacts(plan, model, AutoTokenizer.from_pretrained(tiny_model), str(tiny_model), ROWS)
    print(method, [(record.type, record.difference) for record in records])
    assert [record.type for record in records] == list(plan.output.artifacts)
    assert all(record.difference is not None and record.difference < 1e-5 for record in records)
    if METHODS[method].mergeable:
        merged = AutoModelForSequenceClassification.from_pretrained(artifact(plan, "merged"))
        with torch.inference_mode():
            assert [float(merged(input_ids=torch.tensor([row])).logits) for row in ROWS] == pytest.approx(
                alone, abs=1e-4
            )
    assert load_base(plan, str(tiny_model), "cpu").config.num_labels == 1
