// What both pages do with a model: read a prompt once, and let futures go on from it.

/**
 * Read `prompt` (frames), then yield every new frame as {future, t, frame}, one future after the other, for a model that
 * tells it with {inside}. `running()` is asked before each frame: false ends it. The names of futures in the worker begin
 * with `run`. `only` is the one future that is wanted; `paint` are other codewords for it: [{t, cell, code}].
 */
export async function* imagine(model, { prompt, futures, frames, temperature, seed, only, paint = [], run = "run" }, running, report = () => {}) {
  const read = `${run}-prompt`, names = Array.from({ length: futures }, (_, s) => `${run}-${s}`);
  try {
    await model.begin(read, seed);
    for (const [t, frame] of prompt.entries()) {
      if (!running()) return;
      report(`reading the prompt, frame ${t + 1} of ${prompt.length}`);
      await model.read(read, frame, {}, temperature);
    }
    for (const [future, name] of names.entries()) {
      if (future !== (only ?? future)) continue;
      await model.fork(read, name, seed + 7919 * (future + 1)); // random numbers of its own
      for (let t = 0; t < frames; t++) {
        if (!running()) return;
        const frame = await model.step(name, {}, temperature, paint.filter((one) => one.t === t));
        yield { future, t, frame, inside: model.about?.inside?.spatial && (await model.inside(name)) };
      }
    }
  } finally {
    for (const name of [read, ...names]) model.forget(name).catch(() => {}); // a worker that stopped has forgotten all
  }
}
