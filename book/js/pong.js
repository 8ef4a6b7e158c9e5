// Chapter 17: Pong with keys. A game that was played before is there at once; pressing Play loads the model, which
// then makes every frame, in a worker.
import { button, choice, element } from "./elements.js";
import { gif } from "./gif.js";
import { actionOf, Held } from "./keys.js";
import { advice, progressText } from "./load.js";
import { Model } from "./model.js";
import { calm, colours, enlargement } from "./player.js";

const HOME = new URL(document.currentScript.src);
const BUNDLE = "pong";
const SHAPE = [3, 80, 80], [, H, W] = SHAPE;
const COLUMNS = 12, STARTS = 6; // of the sheet that book/browser.py draws
const RATE = 15; // frames a second, as the real game's
const PAUSED = "Paused. Press Play to go on.";
const KEPT = 20 * RATE; // frames for a clip

class Pong {
  constructor(place) {
    Object.assign(this, { place, held: new Held(), start: 0, turn: 0, kept: [] });
    this.screen = element("canvas", { width: W, height: H, className: "stt-generated", aria: { role: "img", label: "Pong, made by the model" } });
    this.say = (text) => (this.status.textContent = text);
    this.status = element("p", { className: "stt-status", aria: { role: "status" } });
    this.speed = element("p", { className: "stt-status stt-speed" });
    this.bar = element("progress", { hidden: true, aria: { label: "bytes of the model" } });
    this.go = button("Play", () => (this.playing ? this.pause() : this.play()), { className: "stt-go" });
    this.step = button("One frame", () => this.alone(), { disabled: true });
    this.again = button("Restart", () => this.restart(this.start), { disabled: true });
    this.save = button("Save as GIF", () => this.download(), { disabled: true });
    const [temperature, temperatureLabel] = choice("temperature", ["0", "0.5", "1"], "0");
    const [rate, rateLabel] = choice("frames a second", ["5", "15", "30", "60"], String(RATE));
    Object.assign(this, { temperature: () => +temperature.value, rate: () => +rate.value });
    this.starts = element("div", { className: "stt-starts", aria: { role: "group", label: "begin with" } });
    const pads = element("div", { className: "stt-pads" }, this.pad("▲", "up", 1), this.pad("▼", "down", 2));
    const choices = (...parts) => element("div", { className: "stt-choices" }, ...parts);
    place.replaceChildren(
      element("div", { className: "stt-court" }, this.screen, pads),
      element("div", {}, choices(this.go, this.step, this.again, this.save), choices(temperatureLabel, rateLabel), this.bar, this.status, this.speed, this.starts),
    );
    place.addEventListener("keydown", (event) => this.key(event));
    place.addEventListener("keyup", (event) => this.held.release(event.key.toLowerCase()));
    place.addEventListener("focusout", ({ relatedTarget }) => place.contains(relatedTarget) || this.held.clear());
    document.addEventListener("visibilitychange", () => document.hidden && this.pause());
    new IntersectionObserver(([{ isIntersecting }]) => isIntersecting || this.pause()).observe(place);
    new ResizeObserver(() => this.fit()).observe(place);
    this.canned();
  }

  /** A game that a player of twelve lines played in this model, from a sheet; no page from disk may read it, but it may show it. */
  async canned() {
    const sheet = new Image();
    sheet.src = new URL(`../../generate/${BUNDLE}/game.png`, HOME);
    const draw = (canvas, i) => canvas.getContext("2d").drawImage(sheet, W * (i % COLUMNS), H * Math.floor(i / COLUMNS), W, H, 0, 0, W, H);
    try {
      await sheet.decode();
    } catch {
      return this.say(advice(location.protocol, 404));
    }
    for (let i = 0; i < STARTS; i++) {
      const picture = element("canvas", { width: W, height: H });
      draw(picture, i);
      this.starts.append(button("", () => this.restart(i), { aria: { label: `situation ${i + 1}` } }));
      this.starts.lastChild.append(picture);
    }
    const frames = (COLUMNS * sheet.height) / H - STARTS;
    this.say("Played before by a program, in the model. Press Play to load the model and play yourself.");
    const began = performance.now();
    const next = () => {
      if (this.model) return;
      draw(this.screen, STARTS + (calm() ? 0 : Math.floor(((performance.now() - began) / 1000) * RATE) % frames));
      this.place.dataset.ready = "";
      if (!calm()) requestAnimationFrame(next);
    };
    next();
  }

