// Put Font Awesome's icons inside their <i> instead of replacing it: ipywidgets' Play looks for that <i>.
window.FontAwesomeConfig = { autoReplaceSvg: "nest" };
