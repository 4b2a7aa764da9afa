"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, index) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => (row.cells[index] ? row.cells[index].dataset.v : undefined);
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const [gone, lost] = [x, y].map((v) => v === undefined || v === "" || v === "nan");
        if (gone || lost) return gone - lost;
        const text = (v) => !v.endsWith("inf") && Number.isNaN(Number(v));
        const number = (v) => Number(v.replace("inf", "Infinity"));
        const order = text(x) || text(y) ? x.localeCompare(y) : number(x) - number(y);
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}
