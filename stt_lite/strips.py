# Made from notebooks/93_widgets.ipynb by "make extract".
"""Film strips, and borders that tell real from generated. Built in appendix 93."""

import io

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stt_lite.video import check_frames, check_whole, to_bytes

__all__ = ["film_strip"]

PROMPT_COLOUR = (90, 111, 143)  # blue-grey and solid, around real frames
GENERATED_COLOUR = (214, 106, 19)  # orange and dashed, around what a model made up
REAL = ("real", "truth")  # clips of these names are real in all their frames

Row = list[tuple[str, Tensor]]  # clips (T C H W) side by side, with their names


def named(videos, labels, prompt_frames: int | None) -> tuple[Row, int]:
    """Clips with their names, checked, and the number of frames of the longest one."""
    if isinstance(videos, dict):
        videos, labels = list(videos.values()), [str(name) for name in videos]
    if isinstance(videos, Tensor) and videos.ndim == 4:
        videos, labels = videos[None], labels or ""
    labels = [labels] if isinstance(labels, str) else labels
    if labels is None:
        labels = [f"sample {i + 1}" for i in range(len(videos))]
    names = isinstance(labels, list | tuple) and all(isinstance(n, str) for n in labels)
    if len(videos) == 0 or not names or len(labels) != len(videos):
        raise ValueError(f"labels must name each of {len(videos)} clips, got {labels}")
    for i, clip in enumerate(videos):
        check_frames(clip, f"videos[{i}]")
    longest = max(len(clip) for clip in videos)
    if prompt_frames is not None:
        check_whole(prompt_frames, "prompt_frames", 0, longest)
    return list(zip(labels, videos)), longest


def kind_of(name: str, t: int, prompt_frames: int | None) -> str:
    """What frame t of a clip is: "prompt", "real", "generated"; "" without a prompt."""
    if prompt_frames is None:
        return ""
    if t < prompt_frames:
        return "prompt"
    return "real" if name in REAL else "generated"


def framed(
    name: str, clip: Tensor, prompt_frames: int | None, scale: int, border: int, every=1
) -> Float[Tensor, "T 3 H2 W2"]:
    """Frames enlarged by whole pixels, in white, solid or (generated) dashed lines."""
    tiles = clip[::every].cpu().float().expand(-1, 3, -1, -1)
    tiles = tiles.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    tiles = F.pad(tiles, (border,) * 4, value=1)
    row, column = (torch.arange(n) // border for n in tiles.shape[-2:])
    solid = torch.ones(tiles.shape[-2:], dtype=torch.bool)
    solid[border:-border, border:-border] = False
    dashed = solid & ((row[:, None] + column) % 6 < 4)
    for i, tile in enumerate(tiles):
        kind = kind_of(name, i * every, prompt_frames)
        if kind == "generated":
            tile[:, dashed] = torch.tensor(GENERATED_COLOUR)[:, None] / 255
        elif kind:
            tile[:, solid] = torch.tensor(PROMPT_COLOUR)[:, None] / 255
    return tiles


def film_strip(
    videos, labels=None, *, prompt_frames: int | None = None, every=1, width=800
):
    """Clips as one picture: time from left to right, one row per clip.

    Args:
        videos: one clip (T C H W), S clips (S T C H W), or a list or a dict (name to
            clip) of clips of any size and length, values in [0, 1].
        labels: one name per row; a dict brings its own.
        prompt_frames: so many frames get the border of real ones, the others, after a
            gap, that of generated ones; rows that are named in `REAL` stay real.
        every: show every so-many-th frame.
        width: of the picture in pixels, about: frames are enlarged by whole numbers.

    Returns an `IPython.display.Image`; its bytes, a PNG, are in `.data`. TypeError or
    ValueError: bad clips, labels, prompt_frames or every.
    """
    from IPython.display import Image as Picture

    clips, longest = named(videos, labels, prompt_frames)
    columns = len(range(0, longest, check_whole(every, "every")))
    check_whole(width, "width", most=100_000)
    H, W = (max(clip.shape[axis] for _, clip in clips) for axis in (2, 3))
    scale = max(1, round((width / columns - 8) / W))
    head = 18 if any(name for name, _ in clips) else 0  # room for a name
    cell_h, cell_w = head + H * scale + 9, W * scale + 9  # borders of 3, a gap of 3
    prompt = len(range(0, prompt_frames or 0, every)) * cell_w
    gap = torch.ones(3, cell_h, 0 if prompt_frames is None else 9)
    rows = []
    for name, clip in clips:
        tiles = framed(name, clip, prompt_frames, scale, 3, every)
        T, _, h, w = tiles.shape
        room = (3, cell_w - w - 3, head + 3, cell_h - head - h - 3)
        tiles = F.pad(tiles, (*room, 0, 0, 0, columns - T), value=1)
        row = rearrange(tiles, "T C H W -> C H (T W)")
        rows.append(torch.cat([row[..., :prompt], gap, row[..., prompt:]], dim=-1))
    whole = F.pad(torch.cat(rows, dim=1), (0, 3, 0, 3), value=1)
    picture = Image.fromarray(to_bytes(whole[None])[0])
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    for i, (name, _) in enumerate(clips):
        draw.text((3, 3 + i * cell_h), name, fill=(60, 60, 60), font=font)
    names = ", ".join(name for name, _ in clips if name) or "one clip"
    alt = f"Film strip of {longest} frames: {names}"
    return Picture(data=png(picture), format="png", alt=alt)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
