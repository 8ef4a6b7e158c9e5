// A stage on which a reader chooses or draws digits and gives each a push.
import sheet from "./digits.png";
import { uniform } from "./chance.js";
import { bounce, dab, render, SIDE } from "./digits.js";
import { button, choice, element, number } from "./elements.js";
import { tiles } from "./pictures.js";
import { colours } from "./player.js";

const NAMES = ["first", "second", "third"];
const SHOWN = 256; // pixels on the screen, as in stt.css
const COLOURS = ["#e8833a", "#5aa9e6", "#7bc47f"];

export class Stage {
  /** In `place`, with `count` digits on frames of `size` pixels; `changed` is called after each change. */
  static async build(place, { count, size, changed = () => {} }) {
    const stage = new Stage();
    stage.bank = await tiles(sheet, SIDE, SIDE); // two of each digit
    Object.assign(stage, { count, size, changed });
    stage.digits = [3, 8, 5].slice(0, count).map((kind, k) => ({ kind: String(kind), angle: [40, 200, 120][k], place: [[0.1, 0.05], [0.9, 0.9], [0.5, 0.5]][k] }));
    stage.layOut(place);
    stage.draw();
    return stage;
  }

  layOut(place) {
    const { size } = this;
    this.times = Math.floor(SHOWN / size);
    this.canvas = element("canvas", { width: this.times * size, height: this.times * size, className: "stt-stage", aria: { role: "img", label: "the first frame; drag from a digit to push it" } });
    this.canvas.addEventListener("pointerdown", (event) => this.aim(event));
    const rows = this.digits.map((digit, k) => this.row(digit, k));
    const places = button("Other places", () => this.move());
    place.replaceChildren(
      element("div", { className: "stt-throw" }, element("div", {}, this.canvas), element("div", { className: "stt-digits" }, ...rows, places)),
    );
  }

  row(digit, k) {
    const options = [...Array.from("0123456789"), ["own", "draw …"]];
    const pad = element("canvas", { width: SIDE, height: SIDE, className: "stt-pad", aria: { role: "img", label: `pad for the ${NAMES[k]} digit` } });
    const clear = button("Clear", () => (digit.own.fill(0), this.paint(pad, digit.own), this.moved()));
    const own = element("div", { hidden: true, className: "stt-own" }, pad, clear);
    digit.own = new Uint8Array(SIDE * SIDE);
    pad.addEventListener("pointerdown", (event) => this.pen(event, pad, digit));
    const [kind, kindLabel] = choice(`${NAMES[k]} digit`, options, digit.kind, () => {
      digit.kind = kind.value;
      own.hidden = digit.kind !== "own";
      this.paint(pad, digit.own);
      this.moved();
    });
    const [angle, angleLabel] = number("push", digit.angle, { min: -360, max: 360 }, () => {
      digit.angle = +angle.value;
      this.moved();
    });
    angleLabel.append(" °");
    angle.setAttribute("aria-label", `push of the ${NAMES[k]} digit, in degrees`);
    Object.assign(digit, { input: angle, select: kind, pane: own });
    kindLabel.style.borderColor = COLOURS[k];
    return element("div", { className: "stt-digit" }, kindLabel, angleLabel, own);
  }

  moved() {
    this.draw();
    this.changed();
  }

  move(seed = Math.floor(2 ** 31 * Math.random())) {
    const draw = uniform(seed);
    for (const digit of this.digits) digit.place = [draw(), draw()];
    this.moved();
  }

  pictures() {
    return this.digits.map(({ kind, own }, k) => (kind === "own" ? own : this.bank[2 * kind + (k % 2)]));
  }

  /** Frames of the throw: what really happens. */
  clip(frames) {
    const path = bounce(this.digits.map((d) => d.place), this.digits.map((d) => d.angle), frames);
    return render(this.pictures(), path, this.size);
  }

  centre({ place: [row, column] }) {
    const side = (this.size * SIDE) / 64, reach = this.size - side;
    return [column * reach + side / 2, row * reach + side / 2]; // x, y
  }

  draw() {
    const [context, { size, times }] = [this.canvas.getContext("2d"), this];
    const small = new OffscreenCanvas(size, size);
    small.getContext("2d").putImageData(new ImageData(colours(this.clip(1)[0], [1, size, size]), size, size), 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, times * size, times * size);
    this.digits.forEach((digit, k) => {
      const [x, y] = this.centre(digit).map((v) => times * v), angle = (digit.angle * Math.PI) / 180;
      const long = SHOWN / 4, [toX, toY] = [x + long * Math.cos(angle), y + long * Math.sin(angle)];
      context.strokeStyle = context.fillStyle = COLOURS[k];
      context.lineWidth = 4;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(toX, toY);
      context.stroke();
      context.beginPath();
      for (const turn of [0, 2.5, -2.5]) context.lineTo(toX + 14 * Math.cos(angle + turn), toY + 14 * Math.sin(angle + turn));
      context.fill();
    });
  }

  aim(event) {
    const at = ({ clientX, clientY }) => {
      const box = this.canvas.getBoundingClientRect();
      return [((clientX - box.left) / box.width) * this.size, ((clientY - box.top) / box.height) * this.size];
    };
    const [x, y] = at(event), far = (digit) => Math.hypot(this.centre(digit)[0] - x, this.centre(digit)[1] - y);
    const digit = this.digits.reduce((best, one) => (far(one) < far(best) ? one : best));
    follow(event, (moved) => {
      const [[cx, cy], [px, py]] = [this.centre(digit), at(moved)];
      if (Math.hypot(px - cx, py - cy) < 2) return;
      digit.angle = Math.round((Math.atan2(py - cy, px - cx) * 180) / Math.PI);
      digit.input.value = digit.angle;
      this.draw();
    }, () => this.changed());
  }

  pen(event, pad, digit) {
    const mark = ({ clientX, clientY }) => {
      const box = pad.getBoundingClientRect();
      dab(digit.own, ((clientX - box.left) / box.width) * SIDE, ((clientY - box.top) / box.height) * SIDE);
      this.paint(pad, digit.own);
      this.draw();
    };
    mark(event);
    follow(event, mark, () => this.changed());
  }

  paint(pad, picture) {
    pad.getContext("2d").putImageData(new ImageData(colours(picture, [1, SIDE, SIDE]), SIDE, SIDE), 0, 0);
  }
}

/** Call `moved` for every move of a pressed pointer, and `done` when it is let go. */
function follow(event, moved, done) {
  const { target, pointerId } = event;
  event.preventDefault();
  target.setPointerCapture(pointerId);
  const end = () => {
    target.removeEventListener("pointermove", moved);
    for (const name of ["pointerup", "pointercancel"]) target.removeEventListener(name, end);
    done();
  };
  target.addEventListener("pointermove", moved);
  for (const name of ["pointerup", "pointercancel"]) target.addEventListener(name, end);
}