  pad(text, label, action) {
    const made = button(text, ({ detail }) => detail || (this.held.press(label, action), this.held.release(label)), { aria: { label } }); // detail 0: by a keyboard
    made.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the focus stays where it is
      made.setPointerCapture(event.pointerId);
      this.held.press(event.pointerId, action);
    });
    for (const name of ["pointerup", "pointercancel"]) made.addEventListener(name, ({ pointerId }) => this.held.release(pointerId));
    return made;
  }

  key(event) {
    if (!this.model || /^(INPUT|SELECT)$/.test(event.target.tagName)) return; // these have keys of their own
    const action = actionOf(event);
    if (action) this.held.press(event.key.toLowerCase(), action);
    else if (event.key === " " && event.target === this.screen) this.playing ? this.pause() : this.play();
    else return;
    event.preventDefault();
  }

  fit() {
    const { clientWidth } = this.screen.parentElement;
    this.screen.style.width = `${W * enlargement(clientWidth - 60, W, 1, 0, 4)}px`;
  }

  show(frame, made) {
    this.screen.classList.toggle("stt-generated", made);
    this.screen.getContext("2d").putImageData(new ImageData(colours(frame, SHAPE), W, H), 0, 0);
    this.kept = [...this.kept.slice(1 - KEPT), frame];
    this.save.disabled = false;
  }

  async load() {
    this.say("Loading the model …");
    this.go.disabled = true;
    this.bar.hidden = false;
    try {
      this.model = await Model.load(BUNDLE, HOME, (loaded, total) => {
        Object.assign(this.bar, { max: total, value: loaded });
        this.say(progressText(loaded, total));
      });
    } finally {
      this.bar.hidden = true;
      this.go.disabled = false;
    }
    this.place.dataset.loaded = "";
    this.screen.tabIndex = 0;
    this.screen.setAttribute("role", "application");
    this.screen.setAttribute("aria-label", "Pong, made by the model: arrow up and down, or W and S, move the green paddle; space pauses");
    for (const part of [this.step, this.again]) part.disabled = false;
  }

  /** Do what needs the model; what goes wrong is said, and Play tries again. */
  async attempt(work) {
    const mine = ++this.turn, running = () => mine === this.turn;
    try {
      await (this.loading ??= this.load());
      if (!this.begun && running()) await this.begin(running);
      if (running()) await work(running);
      else if (!this.playing) this.say(PAUSED);
    } catch (error) {
      this.pause();
      this.loading = this.model = this.begun = undefined;
      this.say(error.message);
    }
  }

  /** Show the model the real frames of a situation, and their keys. */
  async begin(running) {
    const { model, start } = this, { frames, actions } = model.about.clips;
    const area = 3 * H * W, at = (t) => (start * frames + t) * area;
    for (const [i, choice] of [...this.starts.children].entries()) choice.setAttribute("aria-pressed", i === start);
    await model.begin("game", Math.floor(2 ** 31 * Math.random())); // when this is answered, the last game is over
    Object.assign(this, { kept: [], made: 0 });
    this.place.dataset.made = 0;
    for (let t = 0; t < frames && running(); t++) {
      const frame = model.clips.subarray(at(t), at(t) + area);
      await model.read("game", frame, { action: actions[start][t] }, this.temperature());
      this.show(frame, false);
    }
    this.begun = running();
  }

  async frame() {
    this.show(await this.model.step("game", { action: this.held.take() }, this.temperature()), true);
    this.place.dataset.made = ++this.made;
  }

  play() {
    this.playing = true;
    this.go.textContent = "Pause";
    this.focus();
    return this.attempt(async (running) => {
      this.focus();
      this.say("Every frame is made by the model, here. Arrow keys, or W and S, move the green paddle.");
      const shown = [];
      let due = performance.now();
      while (running()) {
        const began = performance.now();
        await this.frame();
        const now = performance.now();
        shown.push({ now, took: now - began });
        while (shown[0].now < now - 2000) shown.shift();
        this.tell(shown);
        due = Math.max(due + 1000 / this.rate(), now - 100);
        await new Promise((done) => setTimeout(done, due - performance.now()));
      }
    });
  }

  focus() {
    this.screen.focus({ preventScroll: true });
  }

  tell(shown) {
    const seconds = (shown.at(-1).now - shown[0].now) / 1000;
    if (seconds < 1) return;
    const took = shown.reduce((sum, frame) => sum + frame.took, 0) / shown.length;
    this.speed.textContent = `${((shown.length - 1) / seconds).toFixed(0)} frames a second; one takes ${took.toFixed(0)} ms`;
  }

  pause() {
    if (this.playing) {
      this.turn += 1;
      this.say(PAUSED);
    }
    this.playing = false;
    this.go.textContent = "Play";
  }

  alone() {
    this.pause();
    return this.attempt(() => this.frame());
  }

  restart(start) {
    this.pause();
    Object.assign(this, { start, begun: false });
    return this.play();
  }

  download() {
    const link = element("a", { href: URL.createObjectURL(gif(this.kept, SHAPE)), download: "pong.gif" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".stt-pong").forEach((place) => new Pong(place)));
