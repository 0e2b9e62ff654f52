(function () {
  "use strict";
  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }
  function axis(given) {
    return Object.assign({}, given, {
      gridcolor: color("--grid"), linecolor: color("--line"), zerolinecolor: color("--grid"), automargin: true,
    });
  }
  function styled(layout) {
    var ink = color("--ink");
    return Object.assign({}, layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: ink }, align: "left" },
      margin: { l: 60, r: 20, t: 48, b: 64 }, autosize: true,
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
    });
  }
  var figures = Array.from(document.querySelectorAll(".plot")).map(function (element) {
    return { element: element, json: JSON.parse(element.querySelector("script").textContent) };
  });
  function draw() {
    figures.forEach(function (one) {
      Plotly.react(one.element, one.json.data, styled(one.json.layout), { responsive: true, displayModeBar: false });
    });
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
