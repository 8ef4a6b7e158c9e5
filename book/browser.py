"""Export bundled models, so that pages generate in a reader's browser (book/js).

Each model becomes three small graphs: `encode` (a frame to latents), `step` (one frame
on) and `decode` (latents to a frame). They go beside the built pages, compressed, with
ONNX Runtime's WebAssembly as book/vendor.py has fetched it, and with a `model.json`
that says what the graphs take. A page asks for them only when its reader presses a
button. Without that runtime nothing is exported.
"""

import contextlib
import copy
import gzip
import io
import json
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import stt_lite as stt
import vendor
from stt_lite.gaussian import reparameterize
from stt_lite.sampling import keep_start, snap
from stt_lite.temporal_attention import KeyValueCache

OUT = vendor.WORK.parent / "html" / "_static" / "generate"
RUNTIME = "ort-wasm-simd-threaded.wasm"
BUNDLES = ("moving-mnist-tiny", "moving-mnist")  # chapter 08, the front page
PROMPT, NEW, CLIPS = 15, 30, 8


def pack(cache: tuple[KeyValueCache, ...]) -> Tensor:
    """Keys and values of all layers in one tensor (L 2 n N W d), for a page to pass."""
    return torch.stack([torch.stack(layer[:2]) for layer in cache])


class EitherGaussian(nn.Module):
    """A Gaussian layer in one graph: posterior where the frame is known, else prior."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x, noise, seen, temperature) -> tuple[Tensor, Tensor]:
        here, unknown = self.layer.norm(x), seen.isnan().any()
        posterior = self.layer.posterior(torch.cat([here, seen.nan_to_num()], dim=-1))
        both = zip(self.layer.prior(here), posterior)
        normal = [torch.where(unknown, p, q) for p, q in both]
        z = reparameterize(*normal, noise, temperature)
        return x + self.layer.inject(z), x.new_zeros(x.shape[:2])


class Encode(nn.Module):
    """A frame (1 C H W) to its codewords (1 D h w).

    `Tokenizer.encode` checks values, which no graph can: so here are its two parts.
    """

    def __init__(self, model: stt.VideoModel):
        super().__init__()
        self.tokenizer = model.tokenizer

    def forward(self, frame: Tensor) -> Tensor:
        latent = self.tokenizer.quantizer.bound(self.tokenizer.encoder(frame))
        return self.tokenizer.quantize(latent)[0]


class Step(nn.Module):
    """One frame on, known or not: what `prefill` and `rollout` do, in one graph.

    NaN stands for "there is none": `latent`, the frame before, at the very start, and
    `target`, the frame itself, where it is not known but generated.
    """

    def __init__(self, model: stt.VideoModel):
        super().__init__()
        self.model = copy.deepcopy(model)
        if self.model.transformer.config.gaussian == "latent":
            for layer in self.model.transformer.layers:
                layer.gaussian = EitherGaussian(layer.gaussian)

    def forward(
        self, latent, target, packed, frames, noise, temperature, action=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next frame's codewords, the latents to show, and the cache after."""
        tokenizer, net = self.model.tokenizer, self.model.transformer
        cache = tuple(KeyValueCache(*layer.unbind(0), frames) for layer in packed)
        full = frames >= packed.shape[4]
        kept = torch.where(full, pack(keep_start(cache)), packed)
        cache = tuple(KeyValueCache(*layer.unbind(0), frames) for layer in kept)
        before = net.to_stream(latent[:, None])
        x = torch.where(before.isnan().any(), net.start, before)
        if action is not None:
            x = x + net.actions(action)[:, None, None, None]
        seen = net.to_stream(target[:, None])
        prediction, _, cache = net.run_layers(
            x, noise[:, None], seen, temperature, cache=cache
        )
        prediction = prediction[:, 0]
        codewords = snap(tokenizer, prediction, net.config.head)
        shown = codewords
        if net.config.head == "regression":  # as `generate`, which shows the mean
            shown = torch.where(temperature == 0, prediction, codewords)
        return codewords, shown, pack(cache)


class Decode(nn.Module):
    """Latents (1 D h w) to the frame (1 C H W) that they stand for."""

    def __init__(self, model: stt.VideoModel):
        super().__init__()
        self.tokenizer = model.tokenizer

    def forward(self, latent: Tensor) -> Tensor:
        return self.tokenizer.decode(latent)


def export(module: nn.Module, path: Path, outputs: list[str], **inputs: Tensor) -> dict:
    """Write one graph, weights inside, compressed; its name and bytes for the page."""
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
    return write(path, program.model_proto.SerializeToString())


def write(path: Path, content: bytes) -> dict:
    """Write a file compressed; its name and its bytes, for a page's progress."""
    path = path.with_name(path.name + ".gz")
    path.write_bytes(gzip.compress(content, mtime=0))
    return {"name": path.name, "bytes": path.stat().st_size}


@torch.no_grad()
def export_model(bundle: str, out: Path) -> None:
    """The three graphs of a bundle, clips to continue, and model.json about them."""
    out.mkdir(parents=True, exist_ok=True)
    model = stt.load_pretrained(bundle)
    net, slots = model.transformer, model.trained_frames
    C, H, W = model.frame_shape
    noise = net.draw_noise(1, 1)[:, 0]
    packed = pack(net.empty_cache(1, slots))
    latent = torch.zeros(1, net.config.latent_channels, *net.config.grid)
    frame = torch.zeros(1, C, H, W)
    steps = {
        "latent": latent,
        "target": latent.clone(),
        "cache": packed,
        "frames": torch.tensor(PROMPT),
        "noise": noise,
        "temperature": torch.tensor(0.5),
    }
    inputs = {}  # what a step takes besides: name -> type and shape
    if getattr(net.config, "actions", 0):
        steps["action"] = torch.zeros(1, dtype=torch.long)
        inputs["action"] = {"type": "int64", "shape": [1]}
    after = ["next", "shown", "after"]
    clips = stt.held_out_clips(model, CLIPS, PROMPT + NEW, seed=1)
    pixels = (clips * 255).round().byte()  # (clips T C H W)
    files = {
        "encode": export(Encode(model), out / "encode.onnx", ["latent"], frame=frame),
        "step": export(Step(model), out / "step.onnx", after, **steps),
        "decode": export(Decode(model), out / "decode.onnx", ["frame"], latent=latent),
        "clips": write(out / "clips.bin", pixels.numpy().tobytes()),
    }
    about = {
        "files": files,
        "shape": [C, H, W],
        "digits": model.record["data"].get("digits"),
        "clips": {"count": CLIPS, "frames": PROMPT + NEW, "prompt": PROMPT},
        "latent": list(latent.shape),
        "cache": list(packed.shape),
        "noise": list(noise.shape),
        "inputs": inputs,
    }
    (out / "model.json").write_text(json.dumps(about))


def main(out: Path = OUT) -> None:
    runtime = vendor.WORK / "node_modules" / "onnxruntime-web" / "dist" / RUNTIME
    if not runtime.is_file():
        print("Without ONNX Runtime's JavaScript, no page generates.", file=sys.stderr)
        return
    out.mkdir(parents=True, exist_ok=True)
    engine = write(out / "ort.wasm", runtime.read_bytes())
    (out / "runtime.json").write_text(json.dumps(engine))
    for bundle in BUNDLES:
        export_model(bundle, out / bundle)


if __name__ == "__main__":
    main()
