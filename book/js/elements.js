// Small parts of a page: elements, choices with names, and a state that the address keeps.

export function element(tag, properties = {}, ...children) {
  const { aria = {}, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(name === "role" ? name : `aria-${name}`, value);
  made.append(...children);
  return made;
}

export const button = (textContent, click, properties = {}) => {
  const made = element("button", { type: "button", textContent, ...properties });
  made.addEventListener("click", click);
  return made;
};

/** A select in its label: [select, label]. Options are texts or [value, text]. */
export function choice(label, options, chosen, changed = () => {}) {
  const pairs = options.map((option) => [option].flat());
  const select = element("select", { aria: { label } }, ...pairs.map(([value, text = value]) => element("option", { value, textContent: text })));
  select.value = chosen;
  select.addEventListener("change", changed);
  return [select, element("label", {}, `${label} `, select)];
}

/** A number in its label: [input, label]. */
export function number(label, value, { min, max }, changed = () => {}) {
  const input = element("input", { type: "number", min, max, value, step: 1, aria: { label } });
  input.addEventListener("change", () => {
    input.value = Math.min(max, Math.max(min, Math.round(+input.value || 0)));
    changed();
  });
  return [input, element("label", {}, `${label} `, input)];
}

/** The part of an address behind "#key?": {clip: "4", seed: "17"}; undefined where there is none. */
export function fromHash(hash, key) {
  const start = `#${key}?`;
  return hash.startsWith(start) ? Object.fromEntries(new URLSearchParams(hash.slice(start.length))) : undefined;
}

export const toHash = (key, state) => `#${key}?${new URLSearchParams(state)}`;

/** The choices of `known` (their values are the defaults) that a state names, as numbers within [min, max]. */
export function sane(state, known, limits) {
  return Object.fromEntries(Object.entries(known).map(([name, usual]) => {
    const value = Number(state?.[name] ?? usual), { min = -Infinity, max = Infinity } = limits[name] ?? {};
    return [name, Number.isFinite(value) && value >= min && value <= max ? value : usual];
  }));
}
