// A look inside one generated frame: click a latent pixel, see where attention looked; put another codeword in its place.
import { button, choice, element } from "./elements.js";
import { codeword, most, shares, slots } from "./maps.js";
import { colours, enlargement } from "./player.js";

const [MADE, LOOKED, PICKED] = ["rgb(214, 106, 19)", [90, 169, 230], "rgb(255, 255, 255)"];
const BAR = 48; // pixels of the longest bar
const percent = (share) => `${Math.round(100 * share)} %`;

export class Inside {
  /**
   * In `place`, for the model that `about` describes. `repaint(cell, what)` is called to take another codeword for a
   * pixel of the frame that is shown: "nothing", an empty frame's, or the one that was picked up; `undo()` to take the
   * newest one back.
   */
  constructor(place, about, { repaint, undo }) {
    const [, , h, w] = about.latent, [L, N] = about.inside.spatial;
    Object.assign(this, { place, about, grid: [h, w], cell: (h >> 1) * w + (w >> 1) });
    const changed = () => this.draw();
    const numbers = (count) => Array.from({ length: count }, (_, i) => [String(i), String(i + 1)]);
    const [layer, layerLabel] = choice("layer", numbers(L), String(L - 1), changed);
    const [head, headLabel] = choice("head", [["", "all"], ...numbers(N)], "", changed);
    Object.assign(this, { layer, head });
    this.made = this.canvas("made", "the generated frame; arrows choose a pixel");
    this.looked = this.canvas("looked", "the frame before, with what the pixel looked at");
    this.captions = [element("figcaption"), element("figcaption")];
    this.past = element("div", { className: "stt-past" });
    this.words = element("p", { aria: { live: "polite" } });
    this.put = button("Put down", () => repaint(this.cell, this.held), { disabled: true });
    this.undo = button("Undo", undo, { disabled: true });
    const lift = button("Pick up", () => {
      this.held = codeword(this.insides[this.t].latent, this.about.latent, this.cell);
      this.put.disabled = false;
      this.words.textContent = `Picked up the codeword of ${this.name(this.cell)}: choose another pixel, or another frame, and put it down.`;
    });
    const erase = button("Erase", () => repaint(this.cell, "nothing"));
    this.pictures = element("div", { className: "stt-panels" }, ...[this.made, this.looked].map((canvas, i) => element("figure", {}, canvas, this.captions[i])));
    place.replaceChildren(
      element("summary", { textContent: "Look inside a generated frame, and repaint it" }),
      element("p", { textContent: "Click a pixel of the latent grid: blue is where the transformer looked as it predicted this pixel. Then change its codeword: everything after it is generated anew." }),
      this.pictures,
      element("div", { className: "stt-choices" }, layerLabel, headLabel),
      this.past,
      this.words,
      element("div", { className: "stt-choices" }, lift, this.put, erase, this.undo),
    );
    place.addEventListener("toggle", changed);
    new ResizeObserver(changed).observe(place);
  }

  canvas(name, label) {
    const made = element("canvas", { className: `stt-${name}`, tabIndex: 0, aria: { role: "application", label } });
    made.addEventListener("click", (event) => this.choose(this.cellAt(event)));
    made.addEventListener("keydown", (event) => this.key(event));
    return made;
  }

  /** The latent pixel at a pointer's place on a canvas. */
  cellAt({ target, clientX, clientY }) {
    const box = target.getBoundingClientRect(), [h, w] = this.grid;
    const [left, top] = [box.left + target.clientLeft, box.top + target.clientTop];
    const at = (v, size, n) => Math.max(0, Math.min(n - 1, Math.floor((v / size) * n)));
    return at(clientY - top, target.clientHeight, h) * w + at(clientX - left, target.clientWidth, w);
  }

