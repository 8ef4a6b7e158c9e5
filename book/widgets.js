// The widgets of a published page: rebuilds them from the state that the notebook stored, with no kernel.
// html-manager's own bundle does the same in 3.6 MB (it brings React, all of JupyterLab's renderers and
// ipywidgets 7); this one holds ipywidgets 8's base and controls only. book/vendor.py bundles it with esbuild.
import * as base from "@jupyter-widgets/base";
import { ManagerBase } from "@jupyter-widgets/base-manager";
import * as controls from "@jupyter-widgets/controls";
import { Widget } from "@lumino/widgets";
import "@lumino/widgets/style/index.css";
import "@jupyter-widgets/controls/css/widgets-base.css";
import "@jupyter-widgets/controls/css/labvariables.css";

const style = document.createElement("link"); // the stylesheet that esbuild writes beside this script
style.rel = "stylesheet";
style.href = new URL("widgets.css", document.currentScript.src);
document.head.prepend(style);

const modules = { "@jupyter-widgets/base": base, "@jupyter-widgets/controls": controls };

class PageManager extends ManagerBase {
  async loadClass(className, moduleName) {
    const found = modules[moduleName]?.[className];
    if (!found) throw new Error(`This page has no widget ${className} from ${moduleName}.`);
    return found;
  }
  async _get_comm_info() {
    return {};
  }
  async _create_comm() {
    const nothing = () => {};
    return { on_close: nothing, on_msg: nothing, close: nothing };
  }
}

async function renderPage() {
  const states = document.querySelectorAll('script[type="application/vnd.jupyter.widget-state+json"]');
  for (const state of states) {
    const manager = new PageManager();
    const models = await manager.set_state(JSON.parse(state.innerHTML));
    for (const script of document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]')) {
      const { model_id } = JSON.parse(script.innerHTML);
      const model = models.find((candidate) => candidate.model_id === model_id);
      if (!model) continue;
      const place = document.createElement("div");
      place.className = "widget-subarea";
      script.parentElement.insertBefore(place, script);
      const view = await manager.create_view(model);
      Widget.attach(view.luminoWidget, place);
    }
  }
}

window.addEventListener("load", renderPage);
