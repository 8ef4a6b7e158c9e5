// The front page: futures that are there at once, the model that makes others, and digits that readers throw.
import sheet from "./futures.png";
import about from "./futures.json";
import { squaredError } from "./digits.js";
import { button, element, number } from "./elements.js";
import { imagine } from "./futures.js";
import { progressText } from "./load.js";
import { Model } from "./model.js";
import { tiles } from "./pictures.js";
import { calm, Player } from "./player.js";
import { Stage } from "./throw.js";

const HOME = new URL(document.currentScript.src);
const BUNDLE = "moving-mnist";
const SHAPE = [1, about.size, about.size];
const DIGITS = 2, PROMPT = 15, NEW = 15;
const SEEDS = { min: 0, max: 2 ** 31 - 1 };

let loading;
function load(say) {
  say("Loading the model …");
  loading ??= Model.load(BUNDLE, HOME, (loaded, total) => say(progressText(loaded, total)));
  return loading.catch((error) => {
    loading = undefined;
    throw error;
  });
}

/** A button that starts a run and, while it lasts, cancels it; what goes wrong is said beside it. */
class Run {
  constructor(text, work) {
    Object.assign(this, { text, work, number: 0, busy: false });
    this.button = button(text, () => (this.busy ? this.end("stopped") : this.start()), { className: "stt-go" });
    this.status = element("span", { className: "stt-status", aria: { role: "status" } });
  }

  async start() {
    const mine = ++this.number, running = () => mine === this.number;
    const say = (text) => running() && (this.status.textContent = text);
    this.busy = true;
    this.button.textContent = "Cancel";
    try {
      const model = await load(say);
      if (!running()) return;
      const began = performance.now();
      const made = await this.work(model, { running, say, run: `${this.text}${mine}` });
      if (running()) this.end(`${made} frames in ${((performance.now() - began) / 1000).toFixed(1)} s, in your browser`);
    } catch (error) {
      if (running()) this.end(error.message);
    }
  }

  end(text) {
    this.number += 1;
    this.busy = false;
    this.button.textContent = this.text;
    this.status.textContent = text;
  }
}

/** The clips of futures.png: [{truth, samples}], whole videos. */
async function canned() {
  const { size, clips, prompt, new: fresh, futures } = about, found = await tiles(sheet, size, size);
  const each = prompt + fresh + futures * fresh;
  return Array.from({ length: clips }, (_, i) => {
    const truth = found.slice(i * each, i * each + prompt + fresh), made = i * each + prompt + fresh;
    const samples = Array.from({ length: futures }, (_, s) => [...truth.slice(0, prompt), ...found.slice(made + s * fresh, made + (s + 1) * fresh)]);
    return { truth, samples };
  });
}

async function showFutures(place) {
  const { prompt, new: fresh, futures } = about, clips = await canned();
  let now = 0;
  const view = element("div");
  const panels = ({ truth, samples }) => [{ label: "truth", known: true, frames: truth }, ...samples.map((frames, s) => ({ label: `future ${s + 1}`, frames }))];
  const set = (i) => {
    now = i % clips.length;
    player.set({ panels: panels(clips[now]), prompt, length: prompt + fresh, at: calm() ? 0 : prompt - 6 });
  };
  const player = new Player(view, { shape: SHAPE, ended: () => set(now + 1) });
  const live = new Run("Make other futures here", async (model, { running, say, run }) => {
    const { truth } = clips[now], given = truth.slice(0, prompt), samples = Array.from({ length: futures }, () => [...given]);
    player.ended = () => player.show(0);
    player.set({ panels: panels({ truth, samples }), prompt, length: prompt + fresh, at: prompt - 1 });
    player.stop();
    const seed = Math.floor(2 ** 31 * Math.random());
    let made = 0;
    for await (const { future, frame } of imagine(model, { prompt: given, futures, frames: fresh, temperature: 1, seed, run }, running, say)) {
      samples[future].push(frame);
      player.show(Math.max(player.t, samples[future].length - 1));
      say(`future ${future + 1}, frame ${samples[future].length - prompt} of ${fresh}`);
      made += 1;
    }
    if (running() && !calm()) player.play();
    return made;
  });
  const next = button("Next clip", () => {
    live.end("");
    player.ended = () => set(now + 1);
    set(now + 1);
  });
  place.replaceChildren(view, element("div", { className: "stt-choices" }, live.button, next, live.status));
  set(0);
  if (!calm()) player.play();
  place.dataset.ready = "";
}

async function throwDigits(place) {
  const stagePlace = element("div"), view = element("div", { hidden: true }), errors = element("div", { className: "stt-errors" });
  let player, measured;
  const run = new Run("Throw", async (model, { running, say, run }) => {
    const truth = stage.clip(PROMPT + NEW), prompt = truth.slice(0, PROMPT), frames = [...prompt];
    const last = prompt.at(-1);
    measured = truth.map((frame) => ({ copy: squaredError(last, frame) }));
    view.hidden = false;
    player ??= new Player(view, { shape: SHAPE, shown: (t) => errors.replaceChildren(...chart(measured, t)) });
    const panels = [{ label: "truth", known: true, frames: truth }, { label: "the model, truth in orange", frames, ghost: [...Array(PROMPT), ...truth.slice(PROMPT)] }];
    player.set({ panels, prompt: PROMPT, length: PROMPT + NEW });
    if (!calm()) player.play();
    let made = 0;
    for await (const { frame } of imagine(model, { prompt, futures: 1, frames: NEW, temperature: 1, seed: +seed.value, run }, running, say)) {
      measured[frames.length].model = squaredError(frame, truth[frames.length]);
      frames.push(frame);
      player.grown();
      say(`frame ${frames.length} of ${PROMPT + NEW}`);
      made += 1;
    }
    place.dataset.done = run;
    return made;
  });
  const again = () => loading && player && run.start();
  const stage = await Stage.build(stagePlace, { count: DIGITS, size: about.size, changed: again });
  const [seed, seedLabel] = number("seed", 0, SEEDS, again);
  place.replaceChildren(stagePlace, element("div", { className: "stt-choices" }, run.button, seedLabel, run.status), view, errors);
}

/** The running error of model and of copying the last frame, up to frame t, in words and as curves. */
function chart(measured, t) {
  const most = Math.max(...measured.map(({ copy, model = 0 }) => Math.max(copy, model)), 1), [W, H] = [320, 80];
  const line = (key) => measured.slice(PROMPT, t + 1).filter((m) => m[key] !== undefined)
    .map((m, i) => `${((i + 0.5) * W) / NEW},${H - (H * m[key]) / most}`).join(" ");
  const svg = `<svg viewBox="0 -4 ${W} ${H + 8}" role="img" aria-label="error of each frame"><path d="M0 ${H}H${W}"/>` +
    `<polyline class="stt-copy" points="${line("copy")}"/><polyline class="stt-model" points="${line("model")}"/></svg>`;
  const picture = element("div", { innerHTML: svg });
  const now = measured[t], text = (v) => (v === undefined ? "…" : v.toFixed(0));
  const words = t < PROMPT ? `The model reads the first ${PROMPT} frames.` : "";
  const key = element("p", {}, words || element("span", { className: "stt-model", textContent: `squared error of the model ${text(now.model)}` }),
    words ? "" : element("span", { className: "stt-copy", textContent: `of copying the last frame ${text(now.copy)}` }));
  return [picture, key];
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".stt-front").forEach(showFutures);
  document.querySelectorAll(".stt-thrown").forEach(throwDigits);
});
