"""The smoke test's canary on the GPU: made and taught on the CPU, and decoded on the GPU in bf16 and from quantized checkpoints.

Two ways lead from a quantized checkpoint to the sentence: transformers with compressed-tensors, which computes in bf16 or
as it sees fit (what the layers hold is among the figures), and vLLM's own kernels built elsewhere, in the linear layers'
place: Marlin for NVFP4A16; FP8 quantization and the GPU's FP8 tensor cores for W8A8.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import FAILED, NotRunError, report

_SCHEMES = {"nvfp4a16": "NVFP4A16", "fp8-dynamic": "FP8_DYNAMIC", "fp8-static": "FP8"}
_SECTIONS = ("weight_packed", "weight_scale", "weight_global_scale")


class Canary:
    """The canary's own code (envbuilder/smoke/inside/canary.py), the folders it has made, and the device."""

    def __init__(self, request: dict[str, Any], *, gpu: bool) -> None:
        sys.path[:0] = [str(Path(request["root"]))]
        from envbuilder.smoke.results import ANSWER, PROMPT

        sys.path.append(str(Path(request["work"]) / "quantize"))
        spec = importlib.util.spec_from_file_location("canary", Path(request["root"]) / "envbuilder/smoke/inside/canary.py")
        self.code: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.code)
        self.prompt, self.answer = PROMPT, ANSWER
        self.device = "cuda" if gpu else "cpu"
        self.folder = Path(request["work"]) / "canary"
        self.folder.mkdir(exist_ok=True)
        self.tokenizer = self.code.make_tokenizer(bos=True)

    def teach(self, figures: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)  # the same sums in the same order as in the smoke test
        model = self.code.make_model(self.tokenizer)
        text, _ = self.code.decode(model, self.tokenizer, self.prompt, self.answer)
        assert text != self.answer, "random weights say the sentence too: this proves nothing"
        steps, loss = self.code.overfit(model, self.tokenizer, self.prompt + self.answer, most_steps=300)
        self.code.save(model.to(torch.bfloat16), self.tokenizer, self.folder / "base")
        figures.update(steps=steps, loss=round(loss, 5), random=text[:40])

    def load(self, name: str) -> Any:
        import torch
        import transformers

        model = transformers.AutoModelForImageTextToText.from_pretrained(self.folder / name, dtype=torch.bfloat16)
        return model.to(self.device).eval()

    def listen(self, model: Any, figures: dict[str, Any]) -> None:
        """Decode on the device; the text must come back byte for byte."""
        started = time.monotonic()
        text, confidence = self.code.decode(model, self.tokenizer, self.prompt, self.answer)
        figures.update(
            text=text, least_probability=round(confidence, 4), device=str(model.device), seconds=round(time.monotonic() - started, 2)
        )
        assert text == self.answer, f"the text is {text!r}"

    def quantize(self, name: str, scheme: str) -> None:
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        model = self.load("base")
        ids = self.tokenizer(self.prompt + self.answer).input_ids
        sample = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)}])
        recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=self.code._IGNORED)
        oneshot(
            model=model,
            recipe=recipe,
            dataset=sample,
            num_calibration_samples=1,
            max_seq_length=128,
            processor=self.tokenizer,
            pipeline="basic",
        )
        self.code.save(model, self.tokenizer, self.folder / name, save_compressed=True)

    def tensors(self, name: str) -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.folder / name / "model.safetensors", device=self.device)

    def replaced(self, make: Any) -> tuple[Any, int]:
        """Return the bf16 model with every linear layer of the language model for which `make(name, layer)` gives another."""
        import torch

        model = self.load("base")
        count = 0
        for name, layer in list(model.named_modules()):
            if isinstance(layer, torch.nn.Linear) and (other := make(name, layer)) is not None:
                model.set_submodule(name, other)
                count += 1
        return model, count


def main() -> None:
    this = report()
    sys.path[:0] = [str(Path(__file__).parent)]
    canary: Any = None
    with this.check("made and taught, on the CPU") as figures:
        canary = Canary(this.request, gpu=this.gpu)
        canary.teach(figures)
    if this.checks[-1]["status"] == FAILED:
        return
    with this.check("bf16") as figures:
        canary.listen(canary.load("base"), figures)
    for name, scheme in _SCHEMES.items():
        with this.check(f"{name}: quantized by llmcompressor") as figures:
            if importlib.util.find_spec("llmcompressor") is None:
                raise NotRunError("llmcompressor was not carried")
            canary.quantize(name, scheme)
            figures["stored"] = Counter(
                f"{key.rpartition('.')[2]}: {str(one.dtype).removeprefix('torch.')}" for key, one in canary.tensors(name).items()
            )
        made = this.checks[-1]["status"] == "passed"
        with this.check(f"{name}: decoded by transformers and compressed-tensors") as figures:
            if not made:
                raise NotRunError("there is no such checkpoint")
            model = canary.load(name)
            canary.listen(model, figures)
            figures["layers"] = Counter(
                f"{type(layer).__name__}: {', '.join(sorted({str(one.dtype).removeprefix('torch.') for one in layer.parameters(recurse=False)}))}"
                for layer in model.modules()
                if hasattr(layer, "in_features")
            )
    with_kernels(this, canary)


def with_kernels(this: Any, canary: Any) -> None:
    """Decode with vLLM's kernels in the linear layers' place."""
    libraries = sorted((Path(this.request["carry"]) / "kernels").glob("*.so"))

    def ready(name: str) -> None:
        import torch

        this.require_gpu()
        if not libraries:
            raise NotRunError("no libraries were carried")
        if not (canary.folder / name / "model.safetensors").exists():
            raise NotRunError(f"there is no {name} checkpoint")
        for path in libraries:
            torch.ops.load_library(path)

    with this.check("nvfp4a16: decoded by vLLM's Marlin kernel") as figures:
        ready("nvfp4a16")
        from marlin import MarlinLinear

        stored = canary.tensors("nvfp4a16")

        def marlin(name: str, layer: Any) -> Any:
            parts = [stored.get(f"{name}.{section}") for section in _SECTIONS]
            return None if any(part is None for part in parts) or layer.bias is not None else MarlinLinear(*parts)

        model, count = canary.replaced(marlin)
        figures["layers"] = count
        canary.listen(model, figures)
        assert count >= 20, f"only {count} layers were replaced"
    with this.check("fp8: decoded by vLLM's quantization and the FP8 tensor cores") as figures:
        ready("base")
        from vllm_kernels import per_token_fp8

        def fp8(name: str, layer: Any) -> Any:
            wanted = "language_model" in name and not re.search(r"lm_head|embedding_projection", name) and layer.bias is None
            return fp8_linear(layer.weight, per_token_fp8) if wanted else None

        model, count = canary.replaced(fp8)
        figures["layers"] = count
        canary.listen(model, figures)
        assert count >= 20, f"only {count} layers were replaced"


def fp8_linear(weight: Any, quantize: Any) -> Any:
    import torch

    class Fp8Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.columns = weight.shape
            self.quantized, self.scale = quantize(weight.detach().contiguous())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, scale = quantize(x.reshape(-1, self.columns).contiguous())
            out = torch._scaled_mm(a, self.quantized.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=torch.bfloat16)
            return out.reshape(*x.shape[:-1], self.rows)

    return Fp8Linear()


main()
