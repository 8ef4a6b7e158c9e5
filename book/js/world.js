// A model as a page sees it: futures with names, each of which is read or imagined one frame at a time.
//
// The three graphs are those of book/graphs.py; `about` is their model.json:
//   encode: frame -> latent
//   step:   latent, target, cache, frames, noise, temperature, and what about.inputs names -> next, shown, after,
//           and what about.inside names; with a token head also gumbel, of shape about.gumbel
//   decode: latent -> frame
// Frames are Uint8Arrays of C·H·W values, as in the package. NaN in `latent` or `target` means "there is none".
// A world with actions differs in about.inputs only, such as {"action": {"type": "int64", "shape": [1]}}: read and
// step then take {action: 2}. Nothing here knows of pages, workers or downloads, so that node can test it.
import { gumbel, normal } from "./chance.js";
import { squeeze } from "./maps.js";

const chance = (seed) => ({ draw: normal(seed), score: gumbel(~seed) });
const area = (shape) => shape.reduce((a, b) => a * b, 1);

export class World {
  /** `run(graph, feeds, wanted)` gives a graph's outputs by name; `tensor(type, data, shape)` makes what it takes. */
  constructor(about, run, tensor) {
    Object.assign(this, { about, run, tensor, futures: new Map() });
    const { latent, cache, gumbel } = about;
    this.none = tensor("float32", new Float32Array(area(latent)).fill(NaN), latent);
    this.empty = tensor("float32", new Float32Array(area(cache)), cache);
    if (gumbel) this.even = tensor("float32", new Float32Array(area(gumbel)), gumbel);
  }

  /** Begin a future in which nothing has been seen. */
  begin(name, seed = 0) {
    this.futures.set(name, { latent: this.none, cache: this.empty, frames: 0, ...chance(seed) });
  }

  /** Another future, `as`, that goes on from where `name` is, with a seed of its own. */
  fork(name, as, seed) {
    this.futures.set(as, { ...this.future(name), ...chance(seed) });
  }

  forget(name) {
    this.futures.delete(name);
  }

  /** Show a future its next frame, as in a prompt. */
  async read(name, frame, inputs = {}, temperature = 1) {
    const latent = await this.encode(frame);
    // Above 1, z would misreport the prompt: as VideoModel.rollouts
    await this.advance(this.future(name), latent, inputs, Math.min(temperature, 1));
  }

  /** Let a future go on by itself; its next frame. `paint` ([{cell, code}]) takes other codewords for some pixels. */
  async step(name, inputs = {}, temperature = 1, paint = []) {
    const future = this.future(name), { next, shown } = await this.advance(future, undefined, inputs, temperature);
    future.latent = this.painted(next, paint);
    const { frame } = await this.run("decode", { latent: this.painted(shown, paint) });
    return Uint8Array.from(frame.data, (v) => Math.round(255 * v));
  }

  /** Of a future's newest frame: its codewords, and where each layer and head looked as it was predicted, squeezed. */
  inside(name) {
    const { latent, maps } = this.future(name);
    const squeezed = Object.entries(maps).map(([kind, { data }]) => [kind, squeeze(data)]);
    return { latent: latent.data, ...Object.fromEntries(squeezed) };
  }

  /** The codewords (D h w) of a frame. */
  async codewords(frame) {
    return (await this.encode(frame)).data;
  }

  async encode(frame) {
    const pixels = this.tensor("float32", Float32Array.from(frame, (v) => v / 255), [1, ...this.about.shape]);
    return (await this.run("encode", { frame: pixels })).latent;
  }

  painted(latent, paint) {
    if (!paint.length) return latent;
    const data = Float32Array.from(latent.data), [, D, h, w] = this.about.latent;
    for (const { cell, code } of paint) for (let d = 0; d < D; d++) data[d * h * w + cell] = code[d];
    return this.tensor("float32", data, this.about.latent);
  }

  future(name) {
    const found = this.futures.get(name);
    if (!found) throw new Error(`No future is called ${name}.`);
    return found;
  }

  async advance(future, target, inputs, temperature) {
    const { noise } = this.about, number = (type, value) => this.tensor(type, value, []);
    const out = await this.run("step", {
      latent: future.latent,
      target: target ?? this.none,
      cache: future.cache,
      frames: number("int64", BigInt64Array.of(BigInt(future.frames))),
      noise: this.tensor("float32", new Float32Array(area(noise)).map(future.draw), noise),
      temperature: number("float32", Float32Array.of(temperature)),
      ...(this.even && { gumbel: !target && temperature ? this.scores(future) : this.even }),
      ...this.named(inputs),
    });
    future.latent = target ?? out.next;
    future.cache = out.after;
    future.maps = Object.fromEntries(Object.keys(this.about.inside ?? {}).map((name) => [name, out[name]]));
    future.frames += 1;
    return out;
  }

  scores({ score }) {
    const { gumbel } = this.about;
    return this.tensor("float32", new Float32Array(area(gumbel)).map(score), gumbel);
  }

  named(inputs) {
    const wanted = Object.entries(this.about.inputs ?? {});
    return Object.fromEntries(wanted.map(([name, { type, shape }]) => {
      if (inputs[name] === undefined) throw new Error(`This model's step needs ${name}, got ${Object.keys(inputs).join(", ") || "nothing"}.`);
      const values = [inputs[name]].flat();
      const data = type === "int64" ? BigInt64Array.from(values, BigInt) : Float32Array.from(values);
      return [name, this.tensor(type, data, shape)];
    }));
  }
}
