"""Make the canary: a tiny Gemma4Unified model that knows one sentence, quantized to NVFP4A16. Measures, judges nothing.

Runs under the quantize environment's interpreter: `python canary.py FOLDER/request.json`. The request names `prompt`,
`answer`, `steps` (the most to train) and `bos` (whether the chat template emits the token that the model was trained to
start with). The folder gets `base/`, `quantized/` and `result.json`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Gemma4UnifiedForConditionalGeneration, PreTrainedTokenizerFast

_SEED = 0
_VOCABULARY = 320
_ENOUGH_LOSS = 0.01  # every right token has a probability of 0.97 or more by then
_TEXT_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"]
_MEDIA_TOKENS = ["<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>", "<|audio|>", "<|video|>"]
_SPECIAL = [*_TEXT_TOKENS, *_MEDIA_TOKENS]
_IGNORED = ["lm_head", "re:.*embedding_projection.*"]
_E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
_GROUP = 16  # weights that share one fp8 scale
_PACKED = ".weight_packed"
_DISTRIBUTIONS = ("torch", "transformers", "llmcompressor", "compressed-tensors", "tokenizers", "safetensors")


class Laps:
    """Seconds of each part, printed as they come."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def done(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._at, 3)
        self._at = now
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)


class Ear:
    """Lets a model say the text, and keeps what it said under a name."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, request: dict[str, Any], laps: Laps) -> None:
        self.decoded: dict[str, str] = {}
        self.confidence: dict[str, float] = {}
        self._tokenizer, self._prompt, self._answer, self._laps = tokenizer, request["prompt"], request["answer"], laps

    def listen(self, name: str, model: Gemma4UnifiedForConditionalGeneration) -> None:
        self.decoded[name], self.confidence[name] = decode(model, self._tokenizer, self._prompt, self._answer)
        self._laps.done(f"decode {name}")


def main() -> None:
    path = Path(sys.argv[1]).absolute()
    request = json.loads(path.read_text(encoding="utf-8"))
    base, quantized = path.parent / "base", path.parent / "quantized"
    laps = Laps()
    import torch
    import transformers

    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the same sums in the same order; and two threads on a busy machine are ten times slower
    transformers.utils.logging.disable_progress_bar()
    laps.done("import")
    tokenizer = make_tokenizer(bos=request["bos"])
    ear = Ear(tokenizer, request, laps)
    result = {
        **make(tokenizer, request, ear, laps, base=base, quantized=quantized),
        **reload(ear, laps, base=base, quantized=quantized),
        "decoded": ear.decoded,
        "confidence": ear.confidence,
        "base": describe(base),
        "quantized": describe(quantized),
        "versions": {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS} | {"torch": torch.__version__},
        "seconds": laps.seconds,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    temporary = path.with_name(".result.json")
    temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    temporary.replace(path.with_name("result.json"))


def make(
    tokenizer: PreTrainedTokenizerFast, request: dict[str, Any], ear: Ear, laps: Laps, *, base: Path, quantized: Path
) -> dict[str, Any]:
    """Make the model, teach it the text, and write it in bf16 and quantized; it is heard before, between and after."""
    import torch

    text = request["prompt"] + request["answer"]
    model = make_model(tokenizer)
    laps.done("make")
    ear.listen("random", model)
    steps, loss = overfit(model, tokenizer, text, most_steps=request["steps"])
    laps.done("overfit")
    ear.listen("fp32", model)
    model = model.to(torch.bfloat16)
    ear.listen("bf16", model)
    save(model, tokenizer, base)
    model.config.name_or_path = str(base)  # llmcompressor opens it from 0.14 on, to see whether the model is quantized already
    laps.done("save")
    compress(model, tokenizer, text)
    # Never decode here: until it is reloaded, the model rounds every weight anew on every step (a minute for this text).
    save(model, tokenizer, quantized, save_compressed=True)
    laps.done("quantize")
    return {"steps": steps, "loss": loss}


def reload(ear: Ear, laps: Laps, *, base: Path, quantized: Path) -> dict[str, Any]:
    """Read the quantized model back, hear it, and compare its weights with the file's and with the bf16 ones."""
    import torch
    from transformers import AutoModelForImageTextToText

    model, loading = AutoModelForImageTextToText.from_pretrained(quantized, dtype=torch.bfloat16, output_loading_info=True)
    ear.listen("quantized", model)
    modules, left_alone = compare(base, quantized, model)
    laps.done("compare")
    return {
        "modules": modules,
        "left_alone": left_alone,
        "missing_keys": sorted(loading["missing_keys"]),
        "unexpected_keys": sorted(loading["unexpected_keys"]),
    }


