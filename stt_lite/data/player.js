// A player: sliders choose what canvases show. What it shows lies in its own box, so it needs no Python, no network
// and no other script: notebooks, Colab, Kaggle, exported HTML and the book's pages all run this one. Built in appendix 93.
(() => {
  const border = 6; // of a canvas, both sides
  const gap = 6; // between canvases

  function element(parent, name, properties) {
    return parent.appendChild(Object.assign(document.createElement(name), properties));
  }

  // How n panels of size (width, height) stand in a room: enlarged by a whole number, in rows of about equal length.
  function arrange(n, width, height, wanted, room, tallest) {
    for (let scale = wanted; ; scale--) {
      const fit = Math.max(1, Math.floor((room + gap) / (width * scale + border + gap)));
      const rows = Math.ceil(n / fit);
      const fits = width * scale + border <= room && rows * (height * scale + border + 40) <= tallest;
      if (fits || scale <= 1) return { scale: Math.max(1, scale), columns: Math.ceil(n / rows) };
    }
  }

  function build(box) {
    const { axes, start, pages, sheets, prompt, wanted, fps } = JSON.parse(box.dataset.player);
    const images = sheets.map((sheet) => Object.assign(new Image(), { src: sheet.src }));
    const controls = element(box, "div", { className: "stt-controls" });
    const sliders = axes.map(({ name, values }, i) => {
      const label = element(controls, "label", { textContent: name });
      const input = element(label, "input", { type: "range", min: 0, max: values.length - 1, value: start[i] ?? 0 });
      const shown = element(label, "output", {});
      input.oninput = () => { if (i == axes.length - 1) pause(); show(); };
      return { input, shown, values };
    });
    const last = sliders[sliders.length - 1];
    const frames = element(box, "div", { className: "stt-frames" });
    const panels = pages[0].map(() => {
      const figure = element(frames, "figure", {});
      const canvas = element(figure, "canvas", {});
      canvas.setAttribute("role", "img");
      return { figure, canvas, caption: element(figure, "figcaption", {}) };
    });

    function show() {
      const choices = sliders.map(({ input }) => Number(input.value));
      const time = choices.pop();
      const page = choices.reduce((sum, value, i) => sum * axes[i].values.length + value, 0);
      for (const { input, shown, values } of sliders) {
        shown.textContent = values[input.value];
        input.setAttribute("aria-valuetext", values[input.value]);
      }
      pages[page].forEach(({ name, sheet, tiles, after }, i) => {
        const { canvas, caption } = panels[i];
        const { width, height, columns } = sheets[sheet];
        const t = Math.min(time, tiles.length - 1); // a shorter clip rests on its last frame
        const kind = prompt === null ? "" : t < prompt ? "prompt" : after;
        if (canvas.width != width || canvas.height != height) Object.assign(canvas, { width, height });
        const left = (tiles[t] % columns) * width;
        const top = Math.floor(tiles[t] / columns) * height;
        canvas.getContext("2d").drawImage(images[sheet], left, top, width, height, 0, 0, width, height);
        canvas.className = `stt-${kind || "plain"}`;
        canvas.setAttribute("aria-label", `${[name, kind].filter(Boolean).join(" · ") || "clip"}, ${t + 1}`);
        caption.innerText = [name, kind].filter(Boolean).join("\n");
      });
    }

    function layout() {
      const sizes = pages[0].map(({ sheet }) => sheets[sheet]);
      const width = Math.max(...sizes.map((size) => size.width));
      const height = Math.max(...sizes.map((size) => size.height));
      const room = frames.parentElement.clientWidth;
      const { scale, columns } = arrange(panels.length, width, height, wanted, room, 0.7 * screen.height);
      frames.style.gridTemplateColumns = `repeat(${columns}, minmax(0, max-content))`;
      panels.forEach(({ figure }, i) => (figure.style.width = `${sizes[i].width * scale + border}px`));
    }

    let timer = null;
    const button = (text, onclick) => element(controls, "button", { type: "button", textContent: text, onclick });
    const play = button("Play", () => (timer ? pause() : run()));
    button("Stop", () => { pause(); last.input.value = 0; show(); });
    const repeat = button("Repeat", () => repeating(repeat.ariaPressed != "true"));
    const repeating = (on) => (repeat.ariaPressed = String(on));
    repeating(!matchMedia("(prefers-reduced-motion: reduce)").matches);

    function pause() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }

    function run() {
      const ended = () => last.input.value == last.input.max;
      if (ended()) last.input.value = 0;
      show();
      play.textContent = "Pause";
      timer = setInterval(() => {
        if (!box.isConnected || (ended() && repeat.ariaPressed != "true")) return pause();
        last.input.value = ended() ? 0 : Number(last.input.value) + 1;
        show();
      }, 1000 / fps);
    }

    if (last.values.length == 1) controls.querySelectorAll("button").forEach((one) => one.remove());
    for (const { input, values } of sliders) input.parentElement.hidden = values.length == 1;
    box.onkeydown = (event) => event.stopPropagation(); // arrows move the slider, not the notebook
    box.classList.add("stt-ready"); // hides the film strip
    layout();
    show();
    new ResizeObserver(layout).observe(box);
    Promise.all(images.map((image) => image.decode())).then(() => { show(); box.dataset.shown = ""; });
  }

  if (typeof module == "object") module.exports = { arrange }; // for its test
  else document.querySelectorAll(".stt-player:not(.stt-ready)").forEach(build);
})();
