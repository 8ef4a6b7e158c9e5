"""Export bundled models, so that pages generate in a reader's browser (book/js).

Each model becomes the three graphs of book/graphs.py. They go beside the built pages,
compressed, with ONNX Runtime's WebAssembly as book/vendor.py has fetched it, and with a
`model.json` that says what the graphs take. A page asks for them only when its reader
presses a button. Without that runtime nothing is exported.
"""

import contextlib
import gzip
import io
import json
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

import stt_lite as stt
import vendor
from graphs import Decode, Encode, Step, pack
from stt_lite.worlds import area_colours, find_paddle, find_small_ball

OUT = vendor.WORK.parent / "html" / "_static" / "generate"
RUNTIME = "ort-wasm-simd-threaded.wasm"
PLAYED = 166  # frames of the game that chapter 17 shows before its reader plays


class Ships(NamedTuple):
    """Which held-out clips go with a bundle: of so many drawn, and frames of each.

    With `inside`, each step also tells where every head looked; for a `patch` of 1.
    """

    drawn: int = 8
    picked: tuple[int, ...] = tuple(range(8))
    prompt: int = 15
    new: int = 30
    inside: bool = False


# For chapter 08, the front page and chapter 17, where a ball flies in each clip.
BUNDLES = {"moving-mnist-tiny": Ships(inside=True), "moving-mnist": Ships()}
BUNDLES["pong"] = Ships(40, (35, 6, 25, 20, 26, 30), 8, 0)


def export(module: nn.Module, path: Path, outputs: list[str], **inputs: Tensor) -> dict:
    """Write one graph, weights inside, compressed; its name and bytes for the page."""
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # no torchvision
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
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


def as_bytes(values: Tensor) -> Tensor:
    """Values in [0, 1] as bytes."""
    return values.mul(255).round().byte()


def held_out(model: stt.VideoModel, ships: Ships) -> tuple[Tensor, list | None]:
    """The clips (n T C H W) to go with a model, and each one's actions, where it has.

    `export_model` writes the clips in bytes.
    """
    drawn = stt.held_out_clips(model, ships.drawn, ships.prompt + ships.new, seed=1)
    picked = list(ships.picked)
    if not model.transformer.config.actions:
        return drawn[picked], None
    return drawn.clips[picked], drawn.actions[picked].tolist()


def draw_game(model: stt.VideoModel, clips: Tensor, actions: list, path: Path) -> None:
    """A sheet of frames in rows of 12: where each clip ends, then the first, played.

    Every new frame is the model's. Who plays goes for the ball.
    """
    shown = [*clips[:, -1], *clips[0]]
    known = len(clips[0])

    def play(t: int) -> int:
        if t < known:
            return actions[0][t]
        off = find_small_ball(shown[-1])[0] - find_paddle(shown[-1])
        return 0 if not off.abs() > 3 else 1 if off < 0 else 2  # NaN: no ball

    game = model.stream(clips[:1], PLAYED, actions=play, temperature=0.0, seed=0)
    for frame in game:
        shown.append(frame[0, 0])  # at once: `play` looks at it
    rows = rearrange(torch.stack(shown), "(r c) rgb h w -> (r h) (c w) rgb", c=12)
    sheet, colours = (as_bytes(part) for part in (rows, area_colours()))
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.flatten().tolist())
    sheet = Image.fromarray(sheet.numpy()).quantize(palette=palette, dither=0)
    sheet.save(path, optimize=True)


@torch.no_grad()
def export_model(bundle: str, out: Path) -> None:
    """The three graphs of a bundle, clips to continue, and model.json about them."""
    out.mkdir(parents=True, exist_ok=True)
    model, ships = stt.load_pretrained(bundle), BUNDLES[bundle]
    net, slots = model.transformer, model.trained_frames
    C, H, W = model.frame_shape
    noise = net.draw_noise(1, 1)[:, 0]
    cache = pack(net.empty_cache(1, slots))
    latent = torch.zeros(1, net.config.latent_channels, *net.config.grid)
    frame = torch.zeros(1, C, H, W)
    steps = {
        "latent": latent,
        "target": latent.clone(),
        "cache": cache,
        "frames": torch.tensor(ships.prompt),
        "noise": noise,
        "temperature": torch.tensor(0.5),
    }
    about = {name: list(steps[name].shape) for name in ("latent", "cache", "noise")}
    about["inputs"] = {}  # what a step takes besides: name -> type and shape
    if net.config.head == "token":
        steps["gumbel"] = torch.zeros(1, net.config.codebook_size, *net.config.grid)
        about["gumbel"] = list(steps["gumbel"].shape)
    if net.config.actions:
        steps["action"] = torch.zeros(1, dtype=torch.long)
        about["inputs"]["action"] = {"type": "int64", "shape": [1]}
    after = ["next", "shown", "after"] + ["spatial", "temporal"] * ships.inside
    step = Step(model, ships.inside)
    clips, actions = held_out(model, ships)
    about["files"] = {
        "encode": export(Encode(model), out / "encode.onnx", ["latent"], frame=frame),
        "step": export(step, out / "step.onnx", after, **steps),
        "decode": export(Decode(model), out / "decode.onnx", ["frame"], latent=latent),
        "clips": write(out / "clips.bin", as_bytes(clips).numpy().tobytes()),
    }
    frames = ships.prompt + ships.new
    about["clips"] = {"count": len(clips), "frames": frames, "prompt": ships.prompt}
    about["shape"] = [C, H, W]
    about["digits"] = model.record["data"].get("digits")
    about["inside"] = {}
    if ships.inside:
        L, N, n = net.config.layers, net.config.heads, math.prod(net.config.grid)
        about["inside"] = {"spatial": [L, N, n, n], "temporal": [L, N, n, slots]}
    if actions is not None:
        about["clips"]["actions"] = actions
        draw_game(model, clips, actions, out / "game.png")
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
