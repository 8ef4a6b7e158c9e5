"""Export the bundled tiny model, so that chapter 09's page can generate in the reader's browser: two ONNX files, a few clips.

They go beside the built pages, with ONNX Runtime's WebAssembly as book/vendor.py has fetched it. A page asks for them only
when its reader presses a button (book/_assets/generate.js). Without that runtime there is nothing to export for.
"""

import contextlib
import io
import json
import shutil
import sys
import warnings
from pathlib import Path

import torch
import vendor
from torch import Tensor, nn

import stt_lite as stt
from stt_lite.temporal_attention import KeyValueCache

OUT = vendor.WORK.parent / "html" / "_static" / "generate"
RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PROMPT, NEW, CLIPS = 15, 30, 8


def pack(cache: tuple[KeyValueCache, ...]) -> Tensor:
    """Keys and values of all layers as one tensor (L 2 n N W d): a page passes it from step to step."""
    return torch.stack([torch.stack(layer[:2]) for layer in cache])


class Read(nn.Module):
    """A prompt (1 T C H W) and its noise to the newest frame's latents and the cache."""

    def __init__(self, model: stt.VideoModel, slots: int):
        super().__init__()
        self.model, self.slots = model, slots

    def forward(self, prompt: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        tokenizer, net = self.model.tokenizer, self.model.transformer
        latents = tokenizer.quantize(tokenizer.encoder(prompt[0]))[0][None]  # `encode` looks at values, which no graph can
        return latents[:, -1], pack(net.read(latents, self.slots, noise))


class Step(nn.Module):
    """One frame on, as `VideoModel` does it: the next frame's latents, its pixels, and the cache after."""

    def __init__(self, model: stt.VideoModel):
        super().__init__()
        self.model = model

    def forward(self, latent, packed, frames, noise, temperature) -> tuple[Tensor, Tensor, Tensor]:
        model, full = self.model, frames >= packed.shape[4]
        cache = tuple(KeyValueCache(*layer.unbind(0), frames) for layer in packed.unbind(0))
        kept = model._keep_start(cache)  # the start token moves on, so that the oldest frame drops out
        cache = tuple(
            KeyValueCache(*(torch.where(full, a, b) for a, b in zip(new[:2], old[:2])), frames) for new, old in zip(kept, cache)
        )
        prediction, cache = model.transformer.step(latent, cache, noise, temperature=temperature)
        latent = model.tokenizer.quantize(prediction)[0]
        shown = torch.where(temperature == 0, prediction, latent)  # at temperature 0 the mean, as `generate` shows it
        return latent, model.tokenizer.decode(shown), pack(cache)


def export(module: nn.Module, arguments: tuple, inputs: list[str], outputs: list[str], path: Path) -> None:
    """Write one ONNX file, weights inside, without the exporter's report."""
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, arguments, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    program.save(path, external_data=False)


def main(out: Path = OUT) -> None:
    dist = vendor.WORK / "node_modules" / "onnxruntime-web" / "dist"
    if not dist.is_dir():
        print("Without ONNX Runtime's JavaScript, the page of chapter 09 does not generate.", file=sys.stderr)
        return
    out.mkdir(parents=True, exist_ok=True)
    for name in RUNTIME:
        shutil.copy(dist / name, out / name)
    model = stt.load_pretrained("moving-mnist-tiny")
    slots, noise = model.trained_frames, model.transformer.draw_noise(1, PROMPT)
    clips = stt.held_out_clips(model, CLIPS, PROMPT + NEW, seed=1)
    read = Read(model, slots).eval()
    export(read, (clips[:1, :PROMPT], noise), ["prompt", "noise"], ["latent", "cache"], out / "read.onnx")
    with torch.no_grad():
        latent, cache = read(clips[:1, :PROMPT], noise)
    arguments = latent, cache, torch.tensor(PROMPT), noise[:, 0], torch.tensor(0.5)
    names = ["latent", "cache", "frames", "noise", "temperature"]
    export(Step(model).eval(), arguments, names, ["next", "frame", "after"], out / "step.onnx")
    (out / "clips.bin").write_bytes((clips * 255).round().byte().numpy().tobytes())  # (clips T H W)
    shapes = {"clips": CLIPS, "frames": PROMPT + NEW, "prompt": PROMPT, "size": model.frame_shape[1], "slots": slots, "noise": list(noise.shape[2:])}
    (out / "model.json").write_text(json.dumps(shapes))


if __name__ == "__main__":
    main()
