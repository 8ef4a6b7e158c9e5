// Draws with a seed, by a small generator (mulberry32): from N(0, 1) (Box-Muller transform), and Gumbel noise.

export function uniform(seed) {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function normal(seed) {
  const draw = uniform(seed);
  return () => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw());
}

/** The largest of scores / temperature + this noise is a draw from their softmax, as in the package's draw_tokens. */
export function gumbel(seed) {
  const draw = uniform(seed);
  return () => -Math.log(-Math.log(draw() + 2 ** -33)); // never 0, never 1
}
