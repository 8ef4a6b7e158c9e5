// Attention weights in bytes, and what a reader wants to know of them.

/** Weights in [0, 1] as bytes, their roots, so that small ones keep some digits. */
export function squeeze(weights) {
  const bytes = new Uint8Array(weights.length); // a loop: ten times as fast as Uint8Array.from
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.round(255 * Math.sqrt(weights[i]));
  return bytes;
}

/**
 * What `layer` and `head` (undefined: the mean of all) of squeezed maps, of shape [L, N, pixels, targets], make of one
 * pixel: a share for each target, 1 in all.
 */
export function shares(maps, [, N, n, targets], layer, head, pixel) {
  const sum = new Float64Array(targets);
  for (let k = 0; k < N; k++) {
    if (k !== (head ?? k)) continue;
    const start = ((layer * N + k) * n + pixel) * targets;
    for (let i = 0; i < targets; i++) sum[i] += (maps[start + i] / 255) ** 2;
  }
  const all = sum.reduce((a, b) => a + b);
  return sum.map((share) => share / all);
}

/** The codeword (D values) at a pixel of latents, of shape [1, D, h, w]. */
export const codeword = (latents, [, D, h, w], pixel) => Float32Array.from({ length: D }, (_, d) => latents[d * h * w + pixel]);

/** The place of the largest share. */
export const most = (parts) => parts.reduce((best, share, i) => (share > parts[best] ? i : best), 0);

/**
 * What the slots of a cache hold while frame t is predicted, oldest first: frames by number, -1 for the start token,
 * undefined where a slot is empty. The start token stays when frames have to go.
 */
export function slots(W, t) {
  return Array.from({ length: W }, (_, i) => {
    const frame = t - W + i;
    if (i === 0 && t >= W) return -1;
    return frame >= -1 ? frame : undefined;
  });
}