  key(event) {
    const [h, w] = this.grid, row = Math.floor(this.cell / w), column = this.cell % w;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in moves)) return;
    const [down, right] = moves[event.key], within = (v, n) => Math.max(0, Math.min(n - 1, v));
    this.choose(within(row + down, h) * w + within(column + right, w));
    event.preventDefault();
  }

  choose(cell) {
    this.cell = cell;
    this.draw();
  }

  /** A frame to look into: number `t` of `frames`, of which `insides[t]` is told; undefined where it was given. */
  show({ frames, insides, t, label, painted }) {
    Object.assign(this, { frames, insides, t, label, painted });
    this.undo.disabled = !painted.length;
    this.draw();
  }

  name(cell) {
    return `row ${Math.floor(cell / this.grid[1]) + 1}, column ${(cell % this.grid[1]) + 1}`;
  }

  draw() {
    if (!this.place.open || !this.frames?.length) return;
    const { t, frames, cell } = this, inside = this.insides[t];
    const [, , size] = this.about.shape, { clientWidth } = this.place, columns = clientWidth < 480 ? 1 : 2; // for fingers
    const times = enlargement(clientWidth, size, columns);
    this.pictures.style.gridTemplateColumns = `repeat(${columns}, max-content)`;
    const named = [this.layer, this.head].map((select) => (select.value === "" ? undefined : +select.value));
    const look = (name) => inside && shares(inside[name], this.about.inside[name], ...named, cell);
    const [space, time] = [look("spatial"), look("temporal")];
    for (const [canvas, frame] of [[this.made, frames[t]], [this.looked, frames[t - 1]]]) this.paint(canvas, frame, times);
    if (space) this.cover(space);
    const here = this.painted.filter((one) => one.t === t).map((one) => one.cell);
    for (const canvas of [this.made, this.looked]) this.frame(canvas, cell, PICKED, 0);
    for (const one of here) this.frame(this.made, one, MADE, 4);
    this.made.classList.toggle("stt-generated", Boolean(inside));
    this.captions[0].textContent = `${this.label}, frame ${t + 1}`;
    this.captions[1].textContent = t ? `frame ${t}, looked at` : "nothing before it";
    for (const part of this.place.querySelectorAll("button")) if (part !== this.undo) part.disabled = !inside || (part === this.put && !this.held);
    this.timeline(time);
    this.words.textContent = inside ? this.sentence(space, time) : "This frame was given: choose a generated one, with the slider above.";
  }

  paint(canvas, frame, times) {
    const [, , size] = this.about.shape, small = new OffscreenCanvas(size, size);
    Object.assign(canvas, { width: times * size, height: times * size });
    const pen = canvas.getContext("2d");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    if (!frame) return;
    small.getContext("2d").putImageData(new ImageData(colours(frame, this.about.shape), size, size), 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    pen.fillStyle = "rgba(127, 127, 127, 0.35)";
    const [h, w] = this.grid;
    for (let i = 1; i < h; i++) pen.fillRect(0, (i * canvas.height) / h, canvas.width, 1);
    for (let j = 1; j < w; j++) pen.fillRect((j * canvas.width) / w, 0, 1, canvas.height);
  }

  box(canvas, cell) {
    const [h, w] = this.grid, [high, wide] = [canvas.height / h, canvas.width / w];
    return [(cell % w) * wide, Math.floor(cell / w) * high, wide, high];
  }

  cover(space) {
    const pen = this.looked.getContext("2d"), top = space[most(space)];
    space.forEach((share, i) => {
      pen.fillStyle = `rgba(${LOOKED}, ${(0.85 * share) / top})`;
      pen.fillRect(...this.box(this.looked, i));
    });
  }

  frame(canvas, cell, colour, within) {
    const pen = canvas.getContext("2d"), [x, y, wide, high] = this.box(canvas, cell);
    for (const [stroke, lineWidth] of [["black", 4], [colour, 2]]) {
      Object.assign(pen, { strokeStyle: stroke, lineWidth });
      pen.strokeRect(x + 1 + within, y + 1 + within, wide - 1 - 2 * within, high - 1 - 2 * within);
    }
  }

  /** What the pixel looked at in its own past: a bar over each frame that the cache holds. */
  timeline(time) {
    const [, height, width] = this.about.shape, held = time ? slots(time.length, this.t) : [];
    const columns = held.map((frame, i) => {
      if (frame === undefined) return null;
      const bar = element("span", { title: percent(time[i]) });
      bar.style.height = `${Math.round((BAR * time[i]) / time[most(time)])}px`;
      const canvas = element("canvas", { width, height });
      if (frame >= 0) canvas.getContext("2d").putImageData(new ImageData(colours(this.frames[frame], this.about.shape), width, height), 0, 0);
      return element("figure", {}, bar, canvas, element("figcaption", { textContent: frame < 0 ? "start" : String(frame + 1) }));
    });
    this.past.replaceChildren(...columns.filter(Boolean));
  }

  sentence(space, time) {
    const held = slots(time.length, this.t), [to, at] = [most(space), most(time)];
    const where = to === this.cell ? "itself" : this.name(to), when = held[at] < 0 ? "the start token" : `frame ${held[at] + 1}`;
    return `The pixel in ${this.name(this.cell)} looked most at ${where} (${percent(space[to])}) in space, and at ${when} (${percent(time[at])}) in time.`;
  }
}