def make_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes: no merges, so a token is a character and nothing has to be downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(_SPECIAL + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(_SPECIAL)
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    media = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    media |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named, extra_special_tokens=media, clean_up_tokenization_spaces=False)
    start = "{{ bos_token }}" if bos else ""
    tokenizer.chat_template = start + "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> Gemma4UnifiedForConditionalGeneration:
    """Return the real architecture at 4.6 million parameters.

    Head sizes are multiples of 64 because vLLM's attention backends ask for it; every width is one of 64 and of the
    quantization group, for the kernels.
    """
    import torch
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    number = tokenizer.convert_tokens_to_ids
    ends = {"pad_token_id": number("<pad>"), "eos_token_id": number("<eos>"), "bos_token_id": number("<bos>")}
    text = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_global_key_value_heads": 1,
        "global_head_dim": 128,
        "attention_k_eq_v": True,
        "sliding_window": 64,
        "max_position_embeddings": 2048,
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": "vision",
    }
    config = Gemma4UnifiedConfig(
        text_config=text | ends,
        vision_config={"mm_embed_dim": 256, "output_proj_dims": 256, "mm_posemb_size": 64, "num_soft_tokens": 70},
        audio_config={"audio_embed_dim": 640},
        boi_token_id=number("<|image>"),
        eoi_token_id=number("<image|>"),
        image_token_id=number("<|image|>"),
        video_token_id=number("<|video|>"),
        boa_token_id=number("<|audio>"),
        eoa_token_index=number("<audio|>"),
        audio_token_id=number("<|audio|>"),
        **ends,
    )
    torch.manual_seed(_SEED)
    return Gemma4UnifiedForConditionalGeneration(config)


def overfit(
    model: Gemma4UnifiedForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, text: str, *, most_steps: int
) -> tuple[int, float]:
    """Teach the model one text by heart; return the steps taken and the last loss."""
    import torch

    ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
    learning = [parameter for name, parameter in model.named_parameters() if "language_model" in name]
    optimizer = torch.optim.AdamW(learning, lr=2e-3, weight_decay=0.0, fused=True)
    model.train()
    steps, loss = 0, math.nan
    while steps < most_steps and not loss < _ENOUGH_LOSS:
        step = model(input_ids=ids, labels=ids, mm_token_type_ids=torch.zeros_like(ids))
        step.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps, loss = steps + 1, step.loss.item()
    model.eval()
    print(f"overfit: {steps} steps, loss {loss:.4f}", flush=True)
    return steps, loss if math.isfinite(loss) else -1.0


