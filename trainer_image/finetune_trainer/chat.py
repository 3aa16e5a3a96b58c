"""``python -m finetune_trainer.chat``: talk to a model, and switch between its adapters without loading anything again."""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_trainer.environment import quiet_libraries
from finetune_trainer.errors import InvalidInputError

_HELP = "/adapter NAME switches, /base disables adapters, /new forgets the conversation, /quit ends"
_BASE = "base"


class Chat:
    """One conversation with one model.

    ``model``: a causal language model, or what ``load_adapters`` makes of it with the adapters ``names``.
    """

    def __init__(self, model: Any, tokenizer: Any, names: tuple[str, ...] = (), max_tokens: int = 256) -> None:
        self._model = model.eval()
        self.tokenizer = tokenizer
        self._names = names
        self._max_tokens = max_tokens
        self._messages: list[dict[str, str]] = []
        self.active = names[0] if names else _BASE
        """Who answers: the name of an adapter, or ``base``."""

    def switch(self, name: str) -> None:
        """Let another adapter answer, or the ``base``, which takes no time. Raises: InvalidInputError."""
        if name != _BASE and name not in self._names:
            raise InvalidInputError(f"there is no adapter {name}: there is {', '.join((*self._names, _BASE))}")
        if name != _BASE:
            self._model.set_adapter(name)
        self.active = name

    def forget(self) -> None:
        """Start a new conversation."""
        self._messages = []

    def answer(self, text: str, streamer: Any = None) -> str:
        """The greedy answer to what a person says; ``streamer`` is given its tokens as they come."""
        self._messages.append({"role": "user", "content": text})
        with self._answering() as model:
            reply = _generate(model, self.tokenizer, self._render(), self._max_tokens, streamer)
        self._messages.append({"role": "assistant", "content": reply})
        return reply

    def _render(self) -> list[int]:
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer(self._messages[-1]["content"])["input_ids"])
        rendered = self.tokenizer.apply_chat_template(self._messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])

    @contextmanager
    def _answering(self) -> Iterator[Any]:
        if self.active == _BASE and self._names:
            with self._model.disable_adapter():
                yield self._model
        else:
            yield self._model


def _generate(model: Any, tokenizer: Any, prompt: list[int], max_tokens: int, streamer: Any) -> str:
    import torch

    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            streamer=streamer,
        )
    return str(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)).strip()


def open_chat(model: str, adapters: dict[str, Path], device: str, max_tokens: int) -> Chat:
    """The chat with a model of a folder or hub and the adapters of some folders.

    The tokenizer is the first adapter's, which the training may have given a chat template. Raises: InvalidInputError.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune_trainer.model.adapters import load_adapters

    for name, folder in adapters.items():
        if not (folder / "adapter_config.json").exists():
            raise InvalidInputError(f"--adapter {name}={folder}: there is no adapter (no adapter_config.json in it)")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", device_map={"": device})
        tokenizer = AutoTokenizer.from_pretrained(next(iter(adapters.values()), model))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"--model {model}: {str(error).splitlines()[0]}") from error
    if adapters:
        loaded = load_adapters(loaded, adapters)
    return Chat(loaded, tokenizer, tuple(adapters), max_tokens)


def hold_chat(chat: Chat, lines: Iterable[str], streamer: Any = None) -> None:
    """Answer each line until there is none; those that begin with ``/`` are commands. Answers go to stdout, the rest to
    stderr."""
    _say(f"{chat.active} answers; {_HELP}")
    for line in lines:
        command, _, argument = line.strip().partition(" ")
        try:
            match command:
                case "":
                    continue
                case "/quit":
                    return
                case "/adapter":
                    chat.switch(argument.strip())
                    _say(f"{chat.active} answers")
                case "/base":
                    chat.switch(_BASE)
                    _say(f"{chat.active} answers")
                case "/new":
                    chat.forget()
                    _say("a new conversation")
                case _ if command.startswith("/"):
                    _say(f"there is no command {command}: {_HELP}")
                case _:
                    reply = chat.answer(line.strip(), streamer)
                    if streamer is None:
                        print(reply)
                    sys.stdout.flush()
        except InvalidInputError as error:
            _say(str(error))


def main(arguments: list[str] | None = None, lines: Iterable[str] | None = None) -> int:
    """Exit code 0, or 10 for a model or adapter that isn't there."""
    parser = argparse.ArgumentParser(prog="finetune_trainer.chat", description="Talk to a model and its adapters.")
    parser.add_argument("--model", required=True, help="folder of a model, or its id on the hub")
    parser.add_argument("--adapter", action="append", default=[], type=_parse_adapter, metavar="NAME=FOLDER")
    parser.add_argument("--max-tokens", type=int, default=256, help="most new tokens of an answer")
    given = parser.parse_args(arguments)
    if Path(given.model).exists():
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
    quiet_libraries()
    import torch
    from transformers import TextStreamer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chat = open_chat(given.model, dict(given.adapter), device, given.max_tokens)
    except InvalidInputError as error:
        _say(str(error))
        return error.code
    streamer = TextStreamer(chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
    hold_chat(chat, sys.stdin if lines is None else lines, streamer)
    return 0


def _parse_adapter(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder) or name == _BASE:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=FOLDER, with a name other than {_BASE}")
    return name, Path(folder)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
