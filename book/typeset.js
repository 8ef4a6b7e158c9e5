// Typeset the formulas of the built pages with MathJax, once, at build time: a reader's browser then needs its
// fonts only. Called by book/pages.py: node typeset.js FOLDER-OF-PAGES, with mathjax in NODE_PATH.
const fs = require("fs");
const path = require("path");

const folder = process.argv[2];
const FORMULA = /(<(span|div) class="[\w ]*math notranslate nohighlight"[^>]*>)([\s\S]*?)(<\/\2>)/g;
const ENTITIES = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&#39;": "'", "&amp;": "&" };
const plain = (text) => text.replace(/&(?:lt|gt|quot|#x27|#39|amp);/g, (entity) => ENTITIES[entity]);

function pagesIn(folder) {
  return fs.readdirSync(folder, { recursive: true }).filter((name) => name.endsWith(".html"));
}

async function main() {
  const MathJax = await require("mathjax").init({
    loader: { versionWarnings: false, load: ["input/tex", "output/chtml", "adaptors/liteDOM", "a11y/assistive-mml"] },
    chtml: { fontURL: "MATHJAX-FONTS" },
    startup: { typeset: false },
  });
  const adaptor = MathJax.startup.adaptor;
  const typeset = (tex, display) => adaptor.outerHTML(MathJax.tex2chtml(plain(tex).trim(), { display }));

  for (const name of pagesIn(folder)) {
    const file = path.join(folder, name);
    const html = fs.readFileSync(file, "utf8");
    if (html.includes("<mjx-container")) continue; // typeset by an earlier build
    const done = html.replace(FORMULA, (all, open, tag, inner, close) => {
      if (tag === "span") return open + inner.replace(/\\\(([\s\S]*)\\\)/, (_, tex) => typeset(tex, false)) + close;
      if (!inner.includes("\\[")) return open + typeset(inner, true) + close;
      return open + inner.replace(/\\\[([\s\S]*)\\\]/, (_, tex) => typeset(tex, true)) + close;
    });
    if (done === html) continue;
    const fonts = path.posix.join(path.relative(path.dirname(file), folder), "_static/vendor/mathjax");
    const css = adaptor.textContent(MathJax.chtmlStylesheet()).replaceAll("MATHJAX-FONTS", fonts);
    fs.writeFileSync(file, done.replace("</head>", () => `<style>${css}</style>\n</head>`));
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
