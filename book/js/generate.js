// Chapter 08's generator: choose a clip, or throw a digit; a small model goes on with it, in a worker.
import { button, choice, element, fromHash, number, sane, toHash } from "./elements.js";
import { imagine } from "./futures.js";
import { Inside } from "./inside.js";
import { advice, download, json, progressText } from "./load.js";
import { codeword } from "./maps.js";
import { Model } from "./model.js";
import { calm, colours, Player } from "./player.js";
import { Stage } from "./throw.js";

const HOME = new URL(document.currentScript.src);
const BUNDLE = "moving-mnist-tiny";
const FOLDER = new URL(`../../generate/${BUNDLE}/`, HOME);
const OWN = 0; // the choice of clips: a digit thrown by hand; 1, 2, … are held-out clips
const USUAL = { clip: 4, prompt: 15, frames: 15, futures: 3, temperature: 1, seed: 0 };
const SEEDS = { min: 0, max: 2 ** 31 - 1 };
const LIMITS = { clip: { min: 1, max: 8 }, prompt: { min: 1, max: 15 }, frames: { min: 1, max: 100 }, futures: { min: 1, max: 4 }, temperature: { min: 0, max: 2 }, seed: SEEDS };

class Generator {
  constructor(place) {
    this.place = place;
    this.run = 0;
    const changed = () => this.changed();
    this.state = sane(fromHash(location.hash, "generate"), USUAL, LIMITS);
    const pick = (label, name, options) => {
      const [select, named] = choice(label, options.map(String), String(this.state[name]), changed);
      return [() => +select.value, named];
    };
    const fields = {
      prompt: pick("prompt", "prompt", [1, 2, 3, 5, 10, 15]),
      frames: pick("new frames", "frames", [5, 15, 30, 100]),
      futures: pick("futures", "futures", [1, 2, 3, 4]),
      temperature: pick("temperature", "temperature", [0, 0.5, 1, 1.5, 2]),
    };
    const [seed, seedLabel] = number("seed", this.state.seed, SEEDS, changed);
    this.values = { ...Object.fromEntries(Object.entries(fields).map(([name, [value]]) => [name, value])), seed: () => +seed.value };
    const another = button("Another seed", () => {
      seed.value = Math.floor(2 ** 31 * Math.random());
      this.generate();
    });
    this.clips = element("div", { className: "stt-clips", aria: { role: "radiogroup", label: "clip" } });
    this.stagePlace = element("div", { hidden: true });
    this.go = button("Generate", () => (this.busy ? this.cancel() : this.generate()), { className: "stt-go" });
    this.status = element("span", { className: "stt-status", aria: { role: "status" } });
    this.link = element("a", { textContent: "Link to this", href: "#", hidden: true });
    this.view = element("div", { hidden: true });
    this.inside = element("details", { className: "stt-inside", hidden: true });
    place.replaceChildren(
      this.clips,
      this.stagePlace,
      element("div", { className: "stt-choices" }, ...Object.values(fields).map(([, label]) => label), seedLabel, another),
      element("div", { className: "stt-choices" }, this.go, this.status, this.link),
      this.view,
      this.inside,
    );
    if (fromHash(location.hash, "generate")) {
      this.say("This link's choices are set: press Generate.");
      place.scrollIntoView();
    }
    this.previews();
  }

  say(text) {
    this.status.textContent = text;
  }

  /** Clips to choose from, a few kilobytes; on a page from disk there are none, and the button says why. */
  async previews() {
    if (location.protocol === "file:") return;
    try {
      this.about = await json(new URL("model.json", FOLDER));
      const { files, shape, clips } = this.about, [, size] = shape, area = size * size;
      const { name, bytes } = files.clips;
      const pixels = new Uint8Array((await download([{ url: new URL(name, FOLDER), bytes }]))[0]);
      this.real = Array.from({ length: clips.count }, (_, i) => Array.from({ length: clips.frames }, (_, t) => pixels.subarray((i * clips.frames + t) * area, (i * clips.frames + t + 1) * area)));
      this.clips.replaceChildren(...this.real.map((clip, i) => this.preview(i + 1, clip, size)), this.radio(OWN, "your own"));
    } catch (error) {
      this.say(error.message);
    }
  }

  radio(value, ...content) {
    const input = element("input", { type: "radio", name: "stt-clip", value, checked: value === this.state.clip });
    input.setAttribute("aria-label", value === OWN ? "your own digit" : `clip ${value}`);
    input.addEventListener("change", async () => {
      this.state.clip = value;
      this.stagePlace.hidden = value !== OWN;
      if (value === OWN) this.stage ??= await Stage.build(this.stagePlace, { count: this.about.digits, size: this.about.shape[1], changed: () => this.changed() });
      this.changed();
    });
    return element("label", {}, input, ...content);
  }

  /** The path of a clip's digit over its prompt: the brightest that each pixel gets. */
  preview(number, clip, size) {
    const canvas = element("canvas", { width: size, height: size });
    const trace = clip.slice(0, 15).reduce((most, frame, t) => most.map((v, i) => Math.max(v, (frame[i] * (t + 5)) / 19)), new Uint8Array(size * size));
    canvas.getContext("2d").putImageData(new ImageData(colours(trace, [1, size, size]), size, size), 0, 0);
    return this.radio(number, canvas);
  }

  /** Whoever has generated once sees what a new choice makes, without pressing again. */
  changed() {
    if (this.model || this.busy) this.generate();
  }

