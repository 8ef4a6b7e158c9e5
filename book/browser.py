"""Export the bundled tiny model, so that chapter 08's page generates in a browser.

Two ONNX files and a few clips go beside the built pages, with ONNX Runtime's
WebAssembly as book/vendor.py has fetched it. A page asks for them only when its reader
presses a button (book/_assets/generate.js). Without that runtime nothing is exported.
"""

import contextlib
import io
import json
import shutil
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import stt_lite as stt
import vendor
from stt_lite.sampling import keep_start, snap
from stt_lite.temporal_attention import KeyValueCache

OUT = vendor.WORK.parent / "html" / "_static" / "generate"
RUNTIME = (
    "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
PROMPT, NEW, CLIPS = 15, 30, 8


def pack(cache: tuple[KeyValueCache, ...]) -> Tensor:
    """Keys and values of all layers in one tensor (L 2 n N W d), for a page to pass."""
    return torch.stack([torch.stack(layer[:2]) for layer in cache])


class Prefill(nn.Module):
    """A prompt (1 T C H W) and its noise to the newest frame's latents, and the cache.

    `Tokenizer.encode` checks values, which no graph can: so here are its two parts.
    """

    def __init__(self, model: stt.VideoModel, slots: int):
        super().__init__()
        self.model, self.slots = model, slots

    def forward(self, prompt: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        tokenizer, net = self.model.tokenizer, self.model.transformer
        encoded = tokenizer.quantizer.bound(tokenizer.encoder(prompt[0]))
        latents = tokenizer.quantize(encoded)[0][None]
        return latents[:, -1], pack(net.prefill(latents, self.slots, noise))


class Step(nn.Module):
    """A step of `rollout`: the next frame's latents, its pixels, and the cache."""

    def __init__(self, model: stt.VideoModel):
        super().__init__()
        self.model = model

    def forward(
        self, latent, packed, frames, noise, temperature
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokenizer, net = self.model.tokenizer, self.model.transformer
        cache = tuple(KeyValueCache(*layer.unbind(0), frames) for layer in packed)
        full = frames >= packed.shape[4]
        kept = torch.where(full, pack(keep_start(cache)), packed)
        cache = tuple(KeyValueCache(*layer.unbind(0), frames) for layer in kept)
        prediction, cache = net.step(latent, cache, noise, temperature=temperature)
        latent = snap(tokenizer, prediction, net.config.head)
        shown = torch.where(temperature == 0, prediction, latent)  # as `generate`
        return latent, tokenizer.decode(shown), pack(cache)


def export(module: nn.Module, path: Path, outputs: list[str], **inputs: Tensor) -> None:
    """Write one ONNX file, weights inside, without the exporter's report."""
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
    program.save(path, external_data=False)


def export_model(out: Path) -> None:
    """Both graphs, clips to continue, and in model.json their shapes."""
    model = stt.load_pretrained("moving-mnist-tiny")
    slots, noise = model.trained_frames, model.transformer.draw_noise(1, PROMPT)
    clips = stt.held_out_clips(model, CLIPS, PROMPT + NEW, seed=1)
    prefill, prompt = Prefill(model, slots), clips[:1, :PROMPT]
    export(
        prefill, out / "prefill.onnx", ["latent", "cache"], prompt=prompt, noise=noise
    )
    with torch.no_grad():
        latent, cache = prefill(prompt, noise)
    export(
        Step(model),
        out / "step.onnx",
        ["next", "frame", "after"],
        latent=latent,
        cache=cache,
        frames=torch.tensor(PROMPT),
        noise=noise[:, 0],
        temperature=torch.tensor(0.5),
    )
    pixels = (clips * 255).round().byte()  # (clips T 1 H W)
    (out / "clips.bin").write_bytes(pixels.numpy().tobytes())
    shapes = {
        "clips": CLIPS,
        "frames": PROMPT + NEW,
        "prompt": PROMPT,
        "size": model.frame_shape[1],
        "slots": slots,
        "noise": list(noise.shape[2:]),
    }
    (out / "model.json").write_text(json.dumps(shapes))


def main(out: Path = OUT) -> None:
    dist = vendor.WORK / "node_modules" / "onnxruntime-web" / "dist"
    if not dist.is_dir():
        print(
            "Without ONNX Runtime's JavaScript, chapter 08's page does not generate.",
            file=sys.stderr,
        )
        return
    out.mkdir(parents=True, exist_ok=True)
    for name in RUNTIME:
        shutil.copy(dist / name, out / name)
    export_model(out)


if __name__ == "__main__":
    main()
