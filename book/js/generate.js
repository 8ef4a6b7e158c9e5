// Chapter 08's generator: choose a clip, or throw a digit; a small model goes on with it, in a worker.
import { button, choice, element, fromHash, number, sane, toHash } from "./elements.js";
import { imagine } from "./futures.js";
import { advice, download, json, progressText } from "./load.js";
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
    place.replaceChildren(
      this.clips,
      this.stagePlace,
      element("div", { className: "stt-choices" }, ...Object.values(fields).map(([, label]) => label), seedLabel, another),
      element("div", { className: "stt-choices" }, this.go, this.status, this.link),
      this.view,
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

  async generate() {
    const mine = ++this.run, running = () => mine === this.run;
    this.busy = true;
    this.go.textContent = "Cancel";
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
      const began = performance.now(), total = chosen.futures * chosen.frames;
      let made = 0;
      for await (const { future, frame } of imagine(model, { ...chosen, prompt, run: `run${mine}` }, running, (text) => running() && this.say(text))) {
        if (!running()) return;
        this.player.panels[1 + future].frames.push(frame);
        this.player.grown();
        this.say(`${++made} of ${total} frames`);
      }
      if (!running()) return;
      this.cancel(`${made} frames in ${((performance.now() - began) / 1000).toFixed(1)} s`);
      this.place.dataset.done = mine;
    } catch (error) {
      if (running()) this.cancel(error.message);
    }
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
    this.player ??= new Player(this.view, { shape: this.about.shape });
    const samples = Array.from({ length: futures }, (_, s) => ({ label: `future ${s + 1}`, frames: [...prompt] }));
    this.player.set({ panels: [{ label: "truth", known: true, frames: truth }, ...samples], prompt: prompt.length, length });
    if (calm()) this.player.stop();
    else this.player.play();
  }

  share(state) {
    this.link.hidden = state.clip === OWN; // a drawing is in no link
    this.link.href = toHash("generate", state);
  }
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".stt-generate").forEach((place) => new Generator(place)));
