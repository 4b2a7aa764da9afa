// Uses a report as a person would, and leaves what it saw in the page as JSON (test_report_page.py).
addEventListener("load", () => setTimeout(() => {
  const result = {};
  const table = document.querySelector("table.sortable");
  const rows = () => [...table.tBodies[0].rows];
  const order = () => rows().map((row) => row.cells[0].textContent.trim());
  const index = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim() === "α own batch");
  const heading = table.tHead.rows[0].cells[index].querySelector("button");
  heading.click();
  result.up = order();
  heading.click();
  result.down = order();
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  document.querySelectorAll(".chart").forEach(render);
  result.width = document.documentElement.scrollWidth;
  result.window = innerWidth;
  result.plots = document.querySelectorAll(".plot > svg").length;
  result.empty = [...document.querySelectorAll(".plot > svg")].filter((svg) => svg.getBoundingClientRect().height < 40).length;
  result.ink = getComputedStyle(document.querySelector(".plot > svg text")).fill;
  result.advice = document.querySelector("#do li").getBoundingClientRect().bottom;

  const points = [...document.querySelectorAll("#chart-first .point")];
  result.stops = points.filter((one) => one.getAttribute("tabindex") === "0").length;
  points[0].focus();
  result.tip = document.getElementById("tip").textContent;
  points[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  result.next = document.activeElement.getAttribute("aria-label");
  result.target = document.activeElement.getAttribute("href") || document.activeElement.getAttribute("xlink:href");
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  result.closed = document.getElementById("tip").hidden;

  const filter = document.getElementById("filter");
  filter.value = "CONV2D";
  filter.dispatchEvent(new Event("input"));
  result.filtered = rows().filter((row) => !row.hidden).map((row) => row.cells[0].textContent.trim()).sort();
  result.found = document.getElementById("found").textContent;
  filter.value = "";
  filter.dispatchEvent(new Event("input"));
  result.sticky = getComputedStyle(table.tHead.rows[0].cells[1]).position;

  const saved = [];
  window.download = (name, text) => saved.push([name, text]);
  document.querySelector("button[data-save=csv]").click();
  document.querySelector("button[data-save=transfer_triangle]").click();
  result.saved = saved;

  const slider = document.querySelector("input[type=range]");
  if (slider) {
    const said = () => [document.getElementById("moment0").textContent, document.querySelector(".chart[data-track]").innerHTML];
    const before = said();
    slider.value = 1;
    slider.dispatchEvent(new Event("input"));
    result.slid = [before[0], said()[0], before[1] !== said()[1]];
  }
  const finish = () => { document.body.innerHTML = "<pre id=result>" + JSON.stringify(result).replace(/</g, "&lt;") + "</pre>"; };
  if (!window.axe) return finish();
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  axe.run(document, { resultTypes: ["violations"] }).then((found) => {
    result.violations = found.violations.map((one) => [one.id, one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200) + node.failureSummary)]);
    finish();
  });
}, 300));
