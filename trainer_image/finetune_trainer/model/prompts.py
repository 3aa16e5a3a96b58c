"""PEFT's prompt encoders, able to go on: its files hold what an encoder has made, and nothing to train on with.

Importing this makes PEFT use them. Their adapters are PEFT's with more in them, and load wherever PEFT's do.
"""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners import PrefixEncoder, PromptEncoder
from peft.utils import PeftType

_PARTS = "prompt_encoder_parts."


class _Resumable:
    """Mixed into a prompt encoder."""

    @classmethod
    def _get_adapter_state_dict(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Any], unwanted_adapter_names: list[str]
    ) -> dict[str, Any]:
        made = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)  # type: ignore[misc]
        prefix = f"prompt_encoder.{adapter_name}."
        parts = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        # With an embedding alone, what is made is all there is.
        return made if len(parts) == 1 else made | {_PARTS + key: value for key, value in parts.items()}

    def _load_adapter_state_dict(self, state_dict: dict[str, Any]) -> None:
        if len(self.state_dict()) == 1:  # type: ignore[attr-defined]
            super()._load_adapter_state_dict(state_dict)  # type: ignore[misc]
            return
        parts = {key.removeprefix(_PARTS): value for key, value in state_dict.items() if key.startswith(_PARTS)}
        if not parts:
            raise ValueError("the adapter holds virtual tokens without the network that makes them")
        self.load_state_dict(parts)  # type: ignore[attr-defined]


class ResumablePrefixEncoder(_Resumable, PrefixEncoder):  # type: ignore[misc]
    """prefix and p-tuning-v2."""


class ResumablePromptEncoder(_Resumable, PromptEncoder):  # type: ignore[misc]
    """p-tuning."""


PEFT_TYPE_TO_TUNER_MAPPING[PeftType.PREFIX_TUNING] = ResumablePrefixEncoder
PEFT_TYPE_TO_TUNER_MAPPING[PeftType.P_TUNING] = ResumablePromptEncoder
