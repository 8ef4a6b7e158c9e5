"""Break the package on purpose and see whether the tests notice: `python tests/mutations.py [word ...]`.

Each row of MUTATIONS changes one piece of text in one module, in a temporary copy of the package and the tests, and
runs the named fast tests there. They must fail. Words on the command line pick the rows that hold one of them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPATIAL, TEMPORAL = "spatial_attention", "temporal_attention"
GAUSSIAN, TRANSFORMER = "gaussian_parameterization", "transformer"
TRAINING, GENERATION, EVALUATION = "training", "generation", "evaluation"
VQGAN, GAMES, OWN_VIDEO = "vqgan", "game_worlds", "your_own_video"

MUTATIONS = [  # what breaks; module; text; replacement; tests of that module to run (pytest -k)
    ("forget the scale", SPATIAL, "q @ k.mT / math.sqrt(q.shape[-1])", "q @ k.mT", "the_formula"),
    ("look one element ahead", SPATIAL, "device=q.device).tril()", "device=q.device).tril(1)", "masks"),
    ("transpose the wrong axis", SPATIAL, '"(B T) (h w) E -> B T h w E"', '"(B T) (w h) E -> B T h w E"', "weights or rows or positions"),
    ("mix frames in space", SPATIAL, '"B T h w E -> (B T) (h w) E"', '"B T h w E -> (T B) (h w) E"', "no_frame"),
    ("forget the norm of the queries", SPATIAL, "return self.norm_q(q), ", "return q, ", "qk_norm"),
    ("give every row the same position", SPATIAL, "self.rows[:, None]", "self.rows[:1, None]", "rows or positions"),
    ("drop the causal mask", TEMPORAL, "causal=True, rotate=lambda", "causal=False, rotate=lambda", "future"),
    ("mix pixels in time", TEMPORAL, 'y = rearrange(y, "(B h w) T E -> B T h w E"', 'y = rearrange(y, "(B w h) T E -> B T h w E"', "no_pixel"),
    ("window one frame too wide", TEMPORAL, "t[:, None] - t < self.window", "t[:, None] - t <= self.window", "window_is_exact"),
    ("drop the padding mask", TEMPORAL, "x = x if real is None else torch.where(real, x, 0)", "pass", "padded"),
    ("rotate all keys as the first", TEMPORAL, "now = cache.frames + torch", "now = torch", "cached_equals"),
    ("see the cache's empty slots", TEMPORAL, "(slot >= len(slot) - self.frames)", "(slot >= 0)", "cached_equals or lets"),
    ("see later frames of the prompt", TEMPORAL, "(slot <= now) &", "(slot >= 0) &", "together or lets"),
    ("keep the wrong end of the cache", TEMPORAL, "self.keys[:, :, T:], keys", "self.keys[:, :, : W - T], keys", "together"),
    ("wrong sign in the KL", GAUSSIAN, "difference.exp() - difference - 1", "difference.exp() + difference - 1", "kl_equals"),
    ("variance for deviation", GAUSSIAN, "torch.exp(0.5 * log_variance) * noise", "torch.exp(log_variance) * noise", "mean_and_the_var"),
    ("prior and posterior swapped in the KL", GAUSSIAN, "kl_gaussians(*posterior, *(p[:, :known] for p in prior))", "kl_gaussians(*(p[:, :known] for p in prior), *posterior)", "posterior"),
    ("a bottleneck that starts off the stream", GAUSSIAN, "zeros_(self.normal.convolution.bias[:width])", "ones_(self.normal.convolution.bias[:width])", "bottleneck_starts"),
    ("clip the log-variance hard", GAUSSIAN, "bound * torch.tanh(x / bound)", "x.clamp(-bound, bound)", "soft_bound"),
    ("draw from the prior in training", GAUSSIAN, "sample(*posterior, noise", "sample(*(p[:, :known] for p in prior), noise", "posterior"),
    ("a posterior where no frame is seen", GAUSSIAN, "prior[0][:, known:]", "prior[1][:, known:]", "no_frame_is_seen"),
    ("charge for the allowance", GAUSSIAN, "F.relu(kl - nats)", "kl.clamp(min=nats)", "free_bits"),
    ("leak the frame to predict", TRANSFORMER, "torch.cat([start, frames[:, :-1]], dim=1)", "frames", "own_frame"),
    ("posterior in evaluation", TRANSFORMER, "self.training if posterior is None", "True if posterior is None", "own_frame"),
    ("fresh noise for a start token", TRANSFORMER, "self.start.to(frames.dtype)", "torch.randn_like(self.start)", "start_token"),
    ("normalized input as residual", TRANSFORMER, "x = x + self.dropout(self.spatial(x))", "x = self.spatial.norm(x) + self.dropout(self.spatial(x))", "without_branches"),
    ("reuse the noise for every frame", TRANSFORMER, "for _ in range(frames)]", "for _ in range(1)] * frames", "once_per_frame"),
    ("reuse the noise in every layer", TRANSFORMER, "noise[:, :, i], seen", "noise[:, :, 0], seen", "own_noise"),
    ("KL counts padded frames", TRANSFORMER, "kl if real is None else torch.where(real[..., None], kl, 0)", "kl", "padded and 0.0"),
    ("loss counts padded frames", TRANSFORMER, "return error if lengths is None else", "return error if True else", "padded and 0.0"),
    ("no stop-gradient at the input", TRANSFORMER, "latents = latents.detach()", "latents = latents", "tokenizer"),
    ("no stop-gradient at the target", TRANSFORMER, "prediction.float() - target.detach()", "prediction.float() - target", "tokenizer"),
    ("the cache forgets to move on", TRANSFORMER, "after.append(known)", "after.append(cache[i])", "cached and latent"),
    ("dropout in evaluation", TRANSFORMER, "self.dropout = nn.Dropout(dropout)", "self.dropout = lambda x: nn.functional.dropout(x, dropout)", "drops_in_training"),
    ("noise on the fine grid", TRANSFORMER, "*config.stream_grid, channels)", "*config.grid, channels)", "patches_generates"),
    ("count the fine grid's pixels", TRANSFORMER, "math.prod(config.stream_grid)", "math.prod(config.grid)", "counts_of"),
    ("write long sequences out", SPATIAL, "and k.shape[2] <= SHORT", "and k.shape[2] > 0", "half_precision"),
    ("go on from decayed weights", TRAINING, "progress = load_checkpoint(stable, config, **parts)", "pass", "longer_run"),
    ("keep the stable checkpoint a step late", TRAINING, "done >= 1 - config.decay_share and", "done > 1.05 - config.decay_share and", "longer_run"),
    ("forget how many clips there were", TRAINING, "progress.clips += len(clips)", "progress.clips += 1", "another_batch"),
    ("train the tokenizer on under a transformer", TRAINING, 'begun = (config.out / "transformer.checkpoint").exists()', "begun = False", "tokens_stay"),
    ("step against the average", TRAINING, "p.sub_(change, alpha=rate)", "p.add_(change, alpha=rate)", "muon"),
    ("no Nesterov", TRAINING, 'p.grad.lerp(self.state[p]["average"], group["momentum"])', 'self.state[p]["average"]', "muon"),
    ("wake the tokenizer", TRAINING, "self.tokenizer.eval()  # frozen", "self.tokenizer.train()  # frozen", "frozen"),
    ("corrupt what is clean", TRAINING, "(chance < rate", "(chance > rate", "corrupt"),
    ("roll out from the truth", TRAINING, "prediction, cache = net.step(frames[-1], cache", "prediction, cache = net.step(latents[:, t - 1], cache", "roll_out"),
    ("one seed for all steps", TRAINING, 'f"{seed} {step}"', 'f"{seed}"', "follows_from_seed"),
    ("forget the average", TRAINING, '"average": average, "scaler"', '"average": None, "scaler"', "stopped_halfway"),
    ("new channels start with chance", TRAINING, "            new.zero_()\n", "            pass\n", "grown"),
    ("forget that norms see more channels", TRAINING, "value = value * math.sqrt(E / config.width)", "pass", "grown"),
    ("old heads read new channels", TRAINING, "new[:, :E, E:] = 0", "pass", "grown"),
    ("forget the optimizer", TRAINING, '"optimizer": optimizer, ', "", "stopped_halfway"),
    ("step on a broken gradient", TRAINING, "or not (math.isfinite(norm) or accelerator.scaler)", "", "gradient"),
    ("accept any checkpoint", TRAINING, "refuse_another(path, then, config)", "pass", "another_config"),
    ("ask for a scaler that was not there", TRAINING, 'if name == "scaler" and name not in state:', "if False:", "full_precision"),
    ("overwrite in place", TRAINING, "write_file(path, buffer.getvalue())", "path.write_bytes(buffer.getvalue())", "full_disk"),
    ("dim the target too", TRAINING, "target, indices = tokenizer.quantize(tokenizer.encode(clips.flatten(0, 1)))", "target, indices = tokenizer.quantize(tokenizer.encode(((1 - dim) * clips).flatten(0, 1)))", "fade"),
    ("blur that comes in on the other side", TRAINING, "(0, W, 0, H))", "(0, 0, 0, 0))", "blur_is_scipys"),
    ("one width for all frames", TRAINING, "* grown))", "* grown.mean(1, keepdim=True).expand_as(grown)))", "blur_grows"),
    ("blur that is there at once", TRAINING, "/ 3).clamp(0, 1)  # (B T)", "/ 3 + 9).clamp(0, 1)  # (B T)", "blur_grows"),
    ("hide every frame", TRAINING, "box = t[:, :, None, None] & ", "box = t[:, :, None, None].any(1, keepdim=True) & ", "hidden or hide"),
    ("hide in every clip", TRAINING, "(u[2, :, :1] < c.hide)", "(u[2, :, :1] < 1)", "is_hidden"),
    ("forecasts that hear the truth", TRAINING, "posterior=known", "posterior=True", "forecast"),
    ("rollouts whose z hears the truth", TRAINING, "known = prompt if forecast else True", "pass", "forecast"),
    ("roll out whole clips", TRAINING, "int(c.frames * (1 - c.rollout_length))", "0", "rollouts_replace"),
    ("show codewords at temperature 0", GENERATION, "yield prediction if mean else latent", "yield latent", "cached_equals"),
    ("hand the mean on", GENERATION, "latent, t = snap(self.tokenizer, prediction, head), t + 1", "latent, t = prediction, t + 1", "cached_equals"),
    ("read the prompt with the prior", GENERATION, "temperature, target=latents[:, t])", "temperature, target=None)", "z_of_the_prompt"),
    ("let the start token go", GENERATION, "t >= cache[0]", "False and t >= cache[0]", "start_token"),
    ("misread a prompt when hot", GENERATION, "min(temperature, 1.0)", "temperature", "posterior"),
    ("biased variance", EVALUATION, "unbiased = window**2 / (window**2 - 1)", "unbiased = 1.0", "scikit"),
    ("logarithm of the mean", EVALUATION, "-10 * (video - truth).square().mean((-3, -2, -1)).clamp(min=1e-10).log10()", "-10 * (video - truth).square().mean((-3, -2, -1)).clamp(min=1e-10).mean().log10().expand(video.shape[:-3])", "psnr"),
    ("swap two gates", EVALUATION, "take, keep, show, new =", "keep, take, show, new =", "lstm"),
    ("show the ConvLSTM what it should predict", EVALUATION, "frames[:, t] if t < prompt else", "frames[:, t] if t <= prompt else", "from_its_own"),
    ("joint attention sees the future", EVALUATION, "time[:, None] >= time", "time[:, None] >= time - 1", "cache_agrees or see_what"),
    ("joint attention takes the latest frame's time for all", EVALUATION, "slot[-T:].repeat_interleave(h * w)", "slot[-1:].expand(T * h * w)", "cache_agrees"),
    ("count the wrong draws", EVALUATION, "log_choose(i - 1, k - 1)", "log_choose(i, k)", "expected_best"),
    ("swap rows and columns", EVALUATION, "(weight.sum(-1) * rows)", "(weight.sum(-2) * rows)", "centroid"),
    ("take over the Gaussian layers too", EVALUATION, 'if ".gaussian." not in name and', "if", "take_over"),
    ("rank from the other end", EVALUATION, "(places < real)", "(places > real)", "futures_of_known"),
    ("one noise for all clips", EVALUATION, "seed=seed + i", "seed=seed", "futures_of_its_own"),
    ("show the best as the worst", EVALUATION, "errors.argsort(descending=True)", "errors.argsort()", "worst"),
    ("let the discriminator learn to be fooled", VQGAN, "{name: p.detach() for name, p in", "{name: p for name, p in", "own_player or both_players"),
    ("let the tokenizer learn to be caught", VQGAN, "torch.cat([frames, reconstruction.detach()])", "torch.cat([frames, reconstruction])", "own_player or both_players"),
    ("take photographs for fakes", VQGAN, "F.relu(1 - real).mean() + F.relu(1 + fake).mean()", "F.relu(1 + real).mean() + F.relu(1 - fake).mean()", "hinge"),
    ("move the features of photographs", VQGAN, "(a.detach() - b)", "(a - b)", "features_match"),
    ("adaptive weight upside down", VQGAN, "(wanted / (found + 1e-6))", "(found / (wanted + 1e-6))", "adaptive_weight"),
    ("no limit to the weight", VQGAN, ".clamp(0, limit).detach()", ".detach()", "adaptive_weight"),
    ("play from the first step", VQGAN, 's.adversarial > 0 and progress >= s.start', 's.adversarial > 0', "starts_late"),
    ("pull at once", VQGAN, "min(1.0, (progress - s.start) / s.warmup)", "1.0", "starts_late"),
    ("discriminator in half precision", VQGAN, "enabled=False", "enabled=True", "stays_in_float32"),
    ("let clipping see the discriminator", VQGAN, "hinge(real, fake) / 10", "hinge(real, fake)", "both_players"),
    ("moving pixels like all others", VQGAN, "1 + s.moving * moved", "1 + 0 * moved", "moving"),
    ("hold nothing out", VQGAN, "size, split, self.SPLITS[split]", 'size, split, self.SPLITS["test"]', "held_out"),
    ("count the middle of the spectrum as its top", VQGAN, "[..., 2 * bins // 3 :]", "[..., bins // 3 :]", "top_third"),
    ("borders look like edges", VQGAN, "keepdim=True)) * window", "keepdim=True))", "noise or wave"),
    ("equal filters in the wrong order", VQGAN, "p[::n].repeat_interleave(n, dim=0)", "p[: len(p) // n].repeat(n, *[1] * (p.ndim - 1))", "smooth_start"),
    ("go on with another run", VQGAN, "if kept.exists() and", "if False and", "another_run"),
    ("drop pixels instead of averaging", GAMES, "torch.arange(size + 1, dtype=torch.float64) * n / size", "(torch.arange(size + 1, dtype=torch.float64) * n / size).round()", "whole_factor or light or four_fifths"),
    ("one seed for the player", GAMES, "np.random.default_rng(seed), spread)", "np.random.default_rng(0), spread)", "by_themselves"),
    ("run away from the ball", GAMES, "int(missing > 0)", "int(missing < 0)", "paddle_follows"),
    ("play in training what is held out", GAMES, "10_000 * seed + 5_000", "10_000 * seed", "seeds_of_their_own"),
    ("train on held-out games", GAMES, 'device: torch.device | str = "cpu", split: Literal["train", "test"] = "train"', 'device: torch.device | str = "cpu", split: Literal["train", "test"] = "test"', "pieces_of_the_training"),
    ("keep games of other options", GAMES, '["options"] == options', '["options"] is not None', "played_once"),
    ("put the ball a pixel off", GAMES, "(ball + 0.5) * self.size / FIELD - 0.5", "(ball + 0.5) * self.size / FIELD + 0.5", "in_place"),
    ("take a paddle for a ball", GAMES, "score = (window - 2 * (both - window))", "score = window", "painted"),
    ("look for the ball between the bricks", GAMES, "like = like * inside[:, None]", "pass", "bricks"),
    ("count a ball wherever it is", GAMES, "<= within for x in", "<= 1000 for x in", "kept_means"),
    ("compare more than the weight", GAMES, "replace(settings, moving=weight), Path(out)", "replace(settings, moving=weight, rate=1e-3 + weight), Path(out)", "changes_the_weight"),
    ("frames as they come, whatever the clock", OWN_VIDEO, "if fps else []", "if False else []", "clock or two_rates"),
    ("frames that are not yet there", OWN_VIDEO, ":round=up", "", "which_frames"),
    ("a frame of the output's own clock", OWN_VIDEO, '"-fps_mode", "passthrough", ', "", "keeps_to_the_clock"),
    ("shrink without averaging", OWN_VIDEO, "flags=bilinear", "flags=neighbor", "stripes"),
    ("shrink images without averaging", OWN_VIDEO, "Image.BILINEAR", "Image.NEAREST", "stripes"),
    ("show what is transparent", OWN_VIDEO, ",premultiply=inplace=1", "", "transparent"),
    ("take every pixel for a square", OWN_VIDEO, "'min(iw,ih/sar)':'min(iw*sar,ih)'", "'min(iw,ih)':'min(iw,ih)'", "not_square"),
    ("keep half a file", OWN_VIDEO, "if process.wait():", "if False:", "bad_files"),
    ("go on over damage", OWN_VIDEO, '"-xerror", ', "", "bad_files"),
    ("leave no gap", OWN_VIDEO, "(name, 0, first - frames)]", "(name, 0, first)]", "gap"),
    ("split groups", OWN_VIDEO, "(group or str)(name) for", "str(name) for", "groups"),
    ("trust a changed file", OWN_VIDEO, "(path.name, stat.st_size, stat.st_mtime_ns)", "path.name", "changed"),
    ("trust other options", OWN_VIDEO, "[name, stamps, size, fps, gray]", "[name, stamps]", "changed"),
    ("leave half an array", OWN_VIDEO, "part.unlink(missing_ok=True)", "pass", "full_disk"),
    ("train on what is held out", OWN_VIDEO, 'device: torch.device | str = "cpu", split: str = "train"', 'device: torch.device | str = "cpu", split: str = "test"', "training_files"),
    ("windows out of place", OWN_VIDEO, 'window -= ends[owner].item() - segment["windows"]', "window -= 0", "windows_of_the"),
]  # fmt: skip


def run(folder: Path, module: str, tests: str) -> tuple[bool, str]:
    """Whether the tests pass in `folder`, and pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/test_{module}.py", "-k", tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    if done.returncode not in (0, 1):  # 1: tests failed; anything else (no test of that name) is a mistake in the table
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {lines[-1]}")
    return done.returncode == 0, next((line for line in reversed(lines) if line.startswith("FAILED")), lines[-1])