def decode(model: Gemma4UnifiedForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[str, float]:
    """Return the greedy text after the prompt, and the least probability that a right token was given."""
    import torch

    start = tokenizer(prompt, return_tensors="pt").to(model.device)
    right = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    length = start.input_ids.shape[1]
    with torch.no_grad():
        ids = model.generate(**start, max_new_tokens=len(right) + 3, do_sample=False)[0, length:]
        whole = torch.cat([start.input_ids[0], torch.tensor(right, device=model.device)])[None]
        logits = model(input_ids=whole).logits[0, length - 1 : -1].float()
    probabilities = logits.softmax(-1).gather(1, whole[0, length:, None])
    text = tokenizer.decode(ids, skip_special_tokens=True)
    print(f"text: {text!r}", flush=True)
    return text, float(probabilities.min())


def compress(model: Gemma4UnifiedForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Quantize in memory, by the published recipe for Gemma 4.

    The `basic` pipeline wants a sample, though rounding weights needs none: it runs the model once, as a recipe with
    activations would, so that a model which cannot run while it is being quantized is found out.
    """
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    ids = tokenizer(text).input_ids
    sample = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)}])
    recipe = QuantizationModifier(targets="Linear", scheme="NVFP4A16", ignore=_IGNORED)
    oneshot(
        model=model, recipe=recipe, dataset=sample, num_calibration_samples=1, max_seq_length=128, processor=tokenizer, pipeline="basic"
    )


def save(model: Gemma4UnifiedForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path, **options: bool) -> None:
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    # Written by hand: making the processor needs torchvision, which quantizing does not.
    kinds = {
        "feature_extractor": {"feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor"},
        "image_processor": {"image_processor_type": "Gemma4UnifiedImageProcessor"},
        "processor_class": "Gemma4UnifiedProcessor",
        "video_processor": {"video_processor_type": "Gemma4UnifiedVideoProcessor"},
    }
    (folder / "processor_config.json").write_text(json.dumps(kinds, indent=1), encoding="utf-8")


def compare(base: Path, quantized: Path, model: Gemma4UnifiedForConditionalGeneration) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare each quantized weight, on disk with the bf16 one and in the reloaded model with the one on disk.

    The model has decoded by now: compressed-tensors unpacks a layer at its first use, and these are the weights used.
    The vision layer has not been used by a text, so it is unpacked here in the same way.
    """
    from safetensors.torch import load_file

    before, after = load_file(base / "model.safetensors"), load_file(quantized / "model.safetensors")
    names = sorted(key.removesuffix(_PACKED) for key in after if key.endswith(_PACKED))
    loaded = dict(model.named_modules())
    modules = []
    for name in names:
        file = dequantize(after[name + _PACKED], after[f"{name}.weight_scale"], after[f"{name}.weight_global_scale"])
        layer = loaded.get(name) or loaded[name.replace("vision_embedder", "embed_vision")]
        disk, reload = distance(file, before[f"{name}.weight"]), distance(used_weight(layer), file)
        modules.append({"name": name, "disk_error": disk, "reload_error": reload})
    linear = {name for name, layer in loaded.items() if type(layer).__name__ == "Linear"}
    renamed = {name.replace("vision_embedder", "embed_vision") for name in names} | set(names)
    return modules, sorted(linear - renamed)


def used_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight that this layer multiplies with: its answer to the unit vectors, without its bias."""
    import torch

    with torch.no_grad():
        unit = torch.eye(layer.in_features, dtype=torch.bfloat16, device=next(layer.parameters()).device)
        answer = layer(unit).float()
        return (answer - layer.bias.float() if layer.bias is not None else answer).T


def dequantize(packed: torch.Tensor, scale: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """Return the weight that an NVFP4 file means, by the format's definition and with none of the tested libraries.

    packed: uint8 (rows, columns / 2), two E2M1 numbers in a byte, the low half first; scale: float8_e4m3 (rows,
    columns / 16); global_scale: a float32 divisor, as compressed-tensors stores it.
    """
    import torch

    table = torch.tensor(_E2M1 + [-value for value in _E2M1])
    values = table[torch.stack((packed & 15, packed >> 4), dim=-1).long()].view(packed.shape[0], -1, _GROUP)
    return (values * (scale.float() / global_scale).unsqueeze(-1)).flatten(1)


def distance(found: torch.Tensor, right: torch.Tensor) -> float | None:
    """Return the relative Frobenius distance, or None where it is not a finite number."""
    found, right = found.float().cpu(), right.float().cpu()
    if found.shape != right.shape:
        return None
    far = float((found - right).norm() / right.norm())
    return far if math.isfinite(far) else None


def describe(folder: Path) -> dict[str, str | int]:
    payload = (folder / "model.safetensors").read_bytes()
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"sha256": hashlib.sha256(payload).hexdigest(), "size": size}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
