// Chapter 08's generator: the bundled tiny model, run by ONNX Runtime in the reader's browser (book/browser.py exports it).
// Nothing is loaded before the reader presses the button.
(() => {
  const base = new URL("generate/", document.currentScript.src);
  let loading; // model, runtime and clips, once for the page

  async function get(name) {
    const answer = await fetch(new URL(name, base));
    if (!answer.ok) throw new Error("This build of the book has no model for the browser: it was made without npm.");
    return answer;
  }

  async function load() {
    if (location.protocol === "file:") {
      throw new Error("A page opened from disk may not load the model. Run “make serve”, and open the address that it names.");
    }
    const shape = await (await get("model.json")).json();
    await new Promise((done, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: new URL("ort.wasm.min.js", base), onload: done, onerror: () => failed(new Error("The runtime could not be loaded.")) });
      document.head.append(script);
    });
    ort.env.wasm.wasmPaths = base.href;
    ort.env.wasm.numThreads = 1; // more would need headers that static hosts don't send
    const [prefill, step, clips] = await Promise.all(["prefill.onnx", "step.onnx", "clips.bin"].map(async (n) => (await get(n)).arrayBuffer()));
    const [reader, stepper] = [await ort.InferenceSession.create(prefill), await ort.InferenceSession.create(step)];
    return { shape, reader, stepper, clips: new Uint8Array(clips) };
  }

  // Draws from N(0, 1): a small generator with a seed (mulberry32), and the Box-Muller transform.
  function normal(seed) {
    const uniform = () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  function noise(draw, frames, shape, scale = 1) {
    const values = new Float32Array(frames * shape.reduce((a, b) => a * b)).map(() => scale * draw());
    return new ort.Tensor("float32", values, frames > 1 ? [1, frames, ...shape] : [1, ...shape]);
  }

  // One future of a prompt (Uint8Array of whole frames): yields each new frame (Float32Array) as soon as it is there.
  async function* roll({ shape, reader, stepper }, prompt, temperature, seed) {
    const draw = normal(seed);
    const frames = new ort.Tensor("float32", Float32Array.from(prompt, (v) => v / 255), [1, shape.prompt, 1, shape.size, shape.size]);
    let { latent, cache } = await reader.run({ prompt: frames, noise: noise(draw, shape.prompt, shape.noise, Math.min(temperature, 1)) });
    for (let seen = shape.prompt; ; seen++) {
      const known = { latent, cache, frames: new ort.Tensor("int64", BigInt64Array.of(BigInt(seen)), []) };
      const chance = { noise: noise(draw, 1, shape.noise), temperature: new ort.Tensor("float32", Float32Array.of(temperature), []) };
      const out = await stepper.run({ ...known, ...chance });
      [latent, cache] = [out.next, out.after];
      yield out.frame.data;
    }
  }

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function choice(label, options, chosen) {
    const select = element("select", {}, ...options.map((o) => element("option", { textContent: o, selected: o === chosen })));
    select.setAttribute("aria-label", label);
    return [select, element("label", {}, `${label} `, select)];
  }

  function setUp(place) {
    const [clip, clipLabel] = choice("clip", [1, 2, 3, 4, 5, 6, 7, 8], 4);
    const [futures, futuresLabel] = choice("futures", [1, 2, 3, 4], 3);
    const [temperature, temperatureLabel] = choice("temperature", [0, 0.5, 1, 1.5, 2], 1);
    const [frames, framesLabel] = choice("new frames", [5, 15, 30, 100], 15);
    const button = element("button", { type: "button", textContent: "Generate", className: "stt-go" });
    const status = element("span", { className: "stt-status" });
    status.setAttribute("role", "status");
    const panels = element("div", { className: "stt-panels" });
    const play = element("button", { type: "button", textContent: "Play" });
    const slider = element("input", { type: "range", min: 0, value: 0 });
    slider.setAttribute("aria-label", "frame");
    const count = element("span", { className: "stt-count" });
    const player = element("div", { className: "stt-player", hidden: true }, play, slider, count);
    place.replaceChildren(element("div", { className: "stt-choices" }, clipLabel, futuresLabel, temperatureLabel, framesLabel, button, status), panels, player);

    let videos = [], prompt = 0, timer = 0, run = 0; // videos: of each panel, its frames as Uint8Arrays
    function show(t) {
      slider.value = t;
      count.textContent = `frame ${t + 1} of ${videos[0].length}`;
      videos.forEach((video, i) => {
        const canvas = panels.children[i].querySelector("canvas"), frame = video[Math.min(t, video.length - 1)];
        if (!frame) return;
        const picture = new ImageData(canvas.width, canvas.height);
        frame.forEach((v, p) => picture.data.set([v, v, v, 255], 4 * p));
        canvas.getContext("2d").putImageData(picture, 0, 0);
        canvas.classList.toggle("stt-generated", i > 0 && t >= prompt);
        canvas.classList.toggle("stt-over", t >= video.length); // the truth is known for a while only
      });
    }
    function stop() {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    }
    slider.addEventListener("input", () => (stop(), show(+slider.value)));
    play.addEventListener("click", () => {
      if (timer) return stop();
      play.textContent = "Pause";
      timer = setInterval(() => show((+slider.value + 1) % (+slider.max + 1)), 150);
    });

    button.addEventListener("click", async () => {
      const mine = ++run;
      stop();
      try {
        if (!loading) status.textContent = "Loading the model (24 MB, once) …";
        const world = await (loading ??= load());
        const { shape, clips } = world, area = shape.size ** 2, [S, T, A] = [+futures.value, +frames.value, +temperature.value];
        const first = clip.selectedIndex * shape.frames * area, at = (t) => first + t * area;
        const whole = Array.from({ length: shape.frames }, (_, t) => clips.subarray(at(t), at(t + 1)));
        prompt = shape.prompt;
        videos = [whole.slice(0, prompt + T), ...Array.from({ length: S }, () => whole.slice(0, prompt))];
        const panel = (_, i) => {
          const canvas = element("canvas", { width: shape.size, height: shape.size });
          return element("figure", {}, canvas, element("figcaption", { textContent: i ? `future ${i}` : "truth" }));
        };
        panels.replaceChildren(...videos.map(panel));
        player.hidden = false;
        slider.max = prompt + T - 1;
        const seed = Math.floor(2 ** 31 * Math.random()), began = performance.now();
        const rolls = Array.from({ length: S }, (_, s) => roll(world, clips.subarray(first, at(prompt)), A, seed + 7919 * s));
        for (let t = 0; t < T; t++) {
          for (const [s, future] of rolls.entries()) {
            const { value } = await future.next();
            if (mine !== run) return; // pressed again meanwhile
            videos[s + 1].push(Uint8Array.from(value, (v) => Math.round(255 * v)));
          }
          show(prompt + t);
          status.textContent = `${t + 1} of ${T} frames`;
          await new Promise((next) => setTimeout(next)); // let the page draw
        }
        const seconds = (performance.now() - began) / 1000;
        status.textContent = `${S * T} frames in ${seconds.toFixed(1)} s`;
        place.dataset.done = mine;
      } catch (error) {
        loading = undefined;
        status.textContent = error.message;
      }
    });
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".stt-generate").forEach(setUp));
})();