def main() -> None:
    words = sys.argv[1:]
    rows = [row for row in MUTATIONS if not words or any(word in " ".join(row) for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "stt_lite", folder / "stt_lite", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "book" / "results", folder / "book" / "results")
        shutil.copy(ROOT / "book" / "bundle.py", folder / "book")  # a test mixes weights with it
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        for module in dict.fromkeys(row[1] for row in rows):  # the tests must pass before anything is broken
            passed, line = run(folder, module, " or ".join(f"({row[4]})" for row in rows if row[1] == module))
            if not passed:
                sys.exit(f"{module}: red without any mutation. {line}")
        print(f"{'mutation':38} {'module':26} {'':8} seconds  first failing test")
        for what, module, old, new, tests in rows:
            path, start = folder / "stt_lite" / f"{module}.py", time.monotonic()
            text = path.read_text(encoding="utf-8")
            if text.count(old) != 1:
                sys.exit(f"{what}: {module}.py must hold this text once, holds it {text.count(old)} times: {old}")
            path.write_text(text.replace(old, new), encoding="utf-8")
            passed, line = run(folder, module, tests)
            path.write_text(text, encoding="utf-8")
            failed = line.removeprefix("FAILED ").split(" - ")[0].split("::")[-1]
            print(f"{what:38} {module:26} {'SURVIVED' if passed else 'caught':8} {time.monotonic() - start:7.1f}  {failed}", flush=True)
            survivors += [what] if passed else []
    if survivors:
        sys.exit(f"{len(survivors)} of {len(rows)} survived: {', '.join(survivors)}")
    print(f"All {len(rows)} caught.")


if __name__ == "__main__":
    main()
