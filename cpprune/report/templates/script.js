"use strict";
// Tables sort by a click on a head: numbers by value, the rest as text.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const numbers = table.tBodies[0].rows[0]?.cells[column].dataset.value !== undefined;
      const first = numbers && column > 0 ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [one, two] = [a.cells[column], b.cells[column]];
        const [x, y] = [one.dataset.value, two.dataset.value];
        if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
        return sign * one.textContent.trim().localeCompare(two.textContent.trim());
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// Tooltips: what a <title> says, at once and where the pointer or the finger is.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
function show(event) {
  const mark = event.target.closest?.("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const width = document.documentElement.clientWidth;
  const left = Math.min(event.clientX + 12, width - tip.offsetWidth - 8);
  const above = event.clientY - tip.offsetHeight - 12;
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${above > 8 ? above : event.clientY + 20}px`;
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