  cancel(text = "stopped") {
    this.run += 1;
    this.busy = false;
    this.go.textContent = "Generate";
    this.say(text);
  }

  /** Something is asked of the worker, in place of what was; its number. */
  begin() {
    this.busy = true;
    this.go.textContent = "Cancel";
    return ++this.run;
  }

  async generate() {
    const mine = this.begin(), running = () => mine === this.run;
    try {
      const model = await this.load();
      if (!running()) return;
      const chosen = Object.fromEntries(Object.entries(this.values).map(([name, value]) => [name, value()]));
      const given = this.about.clips.prompt, length = chosen.prompt + chosen.frames;
      // The prompt's newest frame is the same for all lengths: frame 15
      const whole = this.state.clip === OWN ? this.stage.clip(given + chosen.frames) : this.real[this.state.clip - 1];
      const truth = whole.slice(given - chosen.prompt, given + chosen.frames), prompt = truth.slice(0, chosen.prompt);
      this.show(truth, prompt, length, chosen.futures);
      this.share({ clip: this.state.clip, ...chosen });
      this.asked = { ...chosen, prompt };
      await this.make(mine, model, this.asked, chosen.futures * chosen.frames);
    } catch (error) {
      if (running()) this.cancel(error.message);
    }
  }

  /** Let the worker generate what is `asked`, frame by frame, into the player. */
  async make(mine, model, asked, total) {
    const running = () => mine === this.run, began = performance.now(), given = asked.prompt.length;
    let made = 0;
    for await (const { future, t, frame, inside } of imagine(model, { ...asked, run: `run${mine}` }, running, (text) => running() && this.say(text))) {
      if (!running()) return;
      const panel = this.player.panels[1 + future];
      panel.frames[given + t] = frame;
      panel.insides[given + t] = inside;
      this.player.grown();
      this.say(`${++made} of ${total} frames`);
    }
    if (!running()) return;
    this.cancel(`${made} frames in ${((performance.now() - began) / 1000).toFixed(1)} s`);
    this.place.dataset.done = mine;
  }

  /** Generate the future that is looked into once more, with what is painted into it. */
  async repainted() {
    const mine = this.begin(), panel = this.player.panels[this.looked], given = this.asked.prompt.length;
    this.link.hidden = true; // no link knows of paint
    this.player.stop();
    panel.label = panel.label.replace(", repainted", "") + (panel.paint.length ? ", repainted" : "");
    const paint = panel.paint.map(({ t, cell, code }) => ({ t: t - given, cell, code }));
    try {
      await this.make(mine, this.model, { ...this.asked, only: this.looked - 1, paint }, this.asked.frames);
    } catch (error) {
      if (mine === this.run) this.cancel(error.message);
    }
  }

  /** Put another codeword at a pixel of the frame that is shown; "nothing" is that of an empty frame. */
  async repaint(cell, code) {
    const { t, panels, length } = this.player, panel = panels[this.looked];
    if (panels.some(({ frames }) => frames.length < length)) return this.say("Repaint when all frames are there.");
    if (code === "nothing") {
      const [C, H, W] = this.about.shape;
      code = codeword(await this.model.codewords(new Uint8Array(C * H * W)), this.about.latent, cell);
    }
    panel.paint.push({ t, cell, code });
    return this.repainted();
  }

  unpaint() {
    this.player.panels[this.looked].paint.pop();
    return this.repainted();
  }

  /** Look into panel `i`, at frame `t`. */
  look(i, t) {
    const { label, frames, insides, paint } = this.player.panels[i];
    this.looked = i;
    this.within.show({ label, frames, insides, painted: paint, t: Math.min(t, frames.length - 1) });
  }

  load() {
    if (location.protocol === "file:") throw new Error(advice("file:"));
    this.say("Loading the model …");
    this.loading ??= Model.load(BUNDLE, HOME, (loaded, total) => this.busy && this.say(progressText(loaded, total))).then(
      (model) => (this.model = model),
      (error) => {
        this.loading = undefined;
        throw error;
      },
    );
    return this.loading;
  }

  show(truth, prompt, length, futures) {
    this.view.hidden = false;
    this.within ??= new Inside(this.inside, this.about, { repaint: (...paint) => this.repaint(...paint), undo: () => this.unpaint() });
    this.player ??= new Player(this.view, { shape: this.about.shape, shown: (t) => this.look(Math.min(this.looked, this.player.panels.length - 1), t) });
    const samples = Array.from({ length: futures }, (_, s) => ({ label: `future ${s + 1}`, frames: [...prompt], insides: [], paint: [] }));
    this.looked = 1;
    this.inside.hidden = false;
    this.player.set({ panels: [{ label: "truth", known: true, frames: truth }, ...samples], prompt: prompt.length, length });
    this.player.canvases.slice(1).forEach((canvas, s) => canvas.addEventListener("click", (event) => this.pick(1 + s, event)));
    if (calm()) this.player.stop();
    else this.player.play();
  }

  /** A pixel of a future was clicked: look into it. */
  pick(i, event) {
    this.player.stop();
    this.inside.open = true;
    this.look(i, this.player.t);
    this.within.choose(this.within.cellAt(event));
  }

  share(state) {
    this.link.hidden = state.clip === OWN; // a drawing is in no link
    this.link.href = toHash("generate", state);
  }
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".stt-generate").forEach((place) => new Generator(place)));
