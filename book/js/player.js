// A player of clips side by side, on canvases. It plays, stops, steps and drags; keys: space, arrows, Home, End.
// Pixels are enlarged by whole numbers. Nothing moves by itself for readers who asked for less motion.
import { button, element } from "./elements.js";

const MILLISECONDS = 150; // a frame
const HOLD = 6; // frames that the last one stays while it plays
const GHOST = [214, 106, 19]; // the truth over a picture, in the colour of what is generated

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** The largest whole enlargement of a picture that fits `columns` times into `width` CSS pixels, 1 at least. */
export function enlargement(width, size, columns, gap = 8, most = 8) {
  const each = (width - gap * (columns - 1)) / columns - 6; // 6: two borders
  return Math.max(1, Math.min(most, Math.floor(each / size)));
}

/** RGBA of a frame (C·H·W bytes, C 1 or 3), where given with another as a ghost over it. */
export function colours(frame, [C, H, W], ghost) {
  const picture = new Uint8ClampedArray(4 * H * W);
  for (let i = 0; i < H * W; i++) {
    const share = ghost ? (0.6 * ghost[i]) / 255 : 0;
    for (let c = 0; c < 3; c++) {
      const value = frame[(C === 3 ? c : 0) * H * W + i];
      picture[4 * i + c] = share ? (1 - share) * value + share * GHOST[c] : value;
    }
    picture[4 * i + 3] = 255;
  }
  return picture;
}

/** What a place says of frame t: known panels hold the truth, others a prompt and then what is generated. */
export function caption({ label, known }, t, prompt, length) {
  if (t >= length) return known ? `${label} (ends)` : `${label} …`;
  return known || t >= prompt ? label : `${label} · prompt`;
}

export class Player {
  /**
   * In `place`, with frames of `shape` (C H W). `panels`: [{label, known, frames, ghost}], `known` for true frames;
   * `frames` may grow: call `grown()`. `length` is how long the player will be; `prompt` frames are given. `shown(t)` is
   * called with each frame that is shown, `ended()` when playing is past the last one: it begins again.
   */
  constructor(place, { shape, shown = () => {}, ended = () => this.show(0) }) {
    Object.assign(this, { place, shape, shown, ended, panels: [], prompt: 0, length: 0, t: 0, timer: 0 });
    this.pictures = element("div", { className: "stt-panels" });
    this.playButton = button("Play", () => (this.timer ? this.stop() : this.play()), { className: "stt-play" });
    const step = (text, label, by) => button(text, () => (this.stop(), this.show(this.t + by)), { className: "stt-step", aria: { label } });
    this.slider = element("input", { type: "range", min: 0, max: 0, value: 0, aria: { label: "frame" } });
    this.slider.addEventListener("input", () => (this.stop(), this.show(+this.slider.value)));
    this.count = element("span", { className: "stt-count" });
    this.bar = element("div", { className: "stt-bar" }, this.playButton, step("‹", "one frame back", -1), step("›", "one frame on", 1), this.slider, this.count);
    place.classList.add("stt-viewer");
    this.pictures.tabIndex = 0;
    this.pictures.setAttribute("role", "group");
    this.pictures.setAttribute("aria-label", "clips; keys: space plays, arrows step");
    place.replaceChildren(this.pictures, this.bar);
    place.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.fit()).observe(place);
    document.addEventListener("visibilitychange", () => document.hidden && this.stop());
  }

  set({ panels, prompt, length, at = 0 }) {
    Object.assign(this, { panels, prompt, length });
    const [, height, width] = this.shape;
    this.canvases = panels.map(({ label }) => element("canvas", { width, height, aria: { role: "img", label } }));
    this.captions = panels.map(() => element("figcaption"));
    this.pictures.replaceChildren(...panels.map((_, i) => element("figure", {}, this.canvases[i], this.captions[i])));
    this.fit();
    this.show(at);
  }

  /** Frames came in. */
  grown() {
    this.show(this.t);
  }

  /** Frames that can be shown: as many as the longest generated panel has. */
  ready() {
    const made = this.panels.filter((panel) => !panel.known);
    return Math.min(this.length, Math.max(1, ...(made.length ? made : this.panels).map((panel) => panel.frames.length)));
  }

  fit() {
    const { clientWidth } = this.place, n = this.panels.length, [, , width] = this.shape;
    if (!n || !clientWidth) return;
    const rows = Array.from({ length: n }, (_, i) => Math.ceil(n / (i + 1))); // columns for 1, 2, … rows
    const columns = rows.find((c) => enlargement(clientWidth, width, c) * width >= 96) ?? 1;
    this.scale = enlargement(clientWidth, width, columns, 8, Math.max(2, Math.floor(256 / width)));
    this.pictures.style.gridTemplateColumns = `repeat(${columns}, max-content)`;
    for (const canvas of this.canvases) canvas.style.width = `${this.scale * width}px`;
    for (const text of this.captions) text.style.maxWidth = `${this.scale * width + 6}px`;
  }

  show(t) {
    const ready = this.ready();
    this.t = Math.max(0, Math.min(t, ready - 1));
    this.slider.max = ready - 1;
    this.slider.value = this.t;
    const made = this.t >= this.prompt;
    this.count.textContent = `frame ${this.t + 1} of ${this.length}`;
    this.slider.setAttribute("aria-valuetext", `${this.count.textContent}, ${made ? "generated" : "prompt"}`);
    this.panels.forEach((panel, i) => {
      const { frames, known, ghost } = panel, canvas = this.canvases[i];
      const frame = frames[Math.min(this.t, frames.length - 1)];
      const over = this.t >= frames.length;
      this.captions[i].textContent = caption(panel, this.t, this.prompt, frames.length);
      canvas.classList.toggle("stt-generated", !known && made);
      canvas.classList.toggle("stt-over", over);
      if (!frame) return;
      const picture = new ImageData(colours(frame, this.shape, ghost?.[this.t]), canvas.width, canvas.height);
      canvas.getContext("2d").putImageData(picture, 0, 0);
    });
    this.shown(this.t);
  }

  play(milliseconds = MILLISECONDS) {
    this.stop();
    this.playButton.textContent = "Pause";
    if (this.t >= this.length - 1) this.show(0);
    let held = 0;
    this.timer = setInterval(() => {
      const next = this.t + 1;
      if (next < this.ready()) this.show(next);
      else if (next >= this.length && ++held % HOLD === 0) this.ended();
    }, milliseconds);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    this.playButton.textContent = "Play";
  }

  key(event) {
    const { key, target, altKey, ctrlKey, metaKey } = event;
    if (altKey || ctrlKey || metaKey || /^(INPUT|SELECT|TEXTAREA|BUTTON)$/.test(target.tagName)) return; // they have keys of their own
    const moves = { ArrowLeft: this.t - 1, ArrowRight: this.t + 1, Home: 0, End: this.length - 1 };
    if (key === " ") this.timer ? this.stop() : this.play();
    else if (key in moves) (this.stop(), this.show(moves[key]));
    else return;
    event.preventDefault();
  }
}
